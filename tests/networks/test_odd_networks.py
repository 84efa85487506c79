"""Odd but valid weights, statistics and images: every method gives finite numbers, and eight bits lose little."""

import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, Outcome, mostly_slow, network, quantize
from PIL import Image
from torch import Tensor, nn

from ptq_exp.quantization.augmentation import random_crop_and_flip
from ptq_exp.quantization.diagnosis import diagnose
from ptq_exp.quantization.options import QuantConfig, ReconstructionConfig

Cli = Callable[..., Outcome]
NOTEBOOK = QuantConfig()
PER_CHANNEL = QuantConfig(
    sign_bit="included", alpha_rule="mse", granularity="channel", layers="all", act_rule="mse", act_bits=8,
)  # fmt: skip
LEARNED = replace(
    PER_CHANNEL, grid="float_zero_point", alpha_rule="lp", fold_batch_norm=True, rounding="block", act_bits=8,
    reconstruction=ReconstructionConfig(steps=2, batch_size=4, distill_steps=2, distill_batch_size=4),
)  # fmt: skip
CORRECTED = replace(
    PER_CHANNEL, grid="asymmetric", fold_batch_norm=True, equalize=True, bias_correction=True, act_residual=True,
    act_input_image=True,
)  # fmt: skip
MIXED = replace(
    PER_CHANNEL, grid="asymmetric", act_bits=None, fold_batch_norm=True, mixed=True, mixed_candidates=[2, 8]
)
METHODS = {"notebook": NOTEBOOK, "learned": LEARNED, "corrected": CORRECTED}


def other_norms(model: Any, **options: Any) -> None:
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            norm = nn.BatchNorm2d(module.num_features, **options).eval()
            if norm.running_mean is not None:
                norm.running_mean.copy_(module.running_mean)
                norm.running_var.copy_(module.running_var)
            model.set_submodule(name, norm)


def no_variance(model: Any) -> None:
    """Channels without weights, as weight decay leaves them: nothing varies."""
    block = model.layer2[0]
    block.conv1.weight.data[3:5] = 0
    block.bn1.running_mean[3:5] = 0
    block.bn1.running_var[3:5] = torch.tensor([0.0, 1e-20])


def edit(path: str, change: Callable[[Tensor], Any]) -> Callable[[Any], Any]:
    return lambda model: change(model.get_parameter(path).data)


CONV = "layer2.0.conv1.weight"
ODD: dict[str, Callable[[Any], Any]] = {
    "batch norm without affine parameters": lambda model: other_norms(model, affine=False),
    "batch norm without running statistics": lambda model: other_norms(model, track_running_stats=False),
    "variance of zero": no_variance,
    "variance near zero": lambda model: model.layer2[0].bn1.running_var[3].fill_(1e-12),
    "channels that never fire": edit("layer2.0.bn1.bias", lambda bias: bias[:8].fill_(-100)),
    "a layer that never fires": edit("layer2.0.bn1.bias", lambda bias: bias.fill_(-100)),
    "one weight a thousand times the others": edit(CONV, lambda weight: weight.view(-1)[7].mul_(1000)),
    "weights of a layer all positive": edit(CONV, lambda weight: weight.abs_()),
    "a constant weight": edit(CONV, lambda weight: weight.fill_(0.1)),
    "a constant negative weight": edit(CONV, lambda weight: weight.fill_(-0.1)),
    "a layer of zeros": edit(CONV, lambda weight: weight.zero_()),
    "a linear layer of zeros": edit("linear.weight", lambda weight: weight.zero_()),
    "tiny weights": edit(CONV, lambda weight: weight.mul_(1e-30)),
    "denormal weights": edit(CONV, lambda weight: weight.mul_(1e-41)),
    "huge weights": edit(CONV, lambda weight: weight.mul_(1e25)),
}


