"""Ranges, grids, corrections, learned rounding and mixed precision: exact values, invariants, what they are for."""

import copy
import itertools
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, TINY, Outcome, network
from hypothesis import given
from hypothesis import strategies as st
from ptq_exp.quantization.apply import prepare, quantize
from ptq_exp.quantization.corrections import (
    correct_biases,
    equalize,
    fold_batch_norm,
    output_means,
    reestimate_batch_norm,
)
from torch import nn

from ptq_exp.base.errors import UserError
from ptq_exp.export.network_file import load_quantized, save_quantized
from ptq_exp.networks import build_model
from ptq_exp.quantization.activations import OBSERVERS, Observation, observe
from ptq_exp.quantization.allocation import allocate, sensitivities
from ptq_exp.quantization.augmentation import mix_pairs
from ptq_exp.quantization.grids import (
    LevelGrid,
    UniformGrid,
    activation_grid,
    additive_powers_of_two,
    parameters,
    weight_grid,
)  # fmt: skip
from ptq_exp.quantization.layers import ActivationQuantizer, QuantizedAddition, QuantizedLayer, quantized_layers
from ptq_exp.quantization.learned_weights import SoftRounding
from ptq_exp.quantization.options import QuantConfig, ReconstructionConfig
from ptq_exp.quantization.ranges import ALPHA_RULES, RangeContext
from ptq_exp.quantization.rounding import plan_bits, units

LEARNED: dict[str, Any] = {
    "sign_bit": "included", "grid": "asymmetric", "alpha_rule": "lp", "granularity": "channel", "layers": "all",
    "fold_batch_norm": True, "act_rule": "mse",
}  # fmt: skip
QUICK = ReconstructionConfig(steps=60, batch_size=16)


def images(count: int = 48, size: int = 16) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def error(model: nn.Module, reference: nn.Module, x: torch.Tensor) -> float:
    with torch.no_grad():
        return float((model(x) - reference(x)).square().mean() / reference(x).square().mean())


# Grids -----------------------------------------------------------------------------------------------------------


def test_the_asymmetric_grid_has_all_levels_and_a_zero() -> None:
    grid = weight_grid(2, "included", "asymmetric")
    scale, zero_point = parameters(grid, "asymmetric", torch.tensor([-1.0]), torch.tensor([2.0]))
    assert (grid.levels, scale.item(), zero_point.item()) == (4, 1.0, 1.0)
    x = torch.tensor([-5.0, -0.6, -0.4, 0.0, 1.4, 1.6, 9.0])
    assert grid.fake_quantize(x, scale, zero_point).tolist() == [-1.0, -1.0, 0.0, 0.0, 1.0, 2.0, 2.0]


def test_a_float_zero_point_puts_the_levels_anywhere() -> None:
    """Zero lies between two of the four levels, so that both sides have two."""
    grid = weight_grid(2, "included", "float_zero_point")
    scale, zero_point = parameters(grid, "float_zero_point", torch.tensor([-1.5]), torch.tensor([1.5]))
    assert (grid.levels, scale.item(), zero_point.item()) == (4, 1.0, 1.5)
    x = torch.tensor([-5.0, -1.1, -0.9, -0.1, 0.1, 0.9, 1.1, 9.0])
    assert grid.fake_quantize(x, scale, zero_point).tolist() == [-1.5, -1.5, -0.5, -0.5, 0.5, 0.5, 1.5, 1.5]
    equal = torch.tensor([0.3])  # a channel whose weights are all the same is kept
    scale, zero_point = parameters(grid, "float_zero_point", equal, equal)
    assert grid.fake_quantize(equal, scale, zero_point).item() == pytest.approx(0.3)


@pytest.mark.parametrize("kind", ["asymmetric", "float_zero_point"])
def test_three_levels_take_one_point_six_bits(kind: str) -> None:
    model, x = network(), images(4)
    config = QuantConfig(**LEARNED | {"grid": kind}, layer_bits={"layer3.*": 1.6})
    config.validate()
    quantized, report = quantize(model, config, 2, x)
    rows = {row.layer: row for row in report.layers}
    assert (rows["layer3.0.conv1"].bits, rows["layer3.0.conv1"].levels_available) == (1.6, 3)
    assert set(quantized_layers(quantized)["layer3.0.conv1"].codes.unique().tolist()) == {0, 1, 2}
    weights = sum(row.weights for row in report.layers)
    ternary = sum(row.weights for row in report.layers if row.layer.startswith("layer3"))
    assert report.bits_mean == pytest.approx((1.6 * ternary + 2 * (weights - ternary)) / weights)
    for wrong in ({"grid": "symmetric"}, {"layer_bits": {"linear": 1.5}}):
        with pytest.raises(UserError, match="is not a bit width"):
            replace(config, **wrong).validate()


