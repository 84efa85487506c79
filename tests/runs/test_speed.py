"""What makes a sweep quick must not change its results: background work, shared statistics, folded evaluation."""

import json
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, Outcome, mostly_slow, quantize
from exported import small_resnet
from torch import nn

from bench import accuracy, evaluation, full_scale, harness, training
from ptq_exp.base import background
from ptq_exp.data.loader import Normalizer
from ptq_exp.evaluation.accuracy import evaluate, for_inference
from ptq_exp.networks import build_model
from ptq_exp.quantization.context import Calibration
from ptq_exp.quantization.options import QuantConfig
from ptq_exp.quantization.quantize import quantize as quantize_with

CPU = torch.device("cpu")


# Work in the background ------------------------------------------------------------------------------------------


@pytest.fixture(params=[1, 4])
def in_background(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """On one core figures are drawn on the thread, on several in a process."""
    monkeypatch.setattr(background, "_cores", lambda: request.param)
    background.start()
    yield
    background.finish()


def test_without_a_sweep_work_is_done_at_once() -> None:
    threads: list[str] = []
    background.later(lambda: threads.append(threading.current_thread().name))
    assert threads == [threading.main_thread().name]


@pytest.mark.usefixtures("in_background")
def test_work_is_done_later_and_in_order() -> None:
    done: list[int] = []
    gate = threading.Event()
    background.later(gate.wait)
    for number in range(5):
        background.later(done.append, number)
    assert done == []
    gate.set()
    background.finish()
    assert done == [0, 1, 2, 3, 4]


def test_an_error_stops_the_next_job_or_the_end() -> None:
    def fail() -> None:
        raise ValueError("disk full")

    background.start()
    background.later(fail)
    time.sleep(0.2)
    with pytest.raises(ValueError, match="disk full"):
        background.later(print)
    background.later(fail)
    done: list[int] = []
    background.later(done.append, 1)
    assert background.finish() == ["ValueError: disk full"]
    assert done == [1]  # what could be done was done
    assert background.finish() == []


@pytest.mark.usefixtures("in_background")
def test_what_comes_after_a_figure_finds_it_drawn(tmp_path: Path) -> None:
    file, there = tmp_path / "figure.png", []
    background.draw(os.system, f"sleep 0.3; touch {file}")  # stands for a figure that takes long
    background.later(lambda: there.append(file.exists()))
    assert there == []
    background.finish()
    assert there == [True]


def test_figures_are_drawn_here_where_their_process_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "_cores", lambda: 4)
    background.start()
    background.draw(time.sleep, 1)
    while not multiprocessing.active_children():
        time.sleep(0.05)
    for process in multiprocessing.active_children():
        process.kill()
    time.sleep(0.2)
    background.draw(Path.touch, tmp_path / "figure.png")
    background.finish()
    assert (tmp_path / "figure.png").exists()


