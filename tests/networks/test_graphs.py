"""Networks that use a layer twice, share or compute its weights, or have unusual batch norms: preparing leaves their
function, and what is called quantized is."""

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import prepare, quantize
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from ptq_exp.base.errors import UserError
from ptq_exp.export.network_file import load_quantized, save_quantized
from ptq_exp.networks.graph import batch_norm_pairs, layer_pairs
from ptq_exp.quantization.layers import QuantizedLayer, quantized_layers
from ptq_exp.quantization.options import QuantConfig, ReconstructionConfig
from ptq_exp.quantization.steps.correct_biases import correct_biases, output_means
from ptq_exp.quantization.traced import Traced
from ptq_exp.quantization.units import Unit

CHANNELS = 4
FOLDED = QuantConfig(
    sign_bit="included", grid="asymmetric", alpha_rule="max", granularity="channel", layers="all", fold_batch_norm=True,
    act_rule="max", reconstruction=ReconstructionConfig(steps=2, batch_size=4),
)  # fmt: skip
COMPUTED: dict[str, Any] = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "older weight_norm": weight_norm,
    "older spectral_norm": spectral_norm,
    "pruned": lambda module: prune.l1_unstructured(module, "weight", amount=0.5),
}


@dataclass(frozen=True)
class Plan:
    """What a random network is made of."""

    convs: tuple[tuple[int, bool, str], ...]  # groups, bias, how the weight is kept
    norms: tuple[tuple[bool, bool], ...]  # affine, running statistics
    steps: tuple[tuple[str, int], ...]
    linear: str


