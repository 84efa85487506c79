"""Sweeps that are cut off from their store, or started many at a time, lose nothing."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import pytest
from conftest import ROOT, TINY, Outcome
from stores import MEASURED, all_runs, free_port, points, server

from ptq_exp.results.files import read_sweep

Cli = Callable[..., Outcome]
Runs = Callable[[str], dict[str, Any]]
Process = Callable[..., "subprocess.Popen[str]"]


def left_by_its_server(process: Process, folder: Path, port: int, bits: str) -> "subprocess.Popen[str]":
    """A running sweep over `bits` whose MLflow server was killed when it had begun with 3 bits."""
    with server(folder, port) as uri:
        job = process(*TINY, f"quant.bits={bits}", f"tracking.uri={uri}", "-m")
        assert job.stdout is not None
        _read_until(job.stdout, "w3 notebook")
    return job


def everything_is_there(uri: str, widths: list[int]) -> None:
    """One finished run a bit width, each with one result, and their parent with the curve."""
    runs = all_runs(uri)
    assert sorted(run.info.run_name.split()[0] for run in runs) == ["sweep", *(f"w{bits}" for bits in widths)]
    assert {run.info.status for run in runs} == {"FINISHED"}
    parent = next(run for run in runs if run.info.run_name.startswith("sweep"))
    assert [step for step, _ in points(uri, parent, "top1_vs_bits")] == widths
    assert all(len(points(uri, run, "top1")) == 1 for run in runs if run != parent)


@pytest.mark.slow
def test_a_server_that_goes_away_loses_nothing(process: Process, tmp_path: Path) -> None:
    port = free_port()
    job = left_by_its_server(process, tmp_path, port, "2,3,4")
    assert job.stdout is not None
    rest = job.stdout.read()
    assert job.wait(timeout=300) == 1
    assert "python -m ptq_exp.runs.upload" in rest
    (sweep,) = tmp_path.glob("outputs/*/*")
    assert len(read_sweep(sweep).jobs) == 3
    upload = [sys.executable, "-m", "ptq_exp.runs.upload", str(sweep)]
    down = subprocess.run(upload, cwd=ROOT, capture_output=True, text=True)
    assert down.returncode == 1
    assert "Traceback" not in down.stderr
    with server(tmp_path, port) as uri:
        for expected in ("", "0 logged, 3 already in the store."):  # twice: the second changes nothing
            done = subprocess.run(upload, cwd=ROOT, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            assert expected in done.stdout
        everything_is_there(uri, [2, 3, 4])


@pytest.mark.slow
def test_a_server_that_comes_back_gets_what_it_missed(process: Process, tmp_path: Path) -> None:
    """Gone for two jobs and back before the sweep ends, which then uploads them: nothing is left to do by hand."""
    port = free_port()
    job = left_by_its_server(process, tmp_path, port, "2,3,4,5,6")
    assert job.stdout is not None
    _read_until(job.stdout, "w5 notebook")
    job.send_signal(signal.SIGSTOP)  # the server takes longer to start than such small jobs to end
    with server(tmp_path, port) as uri:
        job.send_signal(signal.SIGCONT)
        rest = job.stdout.read()
        assert job.wait(timeout=300) == 0, rest
        everything_is_there(uri, [2, 3, 4, 5, 6])


def _read_until(lines: IO[str], text: str) -> None:
    for line in lines:
        if text in line:
            return
    raise AssertionError(f"it ended without {text!r}")


def test_upload_of_a_folder_without_results_is_said(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ptq_exp.runs.upload", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "no finished job" in done.stderr


@pytest.mark.slow
def test_a_job_without_a_store_can_be_uploaded_to_another(cli: Cli, store: str, tmp_path: Path) -> None:
    """The store of the job is gone for good: `--uri` names a new one."""
    old = f"sqlite:///{tmp_path / 'old' / 'mlflow.db'}"
    assert cli(*TINY, "quant.bits=3,4", f"tracking.uri={old}", "-m").code == 0
    shutil.rmtree(tmp_path / "old")
    for path in tmp_path.glob("outputs/*/*/*/results.json"):
        from ptq_exp.reporting.mlflow.place import Place

        place = Place.read(path.parent)
        assert place is not None
        replace(place, logged=False).write(path.parent)
    command = [sys.executable, "-m", "ptq_exp.runs.upload", str(tmp_path / "outputs"), "--uri", store]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    runs = all_runs(store)
    parent = next(run for run in runs if run.info.run_name.startswith("sweep"))
    assert len(runs) == 3
    assert all(run.data.tags["mlflow.parentRunId"] == parent.info.run_id for run in runs if run != parent)


# Many at once -----------------------------------------------------------------------------------------------------

MANY = """
import sys
from ptq_exp.reporting.mlflow.options import TrackingOptions
from ptq_exp.reporting.mlflow.run import start_run
config = TrackingOptions(True, sys.argv[1], "ptq_exp")
for number in range(25):
    run = start_run(config, f"{sys.argv[2]}-{number}")
    run.log({"top1": float(number)}, params={f"p{i}": i for i in range(20)}, tags={"worker": sys.argv[2]})
    run.end()
