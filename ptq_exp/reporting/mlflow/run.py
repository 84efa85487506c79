"""One run in a store: open, reopen, log, end."""

import contextlib
import json
import os
import re
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptq_exp.base.console import log
from ptq_exp.base.errors import without_password
from ptq_exp.base.paths import PROJECT_ROOT
from ptq_exp.reporting.mlflow import view
from ptq_exp.reporting.mlflow.options import TrackingOptions
from ptq_exp.reporting.mlflow.store import PROCESS_TAG, commit, default_uri, open_store, this_process, user
from ptq_exp.results.records import DatasetSummary

if TYPE_CHECKING:
    from mlflow import MlflowClient

JOB_TAG = "job"  # the tag with a job's key (`JobRecord.key`), by which resume=true finds its run
MAX_VALUE_LENGTH = 5000  # MLflow rejects params of more than 6000 characters


class Run:
    """One run in an MLflow store. If `client` is None, there is no store and every call does nothing.

    `known` holds the earlier content of a reopened run, because params cannot be changed and a metric point that is
    logged twice appears twice. A run that is not `ours` is read only.
    """

    def __init__(
        self,
        client: "MlflowClient | None",
        experiment_id: str = "",
        run_id: str = "",
        uri: str = "",
        ours: bool = True,
    ):
        self.client, self.experiment_id, self.run_id, self.uri = client, experiment_id, run_id, uri
        self.known: Any = None
        if client is not None and ours:
            _open_runs[run_id] = self

    def log(
        self,
        metrics: dict[str, float] | None = None,
        step: int = 0,
        params: dict[str, Any] | None = None,
        tags: dict[str, str] | None = None,
    ) -> None:
        """Log metrics at `step`, params and tags in one request. Values that are too long for MLflow are cut."""
        self.log_series([(step, metrics or {})], params, tags)

    def log_series(
        self,
        series: list[tuple[int, dict[str, float]]],
        params: dict[str, Any] | None = None,
        tags: dict[str, str] | None = None,
    ) -> None:
        """Log metrics of several steps, as (step, metrics) pairs, in as few requests as MLflow allows."""
        if self.client is None:
            return
        from mlflow.entities import Metric, Param, RunTag

        now, there = int(time.time() * 1000), self._points_there()
        old_params = self.known.params if self.known else {}
        points = [
            Metric(k, float(v), now, step) for step, metrics in series for k, v in metrics.items()
            if (k, step) not in there
        ]  # fmt: skip
        entries = [Param(_named(k), _loggable(v)) for k, v in (params or {}).items() if k not in old_params]
        labels = [RunTag(k, _loggable(v)) for k, v in (tags or {}).items()]
        self.client.log_batch(self.run_id, points[:800], entries[:100], labels)
        for start_ in range(800, len(points), 800):
            self.client.log_batch(self.run_id, points[start_ : start_ + 800])
        for start_ in range(100, len(entries), 100):
            self.client.log_batch(self.run_id, params=entries[start_ : start_ + 100])

    def _points_there(self) -> set[tuple[str, int]]:
        if self.known is None or self.client is None:
            return set()
        return {
            (key, point.step)
            for key in self.known.metrics
            for point in self.client.get_metric_history(self.run_id, key)
        }

    def log_folder(self, folder: Path) -> None:
        """Log every file below `folder` as an artifact."""
        if self.client is not None:
            self.client.log_artifacts(self.run_id, str(folder))

    def log_file(self, path: Path) -> None:
        """Log one file as an artifact if it exists."""
        if self.client is not None and path.is_file():
            self.client.log_artifact(self.run_id, str(path))

    def log_input(self, about: DatasetSummary) -> None:
        """List a data set among the run's inputs."""
        if self.client is None:
            return
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name=about.name,
            digest=about.fingerprint[:36],  # MLflow's maximum
            source_type="local",
            source=json.dumps({"uri": about.source}),
            profile=json.dumps(about.profile),
        )
        tags = [InputTag("mlflow.data.context", "training, calibration, test")]
        self.client.log_inputs(self.run_id, [DatasetInput(dataset, tags)])

    def system_metrics(self) -> contextlib.AbstractContextManager[None]:
        """A context manager that logs the machine's load while it is open."""
        from ptq_exp.reporting.mlflow.system import sampled

        return sampled(self.run_id, self.uri) if self.client is not None else contextlib.nullcontext()

    def rename(self, name: str) -> None:
        """Set the name of the run on the MLflow pages."""
        if self.client is not None:
            self.client.update_run(self.run_id, None, name)

    def end(self, status: str = "FINISHED", ended: int | None = None) -> None:
        """Close the run as FINISHED, FAILED or KILLED, at the time `ended` (milliseconds) or now."""
        _open_runs.pop(self.run_id, None)
        if self.client is not None:
            self.client.set_terminated(self.run_id, status, ended or _now())

    def how_to_open(self) -> list[str]:
        """Instructions for viewing this run, and all runs, in MLflow. Empty if there is no run."""
        if self.client is None:
            return []
        page, everything = f"#/experiments/{self.experiment_id}/runs/{self.run_id}", view.page(self.experiment_id)
        if self.uri.startswith("http"):
            server = without_password(self.uri).rstrip("/")
            return [f"See it in MLflow: {server}/{page}", f"All runs: {server}/{everything}"]
        mlflow = "mlflow" if shutil.which("mlflow") else os.path.relpath(Path(sys.executable).with_name("mlflow"))
        default = self.uri == default_uri() and Path.cwd() == PROJECT_ROOT
        store = "" if default else f" --backend-store-uri {without_password(self.uri)}"
        server = "http://127.0.0.1:5000"
        see = f"See it in MLflow: run `{mlflow} ui{store}` and open {server}/{page}"
        return [see, f"All runs: {server}/{everything}"]


