"""Sweeps that are resumed, also after they were killed, repeat nothing and lose nothing."""

import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import psutil
import pytest
from conftest import ROOT, TINY, Outcome, mostly_slow
from stores import ALONE, all_runs, last_table, points

from ptq_exp.base.errors import UserError

Cli = Callable[..., Outcome]
Runs = Callable[[str], dict[str, Any]]
Process = Callable[..., "subprocess.Popen[str]"]


def test_resume_skips_what_finished_and_goes_on_below_the_same_parent(
    cli: Cli, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the first sweep the jobs with 4 bits fail; the second does only those."""
    from ptq_exp.runs import job

    def without_four_bits(bits: int, *arguments: Any) -> Any:
        if bits == 4:
            raise UserError("The memory is full.")
        return measure(bits, *arguments)

    measure = job.measure_bit_width
    monkeypatch.setattr(job, "measure_bit_width", without_four_bits)
    given = [*TINY, "quant.bits=3,4", "quant.alpha_multiplier=2,3", f"tracking.uri={store}", "-m"]
    first = cli(*given)
    assert first.code == 1
    assert "FAILED quant.bits=4 quant.alpha_multiplier=2: The memory is full." in first.out
    monkeypatch.setattr(job, "measure_bit_width", measure)
    second = cli(*given, "resume=true")
    assert second.code == 0, second.err
    assert second.out.count("already finished, not run again") == 2
    assert second.out.count("writing results to") == 2
    for file in tmp_path.glob("outputs/*/*/*/results.json"):  # the report of the second sweep shows them all
        assert list((file.parent / "artifacts").glob("levels_w*.png")), file
    runs = all_runs(store)
    parents = [run for run in runs if run.info.run_name.startswith("sweep")]
    assert [run.info.status for run in runs] == ["FINISHED"] * 7  # 4 jobs, 2 curves, 1 parent
    assert len(parents) == 1
    assert all(run.data.tags["mlflow.parentRunId"] == parents[0].info.run_id for run in runs if run != parents[0])
    assert not any("error" in run.data.tags for run in runs)
    curves = [run for run in runs if run.info.run_name.endswith(" curve")]
    assert [len(points(store, run, "top1_vs_bits")) for run in curves] == [2, 2]


def test_a_job_that_finished_elsewhere_is_found_in_the_store(cli: Cli, store: str, tmp_path: Path) -> None:
    given = [*TINY, "quant.bits=5", f"tracking.uri={store}"]
    assert cli(*given, f"cache_dir={tmp_path / 'here'}").code == 0
    shutil.rmtree(tmp_path / "outputs")
    outcome = cli(*given, f"cache_dir={tmp_path / 'there'}", "resume=true")
    assert outcome.code == 0, outcome.err
    assert "already finished, not run again" in outcome.out
    assert len(all_runs(store)) == 1


@pytest.mark.slow
def test_a_sweep_that_grows_has_a_report_of_all_its_jobs(cli: Cli, store: str, tmp_path: Path) -> None:
    """Also from MLflow alone, where the jobs of before hang below the sweep that ran them."""
    given = [*TINY, f"tracking.uri={store}", "-m"]
    assert cli(*given, "quant.bits=4").code == 0
    assert cli(*given, "quant.bits=3,4", "resume=true").code == 0
    parent = next(run for run in all_runs(store) if run.info.run_name == "sweep quant.bits=3,4")
    page = tmp_path / "again.html"
    command = [sys.executable, "-m", "ptq_exp.report", "--uri", store, "--parent", parent.info.run_id]
    done = subprocess.run([*command, "--output", str(page)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "2 jobs · " in page.read_text()


@pytest.mark.slow
def test_brackets_in_what_the_user_wrote_are_brackets(cli: Cli, store: str) -> None:
    outcome = cli(*TINY, "quant.bits=3", "quant.name='a[old]','b[/new]'", f"tracking.uri={store}", "-m")
    assert outcome.code == 0, outcome.err
    for name in ("a[old]", "b[/new]"):
        assert f"│ quant.name='{name}'" in outcome.out  # the table
        assert f"quant.name='{name}': " in outcome.out  # the sentence
    assert {run.info.status for run in all_runs(store)} == {"FINISHED"}


@pytest.mark.slow
def test_without_resume_everything_is_measured_again(cli: Cli, store: str) -> None:
    for _ in range(2):
        assert "not run again" not in cli(*TINY, "quant.bits=5", f"tracking.uri={store}").out
    assert len(all_runs(store)) == 2


@pytest.mark.parametrize("change", mostly_slow(["seed=1", "data.test_limit=40"]))
def test_another_configuration_is_not_skipped(cli: Cli, change: str) -> None:
    few = [word for word in TINY if word.partition("=")[0] != change.partition("=")[0]]
    assert cli(*TINY, "quant.bits=5").code == 0
    outcome = cli(*few, change, "quant.bits=5", "resume=true")
    assert outcome.code == 0, outcome.err
    assert "not run again" not in outcome.out


def test_a_repetition_that_ends_early_does_not_hide_the_finished_job(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli(*TINY, "quant.bits=5", "output_dir=first").code == 0
    with monkeypatch.context() as broken:
        broken.setattr("ptq_exp.runs.job.measure_bit_width", Mock(side_effect=UserError("The disk is full.")))
        assert cli(*TINY, "quant.bits=5", "output_dir=second").code == 1
    assert "not run again" in cli(*TINY, "quant.bits=5", "output_dir=third", "resume=true").out


KILLED = ["data=digits", "data.train_limit=192", "data.test_limit=48", "trainer.epochs=3", "trainer.batch_size=32"]
KILLED += [
    "model.depth=8",
    "quant=adaround",
    "quant.calibration_images=32",
    "quant.reconstruction.steps=12",
    "quant.bits=2,3",
    "-m",
]


def kill_and_resume(process: Process, folder: Path, moment: float, undisturbed: list[list[Any]]) -> None:
    """Kill a sweep after `moment` seconds, take it up again, and compare with the undisturbed one."""
    folder.mkdir()
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    output = f"hydra.sweep.dir={folder}/outputs/day/${{now:%H-%M-%S-%f}}"
    given = [*KILLED, f"tracking.uri={uri}", f"cache_dir={folder / 'cache'}", output]
    victim = process(*given, **ALONE)
    time.sleep(moment)
    helpers = psutil.Process(victim.pid).children(recursive=True)  # the process that draws
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert not psutil.wait_procs(helpers, timeout=20)[1], "outlived the sweep"
    again = process(*given, "resume=true", **ALONE)
    text, _ = again.communicate(timeout=600)
    assert again.returncode == 0, text
    assert last_table(folder) == undisturbed, f"killed after {moment:.2f} s"
    runs = all_runs(uri)
    assert {run.info.status for run in runs} <= {"FINISHED", "KILLED"}
    finished = [run for run in runs if run.info.status == "FINISHED"]
    names = sorted(run.info.run_name.split()[0] for run in finished)
    assert names == ["sweep", "w2", "w3"], f"killed after {moment:.2f} s: {names}"
    parent = next(run for run in finished if run.info.run_name.startswith("sweep"))
    assert [step for step, _ in points(uri, parent, "top1_vs_bits")] == [2, 3]
    for run in finished:
        if run != parent:
            assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
            assert [len(points(uri, run, key)) for key in ("top1", "loss")] == [1, 1]
    for run in runs:  # what was killed and not taken up again holds no result
        assert run.info.status == "FINISHED" or "top1" not in run.data.metrics


def undisturbed_sweep(process: Process, folder: Path) -> tuple[list[list[Any]], float]:
    folder.mkdir()
    output = f"hydra.sweep.dir={folder}/outputs/day/first"
    started = time.monotonic()
    given = [*KILLED, f"tracking.uri=sqlite:///{folder / 'mlflow.db'}", f"cache_dir={folder / 'cache'}", output]
    job = process(*given, **ALONE)
    text, _ = job.communicate(timeout=600)
    assert job.returncode == 0, text
    return last_table(folder), time.monotonic() - started


@pytest.mark.slow
def test_a_killed_sweep_is_taken_up_again(process: Process, tmp_path: Path) -> None:
    table, seconds = undisturbed_sweep(process, tmp_path / "undisturbed")
    kill_and_resume(process, tmp_path / "killed", 0.8 * seconds, table)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_sweep_killed_at_twenty_random_moments_ends_as_if_undisturbed(process: Process, tmp_path: Path) -> None:
    table, seconds = undisturbed_sweep(process, tmp_path / "undisturbed")
    moments = random.Random(5)
    for number in range(20):
        kill_and_resume(process, tmp_path / f"killed{number}", moments.uniform(0.15, 1.0) * seconds, table)
        shutil.rmtree(tmp_path / f"killed{number}")
