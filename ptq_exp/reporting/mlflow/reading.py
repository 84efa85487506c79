"""Reading earlier runs from a store."""

import contextlib
import functools
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlparse

from ptq_exp.base.errors import UserError, without_password
from ptq_exp.base.text import read_text
from ptq_exp.reporting.mlflow.options import TrackingOptions
from ptq_exp.reporting.mlflow.run import JOB_TAG, Run
from ptq_exp.reporting.mlflow.store import PROCESS_TAG, default_uri, open_existing, open_store
from ptq_exp.results.files import RESULTS_FILE, from_json, read_job
from ptq_exp.results.records import Failure, JobRecord, SearchRecord, SweepRecord

if TYPE_CHECKING:
    from mlflow import MlflowClient

SUMMARY_FILE = "summary.json"  # the facts about a sweep that its jobs' records lack


def find_job(options: TrackingOptions, key: str, folder: Path) -> tuple[JobRecord, str] | None:
    """The newest finished job with this key, fetched into `folder`, and the id of its run, or None if there is none."""
    client, experiment_id = open_store(options.uri or default_uri(), options.experiment)
    wanted = f"tags.{JOB_TAG} = '{key}' and attributes.status = 'FINISHED'"
    for found in client.search_runs([experiment_id], wanted, max_results=1):
        if record := fetch_job(client, found.info.run_id, folder):
            return record, str(found.info.run_id)
    return None


def fetch_job(client: "MlflowClient", run_id: str, folder: Path, drawn: bool = True) -> JobRecord | None:
    """Fetch a job's record, and its figures if `drawn`, into `folder`. None if the run is not of a job or its files no
    longer exist."""
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(UserError):
        artifact(client, run_id, RESULTS_FILE, folder)
        if record := read_job(folder):
            if drawn:
                figures(client, run_id, folder / "artifacts")
            return record
    return None


def fetch_sweep(parent: Run, title: str, folder: Path, drawn: bool = True) -> SweepRecord:
    """A sweep, read from its run and its jobs' runs, with its figures and those of its jobs below `folder` if
    `drawn`."""
    about: dict[str, Any] = {}
    with contextlib.suppress(UserError, ValueError):  # the sweep did not end, or an older version logged it
        assert parent.client is not None
        about = json.loads(read_text(artifact(parent.client, parent.run_id, SUMMARY_FILE, folder)))
    # Runs of resumed jobs are children of the sweep that ran them.
    run_ids = list(dict.fromkeys([*filter(None, about.get("jobs", [])), *finished_children(parent)]))
    fetched = [
        fetch_job(parent.client, run_id, folder / f"{number:04d}-{run_id[:8]}", drawn)
        for number, run_id in enumerate(run_ids) if parent.client is not None
    ]  # fmt: skip
    if "failures" in about:
        failures = [from_json(Failure, failure) for failure in about["failures"]]
    else:
        failures = failed_children(parent)
    jobs = tuple(record for record in fetched if record is not None)
    if drawn and parent.client is not None:
        figures(parent.client, parent.run_id, folder / "sweep")
    search = from_json(SearchRecord, about["search"]) if about.get("search") else None
    searches = tuple(from_json(SearchRecord, found) for found in about.get("searches", []))
    return SweepRecord(
        title, folder, tuple(about.get("command", [])), jobs, tuple(failures), search=search, searches=searches
    )


def newest_run(uri: str) -> str:
    """The id of the sweep or the single job that began last and has ended. Raises `UserError` if there is none."""
    client = open_existing(uri)
    experiments = [found.experiment_id for found in client.search_experiments()]
    wanted, token = f"tags.{PROCESS_TAG} LIKE '%' and attributes.status != 'RUNNING'", None
    while True:
        page = client.search_runs(experiments, wanted, order_by=["attributes.start_time DESC"], page_token=token)
        for run in page:
            if "mlflow.parentRunId" not in run.data.tags:
                return str(run.info.run_id)
        if not (token := page.token):
            raise UserError(f"{without_password(uri)} contains no finished run.")


def finished_children(parent: Run) -> list[str]:
    """The ids of the FINISHED jobs below `parent`, oldest first."""
    if parent.client is None:
        return []
    wanted = f"tags.mlflow.parentRunId = '{parent.run_id}' and attributes.status = 'FINISHED' and tags.{JOB_TAG} != ''"
    found = parent.client.search_runs(
        [parent.experiment_id], wanted, max_results=1000, order_by=["attributes.start_time"]
    )
    return [run.info.run_id for run in found]


def failed_children(parent: Run) -> list[Failure]:
    """The FAILED jobs below `parent`, as far as their runs describe them."""
    if parent.client is None:
        return []
    wanted = f"tags.mlflow.parentRunId = '{parent.run_id}' and attributes.status = 'FAILED'"
    return [
        Failure(
            bits=run.data.params.get("quant.bits", ""), overrides=run.info.run_name or "", log="",
            error=run.data.tags.get("error", ""),
        )
        for run in parent.client.search_runs([parent.experiment_id], wanted, max_results=1000)
    ]  # fmt: skip


def artifact(client: "MlflowClient", run_id: str, name: str, folder: Path) -> Path:
    """Fetch one artifact of a run into `folder`. Raises `UserError` if there is none."""
    from mlflow.exceptions import MlflowException

    try:
        if (here := _folder(client, run_id)) is not None:
            folder.mkdir(parents=True, exist_ok=True)
            return Path(shutil.copy2(here / name, folder / name))
        return Path(client.download_artifacts(run_id, name, str(folder)))
    except (MlflowException, OSError) as error:
        raise UserError(f"The run {run_id} has no artifact {name}: {error}.") from error


@functools.cache
def _folder(client: "MlflowClient", run_id: str) -> Path | None:
    """The folder of a run's artifacts if it is on this machine. Reading it is much faster than asking the client."""
    where = urlparse(client.get_run(run_id).info.artifact_uri)
    folder = Path(unquote(where.path))
    return folder if where.scheme in ("", "file") and not where.netloc and folder.is_dir() else None


def artifact_names(client: "MlflowClient", run_id: str) -> list[str]:
    """The names of a run's artifacts, without folders."""
    if (here := _folder(client, run_id)) is not None:
        return sorted(path.name for path in here.iterdir() if path.is_file())
    return [found.path for found in client.list_artifacts(run_id) if not found.is_dir]


def figures(client: "MlflowClient", run_id: str, folder: Path) -> list[str]:
    """Fetch a run's figures into `folder`. Returns their names."""
    names = [name for name in artifact_names(client, run_id) if name.endswith((".png", ".svg"))]
    for name in names:
        artifact(client, run_id, name, folder)
    return names


def existing_run(uri: str, run_id: str) -> tuple[Run, str]:
    """An existing run in the store, for reading, and its name. Raises `UserError` if it does not exist."""
    from mlflow.exceptions import MlflowException

    client = open_existing(uri)
    try:
        found = client.get_run(run_id)
    except MlflowException as error:
        reason = without_password(str(error).splitlines()[0])
        raise UserError(f"There is no run {run_id} in {without_password(uri)} ({reason}).") from error
    return Run(client, found.info.experiment_id, run_id, uri, ours=False), found.info.run_name or run_id
