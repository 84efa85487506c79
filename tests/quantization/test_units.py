"""Blocks of unusual networks are learned, in portions of the images where memory is short."""

import itertools
from collections import OrderedDict
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


@pytest.mark.parametrize(
    "name", ["post-activation", "in place", "one function", "attention", "dense", "block called twice"]
)
def test_samples_from_an_earlier_unit_are_those_from_the_images(name: str) -> None:
    _, quantized = both(build(name), replace(BASE, layer_bits={}), x := images(12), ReconstructionConfig(steps=1))
    traced = Traced(quantized.network), Traced(quantized.reference)
    before, chained = None, 0
    for unit in units(traced[0], "block"):
        before = Samples(unit, *traced, x, 1e9, before)
        alone = Samples(unit, *traced, x, 1e9)
        chained += before.found.start is not None
        for call, other in zip(before.calls, alone.calls, strict=True):
            torch.testing.assert_close(call, other)
    assert (chained > 0) == (name not in ("dense", "block called twice"))  # which have one block


def test_samples_of_which_two_units_need_too_much_memory_come_from_the_images() -> None:
    _, quantized = both(build("post-activation"), BASE, x := images(12), ReconstructionConfig(steps=1))
    traced = Traced(quantized.network), Traced(quantized.reference)
    first, second = [unit for unit in units(traced[0], "block") if unit.blocks][:2]
    before = Samples(first, *traced, x, 1e9)
    own = sum(tensor.nbytes for tensor in Samples(second, *traced, x, 1e9).calls[0])
    assert Samples(second, *traced, x, own, before).found.start is None
    assert before.calls == []


def error(unit: Unit, quantized: Quantized, x: Tensor) -> float:
    """The mean squared error at the exits of a unit's calls, relative to the power there."""
    calls = [unit.collector(Traced(network))(x) for network in (quantized.network, quantized.reference)]
    pairs = [(found, wanted) for (_, found), (_, wanted) in zip(*calls, strict=True)]
    return sum(float((found - wanted).square().mean() / wanted.square().mean()) for found, wanted in pairs)


@pytest.mark.parametrize("name", mostly_slow(["attention", "in place", "post-activation"]))
@pytest.mark.parametrize("options", [BASE, ALL], ids=["float activations", "activations everywhere"])
def test_every_learned_block_is_closer_to_the_float_network_than_a_rounded_one(name: str, options: QuantConfig) -> None:
    """The blocks, not the logits: those of an untrained network hardly differ between images, so that their error is
    a common offset that learning does not aim at."""
    x = images(64)
    how = ReconstructionConfig(steps=250, batch_size=32, penalty=0.01)
    learned, nearest = both(build(name), options, x, how)
    blocks = [unit for unit in units(Traced(nearest.network), "block") if unit.blocks]
    for block in blocks:
        assert error(block, learned, x) < 0.95 * error(block, nearest, x)
    assert blocks
    assert all(layer.soft is None for layer in quantized_layers(learned.network).values())


def test_learning_comes_close_to_the_best_of_all_roundings() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(8, 4)), torch.randn(200, 8) @ torch.randn(8, 8) + 0.5
    how = ReconstructionConfig(steps=600, batch_size=64, lr=0.02, penalty=0.01)
    options = replace(BASE, layer_bits={})
    learned, nearest = both(model, options, x[:, None, None], how)
    ours, rounded = (next(iter(quantized_layers(each.network).values())) for each in (learned, nearest))
    exact = model[1].weight.detach()

    def errors(weights: Tensor) -> Tensor:  # (..., 4 outputs, 8 inputs) -> (..., 4 outputs)
        return ((weights - exact) @ x.T).square().mean(-1)

    up = torch.tensor(list(itertools.product([0.0, 1.0], repeat=8)))[:, None]  # all 256 roundings of an output
    codes = torch.floor(exact / rounded.scale + rounded.zero_point) + up
    codes = codes.clamp(rounded.grid.low, rounded.grid.high)
    best = float(errors((codes - rounded.zero_point) * rounded.scale).amin(0).sum())
    found, plain = (float(errors(layer.weight).sum()) for layer in (ours, rounded))
    assert best * 0.999 <= found < 1.2 * best
    assert found < 0.5 * plain


@pytest.mark.parametrize("options", [BASE, ALL], ids=["float activations", "activations everywhere"])
def test_learning_that_makes_a_unit_worse_is_not_kept(options: QuantConfig) -> None:
    wild = ReconstructionConfig(steps=2, batch_size=4, lr=50.0, act_lr=3.0)
    learned, nearest = both(build("post-activation"), options, images(32), wild)
    wanted = nearest.network.state_dict()
    assert all(torch.equal(value, wanted[key]) for key, value in learned.network.state_dict().items())


def test_units_come_in_the_order_of_execution_although_some_layers_never_run() -> None:
    network = quantize(build("attention"), BASE, 4, Calibration(images(4))).network  # its layers a and b do not run
    names = [unit.name for unit in units(Traced(network), "block")]
    assert names == ["stem.0", "body.0", "body.0.add_1", "head", "body.0.a", "body.0.b"]


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last, self.first = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x) if float(x.sum()) > 1e9 else self.first(x)


def test_layers_in_an_untraced_module_come_in_its_place() -> None:
    model = nn.Sequential(OrderedDict(
        head=nn.Identity(), stem=nn.Conv2d(3, 8, 1), odd=Untraceable(), flat=nn.Flatten(), end=nn.Linear(512, 5),
    ))  # fmt: skip
    network = quantize(model, replace(BASE, layer_bits={}), 4, Calibration(images(4))).network
    assert [unit.name for unit in units(Traced(network), "block")] == ["stem", "odd.last", "odd.first", "end"]


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
    # Two more for concatenated channels, and before functions become modules.
    assert len(traces) == (2 if act_bits is None else 4)
