"""Opening an MLflow store: created once, fails fast if unreachable, without the runs of processes that died."""

import contextlib
import functools
import hashlib
import logging
import os
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlparse

import psutil
from filelock import FileLock

from ptq_exp.base.errors import UserError, without_password
from ptq_exp.base.paths import PROJECT_ROOT
from ptq_exp.reporting.mlflow import view

if TYPE_CHECKING:
    from mlflow import MlflowClient

# Set by the sweep callback for the jobs of a multirun, whichever process they run in.
PARENT_VARIABLE = "PTQ_EXP_PARENT_RUN"
PROCESS_TAG = "process"  # host, process id and its start time: tells later whether a RUNNING run still runs
PATIENCE = {"MAX_RETRIES": "2", "BACKOFF_FACTOR": "1", "TIMEOUT": "30"}  # MLflow's own waits for many minutes


def default_uri() -> str:
    """The store that is used where neither `tracking.uri` nor the environment names one."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{PROJECT_ROOT / 'mlflow.db'}"


def open_store(uri: str, experiment: str) -> tuple["MlflowClient", str]:
    """A client and the experiment's id, both created if needed. Raises `UserError` if the store cannot be used."""
    from_mlflow = _errors_of_mlflow()
    try:
        _check_reachable(uri)
        return _open(uri, experiment)
    except from_mlflow as error:
        raise UserError(
            without_password(f"tracking.uri={uri} cannot be used: {str(error).splitlines()[0]} ")
            + "Use sqlite:///<file>, the http address of a running MLflow server, or tracking=none to log nowhere."
        ) from error


def open_existing(uri: str) -> "MlflowClient":
    """A client of a store that is there already. Raises `UserError` if it is not."""
    from_mlflow = _errors_of_mlflow()
    from mlflow import MlflowClient

    file = uri.removeprefix("sqlite:///")
    if file != uri and not Path(file).exists():
        raise UserError(f"There is no store {uri}: the file does not exist.")
    try:
        _check_reachable(uri)
        return MlflowClient(tracking_uri=uri, registry_uri=uri)
    except from_mlflow as error:
        raise UserError(without_password(f"{uri} cannot be read: {str(error).splitlines()[0]}")) from error


def _errors_of_mlflow() -> tuple[type[Exception], ...]:
    """What a store that is down, full or broken raises."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    for name, value in PATIENCE.items():
        os.environ.setdefault(f"MLFLOW_HTTP_REQUEST_{name}", value)
    from mlflow.exceptions import MlflowException

    return MlflowException, OSError, ImportError


@functools.cache
def _open(uri: str, experiment: str) -> tuple["MlflowClient", str]:
    """One process at a time creates what is missing: a fresh store that several open at once would be set up by all of
    them and break."""
    from mlflow import MlflowClient

    for name in ("alembic", "mlflow", "mlflow.store.db.utils"):  # their migration messages are not the user's
        logging.getLogger(name).setLevel(logging.WARNING)
    with FileLock(_lock_path(uri)):
        _create_database(uri)
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        found = client.get_experiment_by_name(experiment)
        if found is None:
            found = client.get_experiment(_create(client, experiment, _artifact_location(uri)))
        if found.lifecycle_stage == "deleted":
            raise UserError(
                f"tracking.experiment={experiment} was deleted in {without_password(uri)}. "
                "Restore it there, or use another name."
            )
        close_dead_runs(client, found.experiment_id)
        view.share(client, found)
        return client, str(found.experiment_id)


def _create_database(uri: str) -> None:
    """A new sqlite file appears complete or not at all: one whose tables are half made is refused for ever."""
    if not uri.startswith("sqlite:///") or "?" in uri:
        return
    database = Path(uri.removeprefix("sqlite:///"))
    if database.exists():
        return
    from mlflow import MlflowClient

    with tempfile.TemporaryDirectory(prefix=f".{database.name}-", dir=database.parent) as scratch:
        fresh = Path(scratch) / database.name
        MlflowClient(tracking_uri=f"sqlite:///{fresh}").search_experiments()
        os.replace(fresh, database)


def _create(client: "MlflowClient", experiment: str, artifact_location: str | None) -> str:
    from mlflow.exceptions import MlflowException

    try:
        return str(client.create_experiment(experiment, artifact_location))
    except MlflowException:  # another machine was faster
        found = client.get_experiment_by_name(experiment)
        if found is None:
            raise
        return str(found.experiment_id)


def close_dead_runs(client: "MlflowClient", experiment_id: str) -> None:
    """Mark as KILLED what a process of this machine left RUNNING when it died."""
    for run in client.search_runs([experiment_id], "attributes.status = 'RUNNING'", max_results=1000):
        if _is_dead(run.data.tags.get(PROCESS_TAG, "")):
            with contextlib.suppress(Exception):  # another process was faster
                client.set_terminated(run.info.run_id, "KILLED")


def this_process() -> str:
    """The value of `PROCESS_TAG` for this process."""
    return f"{socket.gethostname()} {os.getpid()} {psutil.Process().create_time():.0f}"


def _is_dead(process: str) -> bool:
    host, _, rest = process.partition(" ")
    if host != socket.gethostname():
        return False  # not known from here
    number, _, started = rest.partition(" ")
    try:  # numbers of processes are used again, but not with the same time of birth
        return abs(psutil.Process(int(number)).create_time() - float(started)) > 2
    except (psutil.NoSuchProcess, ValueError):
        return True


def _lock_path(uri: str) -> Path:
    if uri.startswith("sqlite:///"):
        database = Path(uri.removeprefix("sqlite:///"))
        database.parent.mkdir(parents=True, exist_ok=True)
        return database.with_name(f".{database.name}.lock")
    return Path(tempfile.gettempdir()) / f"ptq_exp-{os.getuid()}-{hashlib.sha256(uri.encode()).hexdigest()[:16]}.lock"


def _artifact_location(uri: str) -> str | None:
    """Beside an sqlite file, as an absolute path (MLflow's own default follows the working directory)."""
    if uri.startswith("sqlite:///"):
        return (Path(uri.removeprefix("sqlite:///")).resolve().parent / "mlartifacts").as_uri()
    return None  # the server decides


def _check_reachable(uri: str) -> None:
    """MLflow retries where nobody answers; a user wants to know at once."""
    address = urlparse(uri)
    if address.scheme in ("http", "https"):
        port = address.port or (443 if address.scheme == "https" else 80)
        with socket.create_connection((address.hostname or "", port), timeout=10):
            pass


def user() -> str:
    """The name that MLflow shows for who started a run."""
    return os.environ.get("USER") or os.environ.get("USERNAME") or "unknown"


@functools.cache  # what runs is what was imported at the start
def commit() -> dict[str, str]:
    """The commit of this working tree, marked where files differ from it; nothing outside a repository."""
    git = ["git", "-C", str(PROJECT_ROOT)]
    try:
        found = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True)
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return {}
    name = found.stdout.strip() + ("-modified" if changed.stdout.strip() else "")
    return {"git.commit": name, "mlflow.source.git.commit": found.stdout.strip()}