def images(count: int = 8, size: int = 16) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def check(model: nn.Module, config: QuantConfig, x: Tensor, bits: int) -> float:
    """Every number is finite (an SQNR may be infinite); returns the largest error relative to the largest logit."""
    quantized, report = quantize(model, config, bits, x)
    with torch.no_grad():
        found, wanted = quantized(x), model(x)
    assert torch.isfinite(found).all()
    for row in report.layers:
        assert not [key for key, value in asdict(row).items() if isinstance(value, float) and math.isnan(value)]
    assert diagnose(report, config)
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-12))


@pytest.mark.parametrize("method", mostly_slow(METHODS))
@pytest.mark.parametrize("odd", ODD)
def test_odd_weights_and_statistics(odd: str, method: str) -> None:
    model = network()
    ODD[odd](model)
    check(model, METHODS[method], images(), 2)
    error = check(model, METHODS[method], images(), 8)
    assert error < 0.15 or (method, odd) == ("notebook", "huge weights")  # one alpha, of the first convolution


def test_mixed_precision_of_a_network_that_answers_every_image_alike() -> None:
    """Every sensitivity is zero."""
    model = network()
    ODD["a linear layer of zeros"](model)
    assert check(model, MIXED, images(), 8) < 0.15


@pytest.mark.parametrize("method", mostly_slow(METHODS))
@pytest.mark.parametrize(
    "x",
    [images(1), images(3), images(257, 8), images(8, 4), images(8, 1), torch.zeros(8, 3, 16, 16)],
    ids=["one image", "three", "one more than a batch", "4x4 pixels", "one pixel", "black"],
)
def test_odd_calibration_images(x: Tensor, method: str) -> None:
    check(network(), METHODS[method], x, 2)
    assert check(network(), METHODS[method], x, 8) < 0.15


def test_one_pixel_is_left_after_pooling() -> None:
    parts = [[nn.Conv2d(n, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)] for n in (3, 8, 8)]
    last = [nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8, 10)]
    model = nn.Sequential(*[module for part in parts for module in part], *last).eval()
    for config in (PER_CHANNEL, replace(LEARNED, rounding="adaround"), CORRECTED):
        assert check(model, config, images(8, 8), 8) < 0.1


def test_small_images_are_cropped_by_what_there_is() -> None:
    torch.manual_seed(0)
    x = images(64, 3)
    cropped = random_crop_and_flip(x)
    assert cropped.shape == x.shape
    assert not torch.equal(cropped, x)
    single = images(4, 1)
    assert torch.equal(random_crop_and_flip(single), single)


# Whole jobs ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    mostly_slow(
        [
            ["data.test_limit=1"],
            ["data.test_limit=3"],
            ["quant.calibration_images=4096"],  # there are 64 training images
            ["data.train_limit=33"],  # one more than a batch
        ]
    ),
)
def test_few_images(cli: Cli, arguments: list[str]) -> None:
    outcome = cli("quant=mse", "quant.bits=8", "quant.act_bits=8", *TINY, *arguments)
    assert outcome.code == 0, outcome.err
    changed = "".join(f" {word.removeprefix('quant.')}" for word in arguments if word.startswith("quant."))
    assert f"mse{changed}, 8 bits per weight" in outcome.out
    assert "nan" not in outcome.out


def test_odd_class_names_go_through_a_whole_job(cli: Cli, tmp_path: Path) -> None:
    """Spaces, accents and a leading dot; one class has no test image; one channel, 16 bits and a palette."""
    pictures = [Image.new("L", (8, 8), 9), Image.new("I;16", (8, 8), 999), Image.new("P", (8, 8), 3)]
    for label, picture in zip(["a dog", "Übung 犬", ".hidden"], pictures, strict=True):
        for split in ("train", "test"):
            folder = tmp_path / "tree" / split / label
            folder.mkdir(parents=True)
            for number in range(4 if split == "train" else 1):
                if split == "train" or label != "a dog":
                    picture.save(folder / f"{number}.PNG")
    given = ["data=image_folder", f"data.root={tmp_path / 'tree'}", "data.train_limit=null", "data.test_limit=null"]
    outcome = cli("quant.bits=4", *TINY, *given)
    assert outcome.code == 0, outcome.err
    assert "There are no test images of the classes ['a dog']." in outcome.out + outcome.err
