"""Blocks, folding and exposed operations of the networks in `zoo`: what is found, and the function that stays."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import prepare
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from zoo import WIDTH, ZOO, Body, Net, build, conv, images

from ptq_exp.networks.graph import Block, Graph, batch_norm_pairs, blocks, expose, operands
from ptq_exp.networks.graph.calling import contiguous_images, logits_of, only_logits
from ptq_exp.quantization.layers import OPAQUE
from ptq_exp.quantization.modules import plain_copy
from ptq_exp.quantization.options import QuantConfig
from ptq_exp.quantization.traced import Traced
from ptq_exp.quantization.units import Unit

BLOCKS = {
    "post-activation": {"body.0": "ab", "body.1": "ab"},
    "pre-activation": {"body.0": "ab"},
    "bottleneck": {"body.0": "acbs"},
    "inverted residual": {"body.0": ["a", "inner.0", "inner.3", "inner.6", "b"]},
    "depthwise separable": {},
    "squeeze and excitation": {"body.0": ["a", "b", "down", "up"]},
    "gate alone": {"body.0": ["down", "up"]},
    "channel shuffle": {"body.0": ["side"]},
    "dense": {"body.0": ["a", "wide"]},
    "grouped and dilated": {"body.0": "ag"},
    "attention": {
        "body.0": ["attention.query", "attention.key", "attention.value", "attention.output"],
        "body.0.add_1": ["first", "second"],
    },
    "in place": {"body.1": "ab", "body.2": "ab"},
    "shared layers": {"body.0": "ab", "body.0.add_1": "ab"},
    "block called twice": {"body.0": "ab", "body.0.relu_3": "ab"},
    "leaky": {"body.0": "ab"},
    "one function": {"add": "ab", "add_1": "c"},
    "tuple and keywords": {"body.0": "ab"},
    "view": {"body.0": "ab"},
}


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """Tiny tensors."""


@pytest.mark.parametrize("name", BLOCKS)
def test_the_blocks_of_known_networks(name: str) -> None:
    model = plain_copy(build(name))
    found = {block.name: {layer.removeprefix("body.0.") for layer in block.layers} for block in blocks(Graph(model))}
    if name in ("post-activation", "in place"):
        found = {block: {layer.rpartition(".")[2] for layer in layers} for block, layers in found.items()}
    assert list(found.values()) == [set(layers) for layers in BLOCKS[name].values()]
    if name != "one function":
        assert list(found)[:1] == list(BLOCKS[name])[:1]


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("additions_only", [True, False])
@torch.no_grad()
def test_exposing_leaves_the_function_bit_for_bit_and_the_blocks(name: str, additions_only: bool) -> None:
    model, x = plain_copy(build(name)), images()
    network = expose(model, additions_only, OPAQUE)
    assert torch.equal(logits_of(network(x)), logits_of(model(x)))
    assert expose(network, additions_only, OPAQUE) is network
    exposed, plain = Graph(network, OPAQUE), Graph(model, OPAQUE)
    assert [block.layers for block in blocks(exposed)] == [block.layers for block in blocks(plain)]
    assert set(operands(plain, additions_only)) <= set(operands(exposed, additions_only))


@pytest.mark.parametrize("name", ZOO)
@torch.no_grad()
def test_every_block_computes_its_exit_from_its_entry(name: str) -> None:
    check_blocks(plain_copy(build(name)), images())


def check_blocks(model: nn.Module, x: Tensor) -> list[Block]:
    """Every block has one entry and one exit, and as a module it gives the values that the network has at its exit."""
    traced = Traced(model)
    graph = traced.graph
    assert graph is not None
    found = blocks(graph)
    nodes = {node.name: node for node in graph.nodes}
    for block in found:
        inside = set(block.nodes)
        for node in (nodes[name] for name in block.nodes):
            assert all(source.name in {*inside, block.entry} for source in node.all_input_nodes)
            if node.name != block.exit and node.op != "get_attr":
                assert all(user.name in inside for user in node.users)
        unit = Unit(block.name, block.layers, (block,))
        ((entry, wanted),) = unit.collector(traced).few(x)
        (part,) = unit.modules(traced)
        before = entry.clone()
        assert torch.allclose(part(before), wanted, atol=1e-6)
    assert not any(set(a.nodes) < set(b.nodes) for a in found for b in found)
    return found


@torch.no_grad()
def test_an_entry_is_collected_before_an_operation_in_place() -> None:
    """The block's ReLU overwrites its input after the other branch read it, so the collected input must be a copy."""
    model = Net(nn.Identity(), conv(), Body(lambda m, x: m.b(x) + m.a(F.relu(x, inplace=True))))
    (block,) = blocks(Graph(model))
    ((entry, _),) = Unit("b", block.layers, (block,)).collector(Traced(model)).few(images())
    assert block.layers == ("body.2.b", "body.2.a")
    assert torch.equal(entry, model.body[:2](model.stem(images())))
    assert entry.min() < 0


