"""The view of MLflow's runs page behind our link: the columns and the chart for comparing bit widths.

By default the page shows neither metrics nor parameters. If the link names a tag of the experiment, the page takes its
settings from that tag. MLflow's "share view" uses the same mechanism.
"""

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

NAME = "ptq_exp"
TAG = f"mlflow.sharedViewState.{NAME}"
COLUMNS = (
    "metrics.`top1`", "metrics.`top1_drop`", "metrics.`bits_mean`", "params.`quant.bits`", "params.`quant.name`",
    "params.`data.used`", "metrics.`top1_best`", "metrics.`top1_narrowest`", "metrics.`fewest_bits`",
)  # fmt: skip
SECTION = {
    "uuid": "accuracy", "name": "Accuracy against bits (step = quant.bits)", "display": True, "isReordered": False,
    "deleted": False, "isGenerated": False, "columns": 1,
}  # fmt: skip
CHART = {
    "uuid": "top1-vs-bits", "type": "LINE", "metricSectionId": SECTION["uuid"], "deleted": False,
    "isGenerated": False, "runsCountToCompare": 20, "metricKey": "top1_vs_bits", "selectedMetricKeys": ["top1_vs_bits"],
    "xAxisKey": "step", "selectedXAxisMetricKey": "", "xAxisScaleType": "linear", "scaleType": "linear",
    "lineSmoothness": 0, "useGlobalLineSmoothing": False, "useGlobalXaxisKey": False, "displayPoints": True,
    "range": {},
}  # fmt: skip
# By default, the chart draws the first ten runs of the list, which may be those of another sweep.
STATE = json.dumps({
    "selectedColumns": COLUMNS, "compareRunCharts": [CHART], "compareRunSections": [SECTION],
    "runsHiddenMode": "SHOW_ALL",
})  # fmt: skip


def share(client: "MlflowClient", experiment: "Experiment") -> None:
    """Store the view with the experiment if it is not there yet."""
    if experiment.tags.get(TAG) != STATE:
        client.set_experiment_tag(experiment.experiment_id, TAG, STATE)


def page(experiment_id: str) -> str:
    """The address of the runs page in this view, relative to the server's address."""
    return f"#/experiments/{experiment_id}/runs?viewStateShareKey={NAME}"


def curves(experiment_id: str, run_ids: list[str]) -> str:
    """The address of the page with the curves of these runs and of no other, relative to the server's address."""
    key = CHART["metricKey"]
    words: dict[str, Any] = {"runs": run_ids, "metric": key, "experiments": [experiment_id], "plot_metric_keys": [key]}
    settings: dict[str, Any] = {"plot_layout": {}, "deselected_curves": [], "last_linear_y_axis_range": []}
    shown = "&".join(f"{word}={quote(json.dumps(value))}" for word, value in (words | settings).items())
    return f"#/metric?{shown}&x_axis=step&y_axis_scale=linear&line_smoothness=1&show_point=true"