"""


def two_hundred_runs(uri: str) -> None:
    """8 processes, 25 runs each, on a store that does not exist yet: all of them are there and complete."""
    command = [sys.executable, "-c", MANY, uri]
    jobs = [
        subprocess.Popen([*command, str(number)], cwd=ROOT, stderr=subprocess.PIPE, text=True) for number in range(8)
    ]
    errors = [job.communicate(timeout=600)[1] for job in jobs]
    assert [job.returncode for job in jobs] == [0] * 8, errors
    runs = all_runs(uri)
    assert len(runs) == 200
    assert {run.info.status for run in runs} == {"FINISHED"}
    names = {f"{worker}-{number}": float(number) for worker in range(8) for number in range(25)}
    assert {run.info.run_name: run.data.metrics["top1"] for run in runs} == names
    assert all(len(run.data.params) == 20 for run in runs)


@pytest.mark.slow
def test_no_run_of_two_hundred_is_lost_on_sqlite(tmp_path: Path) -> None:
    two_hundred_runs(f"sqlite:///{tmp_path / 'mlflow.db'}")


@pytest.mark.slow
def test_no_run_of_two_hundred_is_lost_on_a_server_with_postgresql(tmp_path: Path) -> None:
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not programs:
        pytest.skip("PostgreSQL is not installed (Debian's package postgresql)")
    pytest.importorskip("psycopg2", reason="pip install -e '.[postgres]'")
    port, data = free_port(), tmp_path / "postgres"
    as_user: list[str] = []
    if os.geteuid() == 0:  # it refuses to run as root
        as_user = ["runuser", "-u", "postgres", "--"]
        data = Path(subprocess.run(["mktemp", "-d"], capture_output=True, text=True, check=True).stdout.strip())
        shutil.chown(data, "postgres", "postgres")
    initdb, postgres = (str(programs[-1] / name) for name in ("initdb", "postgres"))
    subprocess.run([*as_user, initdb, "-D", str(data), "-A", "trust", "-U", "ptq"], check=True, capture_output=True)
    options = ["-p", str(port), "-k", str(data), "-c", "listen_addresses=127.0.0.1"]
    with (tmp_path / "postgres.log").open("w") as log:
        database = subprocess.Popen([*as_user, postgres, "-D", str(data), *options], stdout=log, stderr=log)
    try:
        for _ in range(60):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.5)
        time.sleep(1)
        backend = f"postgresql+psycopg2://ptq@127.0.0.1:{port}/postgres"
        with server(tmp_path, free_port(), backend) as uri:
            two_hundred_runs(uri)
    finally:
        stop = [*as_user, str(programs[-1] / "pg_ctl"), "stop", "-D", str(data), "-m", "immediate"]
        subprocess.run(stop, check=False, capture_output=True)
        database.wait(timeout=60)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_eight_processes_on_a_fresh_machine_train_once(process: Process, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'fresh' / 'mlflow.db'}"
    given = [*TINY, "quant.bits=2,3", f"tracking.uri={uri}", f"cache_dir={tmp_path / 'cache'}", "-m"]
    output = "hydra.sweep.dir=outputs/day/{}"
    jobs = [process(*given, output.format(number), OMP_NUM_THREADS="1") for number in range(8)]
    texts = [job.communicate(timeout=900)[0] for job in jobs]
    assert [job.returncode for job in jobs] == [0] * 8, texts
    assert sum("Float model: trained" in text for text in texts) == 1
    runs = all_runs(uri)
    assert len(runs) == 24
    assert {run.info.status for run in runs} == {"FINISHED"}
    tables = [
        [[getattr(found, key) for key in MEASURED] for job in read_sweep(path).jobs for found in job.results]
        for path in tmp_path.glob("outputs/day/*")
    ]
    assert len(tables) == 8
    assert all(json.dumps(table) == json.dumps(tables[0]) for table in tables)