class Program(nn.Module):
    """Three convolutions and three batch norms, called in any order and number, and a linear layer."""

    def __init__(self, plan: Plan):
        super().__init__()
        torch.manual_seed(0)
        # What a hook computes is only known after a call.
        hooked = {number for number, (*_, kept) in enumerate(plan.convs) if kept == "pruned" or "older" in kept}
        self.steps = tuple(
            ("conv" if step[0] == "read" and step[1] in hooked else step[0], step[1]) for step in plan.steps
        )
        for number, (groups, bias, kept) in enumerate(plan.convs):
            conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=groups, bias=bias)
            shared = self.conv0._parameters.get("weight") if number else None  # None where it is computed
            if kept == "tied" and shared is not None and shared.shape == conv.weight.shape:
                conv.weight = shared
            setattr(self, f"conv{number}", COMPUTED[kept](conv) if kept in COMPUTED else conv)
            setattr(self, f"again{number}", conv)  # a second name
        for number, (affine, tracked) in enumerate(plan.norms):
            norm = nn.BatchNorm2d(CHANNELS, affine=affine, track_running_stats=tracked)
            for tensor, low, high in (
                (norm.running_mean, -0.5, 0.5),
                (norm.running_var, 0.5, 2.0),
                (norm.weight, -1, 2),
            ):
                if tensor is not None:
                    tensor.data.uniform_(low, high)
            setattr(self, f"norm{number}", norm)
        linear = nn.Linear(CHANNELS, 5)
        self.linear = COMPUTED[plan.linear](linear) if plan.linear in COMPUTED else linear

    def forward(self, x: Tensor) -> Tensor:
        kept = x
        for kind, number in self.steps:
            if kind == "keep":
                kept = x
            elif kind == "add":
                x = x + kept
            elif kind == "relu":
                x = torch.relu(x)
            elif kind == "read":
                conv = getattr(self, f"conv{number}")
                x = F.conv2d(x, conv.weight, padding=1, groups=CHANNELS // conv.weight.shape[1])
            else:
                x = getattr(self, f"{kind}{number}")(x)
        return self.linear(x.mean((2, 3)))


KEPT = st.sampled_from(["plain", "plain", "plain", "tied", *COMPUTED])
NUMBER = st.integers(0, 2)
SEGMENT = st.one_of(
    st.tuples(NUMBER, NUMBER).map(lambda pair: [("conv", pair[0]), ("norm", pair[1])]),
    st.tuples(NUMBER, NUMBER).map(lambda pair: [("conv", pair[0]), ("norm", pair[1]), ("relu", 0)]),
    st.tuples(NUMBER, NUMBER).map(lambda pair: [("again", pair[0]), ("norm", pair[1])]),
    st.tuples(NUMBER, NUMBER).map(lambda pair: [("conv", pair[0]), ("relu", 0), ("conv", pair[1])]),
    st.tuples(NUMBER, NUMBER).map(lambda pair: [("conv", pair[0]), ("keep", 0), ("norm", pair[1]), ("add", 0)]),
    st.tuples(st.sampled_from(["keep", "add", "norm", "read"]), NUMBER).map(lambda step: [step]),
)
PLANS = st.builds(
    Plan,
    convs=st.tuples(*[st.tuples(st.sampled_from([1, 1, 2, CHANNELS]), st.booleans(), KEPT)] * 3),
    norms=st.tuples(*[st.tuples(st.booleans(), st.sampled_from([True, True, False]))] * 3),
    steps=st.lists(SEGMENT, min_size=1, max_size=4).map(lambda found: tuple(step for part in found for step in part)),
    linear=KEPT,
)


def images(count: int = 6) -> Tensor:
    return torch.randn(count, CHANNELS, 6, 6, generator=torch.Generator().manual_seed(1))


def network(*steps: tuple[str, int], **changes: Any) -> Program:
    plain = Plan(((1, False, "plain"),) * 3, ((True, True),) * 3, steps, "plain")
    return Program(replace(plain, **changes)).eval()


@torch.no_grad()
def assert_same_function(found: nn.Module, model: nn.Module) -> None:
    x = images()
    wanted = model(x)
    assert (found(x) - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@torch.no_grad()
def assert_quantized(layer: QuantizedLayer) -> None:
    """Its weights lie on its grid, and it computes with them."""
    assert layer.codes.min() >= layer.grid.low
    assert layer.codes.max() <= layer.grid.high
    weight = layer.grid.dequantize(layer.codes.float(), layer.scale, layer.zero_point)
    assert torch.equal(layer.layer.weight, weight)
    assert torch.equal(layer.weight, weight)
    x = images()
    if isinstance(layer.layer, nn.Linear):
        plain = nn.Linear(CHANNELS, len(weight))
        x = x.mean((2, 3))
    else:
        plain = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=layer.layer.groups)
    plain.weight.copy_(weight)
    plain.bias.copy_(torch.zeros(len(weight)) if layer.bias is None else layer.bias)
    given = x if layer.activation is None else layer.activation(x)
    assert torch.allclose(layer(x), plain(given), atol=1e-6)


@settings(max_examples=60)
@given(PLANS, st.booleans())
def test_preparing_leaves_the_function_of_any_network(plan: Plan, equalize: bool) -> None:
    model = Program(plan).eval()
    before = copy.deepcopy(model.state_dict())
    assert_same_function(prepare(model, replace(FOLDED, equalize=equalize)), model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@settings(max_examples=25)
@given(PLANS, st.sampled_from(["nearest", "adaround"]), st.sampled_from([None, 4]), st.booleans())
def test_what_is_called_quantized_is(
    tmp_path_factory: pytest.TempPathFactory, plan: Plan, rounding: str, act_bits: int | None, correct: bool
) -> None:
    model, x = Program(plan).eval(), images()
    config = replace(FOLDED, rounding=rounding, act_bits=act_bits, bias_correction=correct, equalize=correct)
    quantized, report = quantize(model, config, 3, x)
    layers = quantized_layers(quantized)
    assert [row.layer for row in report.layers] == list(layers)
    assert "linear" in layers
    for layer in layers.values():
        assert_quantized(layer)
    assert not any(
        isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3) for module in plain_modules(quantized)
    )
    file = tmp_path_factory.mktemp("saved") / "q.safetensors"
    save_quantized(quantized, file, {})
    loaded, _ = load_quantized(file, Program(plan))
    assert torch.equal(loaded(x), quantized(x))


def plain_modules(model: nn.Module) -> list[nn.Module]:
    """The modules that are in no quantized layer."""
    inside = {module for layer in quantized_layers(model).values() for module in list(layer.modules())[1:]}
    return [module for module in model.modules() if module not in inside]


# The cases that went wrong ---------------------------------------------------------------------------------------


def test_a_plain_pair_is_folded_also_without_affine_parameters() -> None:
    for affine in (True, False):
        model = network(("conv", 0), ("norm", 0), norms=((affine, True),) * 3)
        assert batch_norm_pairs(model) == [("conv0", "norm0")]
        assert_same_function(prepare(model, FOLDED), model)
        assert isinstance(prepare(model, FOLDED).get_submodule("norm0"), nn.Identity)


@pytest.mark.parametrize(
    "steps",
    [
        [("conv", 0), ("norm", 0), ("conv", 0), ("norm", 1)],  # one convolution, two norms
        [("conv", 0), ("norm", 0), ("again", 0)],  # one of two uses, under another name
        [("conv", 0), ("norm", 0), ("conv", 0), ("norm", 0)],  # one pair, twice
        [("conv", 0), ("norm", 0), ("conv", 1), ("norm", 0)],  # one norm after two convolutions
        [("conv", 0), ("norm", 0), ("read", 0)],  # the weight is read, too
        [("conv", 0), ("keep", 0), ("norm", 0), ("add", 0)],  # the convolution's output is used, too
    ],
)
def test_what_is_not_proven_is_not_folded(steps: list[tuple[str, int]]) -> None:
    model = network(*steps)
    assert batch_norm_pairs(model) == []
    prepared = prepare(model, FOLDED)
    assert_same_function(prepared, model)
    assert isinstance(prepared.get_submodule("norm0"), nn.BatchNorm2d)


def test_a_weight_that_two_layers_share_stays_whole() -> None:
    kept = ((1, False, "plain"), (1, False, "tied"), (1, False, "plain"))
    model = network(("conv", 0), ("norm", 0), ("conv", 1), ("norm", 1), convs=kept)
    assert batch_norm_pairs(model) == []
    assert_same_function(prepare(model, FOLDED), model)
    quantized, _ = quantize(model, replace(FOLDED, layer_bits={"conv0": 2}), 8, images())
    layers = quantized_layers(quantized)
    assert len(layers["conv0"].weight.unique()) <= 16  # four levels for each of four channels
    assert len(layers["conv1"].weight.unique()) > 64


def test_a_norm_without_running_statistics_stays() -> None:
    model = network(("conv", 0), ("norm", 0), norms=((True, False),) * 3)
    assert batch_norm_pairs(model) == []
    quantized, _ = quantize(model, FOLDED, 8, images())
    assert_same_function(prepare(model, FOLDED), model)
    assert isinstance(quantized.get_submodule("norm0"), nn.BatchNorm2d)


class Activated(nn.BatchNorm2d):
    """Batch norm and activation in one class, as libraries of image networks have it."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(super().forward(x))


class Renamed(nn.BatchNorm2d):
    """Only another name."""


def test_a_class_derived_from_batch_norm_is_folded_where_it_computes_the_same() -> None:
    for kind, names in ((Activated, []), (Renamed, [("0", "1")])):
        model = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 3), kind(CHANNELS)).eval()
        model[1].running_mean.uniform_(-1, 1)
        assert batch_norm_pairs(model) == names
        assert_same_function(prepare(model, FOLDED), model)


@pytest.mark.parametrize("kept", COMPUTED)
@pytest.mark.parametrize("fold", [True, False])
def test_a_computed_weight_becomes_a_plain_one_and_is_quantized(kept: str, fold: bool) -> None:
    model = network(("conv", 0), ("norm", 0), convs=((1, True, kept),) * 3, linear=kept)
    before = copy.deepcopy(model.state_dict())
    config = replace(FOLDED, fold_batch_norm=fold)
    assert_same_function(prepare(model, config), model)
    quantized, report = quantize(model, config, 2, images())
    for layer in quantized_layers(quantized).values():
        assert_quantized(layer)
    assert all(row.sqnr_db < 40 for row in report.layers)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_weight_that_is_computed_in_an_unknown_way_is_refused() -> None:
    model = network(("conv", 0))
    weight = model.conv0._parameters.pop("weight")
    model.conv0.register_forward_pre_hook(lambda module, _: setattr(module, "weight", weight * 2))
    with pytest.raises(UserError, match=r"weight of conv0 is computed at every call"):
        prepare(model, FOLDED)


@pytest.mark.parametrize(
    ("layers", "pairs"),
    [
        ([nn.Conv2d(4, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 1)], [("0", "3")]),
        ([nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Linear(4, 4)], []),  # acts on columns, not on channels
        ([nn.Conv2d(4, 4, 6), nn.ReLU(), nn.Flatten(), nn.Linear(4, 5)], [("0", "3")]),
        ([nn.Conv2d(4, 4, 3), nn.Flatten(2), nn.Linear(16, 5)], []),
        ([nn.Conv2d(4, 4, 3), nn.ReLU6(), nn.Conv2d(4, 4, 1)], []),
    ],
)
def test_pairs_to_equalize(layers: list[nn.Module], pairs: list[tuple[str, str]]) -> None:
    model = nn.Sequential(*layers).eval()
    assert layer_pairs(model) == pairs
    assert_same_function(prepare(model, replace(FOLDED, equalize=True)), model)


def test_layers_that_are_called_twice_are_not_equalized() -> None:
    assert layer_pairs(network(("conv", 0), ("relu", 0), ("conv", 0))) == []
    assert layer_pairs(network(("conv", 0), ("relu", 0), ("conv", 1), ("conv", 1))) == []
    assert layer_pairs(network(("conv", 0), ("relu", 0), ("conv", 1), ("read", 0))) == []
    assert layer_pairs(network(("conv", 0), ("relu", 0), ("conv", 1))) == [("conv0", "conv1")]


# A layer that is called twice ------------------------------------------------------------------------------------


def collected(model: nn.Module, layer: str, x: Tensor) -> list[tuple[Tensor, ...]]:
    """The inputs and outputs of every call of a layer."""
    return Unit(layer, (layer,)).collector(Traced(model))(x)


def test_a_layer_that_is_called_twice_is_one_layer_learned_from_both_calls(tmp_path: Path) -> None:
    model, x = network(("conv", 0), ("norm", 0), ("again", 0), ("norm", 1)), images(64)
    first, second = collected(model, "conv0", x)
    assert torch.equal(first[0].permute(0, 3, 1, 2), x)
    assert not torch.equal(first[0], second[0])
    how = ReconstructionConfig(steps=200, batch_size=16)
    config = replace(FOLDED, act_bits=8, rounding="adaround", reconstruction=how, layers="conv")
    learned, report = quantize(model, config, 4, x, store=tmp_path)
    nearest, _ = quantize(model, replace(config, rounding="nearest"), 4, x)
    assert [row.layer for row in report.layers] == ["conv0", "conv1", "conv2"]
    assert learned.get_submodule("again0") is learned.get_submodule("conv0")
    with torch.no_grad():
        errors = [(network(x) - model(x)).square().mean() for network in (learned, nearest)]
    assert errors[0] < 0.6 * errors[1]
    again, _ = quantize(model, config, 4, x, store=tmp_path)
    assert torch.equal(again(x), learned(x))


def test_the_range_of_an_input_holds_both_calls() -> None:
    model, x = network(("conv", 0), ("conv", 1), ("conv", 1)), images()
    model.conv1.weight.data.mul_(20)
    _, report = quantize(model, replace(FOLDED, act_bits=8), 8, x)
    seen = [float(given.abs().max()) for given, _ in collected(model, "conv1", x)]
    assert seen[1] > 2 * seen[0]
    assert report.layers[1].act_alpha == pytest.approx(max(seen))


def test_the_bias_is_corrected_for_the_mean_over_both_calls() -> None:
    """Both calls see the same input here, so that the mean over both is what one bias can restore."""

    class Siamese(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(CHANNELS, 5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return (self.conv(x) + self.conv(-x.flip(3))).mean((2, 3))

    model, x = Siamese().eval(), images()
    quantized, _ = quantize(model, replace(FOLDED, layers="conv"), 2, x)
    reference = prepare(model, FOLDED)
    wanted = output_means(reference, ["conv"], x)["conv"]
    assert (output_means(quantized, ["conv"], x)["conv"] - wanted).abs().max() > 1e-3
    correct_biases(quantized, reference, x)
    assert (output_means(quantized, ["conv"], x)["conv"] - wanted).abs().max() < 1e-6


def test_a_layer_that_never_runs_stops_nothing() -> None:
    model, x = network(("conv", 0), ("norm", 0)), images()
    config = replace(FOLDED, act_bits=4, rounding="adaround", bias_correction=True)
    _, report = quantize(model, config, 3, x)
    assert {row.layer: row.act_bits for row in report.layers}["conv2"] is None
