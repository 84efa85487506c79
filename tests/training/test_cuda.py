"""On a CUDA device: the same answers as on the CPU. Needs neither Hydra nor MLflow."""

import copy
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import quantize
from torch import nn

from ptq_exp.config import Config
from ptq_exp.data import load_dataset
from ptq_exp.data.loader import Normalizer, TrainingLoader
from ptq_exp.data.options import DataOptions
from ptq_exp.evaluation.accuracy import evaluate
from ptq_exp.networks import build_model
from ptq_exp.quantization.learning import minimize
from ptq_exp.reporting.mlflow.options import TrackingOptions
from ptq_exp.runs.device import pick_device
from ptq_exp.runs.float_model import load_or_train
from ptq_exp.runs.job import run
from ptq_exp.training.step import TrainingStep

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def test_a_job_runs_on_cuda_and_reaches_98_percent(tmp_path: Path) -> None:
    config = Config(
        data=DataOptions(name="digits"), device="cuda", cache_dir=str(tmp_path / "cache"),
        output_dir=str(tmp_path / "run"), tracking=TrackingOptions(enabled=False),
    )  # fmt: skip
    metrics = run(config)
    assert metrics["top1_float"] >= 98
    assert metrics["top1_w8"] >= 98
    assert (tmp_path / "run" / "results.json").exists()


def test_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    device = pick_device("cuda")
    config = Config(data=DataOptions(name="digits", train_limit=256), cache_dir=str(tmp_path))
    config = replace(config, trainer=replace(config.trainer, epochs=3), checkpoint="train")
    data = load_dataset(config.data, config.cache, device)
    first, second = (load_or_train(config, data, device).model.state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_evaluation_and_quantization_agree_with_the_cpu(tmp_path: Path) -> None:
    config = Config(data=DataOptions(name="digits", train_limit=512), cache_dir=str(tmp_path))
    config = replace(config, trainer=replace(config.trainer, epochs=4))
    results = {}
    for name in ("cuda", "cpu"):  # trained on the first, found in the store by the second
        device = pick_device(name)
        data = load_dataset(config.data, config.cache, device)
        trained = load_or_train(config, data, device)
        calibration = trained.normalize(data.train_images[:128])
        quant = replace(config.quant, act_bits=4)
        quantized, report = quantize(trained.model, quant, 4, calibration)
        float_result = evaluate(trained.model, data.test_images, data.test_labels, trained.normalize)
        result = evaluate(quantized, data.test_images, data.test_labels, trained.normalize)
        results[name] = (float_result, result, report)
    assert results["cuda"][0].agreement(results["cpu"][0]) >= 99.5
    assert results["cuda"][1].agreement(results["cpu"][1]) >= 98.5  # a 4-bit level may fall the other way
    for row, other in zip(results["cuda"][2].layers, results["cpu"][2].layers, strict=True):
        assert (row.levels_used, row.levels_available) == (other.levels_used, other.levels_available)
        assert row.alpha == pytest.approx(other.alpha, rel=1e-5)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("tf32", 0.1), ("bf16", 0.2)])
def test_the_captured_loop_equals_a_plain_reference_loop(precision: str, tolerance: float, fused: bool) -> None:
    """Twenty-one steps, the last on a smaller batch: the losses are those of an eager textbook loop.

    Training magnifies the last bit of a float from step to step, whichever loop it is. The fused kernels add in an
    order of their own: what they are allowed is how far the textbook loop in float32 is from the one in float64.
    The images are noise on a brightness that tells their class: of flat ones, many pixels meet a ReLU's kink at once.
    """
    device = pick_device("cuda")
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 10, (20 * 64 + 32,), generator=generator)
    noise = torch.randint(0, 160, (len(labels), 3, 32, 32), generator=generator)
    images = (noise + 10 * labels[:, None, None, None]).to(torch.uint8).to(device)
    normalize = Normalizer((0.5, 0.5, 0.5), (0.25, 0.25, 0.25), device)
    torch.manual_seed(0)
    model = build_model("resnet", 10).to(device).to(memory_format=torch.channels_last)
    references = copy.deepcopy(model), copy.deepcopy(model).double()
    loader = TrainingLoader(images, labels.to(device), 64, 4, True, seed=5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    step = TrainingStep(model, normalize, optimizer, precision, fused)
    assert (step.forward is not model) == fused
    found = []
    for x, y in loader.epoch(0):
        step.totals.zero_()
        step(x, y)
        found.append(step.totals[0].item() / len(y))
    plain, exact = (_plain_losses(reference, normalize, loader) for reference in references)
    assert len(found) == 21
    assert exact[-1] < 0.8 * exact[0]
    if fused:
        assert found[:4] == pytest.approx(exact[:4], rel=tolerance)
        drift = max(abs(a - b) / b for a, b in zip(plain, exact, strict=True))
        assert found == pytest.approx(exact, rel=max(tolerance, 5 * drift))
    else:
        assert found == pytest.approx(plain, rel=tolerance)
    for (name, one), other in zip(model.state_dict().items(), references[0].state_dict().values(), strict=True):
        if name.endswith("num_batches_tracked"):
            assert one == other == 21


def _plain_losses(model: nn.Module, normalize: Normalizer, loader: TrainingLoader) -> list[float]:
    """An epoch as a textbook has it, in the model's own precision."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    dtype, losses = next(model.parameters()).dtype, []
    for images, labels in loader.epoch(0):
        loss = F.cross_entropy(model(normalize(images).to(dtype)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_learning_captures_its_steps_while_another_thread_uses_the_gpu() -> None:
    """A sweep reports one job on a thread while it learns the next one."""
    ended = threading.Event()

    def report() -> None:
        while not ended.is_set():
            torch.ones(256, 256, device="cuda").sum().item()
            torch.cuda.empty_cache()

    thread = threading.Thread(target=report)
    thread.start()
    try:
        for _ in range(20):
            value = nn.Parameter(torch.ones(64, device="cuda"))
            groups = [{"params": [value], "lr": 0.1}]
            minimize(lambda value=value: value.square().sum(), groups, 50, lambda number: None, lambda: None)
            assert float(value.detach().abs().max()) < 0.5
    finally:
        ended.set()
        thread.join()
