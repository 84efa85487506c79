"""Opening an MLflow store: creates it once, fails fast if it is unreachable, and closes the runs of dead processes."""

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
from ptq_exp.base.files import check_writable
from ptq_exp.base.paths import PROJECT_ROOT
from ptq_exp.reporting.mlflow import view

if TYPE_CHECKING:
    from mlflow import MlflowClient

# Set by the sweep callback for the jobs of a multirun, in any process.
PARENT_VARIABLE = "PTQ_EXP_PARENT_RUN"
PROCESS_TAG = "process"  # host, process id and start time, to find out later whether a RUNNING run is alive
PATIENCE = {"MAX_RETRIES": "2", "BACKOFF_FACTOR": "1", "TIMEOUT": "30"}  # MLflow's defaults wait for many minutes


def default_uri() -> str:
    """The store to use if neither `tracking.uri` nor the environment names one."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{PROJECT_ROOT / 'mlflow.db'}"


def open_store(uri: str, experiment: str) -> tuple["MlflowClient", str]:
    """A client and the experiment's id, both created if needed. Raises `UserError` if the store cannot be used."""
    from_mlflow = _errors_of_mlflow()
    try:
        _check_reachable(uri)
        if (file := uri.removeprefix("sqlite:///")) != uri:
            check_writable(Path(file).parent)  # a lock would wait for ever
        return _open(uri, experiment)
    except from_mlflow as error:
        raise UserError(
            without_password(f"tracking.uri={uri} cannot be used: {str(error).splitlines()[0]} ")
            + "Use sqlite:///<file>, the http address of a running MLflow server, or tracking=none to disable logging."
        ) from error


def open_existing(uri: str) -> "MlflowClient":
    """A client of an existing store. Raises `UserError` if it does not exist."""
    from_mlflow = _errors_of_mlflow()
    from mlflow import MlflowClient

    file = uri.removeprefix("sqlite:///")
    if file != uri and not Path(file).exists():
        raise UserError(f"The store {uri} does not exist.")
    try:
        _check_reachable(uri)
        return MlflowClient(tracking_uri=uri, registry_uri=uri)
    except from_mlflow as error:
        raise UserError(without_password(f"{uri} cannot be read: {str(error).splitlines()[0]}")) from error


def _errors_of_mlflow() -> tuple[type[Exception], ...]:
    """The exceptions of a store that is down, full or damaged."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    for name, value in PATIENCE.items():
        os.environ.setdefault(f"MLFLOW_HTTP_REQUEST_{name}", value)
    from mlflow.exceptions import MlflowException

    return MlflowException, OSError, ImportError


@functools.cache
def _open(uri: str, experiment: str) -> tuple["MlflowClient", str]:
    """Open a store under a lock, because a new store breaks if several processes set it up at the same time."""
    from mlflow import MlflowClient

    for name in ("alembic", "mlflow", "mlflow.store.db.utils"):  # their migration messages do not concern the user
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
    """Create a new sqlite file atomically, because MLflow permanently rejects a file with incomplete tables."""
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
    """Mark the RUNNING runs of dead processes of this machine as KILLED."""
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
        return False  # unknown on this machine
    number, _, started = rest.partition(" ")
    try:  # process ids are reused, but with another start time
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
    """A folder beside an sqlite file, as an absolute path (MLflow's default depends on the working directory)."""
    if uri.startswith("sqlite:///"):
        return (Path(uri.removeprefix("sqlite:///")).resolve().parent / "mlartifacts").as_uri()
    return None  # the server decides


def _check_reachable(uri: str) -> None:
    """Fail fast if the server does not respond, since MLflow would retry."""
    address = urlparse(uri)
    if address.scheme in ("http", "https"):
        port = address.port or (443 if address.scheme == "https" else 80)
        with socket.create_connection((address.hostname or "", port), timeout=10):
            pass


def user() -> str:
    """The user name that MLflow shows for a run."""
    return os.environ.get("USER") or os.environ.get("USERNAME") or "unknown"


@functools.cache  # the running code is the one imported at the start
def commit() -> dict[str, str]:
    """The commit of this working tree, marked if files differ from it. Empty outside a repository."""
    git = ["git", "-C", str(PROJECT_ROOT)]
    try:
        found = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True)
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return {}
    name = found.stdout.strip() + ("-modified" if changed.stdout.strip() else "")
    return {"git.commit": name, "mlflow.source.git.commit": found.stdout.strip()}
