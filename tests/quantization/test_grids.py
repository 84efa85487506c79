"""Grids of weights: exact values and invariants."""

import itertools
from dataclasses import replace

import pytest
import torch
from conftest import network, quantize
from hypothesis import given
from hypothesis import strategies as st
from samples import LEARNED, images

from ptq_exp.base.errors import UserError
from ptq_exp.quantization.grids import (
    LevelGrid,
    additive_powers_of_two,
    parameters,
    weight_grid,
)  # fmt: skip
from ptq_exp.quantization.layers import quantized_layers
from ptq_exp.quantization.options import QuantConfig
from ptq_exp.quantization.steps import check_method


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
    check_method(config)
    quantized, report = quantize(model, config, 2, x)
    rows = {row.layer: row for row in report.layers}
    assert (rows["layer3.0.conv1"].stored_bits, rows["layer3.0.conv1"].levels_available) == (1.6, 3)
    assert set(quantized_layers(quantized)["layer3.0.conv1"].codes.unique().tolist()) == {0, 1, 2}
    weights = sum(row.weights for row in report.layers)
    ternary = sum(row.weights for row in report.layers if row.layer.startswith("layer3"))
    assert report.bits_mean == pytest.approx((1.6 * ternary + 2 * (weights - ternary)) / weights)
    for wrong in ({"grid": "symmetric"}, {"layer_bits": {"linear": 1.5}}):
        with pytest.raises(UserError, match="is not a bit width"):
            check_method(replace(config, **wrong))


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
    assert all(row.stored_bits == bits and row.levels_available <= 2**bits for row in report.layers)
