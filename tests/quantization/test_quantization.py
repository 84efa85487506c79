"""The notebook's quantizer: exact values, properties, and what it does to whole networks."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import mostly_slow, quantize
from hypothesis import given
from hypothesis import strategies as st

from ptq_exp.base.errors import UserError
from ptq_exp.export.network_file import load_quantized, save_quantized
from ptq_exp.networks import build_model
from ptq_exp.quantization.effective_weights import target_layers
from ptq_exp.quantization.grids import Grid, activation_grid, parameters, weight_grid
from ptq_exp.quantization.layers import ActivationQuantizer, QuantizedLayer
from ptq_exp.quantization.options import QuantConfig
from ptq_exp.quantization.ranges import RangeContext, find_ranges

values = st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=40).map(torch.tensor)
bit_widths = st.integers(1, 12)
alphas = st.sampled_from([0.125, 0.37, 1.0, 2.5])


def notebook(w: torch.Tensor, alpha: float, bits: int) -> torch.Tensor:
    """The formula as the course notebook wrote it (design: q = round(clamp(|w|/alpha, 0, 1) n) / n)."""
    n = 2**bits - 1
    return alpha * torch.sign(w) * torch.round(torch.clamp(w.abs() / alpha, 0, 1) * n) / n


def fake(w: torch.Tensor, alpha: float, grid: Grid) -> torch.Tensor:
    return grid.fake_quantize(w, torch.tensor(alpha / grid.high))


def network(shortcut: str = "conv") -> torch.nn.Module:
    torch.manual_seed(3)
    return build_model("resnet", 10, depth=20, shortcut=shortcut).eval()


def images(count: int = 16) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_exact_values_at_two_bits() -> None:
    """alpha 3 and n 3: the grid is the whole numbers from -3 to 3; halves go to the even neighbour."""
    w = torch.tensor([-9.0, -3.0, -2.5, -1.5, -0.5, -0.4, 0.0, 0.5, 0.6, 1.5, 2.5, 2.6, 3.0, 100.0])
    expected = torch.tensor([-3.0, -3.0, -2.0, -2.0, 0.0, 0.0, 0.0, 0.0, 1.0, 2.0, 2.0, 3.0, 3.0, 3.0])
    assert torch.equal(fake(w, 3.0, weight_grid(2, "extra")), expected)


def test_one_bit_of_magnitude_has_three_levels() -> None:
    w = torch.tensor([-2.0, -0.6, -0.5, -0.4, 0.5, 0.51, 7.0])
    assert fake(w, 1.0, weight_grid(1, "extra")).tolist() == [-1.0, -1.0, 0.0, 0.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize("bits", range(1, 17))
def test_the_number_of_levels(bits: int) -> None:
    assert weight_grid(bits, "extra").levels == 2 * (2**bits - 1) + 1
    assert activation_grid(bits).levels == 2**bits
    if bits > 1:
        assert weight_grid(bits, "included").levels == 2 * (2 ** (bits - 1) - 1) + 1


@given(values, alphas, bit_widths)
def test_it_is_the_notebooks_formula(w: torch.Tensor, alpha: float, bits: int) -> None:
    """Up to float rounding, and to the neighbouring level where a value sits on the boundary of two."""
    n = 2**bits - 1
    boundary = ((w.abs() / alpha * n) % 1 - 0.5).abs() < 1e-4 * n
    difference = (fake(w, alpha, weight_grid(bits, "extra")) - notebook(w, alpha, bits)).abs()
    assert (difference <= torch.where(boundary, 1.001 * alpha / n, 2e-6 * alpha)).all()


@given(values, alphas, bit_widths)
def test_idempotent_monotone_symmetric_and_on_the_grid(w: torch.Tensor, alpha: float, bits: int) -> None:
    grid = weight_grid(bits, "extra")
    once = fake(w, alpha, grid)
    assert torch.equal(fake(once, alpha, grid), once)
    assert torch.equal(fake(-w, alpha, grid), -once)
    ascending = fake(w.sort().values, alpha, grid)
    assert (ascending.diff() >= 0).all()
    codes = grid.quantize(w, torch.tensor(alpha / grid.high))
    assert torch.equal(codes, codes.round())
    assert codes.abs().max() <= grid.high
    inside = w.abs() <= alpha
    assert ((once - w).abs()[inside] <= alpha / grid.high / 2 * 1.0001 + 1e-6).all()


@given(values, bit_widths, st.sampled_from([0.25, 0.5, 2.0, 4.0]))
def test_scale_equivariance(w: torch.Tensor, bits: int, factor: float) -> None:
    """Powers of two scale floats exactly, so the scaled weights land on the scaled grid exactly."""
    grid = weight_grid(bits, "extra")
    assert torch.equal(fake(w * factor, factor, grid), fake(w, 1.0, grid) * factor)


@given(values, st.integers(2, 8))
def test_agrees_with_torch_where_both_define_the_same(w: torch.Tensor, bits: int) -> None:
    """Scales that are powers of two, so that torch's multiplication by the inverse rounds nothing away."""
    grid = weight_grid(bits, "included")
    scale = torch.tensor([0.25])
    theirs = torch.fake_quantize_per_channel_affine(
        w[None], scale, torch.zeros(1, dtype=torch.int32), 0, grid.low, grid.high
    )
    assert torch.equal(grid.fake_quantize(w[None], scale), theirs)