def test_a_call_with_hooks_around_the_network_is_exposed_with_them() -> None:
    model, x = build("tuple and keywords"), images()
    wanted = model(x)[0]
    only_logits(model)
    contiguous_images(model)
    network = expose(model, additions_only=False, opaque=OPAQUE)
    assert torch.equal(network(x.contiguous(memory_format=torch.channels_last)), wanted)
    assert blocks(Graph(network, OPAQUE))[0].layers == ("body.0.a", "body.0.b")  # it can be traced again


@pytest.mark.parametrize("name", ZOO)
@torch.no_grad()
def test_folding_and_equalizing_leave_the_function(name: str) -> None:
    model, x = build(name), images()
    wanted = logits_of(model(x))
    found = logits_of(prepare(model, QuantConfig(fold_batch_norm=True, equalize=True))(x))
    assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max().clamp(min=1)
    assert ("stem.0", "stem.1") in batch_norm_pairs(model) or name == "one function"


# Random networks ---------------------------------------------------------------------------------------------------

STEP = st.tuples(st.sampled_from(["conv", "norm", "relu", "add", "cat", "gate", "scale", "shuffle"]), st.integers(0, 3))


class Random(nn.Module):
    """Every step takes the last tensor, and some of them an earlier one."""

    def __init__(self, steps: list[tuple[str, int]]):
        super().__init__()
        self.steps = steps
        for number, (kind, _) in enumerate(steps):
            layers = {"conv": conv(), "norm": nn.BatchNorm2d(WIDTH), "cat": conv(size=1, given=2 * WIDTH)}
            if kind in layers:
                self.add_module(f"{kind}{number}", layers[kind])

    def forward(self, x: Tensor) -> Tensor:
        every = [x]
        for number, (kind, back) in enumerate(self.steps):
            x, other = every[-1], every[max(0, len(every) - 2 - back)]
            change: dict[str, Any] = {
                "relu": lambda x=x: torch.relu(x),
                "add": lambda x=x, other=other: x + other,
                "gate": lambda x=x, other=other: x * torch.sigmoid(other),
                "scale": lambda x=x: 0.5 - x / 2,
                "shuffle": lambda x=x: x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2),
                "cat": lambda x=x, other=other, n=number: getattr(self, f"cat{n}")(torch.cat([x, other], 1)),
            }
            every.append(change[kind]() if kind in change else getattr(self, f"{kind}{number}")(x))
        return every[-1]


@settings(max_examples=40)
@given(st.lists(STEP, min_size=3, max_size=14))
def test_any_network_keeps_its_function_and_has_closed_blocks(steps: list[tuple[str, int]]) -> None:
    torch.manual_seed(0)
    model, x = Net(Random(steps)).eval(), images(2)
    with torch.no_grad():
        check_blocks(model, x)
        wanted = model(x)
        prepared = prepare(model, QuantConfig(fold_batch_norm=True, equalize=True))
        assert (prepared(x) - wanted).abs().max() <= 1e-4 * wanted.abs().max().clamp(min=1)
        network = expose(prepared, additions_only=False, opaque=OPAQUE)
        assert torch.equal(network(x), prepared(x))
        check_blocks(network, x)


def test_a_size_that_is_used_elsewhere_does_not_open_a_block() -> None:
    """The network reads the size of a tensor inside the block after the block."""

    class Sized(Net):
        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            y = self.body[0](x)
            x = self.body[1](y + x)
            logits: Tensor = self.head(x.mean((2, 3)).view(y.size(0), WIDTH))
            return logits

    assert [block.layers for block in blocks(Graph(Sized(conv(), conv())))] == [("body.0",)]


def test_an_inner_block_may_share_its_entry_with_the_outer_one() -> None:
    inner = Body(lambda m, x: x + m.b(m.a(x)))
    model = Net(Body(lambda m, x: x + m.b(m.inner(x)), inner=inner))
    assert [block.layers for block in blocks(Graph(model))] == [("body.0.inner.a", "body.0.inner.b")]
