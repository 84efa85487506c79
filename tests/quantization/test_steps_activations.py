"""Quantized activations: which get a quantizer, with how many bits, and what that costs."""

from dataclasses import replace

import pytest
import torch
from conftest import mostly_slow, network, quantize
from samples import LEARNED, error, images

from ptq_exp.quantization.activations import BINS, _histogram, counts_of_bins
from ptq_exp.quantization.layers import (
    ActivationQuantizer,
    QuantizedOperation,
    quantized_layers,
    random_mask,
    round_within,
)
from ptq_exp.quantization.options import QuantConfig


def test_the_image_and_the_residuals_are_quantized_where_asked() -> None:
    model, x = network(), images()
    base = QuantConfig(**LEARNED, act_bits=4)
    quantized, _ = quantize(model, base, 4, x)
    layers = quantized_layers(quantized)
    assert layers["conv1"].activation is None
    assert not any(isinstance(m, QuantizedOperation) for m in quantized.modules())
    assert all(layer.activation and layer.activation.grid.low == 0 for n, layer in layers.items() if n != "conv1")
    whole, _ = quantize(model, replace(base, act_input_image=True, act_residual=True), 4, x)
    image = quantized_layers(whole)["conv1"].activation
    assert image is not None
    assert image.grid.low < 0
    additions = [m for m in whole.modules() if isinstance(m, QuantizedOperation)]
    assert len(additions) == 3
    assert all(addition.operands[0].grid.low < 0 for addition in additions)


def test_the_policy_for_the_ends_leaves_the_other_activations_alone() -> None:
    """The image is spared where its own layer stays float, and additions keep the bits that were asked for."""
    model, x = network(), images()
    base = QuantConfig(**LEARNED, act_bits=4, act_residual=True)
    spared, _ = quantize(model, replace(base, first_and_last="float"), 4, x)
    assert all(layer.activation for layer in quantized_layers(spared).values())
    assert "conv1" not in quantized_layers(spared)
    eight, _ = quantize(model, replace(base, first_and_last="eight"), 4, x)
    joints = [m for m in eight.modules() if isinstance(m, QuantizedOperation)]
    assert {operand.bits for joint in joints for operand in joint.operands} == {4}
    assert quantized_layers(eight)["linear"].activation.bits == 8  # type: ignore[union-attr]


@pytest.mark.parametrize("setting", mostly_slow([[4, 4], [2, 4], [8, 8], [4, 8], [3, 3]], 2))
def test_more_activation_bits_lose_less(setting: list[int]) -> None:
    model, x = network(), images()
    bits, act_bits = setting
    quantized, report = quantize(model, QuantConfig(**LEARNED, act_bits=act_bits), bits, x)
    finer, _ = quantize(model, QuantConfig(**LEARNED, act_bits=act_bits + 4), bits + 4, x)
    assert error(finer, model, x) < error(quantized, model, x) < 2
    assert {row.act_bits for row in report.layers} == {None, act_bits}


def test_qdrop_drops_the_configured_share() -> None:
    quantizer = ActivationQuantizer(2, 1.0)
    x = torch.rand(20_000, requires_grad=True)
    quantizer.drop = 0.25
    untouched = (quantizer(x) == x).float().mean().item()
    assert untouched == pytest.approx(0.25, abs=0.02)
    quantizer.drop = 0.0
    assert (quantizer(x) == x).float().mean().item() < 0.01


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_random_mask_has_its_share_and_the_layout_of_the_values(layout: torch.memory_format) -> None:
    x = torch.empty(8, 16, 9, 9).contiguous(memory_format=layout)
    assert random_mask(x, 0.999).mean() > 0.99
    mask = random_mask(x, 0.25)
    assert mask.stride() == x.stride()
    assert mask.unique().tolist() == [0, 1]
    assert mask.mean().item() == pytest.approx(0.25, abs=0.03)
    assert mask[:, 0].mean().item() == pytest.approx(0.25, abs=0.1)
    assert random_mask(x[:, :5], 0.5).shape == (8, 5, 9, 9)


def test_the_gradient_reaches_values_at_both_ends_of_the_grid_but_not_beyond() -> None:
    """It must not depend on torch's clamp, whose gradient at the ends changed with 2.15."""
    quantizer = ActivationQuantizer(2, 1.5)  # levels 0, 0.5, 1 and 1.5
    x = torch.tensor([-1.0, 0.1, 0.4, 1.6, 5.0], requires_grad=True)
    alpha = torch.tensor(1.5, requires_grad=True)
    quantizer.alpha = alpha
    output = quantizer(x)
    assert output.tolist() == [0, 0, 0.5, 1.5, 1.5]
    output.backward(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert x.grad is not None
    assert x.grad.tolist() == [0, 2, 3, 4, 0]
    # By hand: (code - x/s) inside, the code outside, times ds/dalpha = 1/3.
    by_hand = (2 * (0 - 0.2) + 3 * (1 - 0.8) + 4 * (3 - 3.2) + 5 * 3) / 3
    assert alpha.grad is not None
    assert alpha.grad.item() == pytest.approx(by_hand, rel=1e-5)


def test_weights_at_the_ends_of_the_grid_are_learned() -> None:
    positions = torch.tensor([-1.0, 0.2, 2.9, 4.2], requires_grad=True)
    codes = round_within(positions, torch.tensor(0.0), torch.tensor(3.0))
    assert codes.tolist() == [0, 0, 3, 3]
    codes.sum().backward()
    assert positions.grad is not None
    assert positions.grad.tolist() == [0, 1, 1, 0]


def test_a_histogram_counts_more_values_than_float32_can() -> None:
    values = torch.zeros(2**24 + 1000)
    values[:1000] = 1.0
    counts = _histogram(values, 0.0, 1.0)
    assert (counts[0].item(), counts[-1].item()) == (2**24, 1000)


@pytest.mark.parametrize("seed", range(8))
def test_cuda_counts_the_bins_that_torch_counts(seed: int) -> None:
    values = torch.randn(100_000, generator=torch.Generator().manual_seed(seed)) * (seed + 0.37)
    low, high = float(values.min()), float(values.max())
    for part, ends in ((values, (low, high)), (values.abs(), (0.0, max(-low, high))), (values.relu(), (0.0, high))):
        assert torch.equal(counts_of_bins(part, *ends).float(), torch.histc(part, BINS, *ends))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_histogram_on_a_gpu_is_that_of_the_cpu() -> None:
    values = torch.randn(2**22, generator=torch.Generator().manual_seed(0)).relu()
    assert torch.equal(_histogram(values.cuda(), 0.0, 6.0), _histogram(values, 0.0, 6.0))
