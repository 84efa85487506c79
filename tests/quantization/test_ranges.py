"""Ranges of weights and of activations, by hand and against each other."""

from typing import Any

import pytest
import torch
from conftest import network
from samples import images

from ptq_exp.quantization.activations import OBSERVERS, Observation, observe
from ptq_exp.quantization.grids import (
    activation_grid,
    parameters,
    weight_grid,
)  # fmt: skip
from ptq_exp.quantization.ranges import ALPHA_RULES, RangeContext


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
