"""The times of a job's run in MLflow are those of its work, so that jobs done one after the other do not overlap."""

import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, Outcome

from ptq_exp.reporting.mlflow.run import Run

Cli = Callable[..., Outcome]
Runs = Callable[[str], dict[str, Any]]


@pytest.fixture
def slow_logging(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store to which artifacts take a second."""
    logged = Run.log_folder

    def slowly(run: Run, folder: Path) -> None:
        time.sleep(1)
        logged(run, folder)

    monkeypatch.setattr(Run, "log_folder", slowly)


@pytest.mark.slow
@pytest.mark.usefixtures("slow_logging")
def test_jobs_of_one_sweep_do_not_overlap(cli: Cli, store: str, runs: Runs) -> None:
    before = 1000 * time.time()
    outcome = cli(*TINY, "quant.bits=3,4,5", f"tracking.uri={store}", "-m")
    assert outcome.code == 0, outcome.err
    found = runs(store)
    parent = found.pop("sweep quant.bits=3,4,5")
    jobs = sorted(found.values(), key=lambda run: run.info.start_time)
    assert len(jobs) == 3
    for run in jobs:
        evaluated = 1000 * (run.data.metrics["quantize_seconds"] + run.data.metrics["evaluate_seconds"])
        assert run.info.end_time - run.info.start_time >= int(evaluated)
    for first, second in pairwise(jobs):
        assert first.info.end_time <= second.info.start_time
    assert before - 1 <= parent.info.start_time <= jobs[0].info.start_time
    assert jobs[-1].info.end_time <= parent.info.end_time - 1000  # the logging


@pytest.mark.slow
@pytest.mark.usefixtures("slow_logging")
def test_a_single_job_ends_with_its_last_evaluation(cli: Cli, store: str, runs: Runs, tmp_path: Path) -> None:
    arguments = [*TINY, "quant.bits=[3,4]", "quant.sensitivity=true"]
    assert cli(*arguments, f"tracking.uri={store}").code == 0
    (run,) = runs(store).values()
    (table,) = tmp_path.glob("outputs/*/*/artifacts/one_layer_w4.csv")
    assert abs(run.info.end_time - 1000 * table.stat().st_mtime) < 900  # written after the last evaluation, not logged


def test_an_upload_that_comes_later_keeps_the_times_of_the_work(
    cli: Cli, store: str, runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = 1000 * time.time()
    with monkeypatch.context() as broken:
        broken.setattr(
            "ptq_exp.reporting.mlflow.content.log_job", lambda *_: (_ for _ in ()).throw(OSError("the store went away"))
        )
        assert cli(*TINY, "quant.bits=3", f"tracking.uri={store}").code == 1
    after = 1000 * time.time()
    time.sleep(1)
    from mlflow import MlflowClient

    (lost,) = runs(store).values()
    MlflowClient(store).delete_run(lost.info.run_id)
    from ptq_exp.reporting.mlflow.content import upload_folder

    assert "1 logged" in upload_folder(tmp_path / "outputs", store)
    (run,) = runs(store).values()
    assert run.info.run_id != lost.info.run_id
    assert before - 1 <= run.info.start_time < run.info.end_time <= after
