"""Jobs that fail, are interrupted or meet a full disk say why, and leave what they have."""

import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import FEW, ROOT, TINY, Outcome, mostly_slow
from stores import ALONE, all_runs, free_port, server

from ptq_exp.base import background

Cli = Callable[..., Outcome]
Runs = Callable[[str], dict[str, Any]]
Process = Callable[..., "subprocess.Popen[str]"]


def test_every_test_that_a_promise_names_exists() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text()
    there = {path.name: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    promises = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert len(promises) > 20
    for promise in promises:
        named = re.findall(r"`(?:(test_\w+\.py)(?:::)?)?(test_\w+)?`", promise.rpartition("|")[0].rpartition("|")[2])
        assert any(test for _, test in named), f"no test is named: {promise}"
        file = ""
        for name, test in named:
            file = name or file
            assert not test or f"def {test}(" in there[file], f"{file}::{test}"


@pytest.mark.slow
def test_a_failed_job_has_its_error_and_log_and_the_table_names_it(cli: Cli, store: str, tmp_path: Path) -> None:
    outcome = cli(*TINY, "quant.bits=3,99", "optimizer.lr=0.05,1e30", f"tracking.uri={store}", "-m")
    assert outcome.code == 1
    assert "failed" in outcome.out
    assert "Training diverged" in outcome.out
    assert "quant.bits=99" in outcome.out
    assert "Traceback" not in outcome.err + outcome.out
    failed = [run for run in all_runs(store) if run.info.status == "FAILED" and "error" in run.data.tags]
    assert len(failed) == 3
    assert any("diverged" in run.data.tags["error"] for run in failed)
    for run in failed:
        if "diverged" in run.data.tags["error"]:
            folder = Path(run.info.artifact_uri.removeprefix("file://"))
            assert (folder / "run.log").stat().st_size > 0
    finished = [run for run in all_runs(store) if run.info.status == "FINISHED"]
    assert [run.data.metrics["bits_mean"] for run in finished] == [4]


def test_fail_fast_stops_at_the_first(cli: Cli, tmp_path: Path) -> None:
    outcome = cli(*TINY, "quant.bits=99,3,4", "fail_fast=true", "-m")
    assert outcome.code == 1
    assert outcome.out.count("Not run because another job failed") >= 2
    assert list(tmp_path.glob("outputs/*/*/*/results.json")) == []
    assert "quant.bits=99" in outcome.err


@pytest.mark.parametrize("moment", mostly_slow(["Reconstructing", "training"]))
def test_ctrl_c_ends_the_job_and_marks_the_runs(process: Process, store: str, tmp_path: Path, moment: str) -> None:
    steps = ["quant=adaround", "quant.reconstruction.steps=100000"] if moment != "training" else ["trainer.epochs=500"]
    few = ["data=digits", "data.test_limit=48", "trainer.batch_size=32", f"cache_dir={tmp_path / 'cache'}"]
    few += ["data.train_limit=1400" if moment == "training" else "data.train_limit=64"]
    few += [] if moment == "training" else ["trainer.epochs=1"]
    job = process(*few, *steps, "quant.bits=2,3", f"tracking.uri={store}", "-m", **ALONE)
    assert job.stdout is not None
    for line in job.stdout:
        if ("Device:" if moment == "training" else moment) in line:
            break
    time.sleep(0.5)
    started = time.monotonic()
    job.send_signal(signal.SIGINT)
    rest = job.stdout.read()
    assert job.wait(timeout=60) == 130
    assert time.monotonic() - started < 2
    assert "resume=true" in rest
    assert "Traceback" not in rest
    assert {run.info.status for run in all_runs(store)} == {"KILLED"}
    assert len(all_runs(store)) == 2


def test_results_are_kept_before_figures_are_drawn(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are drawn in the background, and an interruption may end that at any time."""
    kept: list[bool] = []

    drawn = background._drawn

    def drawing(*arguments: Any) -> None:
        deadline = time.monotonic() + 30
        while not (found := list(tmp_path.glob("outputs/*/*/0/results.json"))) and time.monotonic() < deadline:
            time.sleep(0.05)
        kept.append(bool(found))
        drawn(*arguments)

    monkeypatch.setattr(background, "_drawn", drawing)
    assert cli(*TINY, "quant.bits=3", "quant.calibration_seed=0,1", "tracking=none", "-m").code == 0
    assert kept
    assert all(kept)


def test_ctrl_c_is_not_lost_where_python_drops_exceptions() -> None:
    """In a destructor, of SQLAlchemy's objects for example."""
    code = (
        "import signal, time\n"
        "from ptq_exp.base import background\n"
        "class Dropping:\n"
        "    def __del__(self): signal.raise_signal(signal.SIGINT)\n"
        "background.heed_interrupts()\n"
        "try:\n"
        "    Dropping()\n"
        "    time.sleep(30)\n"
        "except KeyboardInterrupt: print('noticed')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "noticed\n", "")


@pytest.mark.slow
def test_ctrl_c_does_not_wait_for_a_server_that_is_silent(process: Process, tmp_path: Path) -> None:
    few = ["data=digits", "trainer.epochs=500", "quant.bits=2,3", f"cache_dir={tmp_path / 'cache'}", "-m"]
    with server(tmp_path, free_port()) as uri:
        (answering,) = [child for child in psutil.Process().children() if "mlflow" in child.cmdline()]
        job = process(*few, f"tracking.uri={uri}")
        assert job.stdout is not None
        next(line for line in job.stdout if "Device:" in line)
        os.killpg(answering.pid, signal.SIGSTOP)
        started = time.monotonic()
        job.send_signal(signal.SIGINT)
        rest = job.stdout.read()
        assert job.wait(timeout=60) == 130
        assert time.monotonic() - started < 2
        assert "resume=true" in rest
        os.killpg(answering.pid, signal.SIGCONT)
        (after, _) = process(*TINY, "quant.bits=4", f"tracking.uri={uri}").communicate(timeout=300)
        assert "top-1" in after
        assert sorted(run.info.status for run in all_runs(uri)) == ["FINISHED", "KILLED", "KILLED"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit", "arguments"),
    mostly_slow([(1_000_000, ["trainer.epochs=2"]), (20_000, [])]),
    ids=["in the training", "at once"],
)
def test_a_full_disk_is_said(tmp_path: Path, limit: int, arguments: list[str]) -> None:
    command = [sys.executable, str(ROOT / "run.py"), *FEW, *arguments, "tracking=none", "cache_dir=cache"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    assert done.returncode == 1
    assert "Error: " in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.glob("outputs/**/results.json")) == []


def test_a_folder_that_cannot_be_written_is_said(cli: Cli) -> None:
    outcome = cli(*TINY, "hydra.run.dir=/proc/nowhere")
    assert outcome.code == 1
    assert "/proc" in outcome.err
    assert "Traceback" not in outcome.err
