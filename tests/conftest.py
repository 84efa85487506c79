"""Fixtures: the command line in this process and in a fresh one, stores, small trained networks, the real data."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis.configuration import set_hypothesis_home_dir

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("PTQ_EXP_SHARED_DATA", ROOT.parent / "shared"))
sys.path.insert(0, str(ROOT))

# Several tests run at once: one thread each, and each job they start, or the threads wait for each other.
if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 1:
    os.environ["OMP_NUM_THREADS"] = "1"
    if hasattr(os, "sched_setaffinity"):  # a core for each worker: with one core a sweep needs no process for figures
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw")) % len(cores)]})

# OpenVINO imports absl, whose log handler closes its stream when Hydra sets up logging. It would be pytest's own.
with contextlib.suppress(ImportError):
    from absl import logging as absl_logging

    absl_logging.get_absl_handler().python_handler.stream = sys.__stderr__

# Nothing of a test's stays in the working tree, and how quick a machine is decides nothing.
set_hypothesis_home_dir(Path(tempfile.gettempdir()) / f"ptq_exp-hypothesis-{os.getuid()}")
settings.register_profile("ptq_exp", database=None, deadline=None)
settings.load_profile("ptq_exp")

# One short training on few images: its accuracy means nothing, its steps are all of a real job's.
FEW = ["data=digits", "data.train_limit=64", "data.test_limit=48", "trainer.epochs=1", "trainer.batch_size=32"]
TINY = ["model.depth=8", *FEW]  # a ResNet-8 has every kind of layer that a ResNet-20 has


# The tools' own caches may change, and sources while somebody edits them.
TOOLS = {".git", ".venv", "__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache"}
LEFT_BY_RUNS = {"outputs", "cache", "datasets", "mlartifacts", "mlruns", "mlflow.db"}
BEFORE: dict[str, float] = {}


def working_tree() -> dict[str, float]:
    """Every path of the working tree, and when it was changed if runs write it; 0 for what people write."""
    found: dict[str, float] = {}
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in TOOLS and not name.endswith(".egg-info")]
        for path in (Path(folder) / name for name in [*folders, *files]):
            inside = path.relative_to(ROOT)
            by_runs = inside.parts[0] in LEFT_BY_RUNS and path.is_file()
            found[inside.as_posix()] = path.stat().st_mtime if by_runs else 0.0
    return found


def pytest_sessionstart(session: pytest.Session) -> None:
    if not hasattr(session.config, "workerinput"):  # once, not in every worker
        BEFORE.update(working_tree())


def pytest_sessionfinish(session: pytest.Session) -> None:
    if BEFORE and working_tree() != BEFORE:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Nothing that a test does may touch the working tree: `tmp_path` is the place to write."""
    after = working_tree()
    changed = sorted(path for path in {*BEFORE, *after} if BEFORE.get(path) != after.get(path)) if BEFORE else []
    if changed:
        terminalreporter.section("The working tree changed while the tests ran", red=True)
        terminalreporter.write_line("\n".join(changed[:20]))


@dataclass
class Outcome:
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str


def mostly_slow(values: Iterable[Any], quick: int = 1) -> list[Any]:
    """Parameters of which the first `quick` run always, and the others with -m slow."""
    rest = [value if isinstance(value, tuple) else (value,) for value in list(values)[quick:]]
    return [*list(values)[:quick], *(pytest.param(*value, marks=pytest.mark.slow) for value in rest)]


def shared(name: str) -> Path:
    """A file of the real data; the test is skipped where it is not."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{name} is not in {SHARED} (set PTQ_EXP_SHARED_DATA)")
    return path


def network(architecture: str = "resnet", **options: Any) -> Any:
    """Random weights and batch-norm statistics that are not the identity."""
    import torch
    from torch import nn

    from ptq_exp.networks import build_model

    torch.manual_seed(4)
    model = build_model(architecture, 10, **({"depth": 8} | options if architecture == "resnet" else options)).eval()
    generator = torch.Generator().manual_seed(2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.3, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.uniform_(-0.2, 0.2, generator=generator)
    return model


def quantize(model: Any, options: Any, bits: int, images: Any, seed: int = 0, **more: Any) -> tuple[Any, Any]:
    """The quantized network and the report on it, calibrated on `images` alone."""
    from ptq_exp.quantization.context import Calibration
    from ptq_exp.quantization.quantize import quantize

    quantized = quantize(model, options, bits, Calibration(images, seed), **more)
    return quantized.network, quantized.report


def prepare(model: Any, options: Any) -> Any:
    """The float network as quantization starts from it: folded and equalized where the options say so."""
    import torch

    from ptq_exp.quantization.context import Calibration, Context
    from ptq_exp.quantization.modules import plain_copy
    from ptq_exp.quantization.steps.equalize import Equalize
    from ptq_exp.quantization.steps.fold_batch_norm import FoldBatchNorm

    context = Context(options, 8, Calibration(torch.empty(0)), plain_copy(model))
    for step in (FoldBatchNorm(), Equalize()):
        step.run(context)
    return context.reference


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small tensors: more threads would only wait for one another."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for the whole test session: the tiny network is trained once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An initialised sqlite store without runs: copying it saves every test the migrations."""
    from ptq_exp.reporting.mlflow.store import open_store

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    open_store(f"sqlite:///{path}", "other")
    return path


@pytest.fixture
def store(tmp_path: Path, empty_store: Path) -> str:
    """The URI of a store of this test's own."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture
def cli(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    """Run `python run.py ...` in this process, with outputs below `tmp_path`; no MLflow unless asked for."""
    import run

    def call(*arguments: str) -> Outcome:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
        given = " ".join(arguments)
        extra = [] if "tracking" in given else ["tracking=none"]
        extra += [] if "cache_dir" in given else [f"cache_dir={cache}"]
        monkeypatch.setattr(sys, "argv", ["run.py", *extra, *arguments])
        capsys.readouterr()
        try:
            code = run.command_line()
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        return Outcome(code, *capsys.readouterr())

    return call


@pytest.fixture
def process(tmp_path: Path, cache: Path) -> Callable[..., "subprocess.Popen[str]"]:
    """Start `python run.py ...` as a process of its own, as a user would, with outputs below `tmp_path`."""

    def start(*arguments: str, **environment: str) -> "subprocess.Popen[str]":
        given = " ".join(arguments)
        extra = [] if "cache_dir" in given else [f"cache_dir={cache}"]
        return subprocess.Popen(
            [sys.executable, str(ROOT / "run.py"), *extra, *arguments],
            cwd=tmp_path,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


@pytest.fixture
def runs() -> Callable[[str], dict[str, Any]]:
    """All runs of the experiment `ptq_exp` in a store, by name."""

    def fetch(uri: str) -> dict[str, Any]:
        from mlflow import MlflowClient

        client = MlflowClient(uri)
        experiment = client.get_experiment_by_name("ptq_exp")
        assert experiment is not None
        found = client.search_runs([experiment.experiment_id], max_results=500)
        names = [run.info.run_name for run in found]
        assert len(set(names)) == len(names), f"two runs share a name: {names}"
        return {run.info.run_name: run for run in found}

    return fetch
