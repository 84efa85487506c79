"""Networks whose instances were changed after they were built, or whose outputs are not a function of one image."""

import threading
from collections.abc import Callable
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ptq_exp
from ptq_exp.evaluation.accuracy import for_inference

EVERYTHING = {"act_bits": 8, "act_coverage": "all", "act_zero_point": True}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 5)
        nn.init.uniform_(self.norm.running_mean, -1, 1)
        nn.init.uniform_(self.norm.running_var, 0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.after(F.relu(self.norm(self.conv(x)))).mean((2, 3)))

    def after(self, x: Tensor) -> Tensor:
        return x


class Computing(Net):
    """`compute` maps 8 channels to 8 channels."""

    def __init__(self, compute: Callable[[Any, Tensor], Tensor]):
        super().__init__()
        self.compute = compute

    def after(self, x: Tensor) -> Tensor:
        return self.compute(self, x)


def ready(network: nn.Module) -> tuple[Any, Tensor]:
    return network.eval(), torch.randn(64, 3, 8, 8)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def squashed(layer: nn.Conv2d, x: Tensor) -> Tensor:
    return torch.tanh(nn.Conv2d.forward(layer, x))


def with_own_convolution(network: Any) -> None:
    network.conv.forward = MethodType(squashed, network.conv)


def with_norm_switched_off(network: Any) -> None:
    network.norm.forward = lambda x: x


@pytest.mark.parametrize("change", [with_own_convolution, with_norm_switched_off])
def test_a_forward_function_of_its_own_is_not_folded(change: Callable[[Any], None]) -> None:
    network, x = ready(Net())
    change(network)
    learning = {"reconstruction": {"steps": 2, "batch_size": 4, "distill_steps": 0}}
    with torch.no_grad():
        wanted = network(x)
        assert torch.allclose(for_inference(network)(x), wanted, atol=1e-5)
        found = ptq_exp.quantize(network, x, bits=8, method="quick", act_bits=8, **learning).network(x)
    assert (found - wanted).abs().max() < 0.02 * wanted.abs().max()


def through_closure(network: Any) -> None:
    old = network.forward
    network.forward = lambda x: old(2 * x)


def through_default(network: Any) -> None:
    network.conv.forward = lambda x, conv=network.conv: F.conv2d(x, conv.weight)


def even(x: Tensor, depth: int) -> Tensor:
    return odd(x, depth - 1) if depth else x


def odd(x: Tensor, depth: int) -> Tensor:
    return even(x, depth - 1) if depth else x


def test_functions_that_call_each_other_are_looked_at_once() -> None:
    network, x = ready(Net())
    network.norm.forward = lambda x: even(x, 3)
    with torch.no_grad():
        assert torch.allclose(for_inference(network)(x), network(x), atol=1e-5)


@pytest.mark.parametrize(("change", "where"), [(through_closure, "the network"), (through_default, "conv")])
def test_a_forward_function_that_a_copy_would_share_is_refused(change: Callable[[Any], None], where: str) -> None:
    network, x = ready(Net())
    change(network)
    with pytest.raises(ptq_exp.UserError, match=f"The forward function of {where} was replaced"):
        ptq_exp.quantize(network, x, bits=4, method="mse")


def test_what_cannot_be_copied_is_said() -> None:
    network, x = ready(Net())
    network.lock = threading.Lock()
    with pytest.raises(ptq_exp.UserError, match="cannot be copied"):
        ptq_exp.quantize(network, x, bits=4, method="mse")


def test_equal_logits_have_one_order(tmp_path: Path) -> None:
    network, x = ready(Computing(lambda net, x: 0 * x))  # all images have the same logits
    network.fc.bias.data.fill_(1)
    quantized = ptq_exp.quantize(network, x, bits=8, method="mse", **EVERYTHING)
    result = ptq_exp.evaluate(quantized, x, quantized.network(x).argmax(1))
    assert result.top1 == 100
    (file,) = ptq_exp.export(quantized, tmp_path / "q", "packed", x, result.predictions)
    assert file.agreement == 100


class Adapted(nn.Linear):
    """A low-rank adapter (Hu et al. 2022)."""

    def __init__(self, size: int, outputs: int):
        super().__init__(size, outputs)
        self.down, self.up = nn.Parameter(torch.randn(size, 2)), nn.Parameter(torch.randn(2, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x @ self.down @ self.up


def test_parameters_beside_the_weight_of_a_layer_stay_float_and_are_named() -> None:
    network, x = ready(Net())
    network.fc = Adapted(8, 5).eval()
    report = ptq_exp.quantize(network, x, bits=4, method="mse").report
    assert set(report.float_tensors) == {"fc.down", "fc.up"}
    weights = network.conv.weight.numel() + network.fc.weight.numel()
    assert report.quantized_percent == pytest.approx(100 * weights / (weights + 2 * (8 + 5)))


def test_outputs_that_vary_are_reported() -> None:
    network, x = ready(Computing(lambda net, x: F.dropout(x, 0.5, training=True)))
    assert "are random" in ptq_exp.quantize(network, x, bits=8, method="mse").report.limits[-1]
    network, x = ready(Computing(lambda net, x: x - x.mean(0)))
    limits = ptq_exp.quantize(network, x, bits=8, method="mse", **EVERYTHING).report.limits
    assert "depend on the other images of a batch" in limits[-1]
    network, x = ready(Net())
    assert ptq_exp.quantize(network, x, bits=8, method="mse").report.limits == []


def complex_products(net: Any, x: Tensor) -> Tensor:
    return x * torch.view_as_complex(net.complex).real.mean()


COMPUTE: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "constant": lambda net, x: x * torch.tensor(2.0),
    "cast": lambda net, x: x.type(torch.float32).double().float() + 1,
    "type of a weight": lambda net, x: x.to(net.fc.weight.dtype) * 2,
    "iterated parts": lambda net, x: torch.cat([part * 2 for part in x.chunk(2, 1)], 1),
}


@pytest.mark.parametrize("name", COMPUTE)
def test_everything_is_quantized_and_a_fresh_instance_reads_the_file(name: str, tmp_path: Path) -> None:
    network, x = ready(Computing(COMPUTE[name]))
    quantized = ptq_exp.quantize(network, x, bits=8, method="mse", **EVERYTHING)
    assert quantized.report.limits == []
    quantized.save(tmp_path / "q.safetensors")
    loaded = ptq_exp.load(tmp_path / "q.safetensors", network=Computing(COMPUTE[name]).double())
    with torch.no_grad():
        wanted, found = network(x), quantized.network(x)
        assert (found - wanted).abs().max() < 0.05 * wanted.abs().max()
        assert (loaded.network(x) - found).abs().max() < 1e-4 * found.abs().max()


def test_parameters_of_four_dimensions_keep_their_strides() -> None:
    network, x = ready(Computing(complex_products))
    network.complex = nn.Parameter(torch.randn(8, 4, 4, 2))
    assert ptq_exp.evaluate(network, x, network(x).argmax(1)).top1 == 100


def test_a_compiled_network_is_its_network(tmp_path: Path) -> None:
    network, x = ready(Net())
    quantized = ptq_exp.quantize(torch.compile(network), x, bits=4, method="mse")
    assert quantized.report.limits == []
    quantized.save(tmp_path / "q.safetensors")
    loaded = ptq_exp.load(tmp_path / "q.safetensors", network=torch.compile(Net()))
    assert torch.allclose(loaded.network(x), quantized.network(x), atol=1e-5)
