"""Blocks of unusual networks are learned, in portions of the images where memory is short."""

from dataclasses import replace

import pytest
import torch
from conftest import mostly_slow
from torch import Tensor, nn
from zoo import build

from ptq_exp.networks.graph import tracing
from ptq_exp.quantization.context import Calibration
from ptq_exp.quantization.layers import quantized_layers
from ptq_exp.quantization.options import QuantConfig, ReconstructionConfig
from ptq_exp.quantization.quantize import Quantized, quantize
from ptq_exp.quantization.traced import Traced
from ptq_exp.quantization.units import Samples, Unit, units

BASE = QuantConfig(
    sign_bit="included", grid="asymmetric", alpha_rule="max", granularity="channel", layers="all", fold_batch_norm=True,
    layer_bits={"stem.0": 8},  # a block can only make up for its own errors
)  # fmt: skip
ALL = replace(BASE, act_bits=8, act_coverage="all", act_zero_point=True)


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """Tiny tensors."""


def images(count: int = 96) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def both(model: nn.Module, options: QuantConfig, x: Tensor, how: ReconstructionConfig) -> tuple[Quantized, Quantized]:
    """The network with learned rounding, and with rounding to nearest."""
    learned = quantize(model, replace(options, rounding="block", reconstruction=how), 2, Calibration(x))
    return learned, quantize(model, options, 2, Calibration(x))


def first_block(quantized: Quantized) -> Unit:
    return next(unit for unit in units(Traced(quantized.network), "block") if unit.blocks)


def samples_of(unit: Unit, quantized: Quantized, x: Tensor, memory: float) -> Samples:
    return Samples(unit, Traced(quantized.network), Traced(quantized.reference), x, memory)


def error(unit: Unit, quantized: Quantized, x: Tensor) -> float:
    """The mean squared error at the exit of a unit's first block."""
    found, wanted = (unit.collector(Traced(network))(x)[0][1] for network in (quantized.network, quantized.reference))
    return float((found - wanted).square().mean())


@pytest.mark.parametrize("name", mostly_slow(["in place", "block called twice", "attention"]))
def test_blocks_are_learned_with_activations_everywhere(name: str) -> None:
    x = images(32)
    learned, nearest = both(build(name), ALL, x, ReconstructionConfig(steps=250, batch_size=16, lr=0.03))
    block = first_block(nearest)
    assert error(block, learned, x) < error(block, nearest, x)
    assert all(layer.soft is None for layer in quantized_layers(learned.network).values())


def test_layers_that_two_blocks_call_are_one_unit() -> None:
    quantized = quantize(build("block called twice"), BASE, 4, Calibration(images(4)))
    traced = Traced(quantized.network)
    (unit,) = (unit for unit in units(traced, "block") if unit.blocks)
    assert unit.layers == ("body.0.a", "body.0.b")
    assert len(unit.collector(traced)(images(4))) == len(unit.modules(traced)) == 2


def test_learning_in_portions_still_learns() -> None:
    model, x = build("post-activation"), images()
    tiny = ReconstructionConfig(steps=150, batch_size=16, lr=0.05, memory_gib=200_000 / 2**30)
    learned, nearest = both(model, BASE, x, tiny)
    block = first_block(nearest)
    assert samples_of(block, nearest, x, 200_000).portions > 1
    assert error(block, learned, x) < 0.8 * error(block, nearest, x)


def test_portions_hold_every_image_and_no_more_memory_than_allowed() -> None:
    x = images()
    nearest = quantize(build("post-activation"), BASE, 2, Calibration(x))
    block = first_block(nearest)
    samples, whole = (samples_of(block, nearest, x, limit) for limit in (200_000, 1e9))
    assert (whole.portions, whole.count) == (1, len(x))
    seen, held = [], {stored.data_ptr() for call in samples.calls for stored in call}
    for portion in range(samples.portions):
        samples.load(portion)
        assert {stored.data_ptr() for call in samples.calls for stored in call} == held  # replaced in place
        assert sum(stored.nbytes for call in samples.calls for stored in call) <= 200_000
        seen.append(samples.calls[0][2].clone())
    assert samples.portions == -(-len(x) // samples.count)
    wanted = whole.calls[0][2]
    assert torch.allclose(torch.cat(seen[:-1]), wanted[: samples.count * (samples.portions - 1)], atol=1e-6)
    assert torch.allclose(seen[-1], wanted[-samples.count :], atol=1e-6)


def test_one_image_is_the_least_portion() -> None:
    nearest = quantize(build("post-activation"), BASE, 2, Calibration(images(3)))
    unit = units(Traced(nearest.network), "block")[0]
    assert samples_of(unit, nearest, images(3), memory=1.0).portions == 3


@pytest.mark.parametrize("act_bits", [None, 4])
def test_each_network_is_traced_once(monkeypatch: pytest.MonkeyPatch, act_bits: int | None) -> None:
    traces: list[nn.Module] = []
    trace = tracing._trace
    monkeypatch.setattr(tracing, "_trace", lambda *given: traces.append(given[0]) or trace(*given))
    options = replace(
        ALL, act_bits=act_bits, fold_batch_norm=False, rounding="block", reconstruction=ReconstructionConfig(steps=1)
    )
    quantized = quantize(build("post-activation"), options, 2, Calibration(images(8)))
    assert traces.count(quantized.reference) == traces.count(quantized.network) == 1
    assert len(traces) == (2 if act_bits is None else 3)  # one more before functions become modules
