"""Reading back from a store what earlier runs left there."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from ptq_exp.base.errors import UserError, without_password
from ptq_exp.reporting.mlflow import JOB_TAG, Run
from ptq_exp.reporting.mlflow.options import TrackingOptions
from ptq_exp.reporting.mlflow.store import default_uri, open_existing, open_store

if TYPE_CHECKING:
    from mlflow import MlflowClient


def fetch_job(config: TrackingOptions, job: str, name: str, folder: Path) -> str | None:
    """Fetch one artifact of a job's newest finished run, and its figures; the run's id, or None where there is none."""
    client, experiment_id = open_store(config.uri or default_uri(), config.experiment)
    wanted = f"tags.{JOB_TAG} = '{job}' and attributes.status = 'FINISHED'"
    for found in client.search_runs([experiment_id], wanted, max_results=1):
        with contextlib.suppress(UserError):  # logged by an older version, or its artifacts are gone
            folder.mkdir(parents=True, exist_ok=True)
            artifact(client, found.info.run_id, name, folder)
            figures(client, found.info.run_id, folder)
            return str(found.info.run_id)
    return None


def finished_children(parent: Run) -> list[str]:
    """The ids of the jobs below `parent` that are FINISHED, the oldest first."""
    if parent.client is None:
        return []
    wanted = f"tags.mlflow.parentRunId = '{parent.run_id}' and attributes.status = 'FINISHED' and tags.{JOB_TAG} != ''"
    found = parent.client.search_runs(
        [parent.experiment_id], wanted, max_results=1000, order_by=["attributes.start_time"]
    )
    return [run.info.run_id for run in found]


def failed_children(parent: Run) -> list[dict[str, str]]:
    """What is known of the jobs below `parent` that FAILED, as their folders' failure.json would say it."""
    if parent.client is None:
        return []
    wanted = f"tags.mlflow.parentRunId = '{parent.run_id}' and attributes.status = 'FAILED'"
    return [
        {"bits": run.data.params.get("quant.bits", ""), "overrides": run.info.run_name or "", "log": "",
         "error": run.data.tags.get("error", ""), "run_id": run.info.run_id}
        for run in parent.client.search_runs([parent.experiment_id], wanted, max_results=1000)
    ]  # fmt: skip


def artifact(client: "MlflowClient", run_id: str, name: str, folder: Path) -> Path:
    """Fetch one artifact of a run into `folder`. Raises `UserError` where there is none."""
    from mlflow.exceptions import MlflowException

    try:
        return Path(client.download_artifacts(run_id, name, str(folder)))
    except (MlflowException, OSError) as error:
        raise UserError(f"The run {run_id} has no artifact {name}: {error}.") from error


def artifact_names(client: "MlflowClient", run_id: str) -> list[str]:
    """The names of a run's artifacts, folders left out."""
    return [found.path for found in client.list_artifacts(run_id) if not found.is_dir]


def figures(client: "MlflowClient", run_id: str, folder: Path) -> None:
    """Fetch a run's figures into the job folder `folder`."""
    for name in artifact_names(client, run_id):
        if name.endswith(".png"):
            artifact(client, run_id, name, folder / "artifacts")


def existing_run(uri: str, run_id: str) -> tuple[Run, str]:
    """A run that is in the store already, to read from, and its name. Raises `UserError` where it is not."""
    from mlflow.exceptions import MlflowException

    client = open_existing(uri)
    try:
        found = client.get_run(run_id)
    except MlflowException as error:
        reason = without_password(str(error).splitlines()[0])
        raise UserError(f"There is no run {run_id} in {without_password(uri)} ({reason}).") from error
    return Run(client, found.info.experiment_id, run_id, uri, ours=False), found.info.run_name or run_id
