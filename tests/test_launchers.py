"""Hydra's launchers: the same sweep on other engines, down to a Ray cluster whose nodes share no folder."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, TINY, Outcome
from test_reliability import all_runs, free_port, last_table, points, server

Process = Callable[..., "subprocess.Popen[str]"]
LAUNCHERS = sorted(path.stem for path in (ROOT / "conf" / "hydra" / "launcher").glob("*.yaml"))


def finish(job: "subprocess.Popen[str]") -> str:
    text, _ = job.communicate(timeout=500)
    assert job.returncode == 0, text
    return text


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


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_launcher_that_is_not_installed_is_said(launcher: str) -> None:
    """In a process that has no plugins."""
    code = (
        "import runpy, sys, types\n"
        "sys.modules['hydra_plugins'] = types.ModuleType('hydra_plugins')\n"
        "sys.modules['hydra_plugins'].__path__ = []\n"
        "sys.argv = ['run.py', *sys.argv[1:]]\n"
        "runpy.run_path('run.py', run_name='__main__')"
    )
    given = ["quant.bits=2,3", f"hydra/launcher={launcher}", "tracking=none", "-m", "hydra.sweep.dir=/tmp/nowhere"]
    done = subprocess.run([sys.executable, "-c", code, *given], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "pip install -e '.[" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_submitit_runs_a_sweep_as_processes(process: Process, store: str) -> None:
    pytest.importorskip("submitit")
    finish(process(*TINY, "quant.bits=2,3", "hydra/launcher=submitit_local", f"tracking.uri={store}", "-m"))
    check(store, [2, 3])


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[str]:
    """A Ray cluster of two nodes, one core each, in a folder that the sweep knows nothing of."""
    pytest.importorskip("ray")
    port, ray = free_port(), str(Path(sys.executable).with_name("ray"))
    (tmp_path / "worker").mkdir()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    common = {"cwd": tmp_path / "worker", "env": environment, "check": True, "capture_output": True, "timeout": 120}
    head = ["--head", "--num-cpus=1", f"--port={port}", "--include-dashboard=false", "--disable-usage-stats"]
    subprocess.run([ray, "start", *head], **common)  # type: ignore[call-overload]
    try:
        subprocess.run([ray, "start", "--num-cpus=1", f"--address=127.0.0.1:{port}"], **common)  # type: ignore[call-overload]
        yield f"127.0.0.1:{port}"
    finally:
        subprocess.run([ray, "stop", "--force"], capture_output=True, check=False, timeout=120)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_ray_cluster_without_a_shared_folder(process: Process, tmp_path: Path, cluster: str) -> None:
    """Outputs are relative, so every job writes below the node's own folder: the table comes from the MLflow server."""
    given = [*TINY, "quant.bits=2,3,4,5"]
    finish(process(*given, "tracking=none", "-m", f"cache_dir={tmp_path / 'here'}"))
    expected = last_table(tmp_path)
    shutil.rmtree(tmp_path / "outputs")
    with server(tmp_path, free_port()) as uri:
        text = finish(
            process(
                *given,
                "hydra/launcher=ray",
                f"hydra.launcher.ray.init.address={cluster}",
                f"tracking.uri={uri}",
                "-m",
                f"cache_dir={tmp_path / 'there'}",
            )
        )
        assert "│     5 │" in text
        check(uri, [2, 3, 4, 5])
        nodes: set[Any] = {
            run.data.tags["process"] for run in all_runs(uri) if not run.info.run_name.startswith("sweep")
        }
    assert len(nodes) == 2  # both nodes worked
    assert last_table(tmp_path) == expected
