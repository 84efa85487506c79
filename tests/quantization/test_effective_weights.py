"""Convolutions with a forward function of their own: standardized weights, padding in place, and what stays float."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import prepare, quantize
from torch import Tensor, nn

from ptq_exp.base.errors import UserError
from ptq_exp.export.network_file import load_quantized, save_quantized
from ptq_exp.quantization.coverage import float_tensors
from ptq_exp.quantization.layers import QuantizedLayer, quantized_layers
from ptq_exp.quantization.modules import plain_copy
from ptq_exp.quantization.options import QuantConfig, ReconstructionConfig

OPTIONS: dict[str, Any] = {
    "sign_bit": "included", "grid": "asymmetric", "alpha_rule": "max", "granularity": "channel", "layers": "all",
    "fold_batch_norm": True,
}  # fmt: skip


class Standardized(nn.Conv2d):
    """Weight standardization (Qiao et al. 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, standardized(self.weight), self.bias, self.stride, self.padding, self.dilation, self.groups)


class ByKeywords(nn.Conv2d):
    """The same inside torch's own forward function, with keywords."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        weight = standardized(weight)
        return F.conv2d(input, weight=weight, bias=bias, stride=self.stride, padding=self.padding, groups=self.groups)


class Normalized(nn.Linear):
    """A classifier with rows of length one."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, F.normalize(self.weight), self.bias)


class SamePadding(nn.Conv2d):
    """Padding that its forward function computes, as in networks from TensorFlow. Its weight is the parameter."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (1, 1, 1, 1)))


class Scaled(nn.Conv2d):
    """Other weights, and more than a convolution."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, 2 * self.weight, self.bias, padding=1) * 3


class Guided(nn.Conv2d):
    """Its forward function needs two inputs."""

    def forward(self, x: Tensor, factor: Tensor) -> Tensor:
        return super().forward(x * factor)


def standardized(weight: Tensor) -> Tensor:
    mean = weight.mean((1, 2, 3), keepdim=True)
    return (weight - mean) / (weight.std((1, 2, 3), keepdim=True) + 1e-5)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        Standardized(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
        ByKeywords(8, 8, 3, padding=1, groups=2), nn.ReLU(), SamePadding(8, 8, 3), nn.ReLU(), Scaled(8, 8, 3),
        nn.Flatten(), Normalized(128, 5),
    ).eval()  # fmt: skip


def images() -> Tensor:
    return torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_weights_that_are_computed_become_plain_and_are_folded() -> None:
    model, x = network(), images()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plain = plain_copy(model)
    assert torch.equal(plain(x), model(x))
    assert [type(plain[number]) for number in (0, 3, 9)] == [nn.Conv2d, nn.Conv2d, nn.Linear]
    assert torch.equal(plain[0].weight, standardized(model[0].weight))
    assert plain[3].groups == 2
    folded = prepare(model, QuantConfig(**OPTIONS))
    assert isinstance(folded.get_submodule("1"), nn.Identity)
    assert torch.allclose(folded(x), model(x), atol=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@torch.no_grad()
def test_the_weights_in_use_are_quantized_and_the_rest_is_named(tmp_path: Path) -> None:
    model, x, options = network(), images(), QuantConfig(**OPTIONS, act_bits=8)
    quantized, report = quantize(model, options, 8, x)
    assert [row.layer for row in report.layers] == ["0", "3", "5", "9"]
    assert isinstance(quantized[5].layer, SamePadding)
    assert (quantized(x) - model(x)).norm() < 0.05 * model(x).norm()
    share, reasons = float_tensors(quantized, options)
    assert reasons == {"7.weight": "its forward function computes other weights"}
    assert share == pytest.approx(100 * (1 - 576 / (216 + 288 + 576 + 576 + 640)))
    save_quantized(quantized, tmp_path / "q.safetensors", {})
    loaded, _ = load_quantized(tmp_path / "q.safetensors", network())
    assert torch.equal(loaded(x), quantized(x))


def test_learning_uses_the_forward_function_of_the_layer() -> None:
    """Padding that a forward function computes is there while the rounding is learned, too."""
    how = ReconstructionConfig(steps=5, batch_size=4)
    quantized, _ = quantize(network(), QuantConfig(**OPTIONS, rounding="adaround", reconstruction=how), 3, images())
    layer = quantized_layers(quantized)["5"]
    wanted = layer(x := torch.randn(2, 8, 4, 4))
    layer.soft = layer.layer.weight.detach().clone()
    assert isinstance(layer, QuantizedLayer)
    assert torch.equal(layer(x), wanted)


def test_a_layer_of_two_inputs_stays_float() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.plain, self.guided = nn.Conv2d(3, 3, 3), Guided(3, 3, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.plain(x)
            result: Tensor = self.guided(x, x.sigmoid()).mean((2, 3))
            return result

    model, x = Two().eval(), images()
    quantized, report = quantize(model, QuantConfig(**OPTIONS), 8, x)
    assert [row.layer for row in report.layers] == ["plain"]
    assert torch.allclose(quantized(x), model(x), atol=0.1)


def test_a_network_whose_layers_all_compute_other_weights_has_nothing_to_quantize() -> None:
    with pytest.raises(UserError, match="nothing to quantize"):
        quantize(nn.Sequential(Scaled(3, 8, 3)), QuantConfig(**OPTIONS), 8, images())
