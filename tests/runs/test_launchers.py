"""Hydra's launchers: the same sweep on other engines, down to a Ray cluster whose nodes share no folder.

Threads of a job: joblib's share of the cores is in test_speed.py.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import ROOT, TINY, Outcome, mostly_slow
from stores import all_runs, finish, free_port, last_table, points, server

Process = Callable[..., "subprocess.Popen[str]"]
LAUNCHERS = sorted(path.stem for path in (ROOT / "conf" / "hydra" / "launcher").glob("*.yaml"))


def check(uri: str, widths: list[int]) -> None:
    """One parent, one finished child a bit width, one curve."""
    runs = all_runs(uri)
    parent = next(run for run in runs if run.info.run_name.startswith("sweep"))
    children = [run for run in runs if run != parent]
    assert sorted(run.data.metrics["bits_mean"] - 1 for run in children) == widths
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert [step for step, _ in points(uri, parent, "top1_vs_bits")] == widths


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_every_launcher_composes(cli: Callable[..., Outcome], launcher: str) -> None:
    pytest.importorskip(f"hydra_plugins.hydra_{launcher.partition('_')[0]}_launcher")
    outcome = cli(f"hydra/launcher={launcher}", "--cfg", "hydra")
    assert outcome.code == 0, outcome.err
    assert "_target_: hydra_plugins" in outcome.out
    assert "Warning" not in outcome.err


@pytest.mark.parametrize("launcher", mostly_slow(LAUNCHERS, 0))
def test_a_launcher_that_is_not_installed_is_said(launcher: str, tmp_path: Path) -> None:
    """In a process that has no plugins."""
    code = (
        "import runpy, sys, types\n"
        "sys.modules['hydra_plugins'] = types.ModuleType('hydra_plugins')\n"
        "sys.modules['hydra_plugins'].__path__ = []\n"
        "sys.argv = ['run.py', *sys.argv[1:]]\n"
        "runpy.run_path('run.py', run_name='__main__')"
    )
    given = ["quant.bits=2,3", f"hydra/launcher={launcher}", "tracking=none", "-m"]
    given += [f"hydra.sweep.dir={tmp_path}", f"cache_dir={tmp_path}"]
    done = subprocess.run([sys.executable, "-c", code, *given], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "pip install -e '.[" in done.stderr
    assert "Traceback" not in done.stderr


def jobs_of(uri: str) -> list[Any]:
    """The runs of jobs: not the parent."""
    return [run for run in all_runs(uri) if "hardware" in run.data.tags]


@pytest.mark.slow
def test_submitit_runs_a_sweep_as_processes(process: Process, store: str) -> None:
    pytest.importorskip("submitit")
    finish(process(*TINY, "quant.bits=2,3", "hydra/launcher=submitit_local", f"tracking.uri={store}", "-m"))
    check(store, [2, 3])
    assert all("1 threads" in run.data.tags["hardware"] for run in jobs_of(store))


@pytest.fixture
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """torch says that there are two, of these names; nobody has claimed them."""
    from ptq_exp.base import machine

    names = ["GPU-0", "GPU-1"]
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(machine, "_claimed", {})
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.set_device", lambda device: None)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda number: SimpleNamespace(uuid=names[number]))
    return names


def test_jobs_of_one_machine_have_gpus_of_their_own(two_gpus: list[str]) -> None:
    """Another process has the first; when it is killed, the next one takes it."""
    from ptq_exp.runs.device import pick_device

    code = f"from ptq_exp.base.machine import claim; print(claim({two_gpus}), flush=True); input()"

    def other() -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def number(job: "subprocess.Popen[str]") -> int:
        assert job.stdout is not None
        return int(job.stdout.readline())

    jobs = [other()]
    try:
        assert number(jobs[0]) == 0
        assert [str(pick_device("auto")) for _ in range(2)] == ["cuda:1"] * 2  # the jobs of one process share it
        jobs.append(other())
        assert number(jobs[1]) in (0, 1)  # all are taken: shared
        for job in jobs:
            job.kill()
            job.wait()
        jobs = [other()]
        assert number(jobs[0]) == 0
    finally:
        for job in jobs:
            job.kill()
            job.communicate()


NODES = ("first", "second")


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A Ray cluster of two nodes, one core each, that work in folders of their own."""
    utilities = pytest.importorskip("ray.cluster_utils")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    nodes = utilities.Cluster()
    try:
        for name in NODES:
            (tmp_path / name).mkdir()
            monkeypatch.chdir(tmp_path / name)
            nodes.add_node(num_cpus=1)
        nodes.wait_for_nodes()
        yield nodes.address
    finally:
        nodes.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_ray_cluster_without_a_shared_folder(process: Process, tmp_path: Path, cluster: str) -> None:
    """Outputs and cache are relative, so that every node has its own: it trains the float model that it does not have,
    and the sweep's table comes from the MLflow server."""
    given = [*TINY, "quant.bits=2,3,4,5", "cache_dir=mine", "-m"]
    finish(process(*given, "tracking=none", OMP_NUM_THREADS="1"))  # as many as a job has there: sums depend on it
    expected = last_table(tmp_path)
    shutil.rmtree(tmp_path / "outputs")
    there = ["hydra/launcher=ray", f"hydra.launcher.ray.init.address={cluster}"]
    with server(tmp_path, free_port()) as uri:
        text = finish(process(*given, *there, f"tracking.uri={uri}"))
        assert "│     5 │" in text
        check(uri, [2, 3, 4, 5])
        assert all("1 threads" in run.data.tags["hardware"] for run in jobs_of(uri))
    assert last_table(tmp_path) == expected
    records = [len(list((tmp_path / name).glob("outputs/*/*/*/results.json"))) for name in NODES]
    assert min(records) > 0  # both nodes worked
    assert sum(records) == 4
    for name in NODES:
        assert len(list((tmp_path / name).glob("mine/float/*/last.safetensors"))) == 1
