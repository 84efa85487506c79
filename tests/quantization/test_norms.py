"""Batch norms whose class adds an activation function, as in timm."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import prepare, quantize
from torch import Tensor, nn

from ptq_exp.export.network_file import load_quantized, save_quantized
from ptq_exp.networks.graph import Graph, blocks
from ptq_exp.quantization.norms import separate_norms
from ptq_exp.quantization.options import QuantConfig


class NormAndActivation(nn.BatchNorm2d):
    def __init__(self, channels: int, kind: str = "modules"):
        super().__init__(channels)
        self.drop, self.act, self.kind = nn.Dropout(0.5), nn.SiLU(), kind

    def forward(self, x: Tensor) -> Tensor:
        torch._assert(x.ndim == 4, f"images are needed, not {x.ndim} dimensions")
        training = self.training or self.running_mean is None
        if self.kind == "twice":
            x = 2 * x
        x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, training, 0.1, self.eps)
        if self.kind == "sum":
            return self.act(x) + x
        return self.act(self.drop(x))


class Net(nn.Module):
    def __init__(self, kind: str = "modules"):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1, bias=False), NormAndActivation(4, kind)
        self.again, self.last = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 5)
        self.scale = nn.Parameter(torch.rand(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        x = x + self.again(x) * self.scale.reshape(1, -1, 1, 1)  # the scale depends on no image
        return self.last(x.mean((2, 3)))


def trained(kind: str = "modules") -> Net:
    torch.manual_seed(1)
    model = Net(kind)
    model(torch.randn(8, 3, 8, 8))
    return model.eval()


def test_the_norm_is_folded_and_the_activation_stays() -> None:
    model, x = trained(), torch.randn(2, 3, 8, 8)
    folded = prepare(model, QuantConfig(fold_batch_norm=True))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert any(isinstance(module, nn.SiLU) for module in folded.modules())
    assert (folded(x) - model(x)).abs().max() < 1e-5
    assert [block.layers for block in blocks(Graph(folded))] == [("again",)]


@pytest.mark.parametrize("kind", ["twice", "sum"])
def test_a_norm_that_does_something_else_stays(kind: str) -> None:
    model, x = trained(kind), torch.randn(2, 3, 8, 8)
    wanted = model(x)
    separate_norms(model)
    assert isinstance(model.norm, NormAndActivation)
    assert torch.equal(model(x), wanted)


@pytest.mark.parametrize("fold", [True, False])
def test_it_is_saved_and_loaded(fold: bool, tmp_path: Path) -> None:
    model, x = trained(), torch.randn(2, 3, 8, 8)
    quantized, _ = quantize(model, QuantConfig(layers="all", fold_batch_norm=fold, act_bits=8), 4, x)
    save_quantized(quantized, tmp_path / "q.safetensors", {})
    assert torch.equal(load_quantized(tmp_path / "q.safetensors", Net())[0].eval()(x), quantized(x))