def test_power_of_two_scales() -> None:
    grid = weight_grid(4, "included", "power_of_two")
    scale, _ = parameters(grid, "power_of_two", torch.tensor([-1.0, -0.01]), torch.tensor([0.9, 0.03]))
    assert scale.tolist() == [2.0**-3, 2.0**-8]  # 1/7 and 0.03/7, nearest in the exponent


def test_additive_powers_of_two() -> None:
    """Li et al. 2020: 4 bits of magnitude are sums of {0, 1, 1/4, 1/16} and {0, 1/2, 1/8, 1/32}."""
    terms = [0, 1, 1 / 4, 1 / 16], [0, 1 / 2, 1 / 8, 1 / 32]
    magnitudes = sorted({(a + b) / 1.5 for a, b in itertools.product(*terms)})
    levels = additive_powers_of_two(4)
    assert len(magnitudes) == 16
    assert levels == pytest.approx(sorted({-m for m in magnitudes} | set(magnitudes)))
    assert additive_powers_of_two(2) == pytest.approx([-1, -1 / 2, -1 / 4, 0, 1 / 4, 1 / 2, 1])
    assert additive_powers_of_two(1) == (-1.0, 0.0, 1.0)
    odd = {(a + b) / 0.625 for a in (0, 1 / 2, 1 / 4, 1 / 16) for b in (0, 1 / 8)}  # their code's, three bits
    assert additive_powers_of_two(3) == pytest.approx(sorted({-m for m in odd} | odd))
    assert [len(additive_powers_of_two(bits)) for bits in range(1, 8)] == [2 * 2**bits - 1 for bits in range(1, 8)]


@given(st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=30).map(torch.tensor), st.integers(1, 6))
def test_level_grids_take_the_nearest_level(x: torch.Tensor, bits: int) -> None:
    grid = LevelGrid(additive_powers_of_two(bits))
    scale = torch.tensor(1.5)
    values = torch.tensor(grid.values) * 1.5
    nearest = (x[:, None] - values).abs().amin(1)
    quantized = grid.fake_quantize(x, scale)
    assert torch.allclose((quantized - x).abs(), nearest, atol=1e-5)
    assert torch.equal(grid.fake_quantize(quantized, scale), quantized)


