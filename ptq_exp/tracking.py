"""Everything that touches MLflow. The only module that imports it, and only when a job starts.

Only `MlflowClient` is used, with explicit ids: MLflow's fluent functions keep the experiment and the active run in
global state, which loses runs when several processes or sweeps share a store.
"""

import contextlib
import functools
import hashlib
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from filelock import FileLock

from ptq_exp.background import later
from ptq_exp.config import PROJECT_ROOT, TrackingConfig
from ptq_exp.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient

# Set by the sweep callback for the jobs of a multirun, whichever process they run in.
PARENT_VARIABLE = "PTQ_EXP_PARENT_RUN"
MAX_VALUE_LENGTH = 5000  # MLflow refuses params of more than 6000 characters


class Run:
    """One run in an MLflow store, or nowhere (`client` is None): then every call does nothing."""

    def __init__(self, client: "MlflowClient | None", experiment_id: str = "", run_id: str = "", uri: str = ""):
        self.client, self.experiment_id, self.run_id, self.uri = client, experiment_id, run_id, uri

    def log(
        self,
        metrics: dict[str, float] | None = None,
        step: int = 0,
        params: dict[str, Any] | None = None,
        tags: dict[str, str] | None = None,
    ) -> None:
        """Log in one request: metrics at `step`, params and tags (values too long for MLflow are cut)."""
        self.log_series([(step, metrics or {})], params, tags)

    def log_series(
        self,
        series: list[tuple[int, dict[str, float]]],
        params: dict[str, Any] | None = None,
        tags: dict[str, str] | None = None,
    ) -> None:
        """Log metrics of several steps, (step, metrics) each, in as few requests as MLflow allows."""
        if self.client is None:
            return
        from mlflow.entities import Metric, Param, RunTag

        now = int(time.time() * 1000)
        points = [Metric(k, float(v), now, step) for step, metrics in series for k, v in metrics.items()]
        entries = [Param(k, str(v)[:MAX_VALUE_LENGTH]) for k, v in (params or {}).items()]
        labels = [RunTag(k, v[:MAX_VALUE_LENGTH]) for k, v in (tags or {}).items()]
        self.client.log_batch(self.run_id, points[:800], entries[:100], labels)
        for start in range(800, len(points), 800):
            self.client.log_batch(self.run_id, points[start : start + 800])
        for start in range(100, len(entries), 100):
            self.client.log_batch(self.run_id, params=entries[start : start + 100])

    def log_folder(self, folder: Path) -> None:
        """Log every file below `folder` as an artifact."""
        if self.client is not None:
            self.client.log_artifacts(self.run_id, str(folder))

    def rename(self, name: str) -> None:
        """Give the run the name that the MLflow pages show."""
        if self.client is not None:
            later(self.client.update_run, self.run_id, None, name)

    def end(self, status: str = "FINISHED") -> None:
        """Close the run as FINISHED, FAILED or KILLED."""
        if self.client is not None:
            later(self.client.set_terminated, self.run_id, status, int(1000 * time.time()))

    def how_to_open(self) -> str:
        """What to do, in one or two lines, to see this run in MLflow's pages."""
        if self.client is None:
            return ""
        page = f"#/experiments/{self.experiment_id}/runs/{self.run_id}"
        if self.uri.startswith("http"):
            return f"See it in MLflow: {without_password(self.uri).rstrip('/')}/{page}"
        mlflow = "mlflow" if shutil.which("mlflow") else os.path.relpath(Path(sys.executable).with_name("mlflow"))
        default = self.uri == default_uri() and Path.cwd() == PROJECT_ROOT
        store = "" if default else f" --backend-store-uri {without_password(self.uri)}"
        return f"See it in MLflow: run `{mlflow} ui{store}` and open http://127.0.0.1:5000/{page}"


