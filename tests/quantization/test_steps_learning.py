"""Learned rounding and distillation: exact values, invariants, what they are for."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import network, quantize
from samples import LEARNED, QUICK, error, images
from torch import nn

from ptq_exp.export.network_file import load_quantized, save_quantized
from ptq_exp.networks import build_model
from ptq_exp.quantization.augmentation import mix_pairs, paste_pairs
from ptq_exp.quantization.grids import (
    UniformGrid,
    parameters,
)  # fmt: skip
from ptq_exp.quantization.layers import QuantizedLayer, quantized_layers
from ptq_exp.quantization.learned_weights import SoftRounding
from ptq_exp.quantization.options import QuantConfig, ReconstructionConfig
from ptq_exp.quantization.traced import Traced
from ptq_exp.quantization.units import units


def test_a_stored_unit_of_other_bit_widths_is_not_taken(tmp_path: Path) -> None:
    model, x = network(), images()
    config = QuantConfig(
        rounding="adaround", granularity="channel", reconstruction=ReconstructionConfig(steps=2), layers="all"
    )
    quantize(model, config, 8, x, store=tmp_path)
    again, _ = quantize(model, config, 2, x, store=tmp_path)
    fresh, _ = quantize(model, config, 2, x)
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), fresh.state_dict().values(), strict=True))


def test_soft_rounding_starts_at_the_float_weights_and_ends_on_the_grid() -> None:
    conv = nn.Conv2d(2, 3, 3)
    weight = conv.weight.detach().clone()
    grid = UniformGrid(0, 15)
    scale, zero_point = parameters(grid, "asymmetric", weight.flatten(1).amin(1), weight.flatten(1).amax(1))
    layer = QuantizedLayer(conv, grid, scale, zero_point, 4)
    soft = SoftRounding([layer], [weight])
    soft(torch.tensor(2.0))
    assert layer.soft is not None
    low, high = (grid.dequantize(torch.tensor(end), layer.scale, layer.zero_point) for end in (0.0, 15.0))
    assert torch.allclose(layer.soft, weight.clamp(low, high), atol=2e-3 * float(scale.max()) + 1e-6)
    nearest = layer.codes.clone()
    soft.finish()
    assert layer.soft is None
    assert torch.equal(layer.codes, nearest)


def test_units_cover_every_layer_once() -> None:
    quantized, _ = quantize(network(), QuantConfig(**LEARNED), 4, images(4))
    assert [unit.name for unit in units(Traced(quantized), "adaround")] == list(quantized_layers(quantized))
    assert [unit.name for unit in units(Traced(quantized), "block")] == [
        "conv1",
        "layer1.0",
        "layer2.0",
        "layer3.0",
        "linear",
    ]


@pytest.mark.parametrize(
    ("rounding", "act_bits", "grid"),
    [
        pytest.param("adaround", None, "asymmetric", marks=pytest.mark.slow),
        pytest.param("adaround", 3, "asymmetric", marks=pytest.mark.slow),
        ("block", None, "float_zero_point"),
        pytest.param("block", 3, "asymmetric", marks=pytest.mark.slow),
    ],
)
def test_learned_rounding_beats_nearest(rounding: str, act_bits: int | None, grid: str) -> None:
    model, x = network(), images(128)
    config = QuantConfig(**LEARNED | {"grid": grid}, act_bits=act_bits, reconstruction=QUICK)
    nearest, _ = quantize(model, config, 3, x)
    learned, _ = quantize(model, replace(config, rounding=rounding), 3, x)
    assert error(learned, model, x) < 0.8 * error(nearest, model, x)
    for name, layer in quantized_layers(learned).items():  # up or down: at most one level from the float weight
        other = quantized_layers(nearest)[name]
        assert (layer.codes - other.codes).abs().max() <= 1
        assert layer.soft is None


@pytest.mark.parametrize(
    ("grid", "mixup"), [pytest.param("asymmetric", 0.0, marks=pytest.mark.slow), ("float_zero_point", 0.5)]
)
def test_distillation_beats_nearest_and_leaves_a_plain_network(tmp_path: Path, grid: str, mixup: float) -> None:
    model, x = network(), images(128)
    config = QuantConfig(**LEARNED | {"grid": grid}, act_bits=4)
    nearest, _ = quantize(model, config, 2, x)
    how = ReconstructionConfig(distill_steps=60, distill_batch_size=32, distill_mixup=mixup)
    distilled, _ = quantize(model, replace(config, reconstruction=how), 2, x)

    def divergence(network: nn.Module) -> float:
        with torch.no_grad():
            pair = network(x).log_softmax(1), model(x).log_softmax(1)
        return float(nn.functional.kl_div(*pair, log_target=True, reduction="batchmean"))

    assert divergence(distilled) < 0.7 * divergence(nearest)
    pairs = zip(quantized_layers(distilled).values(), quantized_layers(nearest).values(), strict=True)
    stayed = torch.cat([(one.zero_point == other.zero_point).flatten() for one, other in pairs])
    # Whole zero-points stay. Of the others, those of channels that do nothing in this random network stay, too.
    assert stayed.all() if grid == "asymmetric" else stayed.float().mean() < 0.5
    for layer in quantized_layers(distilled).values():
        assert layer.codes.min() >= layer.grid.low
        assert layer.codes.max() <= layer.grid.high
        assert torch.equal(layer.layer.weight, layer.grid.dequantize(layer.codes, layer.scale, layer.zero_point))
    save_quantized(distilled, tmp_path / "q.safetensors", {})
    loaded, _ = load_quantized(tmp_path / "q.safetensors", build_model("resnet", 10, depth=8))
    assert torch.equal(loaded(x), distilled(x))


def test_rectangles_of_other_images() -> None:
    """Every pixel is that of one of two images, and a rectangle is from the other one. 0 leaves images as they are."""
    torch.manual_seed(0)
    x = torch.arange(2000.0)[:, None, None, None].expand(-1, 3, 8, 8)
    assert paste_pairs(x, 0.0) is x
    pasted = paste_pairs(x, 0.5)
    changed = pasted != x
    assert (changed == changed[:, :1]).all()  # all colours
    inside = changed[:, 0]
    assert torch.equal(inside, inside.any(2)[:, :, None] & inside.any(1)[:, None, :])  # a rectangle
    assert [len(image.unique()) <= 2 for image in pasted] == [True] * len(pasted)
    assert 0.35 < inside.flatten(1).any(1).float().mean() < 0.5  # some rectangles are smaller than a pixel
    assert 0.05 < inside.float().mean() < 0.25


def test_a_temperature_softens_the_predictions_that_distillation_compares() -> None:
    model, x = network(), images(32)
    how = replace(QUICK, distill_steps=20)
    plain, soft = (
        quantize(model, QuantConfig(**LEARNED, reconstruction=each), 2, x)[0]
        for each in (how, replace(how, distill_temperature=4.0))
    )
    assert not torch.equal(plain(x), soft(x))
    assert error(soft, model, x) < 2 * error(plain, model, x)


def test_mirrored_targets_are_the_mean_of_the_predictions_for_both_views() -> None:
    model, x = network(), images(64)
    how = replace(QUICK, distill_steps=150, distill_batch_size=32)
    with torch.no_grad():
        own = model(x).softmax(1)
        mean = (own + model(x.flip(3)).softmax(1)) / 2

    def distance(mirrored: bool, target: torch.Tensor) -> float:
        config = QuantConfig(**LEARNED, reconstruction=replace(how, distill_mirrored=mirrored))
        found = quantize(model, config, 4, x)[0](x)
        return torch.nn.functional.kl_div(found.log_softmax(1), target, reduction="batchmean").item()

    assert distance(mirrored=True, target=mean) < 0.7 * distance(mirrored=False, target=mean)
    assert distance(mirrored=False, target=own) < 0.7 * distance(mirrored=True, target=own)


def test_blends_of_images() -> None:
    """Each lies between two images of the batch; about the share asked for is blended; 0 leaves them as they are."""
    torch.manual_seed(0)
    x = torch.arange(2000.0)[:, None, None, None].expand(-1, 3, 2, 2)
    assert mix_pairs(x, 0.0) is x
    mixed = mix_pairs(x, 0.25)
    changed = (mixed != x).flatten(1).all(1)
    assert (mixed == mixed[:, :1, :1, :1]).all()  # one weight an image
    assert 0.2 < changed.float().mean() < 0.3
    assert mixed.min() >= 0
    assert mixed.max() <= 1999
    assert 400 < (mixed - x)[changed].abs().mean() * 2 < 900  # half the mean distance of two draws, 2000 / 3, doubled


def test_reconstruction_is_seeded_and_goes_on_after_an_interruption(tmp_path: Path) -> None:
    model, x = network(), images(64)
    config = QuantConfig(**LEARNED, rounding="block", act_bits=4, reconstruction=replace(QUICK, steps=20))
    whole, _ = quantize(model, config, 3, x, seed=1)
    other, _ = quantize(model, config, 3, x, seed=2)
    assert not torch.equal(whole(x), other(x))

    class Stop(Exception):
        pass

    class StopsAtThird:  # the units; the calibration before them shows its progress, too
        started = 0

        def __call__(self, description: str, *_: object) -> Any:
            import contextlib

            self.started += description.startswith("Reconstructing")
            if self.started == 3:
                raise Stop
            return contextlib.nullcontext(lambda: None)

    with pytest.raises(Stop):
        quantize(model, config, 3, x, seed=1, progress=StopsAtThird(), store=tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    resumed, _ = quantize(model, config, 3, x, seed=1, store=tmp_path)
    assert torch.equal(resumed(x), whole(x))
    (tmp_path / "001.safetensors").write_bytes(b"broken")  # a damaged unit is learned again
    again, _ = quantize(model, config, 3, x, seed=1, store=tmp_path)
    assert torch.equal(again(x), whole(x))


def test_nothing_is_learned_where_nothing_is_to_gain() -> None:
    model, x = network(), images(16)
    config = QuantConfig(**LEARNED, rounding="block", reconstruction=QUICK)
    nearest, _ = quantize(model, replace(config, rounding="nearest"), 8, x)
    assert torch.equal(quantize(model, config, 8, x)[0](x), nearest(x))
