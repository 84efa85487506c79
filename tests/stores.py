"""Real MLflow servers and stores, and what they hold."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ptq_exp.results.files import read_sweep

ALONE = {"OMP_NUM_THREADS": "1"}  # on a busy machine several threads wait for each other most of the time
MEASURED = ("bits", "top1", "loss", "agreement", "bits_mean", "size_bytes")


def all_runs(uri: str) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("ptq_exp")
    return list(client.search_runs([experiment.experiment_id], max_results=1000)) if experiment else []


def points(uri: str, run: Any, key: str) -> list[tuple[int, float]]:
    from mlflow import MlflowClient

    history = MlflowClient(uri).get_metric_history(run.info.run_id, key)
    return sorted((point.step, point.value) for point in history)


def last_table(folder: Path) -> list[list[Any]]:
    """What the last sweep below `folder` measured: the numbers that do not depend on the machine's speed."""
    sweep = max(folder.glob("outputs/*/*"), key=lambda path: path.stat().st_mtime)
    results = [result for job in read_sweep(sweep).jobs for result in job.results]
    return [[getattr(found, key) for key in MEASURED] for found in sorted(results, key=lambda found: found.bits)]


@contextlib.contextmanager
def server(folder: Path, port: int, backend: str | None = None) -> Iterator[str]:
    """A real MLflow server, artifacts through it."""
    backend = backend or f"sqlite:///{folder / 'server.db'}"
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", backend, "--port", str(port)]
    command += ["--artifacts-destination", str(folder / "artifacts"), "--workers", "1"]
    with (folder / "server.log").open("a") as log:
        job = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        for _ in range(240):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            assert job.poll() is None, (folder / "server.log").read_text()
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)
        job.wait()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def finish(job: "subprocess.Popen[str]") -> str:
    text, _ = job.communicate(timeout=500)
    assert job.returncode == 0, text
    return text