def default_uri() -> str:
    """The store that is used where neither `tracking.uri` nor the environment names one."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{PROJECT_ROOT / 'mlflow.db'}"


def without_password(uri: str) -> str:
    """The URI as it may be shown and logged."""
    return re.sub(r"://([^:/@]+):[^@]*@", r"://\1:***@", uri)


def start(config: TrackingConfig, name: str, parent: str | None = None) -> Run:
    """Open the store, creating it and the experiment if needed, and start a run called `name` in it.

    Raises `UserError` where the store cannot be used.
    """
    if not config.enabled:
        return Run(None)
    uri = config.uri or default_uri()
    client, experiment_id = _open(uri, config.experiment)
    return _create_run(client, experiment_id, name, uri, parent)


def child(parent: Run, name: str) -> Run:
    """A run called `name` below `parent`, in the same store."""
    if parent.client is None:
        return parent
    return _create_run(parent.client, parent.experiment_id, name, parent.uri, parent.run_id)


def _create_run(client: "MlflowClient", experiment_id: str, name: str, uri: str, parent: str | None) -> Run:
    tags = {"mlflow.source.name": "run.py", "mlflow.source.type": "LOCAL", "mlflow.user": _user()} | _commit()
    if parent:
        tags["mlflow.parentRunId"] = parent
    run = client.create_run(experiment_id, run_name=name, tags=tags)
    return Run(client, experiment_id, run.info.run_id, uri)


@contextlib.contextmanager
def job_run(config: TrackingConfig, name: str) -> Iterator[Run]:
    """The run of one job, a child of the sweep's run where there is one; an exception ends it as FAILED."""
    run = start(config, name, os.environ.get(PARENT_VARIABLE))
    try:
        yield run
    except BaseException as error:
        killed = isinstance(error, KeyboardInterrupt | SystemExit)
        run.log(tags={"error": f"{type(error).__name__}: {error}"})
        run.end("KILLED" if killed else "FAILED")
        raise
    run.end()


@functools.cache
def _open(uri: str, experiment: str) -> tuple["MlflowClient", str]:
    """A client and the experiment's id. One process at a time creates what is missing: a fresh store that several
    open at once would be set up by all of them and break."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    for name in ("alembic", "mlflow", "mlflow.store.db.utils"):  # their migration messages are not the user's
        logging.getLogger(name).setLevel(logging.WARNING)

    try:
        with FileLock(_lock_path(uri)):
            _check_reachable(uri)
            client = MlflowClient(tracking_uri=uri, registry_uri=uri)
            found = client.get_experiment_by_name(experiment)
            if found is None:
                return client, _create(client, experiment, _artifact_location(uri))
            if found.lifecycle_stage == "deleted":
                raise UserError(
                    f"tracking.experiment={experiment} was deleted in {uri}. Restore it there, or use another name."
                )
            return client, found.experiment_id
    except (MlflowException, OSError, ImportError) as error:
        raise UserError(
            without_password(f"tracking.uri={uri} cannot be used: {str(error).splitlines()[0]} ")
            + "Use sqlite:///<file>, the http address of a running MLflow server, or tracking=none to log nowhere."
        ) from error


def _create(client: "MlflowClient", experiment: str, artifact_location: str | None) -> str:
    from mlflow.exceptions import MlflowException

    try:
        return str(client.create_experiment(experiment, artifact_location))
    except MlflowException:  # another machine was faster
        found = client.get_experiment_by_name(experiment)
        if found is None:
            raise
        return str(found.experiment_id)


def _lock_path(uri: str) -> Path:
    if uri.startswith("sqlite:///"):
        database = Path(uri.removeprefix("sqlite:///"))
        database.parent.mkdir(parents=True, exist_ok=True)
        return database.with_name(f".{database.name}.lock")
    return Path(tempfile.gettempdir()) / f"ptq_exp-{hashlib.sha256(uri.encode()).hexdigest()[:16]}.lock"


def _artifact_location(uri: str) -> str | None:
    """Beside an sqlite file, as an absolute path (MLflow's own default follows the working directory)."""
    if uri.startswith("sqlite:///"):
        return (Path(uri.removeprefix("sqlite:///")).resolve().parent / "mlartifacts").as_uri()
    return None  # the server decides


def _check_reachable(uri: str) -> None:
    """MLflow retries for minutes where nobody answers; a user wants to know at once."""
    address = urlparse(uri)
    if address.scheme in ("http", "https"):
        port = address.port or (443 if address.scheme == "https" else 80)
        with socket.create_connection((address.hostname or "", port), timeout=10):
            pass


def _user() -> str:
    return os.environ.get("USER") or os.environ.get("USERNAME") or "unknown"


@functools.cache  # what runs is what was imported at the start
def _commit() -> dict[str, str]:
    """The commit of this working tree, marked where files differ from it; nothing outside a repository."""
    git = ["git", "-C", str(PROJECT_ROOT)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True)
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return {}
    name = commit.stdout.strip() + ("-modified" if changed.stdout.strip() else "")
    return {"git.commit": name, "mlflow.source.git.commit": commit.stdout.strip()}