def test_alpha_rules() -> None:
    weights = {"a": torch.tensor([[1.0, -3.0], [0.5, 0.5]]), "b": torch.tensor([[4.0, 0.0]])}
    population_std = weights["a"].numpy().std()

    def alphas(rule: str, granularity: str, multiplier: float = 3.0) -> dict[str, list[float]]:
        context = RangeContext(weights["a"], weight_grid(4, "extra"), "symmetric", multiplier)
        ranges = find_ranges(weights, dict.fromkeys(weights, context), rule, granularity)
        return {name: torch.maximum(high, -low).tolist() for name, (low, high) in ranges.items()}

    found = alphas("first_conv_std", "model")
    assert found["a"] == pytest.approx([3 * population_std])
    assert found["a"] == found["b"]
    assert alphas("max", "model")["a"] == [4.0]
    assert alphas("max", "tensor")["a"] == [3.0]
    assert alphas("max", "channel")["a"] == [3.0, 0.5]
    assert alphas("std", "tensor", 2.0)["b"] == [4.0]
    weights["b"][0, 0] = float("nan")
    with pytest.raises(UserError, match="finite"):
        alphas("max", "tensor")


def test_a_group_of_zeros_keeps_a_scale() -> None:
    scale, zero_point = parameters(weight_grid(4, "extra"), "symmetric", torch.zeros(2), torch.zeros(2))
    assert scale.tolist() == [1.0, 1.0]
    assert zero_point.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(("shortcut", "count"), [("conv", 21), ("pad", 19)])
def test_exactly_the_convolutions_are_quantized(shortcut: str, count: int) -> None:
    model = network(shortcut)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    quantized, report = quantize(model, QuantConfig(), 4, images())
    assert len(report.layers) == count
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(quantized.get_parameter("linear.weight"), model.get_parameter("linear.weight"))
    alpha = 3 * model.get_parameter("conv1.weight").std(correction=0)
    for name, layer in target_layers(model).items():
        expected = notebook(layer.weight.detach(), alpha.item(), 4)
        found = quantized.get_submodule(name).layer.weight.detach()
        assert torch.allclose(found, expected, atol=1e-6)


