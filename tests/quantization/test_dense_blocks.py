"""Dense blocks with everything quantized: features that are concatenated for batch norms."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import DenseNet

from ptq_exp.base.errors import UserError
from ptq_exp.export.network_file import load_quantized, save_quantized
from ptq_exp.networks.graph import Graph, concatenated, expose
from ptq_exp.quantization import steps
from ptq_exp.quantization.context import Calibration
from ptq_exp.quantization.layers import ActivationQuantizer, QuantizedOperation, quantized_layers
from ptq_exp.quantization.options import QuantConfig
from ptq_exp.quantization.quantize import quantize
from ptq_exp.quantization.steps import move_zero_points
from ptq_exp.quantization.steps.balance_channels import balance
from ptq_exp.quantization.steps.fold_batch_norm import fold_batch_norm
from ptq_exp.quantization.steps.move_zero_points import MoveZeroPoints

ALL = QuantConfig(
    sign_bit="included", alpha_rule="max", granularity="channel", layers="all", fold_batch_norm=True, act_bits=8,
    act_rule="mse", act_coverage="all", act_zero_point=True,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """Tiny tensors."""


def images(count: int = 16) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def dense_net(largest: float = 1.0) -> nn.Module:
    """A small DenseNet with statistics. The first channel of its stem is multiplied by `largest`, and the batch norms
    expect it, so that the network computes the same for every value."""
    torch.manual_seed(1)
    model = DenseNet(growth_rate=4, block_config=(2, 2), num_init_features=8, num_classes=10)
    with torch.no_grad():
        for _ in range(20):
            model(torch.randn(8, 3, 32, 32))
    model.eval()
    fold_batch_norm(model)
    with torch.no_grad():
        stem: Any = model.features.conv0
        stem.weight[0] *= largest
        stem.bias[0] *= largest
        for name, norm in model.named_modules():
            if isinstance(norm, nn.BatchNorm2d) and ("denseblock1" in name or "transition1" in name):
                assert norm.running_mean is not None
                assert norm.running_var is not None
                norm.running_mean[0] *= largest
                norm.running_var[0] *= largest**2
    return model


def quantized(model: nn.Module, **changes: Any) -> nn.Module:
    return quantize(model, replace(ALL, **changes), 8, Calibration(images())).network


@torch.no_grad()
def relative_error(network: nn.Module, model: nn.Module) -> float:
    x = images(32)
    return float((network(x) - model(x)).std() / model(x).std())


def test_the_features_of_a_dense_net_and_the_places_that_read_them() -> None:
    model = dense_net()
    for network in (model, expose(copy.deepcopy(model), additions_only=False)):
        found = {each.layer: each for each in concatenated(Graph(network))}
        assert len(found) == 6
        stem, first = found["features.conv0"], found["features.denseblock1.denselayer1.conv2"]
        norms = ["features.denseblock1.denselayer1.norm1", "features.denseblock1.denselayer2.norm1"]
        assert dict(stem.norms) == dict.fromkeys([*norms, "features.transition1.norm"], 0)
        assert dict(first.norms) == {norms[1]: 8, "features.transition1.norm": 8}
        assert (stem.direct, first.direct) == (False, True)
        assert [place for _, place in first.joins] == [1, 1]


class Block(nn.Module):
    """`join` concatenates two feature maps for a batch norm, or does something else beside it."""

    def __init__(self, join: str):
        super().__init__()
        self.join = join
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
        channels = {"twice": 12, "height": 4}.get(join, 8)
        self.norm, self.other = nn.BatchNorm2d(channels), nn.BatchNorm2d(4)
        self.head = nn.Conv2d(channels, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        if self.join == "sigmoid":
            a = torch.sigmoid(a)
        parts = [a, a, b] if self.join == "twice" else [a, b]
        y = torch.cat(parts, dim=2 if self.join == "height" else 1)
        if self.join == "read":
            y = y + a.mean()
        y = self.norm(self.norm(y)) if self.join == "norm twice" else self.norm(y)
        y = self.head(torch.relu(y)).mean((2, 3))
        return y + self.other(a).mean((1, 2, 3))[:, None] if self.join == "other norm" else y


@pytest.mark.parametrize(
    ("join", "found"),
    [("plain", ["a", "b"]), ("read", []), ("twice", ["b"]), ("height", []), ("norm twice", []), ("sigmoid", []),
     ("other norm", ["b"])],
)  # fmt: skip
@torch.no_grad()
def test_only_features_that_nothing_else_reads_are_balanced(join: str, found: list[str]) -> None:
    torch.manual_seed(0)
    model, x = Block(join).eval(), images()
    assert [each.layer for each in concatenated(Graph(model))] == found
    model.norm.running_var.uniform_(0.1, 10)
    model.norm.running_mean.uniform_(-3, 3)
    before, weights = model(x), {name: getattr(model, name).weight.clone() for name in ("a", "b")}
    balance(model)
    torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)
    changed = [name for name, weight in weights.items() if not torch.equal(getattr(model, name).weight, weight)]
    assert changed == found
    network = quantized(model)
    assert relative_error(network, model) < 0.1


def test_large_channels_do_not_cost_the_levels_of_the_others() -> None:
    plain, uneven = dense_net(), dense_net(largest=300.0)
    torch.testing.assert_close(plain(images()), uneven(images()), rtol=1e-3, atol=1e-4)
    error = relative_error(quantized(plain), plain)
    assert error < 0.05
    assert relative_error(quantized(uneven), uneven) == pytest.approx(error, rel=0.3)


def test_channels_without_variation_stay_finite() -> None:
    model = dense_net()
    with torch.no_grad():
        model.features.conv0.weight[0] = 0
        model.features.conv0.bias[0] = 0
        for name, norm in model.named_modules():
            if isinstance(norm, nn.BatchNorm2d) and ("denseblock1" in name or "transition1" in name):
                norm.running_mean[0] = norm.running_var[0] = 0
    assert relative_error(quantized(model), model) < 0.05


def test_norms_of_features_have_no_levels_of_their_own_and_others_do(tmp_path: Path) -> None:
    network = quantized(dense_net())
    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert not isinstance(network.get_submodule(name.rpartition(".")[0]), QuantizedOperation), name
    # The norm behind the addition receives no concatenation.
    operations = [name for name, module in quantized(Block("read").eval()).named_modules()
                  if isinstance(module, QuantizedOperation)]  # fmt: skip
    assert "norm" in operations


def test_zero_points_move_into_biases_and_norms_without_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    moved = quantized(dense_net())
    monkeypatch.setattr(steps, "STEPS", tuple(s for s in steps.STEPS if not isinstance(s, MoveZeroPoints)))
    monkeypatch.setattr("ptq_exp.quantization.quantize.STEPS", steps.STEPS)
    kept = quantized(dense_net())
    lows = [
        [module.grid.low for name, module in network.named_modules()
         if isinstance(module, ActivationQuantizer) and ".cat" in name and not name.endswith("operands.0")]
        for network in (kept, moved)
    ]  # fmt: skip
    assert all(low < 0 for low in lows[0])
    assert not any(lows[1])
    with torch.no_grad():
        torch.testing.assert_close(moved(images(32)), kept(images(32)), rtol=0, atol=0.02 * float(kept(images()).std()))


def test_zero_points_stay_where_concatenations_have_different_scales() -> None:
    model = expose(dense_net(), additions_only=False)
    network = quantize(dense_net(), replace(ALL, act_zero_point=False), 8, Calibration(images())).network
    (found,) = (f for f in concatenated(Graph(model)) if f.layer == "features.denseblock1.denselayer1.conv2")
    quantizers = [network.get_submodule(f"{join}.operands.{place}") for join, place in found.joins]
    quantizers[0].alpha.mul_(1.5)
    before = network(images())
    move_zero_points._move(network, found)
    assert torch.equal(network(images()), before)


def test_the_file_of_a_dense_net_gives_the_same_logits(tmp_path: Path) -> None:
    network = quantized(dense_net(), integer_biases=True)
    save_quantized(network, tmp_path / "q.safetensors", {})
    loaded, _ = load_quantized(tmp_path / "q.safetensors", dense_net())
    assert torch.equal(loaded(images()), network(images()))


class Signed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.third(self.second(torch.relu(self.first(x))))).mean((2, 3)))


@pytest.mark.parametrize(("sign_bit", "bits", "reduced"), [("included", 8, 7), ("extra", 8, 6), ("included", 5, 5)])
def test_reduce_range_takes_a_bit_where_inputs_are_negative(sign_bit: str, bits: int, reduced: int) -> None:
    torch.manual_seed(0)
    options = replace(ALL, reduce_range=True, sign_bit=sign_bit)
    result = quantize(Signed().eval(), options, bits, Calibration(images()))
    layers = quantized_layers(result.network)
    assert {name: layer.bits for name, layer in layers.items()} == {
        "first": reduced, "second": bits, "third": reduced, "head": bits
    }  # fmt: skip
    assert all(2 * 255 * int(layers[name].codes.abs().max()) < 2**15 for name in ("first", "third"))


def test_reduce_range_needs_a_grid_with_a_sign() -> None:
    with pytest.raises(UserError, match=r"needs quant\.grid=symmetric or power_of_two, not asym"):
        steps.check_method(replace(ALL, reduce_range=True, grid="asymmetric"))
