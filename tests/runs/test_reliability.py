"""Sweeps that are killed, interrupted, cut off from their store or started eight at a time lose and repeat nothing."""

import contextlib
import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import psutil
import pytest
from conftest import FEW, ROOT, TINY, Outcome

from ptq_exp.results.files import read_jobs, read_record

Cli = Callable[..., Outcome]
Runs = Callable[[str], dict[str, Any]]
Process = Callable[..., "subprocess.Popen[str]"]
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
    rows = [row for job in read_jobs(sweep) for row in job["rows"]]
    return [[row[key] for key in MEASURED] for row in sorted(rows, key=lambda row: row["bits"])]


def test_every_test_that_a_promise_names_exists() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text()
    there = {path.name: path.read_text() for path in (ROOT / "tests").glob("test_*.py")}
    promises = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert len(promises) > 20
    for promise in promises:
        named = re.findall(r"`(?:(test_\w+\.py)(?:::)?)?(test_\w+)?`", promise.rpartition("|")[0].rpartition("|")[2])
        assert any(test for _, test in named), f"no test is named: {promise}"
        file = ""
        for name, test in named:
            file = name or file
            assert not test or f"def {test}(" in there[file], f"{file}::{test}"


# Resume -----------------------------------------------------------------------------------------------------------


def test_resume_skips_what_finished_and_goes_on_below_the_same_parent(
    cli: Cli, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the first sweep the jobs with 4 bits fail; the second does only those."""
    from ptq_exp.base.errors import UserError
    from ptq_exp.runs import job as experiment

    def without_four_bits(model: Any, config: Any, bits: int, *arguments: Any) -> Any:
        if bits == 4:
            raise UserError("The memory is full.")
        return quantize(model, config, bits, *arguments)

    quantize = experiment.quantize
    monkeypatch.setattr(experiment, "quantize", without_four_bits)
    given = [*TINY, "quant.bits=3,4", "quant.alpha_multiplier=2,3", f"tracking.uri={store}", "-m"]
    first = cli(*given)
    assert first.code == 1
    assert "FAILED quant.bits=4 quant.alpha_multiplier=2: The memory is full." in first.out
    monkeypatch.setattr(experiment, "quantize", quantize)
    second = cli(*given, "resume=true")
    assert second.code == 0, second.err
    assert second.out.count("finished before, not run again") == 2
    assert second.out.count("results go to") == 2
    for job in tmp_path.glob("outputs/*/*/*/results.json"):  # the report of the second sweep shows them all
        assert list((job.parent / "artifacts").glob("confusion_w*.png")), job
    runs = all_runs(store)
    parents = [run for run in runs if run.info.run_name.startswith("sweep")]
    assert [run.info.status for run in runs] == ["FINISHED"] * 7  # 4 jobs, 2 curves, 1 parent
    assert len(parents) == 1
    assert all(run.data.tags["mlflow.parentRunId"] == parents[0].info.run_id for run in runs if run != parents[0])
    assert not any("error" in run.data.tags for run in runs)
    curves = [run for run in runs if run.info.run_name.startswith("curve")]
    assert [len(points(store, run, "top1_vs_bits")) for run in curves] == [2, 2]


def test_a_job_that_finished_elsewhere_is_found_in_the_store(cli: Cli, store: str, tmp_path: Path) -> None:
    given = [*TINY, "quant.bits=5", f"tracking.uri={store}"]
    assert cli(*given, f"cache_dir={tmp_path / 'here'}").code == 0
    shutil.rmtree(tmp_path / "outputs")
    outcome = cli(*given, f"cache_dir={tmp_path / 'there'}", "resume=true")
    assert outcome.code == 0, outcome.err
    assert "finished before, not run again" in outcome.out
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
    assert "2 jobs finished, 0 failed" in page.read_text()


def test_brackets_in_what_the_user_wrote_are_brackets(cli: Cli, store: str) -> None:
    outcome = cli(*TINY, "quant.bits=3", "quant.name='a[old]','b[/new]'", f"tracking.uri={store}", "-m")
    assert outcome.code == 0, outcome.err
    for name in ("a[old]", "b[/new]"):
        assert f"│ quant.name='{name}'" in outcome.out  # the table
        assert f"quant.name='{name}': " in outcome.out  # the sentence
    assert {run.info.status for run in all_runs(store)} == {"FINISHED"}


def test_without_resume_everything_is_measured_again(cli: Cli, store: str) -> None:
    for _ in range(2):
        assert "not run again" not in cli(*TINY, "quant.bits=5", f"tracking.uri={store}").out
    assert len(all_runs(store)) == 2


@pytest.mark.parametrize("change", ["seed=1", "data.test_limit=40"])
def test_another_configuration_is_not_skipped(cli: Cli, change: str) -> None:
    few = [word for word in TINY if word.partition("=")[0] != change.partition("=")[0]]
    assert cli(*TINY, "quant.bits=5").code == 0
    outcome = cli(*few, change, "quant.bits=5", "resume=true")
    assert outcome.code == 0, outcome.err
    assert "not run again" not in outcome.out


KILLED = ["data=digits", "data.train_limit=192", "data.test_limit=48", "trainer.epochs=3", "trainer.batch_size=32"]
KILLED += [
    "model.depth=8",
    "quant=adaround",
    "quant.calibration_images=32",
    "quant.reconstruction.steps=12",
    "quant.bits=2,3",
    "-m",
]
ALONE = {"OMP_NUM_THREADS": "1"}  # on a busy machine several threads wait for each other most of the time


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


# Failures ---------------------------------------------------------------------------------------------------------


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
    assert outcome.out.count("Not run: another job failed") >= 2
    assert list(tmp_path.glob("outputs/*/*/*/results.json")) == []
    assert "quant.bits=99" in outcome.err


@pytest.mark.parametrize("moment", ["training", "Reconstructing"])
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


def test_ctrl_c_is_not_lost_where_python_drops_exceptions() -> None:
    """In a destructor, of SQLAlchemy's objects for example."""
    code = (
        "import signal, time\n"
        "from ptq_exp import background\n"
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


@pytest.mark.parametrize(
    ("limit", "arguments"), [(20_000, []), (1_000_000, ["trainer.epochs=2"])], ids=["at once", "in the training"]
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


# Outages ----------------------------------------------------------------------------------------------------------


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
    assert "python -m ptq_exp.reporting.mlflow upload" in rest
    (sweep,) = tmp_path.glob("outputs/*/*")
    assert len(read_jobs(sweep)) == 3
    upload = [sys.executable, "-m", "ptq_exp.reporting.mlflow", "upload", str(sweep)]
    down = subprocess.run(upload, cwd=ROOT, capture_output=True, text=True)
    assert down.returncode == 1
    assert "Traceback" not in down.stderr
    with server(tmp_path, port) as uri:
        for expected in ("", "0 logged, 3 were there already."):  # twice: the second changes nothing
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
    command = [sys.executable, "-m", "ptq_exp.reporting.mlflow", "upload", str(tmp_path)]
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
        from ptq_exp.results.files import write_record

        record = read_record(path.parent)
        assert record is not None
        write_record(path.parent, record | {"uploaded": False})
    command = [sys.executable, "-m", "ptq_exp.reporting.mlflow", "upload", str(tmp_path / "outputs"), "--uri", store]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    runs = all_runs(store)
    parent = next(run for run in runs if run.info.run_name.startswith("sweep"))
    assert len(runs) == 3
    assert all(run.data.tags["mlflow.parentRunId"] == parent.info.run_id for run in runs if run != parent)


# Many at once -----------------------------------------------------------------------------------------------------

MANY = """
import sys
from ptq_exp.reporting import mlflow as tracking
from ptq_exp.reporting.mlflow.options import TrackingOptions
config = TrackingOptions(True, sys.argv[1], "ptq_exp")
for number in range(25):
    run = tracking.start(config, f"{sys.argv[2]}-{number}")
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
    tables = [[[row[key] for key in MEASURED] for job in read_jobs(path) for row in job["rows"]] for path in
              tmp_path.glob("outputs/day/*")]  # fmt: skip
    assert len(tables) == 8
    assert all(json.dumps(table) == json.dumps(tables[0]) for table in tables)