def test_a_sweep_that_cannot_log_keeps_its_results_says_so_and_fails(
    cli: Callable[..., Outcome], store: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("ptq_exp.reporting.mlflow.content.log_job", fail)
    outcome = cli(*TINY, "quant.bits=3,4", f"tracking.uri={store}", "-m")
    assert outcome.code == 1
    assert "no space left on device" in outcome.err
    assert "python -m ptq_exp.runs.upload" in outcome.err
    assert "Traceback" not in outcome.err
    assert len(list(tmp_path.glob("outputs/*/*/*/results.json"))) == 2


@pytest.mark.slow
def test_no_network_is_traced_in_the_background(cli: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracing changes, while it lasts, how modules are called on every thread: the next job would fail now and then."""
    from torch import fx

    threads = set()

    def trace(*arguments: Any) -> Any:
        threads.add(threading.current_thread().name)
        return whole_trace(*arguments)

    whole_trace = fx.Tracer.trace
    monkeypatch.setattr(fx.Tracer, "trace", trace)
    assert cli(*TINY, "quant=mse", "quant.fold_batch_norm=true", "quant.bits=3,4", "-m").code == 0
    assert threads == {threading.main_thread().name}


def test_what_another_form_of_the_preset_measured_is_not_shown(tmp_path: Path) -> None:
    now = asdict(accuracy.preset("best"))
    other = {"row": "W2 (4 levels)", "task": ["quantized", "best", 2, 0], "checkpoint": "0" * 16}
    lines = [other | {"quant": now | {"grid": "symmetric"}, "n": 1}, other | {"quant": now, "n": 2}, other | {"n": 3}]
    later = {key: value for key, value in now.items() if key != "mixed"}  # measured before there was such an option
    file = tmp_path / "lines.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in [*lines, other | {"quant": later, "n": 4}]))
    assert [line["n"] for line in accuracy.read(file, "0" * 16)] == [2, 4]
    assert [line["n"] for line in full_scale.read(file)] == [2, 4]


def test_what_another_form_of_the_recipe_measured_is_not_shown(tmp_path: Path) -> None:
    now = full_scale.described(full_scale.recipe("fast"))
    longer = now | {"trainer": now["trainer"] | {"epochs": now["trainer"]["epochs"] + 1}}
    recipes = {"fast": [longer, now], f"fast, epochs {longer['trainer']['epochs']}": [longer, now]}
    lines = [{"task": ["float", name, "bf16", 0], "recipe": then} for name, found in recipes.items() for then in found]
    file = tmp_path / "lines.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert full_scale.read(file) == [lines[1], lines[2]]


# What jobs share -------------------------------------------------------------------------------------------------


def test_calibration_is_observed_once_for_all_bit_widths(monkeypatch: pytest.MonkeyPatch) -> None:
    from ptq_exp.quantization.steps import calibrate_activations

    calls: list[int] = []
    observe = calibrate_activations.observe
    monkeypatch.setattr(calibrate_activations, "observe", lambda *given: calls.append(1) or observe(*given))
    torch.manual_seed(0)
    model, x = build_model("resnet", 10, depth=8).eval(), torch.randn(32, 3, 32, 32)
    config = QuantConfig(act_bits=4, layers="all", fold_batch_norm=True)
    calibration = Calibration(x)
    shared = [quantize_with(model, config, bits, calibration).report for bits in (3, 5)]
    assert len(calls) == 1
    alone = [quantize(model, config, bits, x)[1] for bits in (3, 5)]
    assert [report.layers for report in shared] == [report.layers for report in alone]


# Evaluation ------------------------------------------------------------------------------------------------------


def labelled(count: int = 150) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return images, torch.randint(0, 10, (count,), generator=generator)


def network_with_statistics() -> nn.Module:
    return small_resnet(seed=1, batches=3, images=64).train()


@pytest.mark.parametrize("quant", [None, {}, {"act_bits": 4}])
def test_evaluation_answers_like_the_plain_network(quant: dict[str, Any] | None) -> None:
    model, (images, labels) = network_with_statistics().eval(), labelled()
    normalize = Normalizer((0.5, 0.5, 0.5), (0.25, 0.25, 0.25), CPU)
    if quant is not None:
        model, _ = quantize(model, QuantConfig(granularity="channel", alpha_rule="mse", **quant), 4, normalize(images))
    with torch.no_grad():
        logits = model(normalize(images))
    result, threads = evaluate(model, images, labels, normalize), torch.get_num_threads()
    assert (result.predictions == logits.argmax(1)).float().mean() >= 0.98  # a rounding step may fall the other way
    assert result.loss == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=2e-2)
    assert result.count == 150
    assert torch.get_num_threads() == threads
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())  # the model itself is untouched


def test_evaluation_restores_nothing_and_changes_nothing() -> None:
    model, (images, labels) = network_with_statistics().train(), labelled(20)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    evaluate(model, images, labels, Normalizer((0.5,) * 3, (0.25,) * 3, CPU))
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_folding_removes_every_batch_norm_and_keeps_the_function() -> None:
    model, x = network_with_statistics().eval(), torch.randn(8, 3, 32, 32)
    quick = for_inference(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in quick.modules())
    with torch.no_grad():
        assert torch.allclose(quick(x), model(x), atol=1e-4)


def test_folding_sees_through_quantizers() -> None:
    """Of activations, too: they are not looked into, since what they do depends on more than a symbol knows."""
    model, x = network_with_statistics().eval(), torch.randn(32, 3, 32, 32)
    quantized, _ = quantize(model, QuantConfig(act_bits=8, act_residual=True), 8, x)
    quick = for_inference(quantized)
    assert any(isinstance(module, nn.BatchNorm2d) for module in quantized.modules())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in quick.modules())
    with torch.no_grad():
        assert (quick(x) - quantized(x)).abs().max() < 0.1 * quantized(x).std()  # a value may round the other way


def test_a_network_that_cannot_be_traced_is_evaluated_as_it_is() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 10, 32), nn.BatchNorm2d(10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.bn(self.conv(x)).flatten(1)
            return y if y.sum() > 0 else y + 0.0

    model, (images, labels) = Branching().eval(), labelled(10)
    normalize = Normalizer((0.5,) * 3, (0.25,) * 3, CPU)
    with torch.no_grad():
        wanted = model(normalize(images)).argmax(1)
    assert torch.equal(evaluate(model, images, labels, normalize).predictions, wanted)


# Several workers -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_joblib_workers_share_the_cores_and_one_parent(
    process: Callable[..., Any], store: str, runs: Callable[[str], dict[str, Any]]
) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    outcome = process(
        *TINY, "quant.bits=2,4", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", f"tracking.uri={store}", "-m"
    )
    output, _ = outcome.communicate(timeout=300)
    assert outcome.returncode == 0, output
    found = runs(store)
    parent = found.pop("sweep quant.bits=2,4")
    assert {run.data.tags["mlflow.parentRunId"] for run in found.values()} == {parent.info.run_id}
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    assert len(found) == 2
    share = max(1, (torch.multiprocessing.cpu_count() or 2) // 2)
    assert all(f", {share} threads" in run.data.tags["hardware"] for run in found.values())


# The benchmarks --------------------------------------------------------------------------------------------------


def test_cases_take_turns() -> None:
    order: list[str] = []
    seconds = harness.take_turns({name: lambda name=name: order.append(name) for name in "ab"}, 2, CPU)
    assert order == ["b", "a", "a", "b", "b", "a"]
    assert {name: len(times) for name, times in seconds.items()} == {"a": 2, "b": 2}
    rows = harness.rows_of({"a": [1.0, 3.0, 2.0], "b": [4.0, 4.0, 5.0]}, "b", per=2)
    assert rows[0] == {"case": "a", "seconds": 1.0, "lowest": 0.5, "highest": 1.5, "ratio": 0.5}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bench", "arguments"),
    mostly_slow([(evaluation, ["--images", "64", "--rounds", "1"]), (training, ["--images", "64", "--rounds", "1"])]),
)
def test_a_benchmark_leaves_its_numbers_and_a_page(
    bench: Any, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setattr(harness, "PAGE", tmp_path / "performance.md")
    monkeypatch.setattr(harness, "machine_rates", lambda _: {"flops_per_second": 1e11, "bytes_per_second": 1e10})
    monkeypatch.setattr(bench, "machine_rates", harness.machine_rates)
    monkeypatch.setattr(sys, "argv", [bench.__name__, *arguments])
    bench.main()
    page = (tmp_path / "performance.md").read_text()
    assert "| the notebook's" in page
    assert "| ours" in page
    assert len(list(tmp_path.glob("*.json"))) == 1