@pytest.mark.parametrize("kind", ["symmetric", "asymmetric", "float_zero_point", "power_of_two", "apot"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_every_grid_is_idempotent_and_within_its_levels(kind: str, bits: int) -> None:
    model, x = network(), images(4)
    config = QuantConfig(sign_bit="included", grid=kind, alpha_rule="max", granularity="channel")
    quantized, report = quantize(model, config, bits, x)
    for layer in quantized_layers(quantized).values():
        codes = layer.grid.quantize(layer.layer.weight, layer.scale, layer.zero_point)
        assert torch.equal(codes, layer.codes.float())
        assert layer.codes.min() >= layer.grid.low
        assert layer.codes.max() <= layer.grid.high
    assert all(row.bits == bits and row.levels_available <= 2**bits for row in report.layers)


# Ranges ----------------------------------------------------------------------------------------------------------


def context(kind: str = "symmetric", bits: int = 3, **changes: Any) -> RangeContext:
    return RangeContext(torch.ones(1), weight_grid(bits, "included", kind), kind, **changes)


def test_percentile_by_hand() -> None:
    row = torch.cat([torch.arange(1.0, 100.0), torch.tensor([-1000.0])])[None]
    low, high = ALPHA_RULES["percentile"](row, context(percentile=99.0))
    assert high.item() == pytest.approx(99 + 0.01 * 901, rel=1e-4)
    assert low.item() == -high.item()
    low, high = ALPHA_RULES["percentile"](row, context("asymmetric", percentile=98.0))
    assert low.item() == pytest.approx(-1000 + 0.99 * 1001, rel=1e-4)
    assert high.item() == pytest.approx(98.01, rel=1e-4)


@pytest.mark.parametrize("kind", ["symmetric", "asymmetric", "float_zero_point"])
@pytest.mark.parametrize(("rule", "power"), [("mse", 2.0), ("lp", 2.4), ("lp", 4.0)])
def test_error_minimizing_ranges_beat_every_other_rule(kind: str, rule: str, power: float) -> None:
    groups = torch.randn(6, 200, generator=torch.Generator().manual_seed(0)) ** 3
    found = context(kind, norm=power)

    def loss(name: str) -> torch.Tensor:
        scale, zero_point = parameters(found.grid, kind, *ALPHA_RULES[name](groups, found))
        rounded = found.grid.fake_quantize(groups, scale[:, None], zero_point[:, None])
        return (rounded - groups).abs().pow(power).mean(1)

    for other in ("max", "std", "percentile"):
        assert (loss(rule) <= loss(other) * 1.001).all(), other


# Layers and activations ------------------------------------------------------------------------------------------


def test_policies_for_layers() -> None:
    model = network()
    every = QuantConfig(layers="all")
    names = list(plan_bits(model, every, 3))
    assert names[0] == "conv1"
    assert names[-1] == "linear"
    assert "linear" not in plan_bits(model, QuantConfig(), 3)
    eight = plan_bits(model, replace(every, first_and_last="eight"), 3)
    assert (eight["conv1"], eight["linear"], eight["layer1.0.conv1"]) == (8, 8, 3)
    spared = plan_bits(model, replace(every, first_and_last="float"), 3)
    assert set(names) - set(spared) == {"conv1", "linear"}
    pattern = plan_bits(model, replace(every, layer_bits={"layer3.*": 5, "linear": 6}), 3)
    assert {name: bits for name, bits in pattern.items() if bits != 3} == {
        "layer3.0.conv1": 5, "layer3.0.conv2": 5, "layer3.0.shortcut.0": 5, "linear": 6,
    }  # fmt: skip
    with pytest.raises(UserError, match=r"'layer9\.\*' matches no layer"):
        plan_bits(model, replace(every, layer_bits={"layer9.*": 5}), 3)


def test_observers_by_hand() -> None:
    histogram = torch.zeros(4096, dtype=torch.float64)
    histogram[:2048] = 1.0  # uniform from 0 to 5 ...
    histogram[4095] = 1.0  # ... and one value at 10
    seen = Observation(0.0, 10.0, histogram, 10.0)
    assert OBSERVERS["max"](seen, activation_grid(8), 0) == 10.0
    assert OBSERVERS["percentile"](seen, activation_grid(8), 50.0) == pytest.approx(2.5, abs=0.01)
    assert OBSERVERS["mse"](seen, activation_grid(2), 0) == pytest.approx(5 * 6 / 7, abs=0.6)  # near 5: 10 is rare
    assert OBSERVERS["mse"](seen, activation_grid(8), 0) > 5


def test_observations_are_those_of_the_network() -> None:
    model, x = network(), images(20)
    seen = observe(model, ["conv1", "layer1.0.conv2", "layer2.0.add"], x)
    assert seen["conv1"][0].low == pytest.approx(x.min().item())
    assert seen["conv1"][0].high == pytest.approx(x.max().item())
    assert seen["layer1.0.conv2"][0].low == 0
    assert len(seen["layer2.0.add"]) == 2
    assert seen["conv1"][0].histogram.sum() == x.numel()


def test_the_image_and_the_residuals_are_quantized_where_asked() -> None:
    model, x = network(), images()
    base = QuantConfig(**LEARNED, act_bits=4)
    quantized, _ = quantize(model, base, 4, x)
    layers = quantized_layers(quantized)
    assert layers["conv1"].activation is None
    assert not any(isinstance(m, QuantizedAddition) for m in quantized.modules())
    assert all(layer.activation and not layer.activation.signed for n, layer in layers.items() if n != "conv1")
    whole, _ = quantize(model, replace(base, act_input_image=True, act_residual=True), 4, x)
    image = quantized_layers(whole)["conv1"].activation
    assert image is not None
    assert image.signed
    additions = [m for m in whole.modules() if isinstance(m, QuantizedAddition)]
    assert len(additions) == 3
    assert all(addition.first.signed for addition in additions)


def test_the_policy_for_the_ends_leaves_the_other_activations_alone() -> None:
    """The image is spared where its own layer stays float, and additions keep the bits that were asked for."""
    model, x = network(), images()
    base = QuantConfig(**LEARNED, act_bits=4, act_residual=True)
    spared, _ = quantize(model, replace(base, first_and_last="float"), 4, x)
    assert all(layer.activation for layer in quantized_layers(spared).values())
    assert "conv1" not in quantized_layers(spared)
    eight, _ = quantize(model, replace(base, first_and_last="eight"), 4, x)
    joints = [m for m in eight.modules() if isinstance(m, QuantizedAddition)]
    assert {m.first.bits for m in joints} | {m.second.bits for m in joints} == {4}
    assert quantized_layers(eight)["linear"].activation.bits == 8  # type: ignore[union-attr]


@pytest.mark.parametrize("setting", [(8, 8), (4, 8), (4, 4), (3, 3), (2, 4)])
def test_more_activation_bits_lose_less(setting: tuple[int, int]) -> None:
    model, x = network(), images()
    bits, act_bits = setting
    quantized, report = quantize(model, QuantConfig(**LEARNED, act_bits=act_bits), bits, x)
    finer, _ = quantize(model, QuantConfig(**LEARNED, act_bits=act_bits + 4), bits + 4, x)
    assert error(finer, model, x) < error(quantized, model, x) < 2
    assert {row.act_bits for row in report.layers} == {None, act_bits}


# Corrections -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [network(), network(shortcut="pad"), network("vgg", depth=11)])
def test_folding_and_equalization_leave_the_function(model: nn.Module) -> None:
    x = images(8, size=32)
    folded = copy.deepcopy(model)
    names = fold_batch_norm(folded)
    assert len(names) == sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    with torch.no_grad():
        assert torch.allclose(folded(x), model(x), rtol=1e-4, atol=1e-4)
        before = {n: p.clone() for n, p in folded.named_parameters()}
        equalize(folded)
        assert torch.allclose(folded(x), model(x), rtol=1e-4, atol=1e-4)
    assert any(not torch.equal(p, before[n]) for n, p in folded.named_parameters())


def test_equalization_equalizes() -> None:
    model = network()
    fold_batch_norm(model)
    model.get_submodule("layer1.0.conv1").weight.data[0] *= 50
    equalize(model)
    rows = model.get_submodule("layer1.0.conv1").weight.flatten(1).abs().amax(1)
    columns = model.get_submodule("layer1.0.conv2").weight.transpose(0, 1).flatten(1).abs().amax(1)
    assert torch.allclose(rows, columns, rtol=1e-3)


def test_bias_correction_restores_the_mean_of_every_output() -> None:
    model, x = network(), images()
    config = QuantConfig(**LEARNED)
    reference = prepare(model, config)
    quantized, _ = quantize(model, config, 2, x)
    name = "layer2.0.conv2"
    gap = output_means(quantized, [name], x)[name] - output_means(reference, [name], x)[name]
    correct_biases(quantized, reference, x)
    names = ["conv1", "layer2.0.conv2", "linear"]
    left, wanted = output_means(quantized, names, x), output_means(reference, names, x)
    for name in names:
        assert (left[name] - wanted[name]).abs().max() < 1e-4
    assert gap.abs().max() > 1e-2


def test_batch_norm_reestimation_takes_the_statistics_of_the_images() -> None:
    model, x = network(), images()
    reestimate_batch_norm(model, x)
    seen: list[torch.Tensor] = []
    model.get_submodule("bn1").register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    model(x)
    assert torch.allclose(model.get_submodule("bn1").running_mean, seen[0].mean((0, 2, 3)), atol=1e-5)
    assert not model.training
    assert not any(module.training for module in model.modules())


def test_batch_norm_reestimation_counts_every_image_once() -> None:
    """257 images are no full batch and one image that counts as much."""
    model, x = nn.Sequential(nn.BatchNorm2d(3)), torch.zeros(257, 3, 4, 4)
    x[256] = 257.0
    reestimate_batch_norm(model, x)
    assert torch.allclose(model[0].running_mean, torch.ones(3), atol=0.01)


# Learned rounding ------------------------------------------------------------------------------------------------


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
    assert units(quantized, "adaround") == list(quantized_layers(quantized))
    assert units(quantized, "block") == ["conv1", "layer1.0", "layer2.0", "layer3.0", "linear"]


@pytest.mark.parametrize(
    ("rounding", "act_bits", "grid"),
    [
        ("adaround", None, "asymmetric"),
        pytest.param("adaround", 3, "asymmetric", marks=pytest.mark.slow),
        ("block", None, "float_zero_point"),
        ("block", 3, "asymmetric"),
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

        def __call__(self, description: str, steps: int) -> Any:
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


def test_qdrop_drops_the_configured_share() -> None:
    quantizer = ActivationQuantizer(2, 1.0)
    x = torch.rand(20_000, requires_grad=True)
    quantizer.drop = 0.25
    untouched = (quantizer(x) == x).float().mean().item()
    assert untouched == pytest.approx(0.25, abs=0.02)
    quantizer.drop = 0.0
    assert (quantizer(x) == x).float().mean().item() < 0.01


# Mixed precision -------------------------------------------------------------------------------------------------


def test_the_allocator_is_exact() -> None:
    """Against every plan there is, on random sensitivities and budgets."""
    generator = torch.Generator().manual_seed(0)
    config = QuantConfig(**LEARNED, mixed=True, mixed_candidates=[1, 2, 4])
    for _ in range(25):
        weights = {name: int(torch.randint(10, 1000, (1,), generator=generator)) for name in "abcde"}
        found = {
            name: {bits: float(torch.rand(1, generator=generator)) / 4**bits for bits in (1, 2, 4)} for name in "abcde"
        }
        budget = (1 + 3 * float(torch.rand(1, generator=generator))) * sum(weights.values())
        plan = allocate(found, weights, budget, config)
        best = min(
            sum(found[n][b] for n, b in zip("abcde", widths, strict=True))
            for widths in itertools.product((1, 2, 4), repeat=5)
            if sum(weights[n] * b for n, b in zip("abcde", widths, strict=True)) <= budget
        )
        assert sum(weights[n] * b for n, b in plan.items()) <= budget
        assert sum(found[n][b] for n, b in plan.items()) == pytest.approx(best)


@pytest.mark.slow
def test_mixed_precision_meets_its_budget_and_beats_uniform() -> None:
    model, x = network(), images(64, size=32)
    config = QuantConfig(**LEARNED)
    uniform, uniform_report = quantize(model, config, 3, x)
    mixed, report = quantize(model, replace(config, mixed=True), 3, x)
    assert report.bits_mean <= 3
    assert report.size_bytes <= uniform_report.size_bytes
    assert error(mixed, model, x) < error(uniform, model, x)
    assert len({row.bits for row in report.layers}) > 1
    _, report = quantize(model, replace(config, mixed=True, size_budget=uniform_report.size_bytes), 3, x)
    assert 0.97 * uniform_report.size_bytes <= report.size_bytes <= uniform_report.size_bytes
    _, report = quantize(model, replace(config, mixed=True, mean_bits=2.25), 3, x)
    assert 2.1 <= report.bits_mean <= 2.25
    with pytest.raises(UserError, match="smallest"):
        quantize(model, replace(config, mixed=True, mean_bits=0.5), 3, x)


def test_sensitivity_falls_with_the_bits() -> None:
    model, x = network(), images(32)
    config = QuantConfig(**LEARNED, mixed=True, mixed_candidates=[2, 4, 8])
    found = sensitivities(prepare(model, config), config, x)
    assert set(found) == set(plan_bits(prepare(model, config), config, 4))
    for by_bits in found.values():
        assert by_bits[2] > by_bits[4] > by_bits[8] >= -1e-6


def test_sensitivities_count_what_distillation_makes_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptq_exp.quantization.allocation.LEARNING_STEPS", 12)
    model, x = network(), images(64)
    nearest = QuantConfig(**LEARNED, mixed=True, mixed_candidates=[1, 8])
    learned = replace(nearest, reconstruction=ReconstructionConfig(distill_steps=1, distill_batch_size=16))
    reference = prepare(model, nearest)
    at_once, later = (sensitivities(reference, config, x) for config in (nearest, learned))
    assert sum(row[1] for row in later.values()) < 0.7 * sum(row[1] for row in at_once.values())
    assert all(later[name][8] == at_once[name][8] for name in later)


# From the command line -------------------------------------------------------------------------------------------

PRESETS = sorted(path.stem for path in (ROOT / "conf" / "quant").glob("*.yaml"))
SHORT = ["quant.reconstruction.steps=2", "quant.calibration_images=32", "model.depth=8"]


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_runs(cli: Callable[..., Outcome], preset: str) -> None:
    distilled = ["quant.reconstruction.distill_steps=2"] if preset == "best" else []
    outcome = cli(f"quant={preset}", "quant.bits=3", *distilled, *TINY, *SHORT)
    assert outcome.code == 0, outcome.err
    changed = " calibration_images=32 reconstruction.steps=2" + " reconstruction.distill_steps=2" * (preset == "best")
    stored = 3 + (preset == "notebook")  # with the sign
    assert f"{preset}{changed}, {stored} bits per weight" in outcome.out
    assert outcome.out.count(": top-1 ") == 1
    said = ("What costs the most accuracy", "Likeliest to cost accuracy", "Nothing to explain")
    assert any(words in outcome.out for words in said)


def test_ranges_and_activations_can_be_swept(cli: Callable[..., Outcome]) -> None:
    rules = "quant.alpha_rule=std,max,mse,percentile"
    outcome = cli("quant=mse", rules, "quant.bits=4", "quant.act_bits=4", *TINY, *SHORT, "-m")
    assert outcome.code == 0, outcome.err
    assert len([line for line in outcome.out.splitlines() if line.startswith("│") and "w4 a4" in line]) == 4
    for rule in ("std", "max", "mse", "percentile"):  # a long label is broken before its value
        assert re.search(rf"^│ (quant\.alpha_rule=)?{rule} ", outcome.out, re.MULTILINE)


def test_a_budget_of_its_own_is_one_plan(cli: Callable[..., Outcome]) -> None:
    outcome = cli("quant=mixed", "quant.mean_bits=2.6", *TINY, *SHORT)
    assert outcome.code == 0, outcome.err
    assert outcome.out.count(": top-1 ") == 1
    assert re.search(r"mixed mean_bits=2\.6 .*, 2\.[56]\d* bits per weight \(quant\.bits=3\): top-1 ", outcome.out)


def test_units_learned_under_another_normalization_are_not_reused(
    cli: Callable[..., Outcome], tmp_path: Path, cache: Path
) -> None:
    torch.save(build_model("resnet", 10, depth=8).state_dict(), tmp_path / "model.pt")
    same = ["quant=brecq", "quant.bits=3", f"checkpoint={tmp_path / 'model.pt'}", *TINY, *SHORT]
    stores = []
    for mean in ("0.1", "0.1", "0.4"):
        before = set((cache / "reconstruction").glob("*"))
        assert cli(*same, f"data.mean=[{mean},{mean},{mean}]", "data.std=[1,1,1]").code == 0
        stores.append(len(set((cache / "reconstruction").glob("*")) - before))
    assert stores == [1, 0, 1]


def test_one_layer_at_a_time_is_a_table_and_a_figure(cli: Callable[..., Outcome], tmp_path: Path) -> None:
    outcome = cli(
        "quant.bits=3", "quant.sensitivity=true", "+quant.layer_bits={linear:8}", "quant.layers=all", *TINY, *SHORT
    )
    assert outcome.code == 0, outcome.err
    (table,) = tmp_path.glob("outputs/*/*/artifacts/one_layer_w3.csv")
    lines = table.read_text().splitlines()
    assert lines[0] == "layer,bits,top1,top1_drop,loss,sqnr_db"
    assert lines[-1].startswith("linear,8,")
    assert len(lines) == 1 + 10
    assert table.with_suffix(".png").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["quant.equalize=true"], "quant.fold_batch_norm=true"),
        (["quant=best", "quant.batch_norm_reestimation=true"], "fold_batch_norm=false"),
        (["quant=best", "quant.grid=apot"], "uniform grid"),
        (["quant.mean_bits=3"], "quant.mixed=true"),
        (["quant.mixed=true"], "quant.granularity=channel"),
        (["quant=mixed", "quant.mean_bits=3", "quant.size_budget=1000"], "Give one of them"),
        (["quant.rounding=adaruond"], "Did you mean 'adaround'?"),
        (["quant.reconstruction.drop=1"], "below 1"),
        (["quant.alpha_rule=mse", "quant.first_and_last=eight"], "quant.granularity=channel"),
        (["quant.act_bits=1", "quant.act_input_image=true", *TINY, *SHORT], "Use 2 bits"),
        (["quant.bits=1", "quant.sign_bit=included"], "float_zero_point"),
        (["quant.act_rule=mean"], "percentile"),
        (["+quant.layer_bits={layer9.*:3}", *TINY, *SHORT], "matches no layer"),
    ],
)
def test_a_combination_that_cannot_work_is_refused(
    cli: Callable[..., Outcome], arguments: list[str], words: str
) -> None:
    outcome = cli(*arguments)
    assert outcome.code == 1
    assert words in outcome.err
    assert "Traceback" not in outcome.err