def test_the_report_counts_what_is_there() -> None:
    model = network("pad")
    _, report = quantize(model, QuantConfig(), 3, images())
    row = report.layers[0]
    weight = model.get_parameter("conv1.weight").detach()
    alpha = 3 * weight.std(correction=0).item()
    quantized = notebook(weight, alpha, 3)
    assert row.layer == "conv1"
    assert (row.stored_bits, row.levels_available, row.weights) == (4, 15, 432)
    assert row.levels_used == len({round(value, 4) for value in quantized.flatten().tolist()})
    assert row.alpha == pytest.approx(alpha, rel=1e-6)
    assert row.clipped_percent == pytest.approx(100 * (weight.abs() > alpha).float().mean().item())
    noise = ((weight - quantized) ** 2).sum().item()
    assert row.sqnr_db == pytest.approx(10 * torch.log10((weight**2).sum() / noise).item(), abs=1e-3)
    weights = sum(layer.weights for layer in report.layers)
    # 269,722 parameters and 2 running statistics for each of the 688 batch norm channels.
    rest = 269_722 + 2 * 688 - weights
    scales = len(report.layers)
    assert report.bits_mean == 4
    assert report.size_bytes == weights * 4 / 8 + 4 * (rest + scales)


def test_more_bits_lose_less() -> None:
    model, x = network(), images()
    errors = []
    for bits in (2, 4, 6, 8, 12, 16):
        quantized, _ = quantize(model, QuantConfig(alpha_rule="max", granularity="channel"), bits, x)
        errors.append((quantized(x) - model(x)).abs().mean().item())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3 * errors[0]


def test_activations_are_unsigned_clipped_and_on_the_grid() -> None:
    quantizer = ActivationQuantizer(2, 3.0)
    x = torch.tensor([-1.0, 0.0, 0.5, 1.4, 1.5, 2.6, 9.0])
    assert quantizer(x).tolist() == [0.0, 0.0, 0.0, 1.0, 2.0, 3.0, 3.0]


def test_activation_alpha_is_fixed_or_calibrated_and_spares_the_image() -> None:
    model, x = network(), images()
    fixed, _ = quantize(model, QuantConfig(act_bits=4, act_alpha=1.5), 8, x)
    layers = [module for module in fixed.modules() if isinstance(module, QuantizedLayer)]
    assert layers[0].activation is None
    assert [layer.activation.alpha.item() for layer in layers[1:] if layer.activation] == [1.5] * 20
    calibrated, report = quantize(model, QuantConfig(act_bits=4), 8, x)
    seen: dict[str, float] = {}
    layer = model.get_submodule("layer2.0.conv2")
    handle = layer.register_forward_pre_hook(lambda _, inputs: seen.update(largest=inputs[0].max().item()))
    model(x)
    handle.remove()
    activation = calibrated.get_submodule("layer2.0.conv2").activation
    assert isinstance(activation, ActivationQuantizer)
    assert activation.alpha.item() == pytest.approx(seen["largest"], rel=1e-5)
    assert [row.act_bits for row in report.layers] == [None] + [4] * 20
    assert not torch.equal(fixed(x), calibrated(x))


@pytest.mark.parametrize("bits", mostly_slow([1, 8, 16, 4, 7], 3))
@pytest.mark.parametrize("options", [{}, {"act_bits": 3, "granularity": "channel", "alpha_rule": "max"}])
def test_a_saved_network_gives_the_same_logits_bit_for_bit(tmp_path: Path, bits: int, options: dict[str, Any]) -> None:
    model, x = network(), images()
    quantized, _ = quantize(model, QuantConfig(**options), bits, x)
    save_quantized(quantized, tmp_path / "q.safetensors", {"bits": bits})
    loaded, metadata = load_quantized(tmp_path / "q.safetensors", build_model("resnet", 10, depth=20))
    assert torch.equal(loaded(x), quantized(x))
    assert metadata["bits"] == bits
    if bits <= 7:  # one byte a weight
        assert (tmp_path / "q.safetensors").stat().st_size < 400_000


def test_a_quantized_file_of_another_network_is_refused(tmp_path: Path) -> None:
    quantized, _ = quantize(network(), QuantConfig(), 4, images())
    save_quantized(quantized, tmp_path / "q.safetensors", {})
    with pytest.raises(UserError, match="architecture"):
        load_quantized(tmp_path / "q.safetensors", build_model("vgg", 10))


def test_nothing_to_quantize_is_an_error() -> None:
    with pytest.raises(UserError, match="nothing to quantize"):
        quantize(torch.nn.Sequential(torch.nn.Linear(3, 3)), QuantConfig(), 4, images())