_open_runs: dict[str, Run] = {}  # of this process


def _now() -> int:
    return int(1000 * time.time())


def _named(key: str) -> str:
    """A key with only the characters that MLflow allows. Layer patterns in keys may contain a star."""
    return re.sub(r"[^\w\-./: ]", "_", key)


def _loggable(value: Any) -> str:
    text = str(value).encode("utf-8", "backslashreplace").decode()  # a path that is not valid UTF-8 breaks a database
    return without_password(text)[:MAX_VALUE_LENGTH]


def start_run(
    config: TrackingOptions, name: str, parent: str | None = None, job: str = "", old: str | None = None,
    started: int | None = None,
) -> Run:  # fmt: skip
    """Open the store, creating it and the experiment if needed, and start a run called `name` in it.

    `job` is the key of the run's job. `started` (milliseconds) is the time when it began, by default now. The run with
    the id `old` is reopened if it still exists. Raises `UserError` if the store cannot be used.
    """
    if not config.enabled:
        return Run(None)
    uri, begun = config.uri or default_uri(), started or _now()
    client, experiment_id = open_store(uri, config.experiment)
    run = old and _take_up(client, old, uri)
    return run or _create_run(client, experiment_id, name, uri, _tags(parent, job), begun)


def child(parent: Run, name: str) -> Run:
    """The run called `name` below `parent`, in the same store. It is created if there is none."""
    if parent.client is None:
        return parent
    if parent.known is not None:
        wanted = f"tags.mlflow.parentRunId = '{parent.run_id}' and attributes.run_name = '{name.replace(chr(39), '')}'"
        for found in parent.client.search_runs([parent.experiment_id], wanted, max_results=1):
            if run := _take_up(parent.client, found.info.run_id, parent.uri):
                return run
    return _create_run(parent.client, parent.experiment_id, name, parent.uri, _tags(parent.run_id), _now())


def _tags(parent: str | None, job: str = "") -> dict[str, str]:
    """The tags of a new run."""
    tags = {"mlflow.source.name": "run.py", "mlflow.source.type": "LOCAL", "mlflow.user": user()} | commit()
    tags[PROCESS_TAG] = this_process()
    if parent:
        tags["mlflow.parentRunId"] = parent
    if job:
        tags[JOB_TAG] = job
    return tags


def _create_run(
    client: "MlflowClient", experiment_id: str, name: str, uri: str, tags: dict[str, str], started: int
) -> Run:
    found = client.create_run(experiment_id, started, tags, name)
    return Run(client, experiment_id, found.info.run_id, uri)


def _take_up(client: "MlflowClient", run_id: str, uri: str) -> Run | None:
    """Reopen an earlier run. None if it no longer exists."""
    from mlflow.exceptions import MlflowException

    try:
        found = client.get_run(run_id)
        if found.info.lifecycle_stage == "deleted":
            return None
        client.set_tag(run_id, PROCESS_TAG, this_process())
        client.update_run(run_id, "RUNNING")
        if "error" in found.data.tags:
            client.delete_tag(run_id, "error")
    except MlflowException:
        return None
    run = Run(client, found.info.experiment_id, run_id, uri)
    run.known = found.data
    return run


def end_open_runs(status: str) -> None:
    """Close all open runs of this process. Runs in an unreachable store stay as they are."""
    for run in list(_open_runs.values()):
        tolerant(run.end, status)


def tolerant(call: Any, *arguments: Any) -> None:
    """Call a function whose failure must not stop the job: an error is logged as a warning."""
    try:
        call(*arguments)
    except Exception as error:
        log.warning("MLflow: %s", without_password((str(error).splitlines() or [type(error).__name__])[0]))
