"""How MLflow's runs page looks when it is opened by our link: the columns and the chart that tell bit widths apart.

By itself the page shows neither metrics nor parameters. It takes its settings from a tag of the experiment where the
link names one, as MLflow's own "share view" does.
"""

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

NAME = "ptq_exp"
TAG = f"mlflow.sharedViewState.{NAME}"
COLUMNS = (
    "metrics.`top1`", "metrics.`top1_drop`", "metrics.`bits_mean`", "params.`quant.bits`", "params.`quant.name`",
    "params.`data.used`",
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
STATE = json.dumps({"selectedColumns": COLUMNS, "compareRunCharts": [CHART], "compareRunSections": [SECTION]})


def share(client: "MlflowClient", experiment: "Experiment") -> None:
    """Leave the view with the experiment, where it is not there yet."""
    if experiment.tags.get(TAG) != STATE:
        client.set_experiment_tag(experiment.experiment_id, TAG, STATE)


def page(experiment_id: str) -> str:
    """The address of the runs page in this view, below the server's own."""
    return f"#/experiments/{experiment_id}/runs?viewStateShareKey={NAME}"
