"""Additions, and blocks around them, found in a network's graph."""

import pytest
import torch
from conftest import network, quantize
from torch import Tensor, nn

from ptq_exp.networks.graph import Graph, blocks, operands
from ptq_exp.quantization.layers import OPAQUE
from ptq_exp.quantization.options import QuantConfig
from ptq_exp.quantization.traced import Traced

BLOCKS = ["layer1.0", "layer2.0", "layer3.0"]
ADDITIONS = {f"{name}.add": 2 for name in BLOCKS}


def names(model: nn.Module) -> list[str]:
    graph = Traced(model).graph
    return [block.name for block in blocks(graph)] if graph else []


@pytest.mark.parametrize("shortcut", ["conv", "pad"])
def test_joins_of_a_resnet_are_its_additions_and_basic_blocks_quantized_or_not(shortcut: str) -> None:
    model = network(shortcut=shortcut)
    assert names(model) == BLOCKS
    assert operands(Graph(model), additions_only=True) == ADDITIONS
    options = QuantConfig(layers="all", act_bits=4, act_residual=True, act_input_image=True, fold_batch_norm=True)
    quantized, _ = quantize(model, options, 4, torch.randn(4, 3, 32, 32))
    assert names(quantized) == BLOCKS
    assert operands(Graph(quantized, OPAQUE), additions_only=True) == ADDITIONS


def test_a_network_without_additions_has_neither() -> None:
    model = network("vgg", depth=11)
    assert (operands(Graph(model), additions_only=True), blocks(Graph(model))) == ({}, [])


class Sum(nn.Module):
    """What is returned of two inputs is given by name."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind
        self.parameter = nn.Parameter(torch.ones(1))

    def forward(self, a: Tensor, b: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return {
            "a + b": lambda: a + b,
            "b + a": lambda: b + a,
            "torch.add": lambda: torch.add(a, b),
            "method": lambda: a.add(b),
            "factor": lambda: torch.add(a, b, alpha=2),
            "twice": lambda: a + a,
            "relu": lambda: torch.relu(a + b),
            "parameter": lambda: a + self.parameter,
            "number": lambda: a + 1,
            "product": lambda: a * b,
            "three": lambda: a + b + a,
        }[self.kind]()


class Twice(nn.Module):
    """A module of two inputs, called with an image and another tensor."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        result: Tensor | tuple[Tensor, Tensor] = self.inner(x, x.flip(3))
        return result


@pytest.mark.parametrize(
    ("kind", "found"),
    [("a + b", True), ("b + a", True), ("torch.add", True), ("method", True), ("factor", False), ("twice", False),
     ("relu", False), ("parameter", False), ("number", False), ("product", False), ("three", False)],
)  # fmt: skip
def test_an_addition_is_a_module_that_does_nothing_else(kind: str, found: bool) -> None:
    assert operands(Graph(Twice(Sum(kind))), additions_only=True) == ({"inner": 2} if found else {})


class Residual(nn.Module):
    """A convolution beside the identity; the pair is added, or something else is done with it."""

    def __init__(self, kind: str = "add"):
        super().__init__()
        self.conv, self.kind = nn.Conv2d(3, 3, 3, padding=1), kind

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if self.kind == "pair":
            return self.conv(x) + x, x
        if self.kind == "branch" and x.sum() > 0:
            return x
        return self.conv(x) + (x if self.kind != "number" else 1)


class Around(nn.Module):
    """A block with another inside."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.conv = Residual(), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.inner(x)) + x


def test_blocks_are_the_innermost_modules_with_a_join_one_input_and_one_output() -> None:
    assert names(nn.Sequential(Residual(), nn.Conv2d(3, 3, 1), Residual())) == ["0", "2"]
    assert names(nn.Sequential(Around(), nn.Sequential(Residual(), nn.ReLU()))) == ["0.inner", "1.0"]
    assert names(nn.Sequential(Residual("number"))) == []
    assert names(Residual()) == []  # the network as a whole


class First(nn.Module):
    """Of a pair the first."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)[0]


def test_a_tensor_that_is_returned_but_not_used_does_not_open_a_block() -> None:
    assert names(nn.Sequential(First(Residual("pair")), nn.Conv2d(3, 3, 1))) == ["0.inner"]


def test_only_what_cannot_be_traced_has_no_blocks() -> None:
    assert names(nn.Sequential(Residual(), Residual("branch"))) == ["0"]
    assert names(Residual("branch")) == []
