"""The parts of a network that are learned together: single layers, or blocks of its graph."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from ptq_exp.networks.graph import Block, Graph, blocks
from ptq_exp.quantization.hooks import BATCH, StopForward, prepared, watching
from ptq_exp.quantization.layers import QuantizedLayer, quantized_layers
from ptq_exp.quantization.traced import Traced

Calls = list[tuple[Tensor, ...]]  # input and output of every call, or only its input


@dataclass(frozen=True)
class Unit:
    """A layer, or blocks that call the same layers."""

    name: str
    layers: tuple[str, ...]
    blocks: tuple[Block, ...] = ()  # empty: a single layer
    shared: tuple[str, ...] = ()  # modules that other parts of the network call, too

    def modules(self, traced: Traced) -> nn.ModuleList:
        """One module per block (or the layer), which share the layers of the network. They take and return a tensor."""
        if traced.graph is None or not self.blocks:
            return nn.ModuleList([traced.network.get_submodule(self.name)])
        return nn.ModuleList([_part(traced.network, traced.graph, block) for block in self.blocks])

    @property
    def entry(self) -> str | None:
        """The node whose value is the input of a unit with a single block."""
        return self.blocks[0].entry if len(self.blocks) == 1 else None

    def collector(self, traced: Traced, inputs_only: bool = False, start: str | None = None) -> "Collector":
        """A function that returns the unit's inputs and outputs in the network on images, or on values of the node
        `start` if these are enough."""
        if traced.graph is None or not self.blocks:
            return _LayerCollector(traced.network, self.name, inputs_only)
        return _BlockCollector(traced.network, traced.graph, self.blocks, inputs_only, start)


def units(traced: Traced, rounding: str) -> list[Unit]:
    """The units to learn, in the order of execution: every layer, or every block and every layer outside a block.

    Layers that are called both inside and outside a block are units, too, and come before it. Without a graph, there
    are no blocks.
    """
    found = blocks(traced.graph) if traced.graph and rounding != "adaround" else []
    unit_of: dict[str, Unit] = {}
    for layers_together in dict.fromkeys(block.layers for block in found):
        same = tuple(block for block in found if block.layers == layers_together)
        unit = Unit(same[0].name, layers_together, same, _shared(same, traced))
        for layer in layers_together:
            unit_of.setdefault(layer, unit)
    ordered: list[Unit] = []
    for layer in _in_order(traced):
        unit = unit_of.get(layer) or Unit(layer, (layer,))
        alone = [name for name in unit.layers if name in unit.shared]
        ordered += [Unit(name, (name,)) for name in alone]
        if len(unit.layers) > len(alone):
            ordered.append(unit)
    return list(dict.fromkeys(ordered))


def _shared(several: Sequence[Block], traced: Traced) -> tuple[str, ...]:
    """The modules in these blocks that are also called elsewhere."""
    assert traced.graph is not None
    nodes = [node for node in traced.graph.nodes if node.op == "call_module"]
    inside = {name for block in several for name in block.nodes}
    calls = Counter(str(node.target) for node in nodes)
    own = Counter(str(node.target) for node in nodes if node.name in inside)
    return tuple(name for name, count in own.items() if calls[name] > count)


def _in_order(traced: Traced) -> list[str]:
    """The quantized layers in the order of their first calls, those inside an untraced module in its place.

    Layers that never run come last. Without a graph, the order is that of the network.
    """
    layers, nodes = list(quantized_layers(traced.network)), traced.graph.nodes if traced.graph else []
    called = dict.fromkeys(f"{node.target}." for node in nodes if node.op == "call_module")
    place = {name: number for number, name in enumerate(called)}

    def first_call(layer: str) -> int:
        return min((number for name, number in place.items() if f"{layer}.".startswith(name)), default=len(place))

    return sorted(layers, key=first_call)


class NotByImage(Exception):
    """The first dimension of a unit's values is not that of the images, as in transformers with the sequence first."""


class Collector:
    """Returns a unit's inputs and outputs on images, one pair per call, or only the inputs.

    They are vectors (N, C), images (N, H, W, C), which `take` returns as (B, C, H, W), or of another shape (N, ...).
    `start` is the node whose values the collector takes, in this form, instead of images.
    """

    start: str | None = None

    def few(self, images: Tensor) -> Calls:
        """The inputs and outputs on one batch of images, in the layout of the network."""
        raise NotImplementedError

    @torch.no_grad()
    def __call__(self, images: Tensor, into: Calls | None = None) -> Calls:
        """The values on all `images`, in new tensors or in those of `into`."""
        whole: Calls = into or []
        for start in range(0, len(images), BATCH):
            batch = images[start : start + BATCH]
            part = [tuple(map(pixels_first, call)) for call in self.few(batch)]
            if any(len(x) != len(batch) for call in part for x in call):
                raise NotByImage
            # In place, since a concatenation at the end would take twice the memory.
            whole = whole or [tuple(x.new_empty(len(images), *x.shape[1:]) for x in call) for call in part]
            for call, own in zip(whole, part, strict=True):
                for kept, x in zip(call, own, strict=True):
                    kept[start : start + BATCH] = x
        return whole


class _LayerCollector(Collector):
    def __init__(self, network: nn.Module, name: str, inputs_only: bool):
        self.network, self.name, self.inputs_only = network, name, inputs_only
        self.calls = math.inf

    def few(self, images: Tensor) -> Calls:
        seen: Calls = []

        def keep(*values: Tensor) -> None:
            goes_on = len(seen) + 1 < self.calls  # an operation in place may follow
            seen.append(tuple(x.detach().clone() if goes_on else x.detach() for x in values))
            if len(seen) == self.calls:  # the rest of the network need not run
                raise StopForward

        inputs = (lambda _, given: keep(given[0])) if self.inputs_only else None
        outputs = None if self.inputs_only else (lambda _, given, output: keep(given[0], output))
        with watching(self.network, [self.name], inputs, outputs) as forward:
            forward(images)
        self.calls = len(seen) or math.inf
        return seen


class _BlockCollector(Collector):
    """Runs the nodes of the network that the entries and exits of the blocks need."""

    def __init__(
        self, network: nn.Module, graph: Graph, several: Sequence[Block], inputs_only: bool, start: str | None = None
    ):
        self.network = network
        ends = [(block.entry,) if inputs_only else (block.entry, block.exit) for block in several]
        wanted = {name for pair in ends for name in pair}
        needed = _needed(graph, wanted, start)
        self.start = start if needed is not None else None
        needed = _needed(graph, wanted, None) if needed is None else needed
        assert needed is not None
        copy: Any = fx.Graph()
        values: dict[fx.Node, fx.Node] = {}
        kept: dict[str, fx.Node] = {}
        for node in graph.nodes:
            if node.name == self.start:
                values[node] = copy.placeholder("start")
            elif node in needed:
                values[node] = copy.node_copy(node, values.__getitem__)
            if node.name in wanted:
                kept[node.name] = copy.call_method("clone", (values[node],))  # an operation in place may follow
        copy.output([tuple(kept[name] for name in pair) for pair in ends])
        self.run = fx.GraphModule(network, copy)

    def few(self, images: Tensor) -> Calls:
        x = prepared(self.network, images) if self.start is None else take(images, slice(None)).clone()
        found: Calls = self.run(x)
        return found


def _needed(graph: Graph, wanted: set[str], start: str | None) -> set[fx.Node] | None:
    """The nodes that compute the `wanted` ones from the image, or from the value of `start` alone; None if that is not
    enough."""
    needed: set[fx.Node] = set()
    left = [node for node in graph.nodes if node.name in wanted]
    while left:
        node = left.pop()
        if node.name == start or node in needed:
            continue
        if node.op == "placeholder" and start is not None:
            return None
        needed.add(node)
        left += node.all_input_nodes
    return needed


class Samples:
    """A unit's inputs in both networks and its targets, on as many calibration images at a time as `memory` (bytes)
    allows. The calls are triples (input, float network's input, target), whose values `load` replaces in place.

    If possible, they are computed from the inputs of an earlier unit, `before`, so that the network does not run from
    the image to every unit. That unit must have been learned, and loses its calls.
    """

    def __init__(
        self, unit: Unit, network: Traced, reference: Traced, images: Tensor, memory: float,
        before: "Samples | None" = None,
    ):  # fmt: skip
        self.entry, self.images = unit.entry, len(images)
        if before is not None:
            inputs = [call[:2] for call in before.calls]
            before.calls = []  # frees the targets
            chained = before.entry is not None and before.portions == 1 and bool(inputs)
            if chained and self._begin(unit, network, reference, inputs[0], before.entry, memory):
                return
            inputs.clear()
        self._begin(unit, network, reference, (images, images), None, memory)

    def _begin(
        self, unit: Unit, network: Traced, reference: Traced, given: tuple[Tensor, ...], start: str | None,
        memory: float,
    ) -> bool:  # fmt: skip
        """Collect from `given`, the values of `start` in both networks. Returns False if that is not enough to compute
        the unit's values, or if both do not fit in `memory`."""
        self.given = given
        self.found, self.wanted = unit.collector(network, True, start), unit.collector(reference, start=start)
        if not self.found.start == self.wanted.start == start:
            return False
        few = self._collect(slice(0, 1))
        per_image = sum(x.nbytes for call in few for x in call)
        left = memory - (sum(x.nbytes for x in self.given) if start else 0)
        self.count = int(min(self.images, max(1, left // max(per_image, 1))))
        self.portions = math.ceil(self.images / self.count)
        if start and self.portions > 1:
            return False
        self.calls = self._collect(slice(0, self.count)) if few else []
        if self.portions == 1 and len(self.calls) == 1:
            self.given = ()  # no longer needed
        return True

    def load(self, portion: int) -> None:
        """Compute the values on a portion of the images."""
        start = min(portion * self.count, self.images - self.count)
        mine, theirs = (given[start : start + self.count] for given in self.given)
        self.found(mine, [call[:1] for call in self.calls])
        self.wanted(theirs, [call[1:] for call in self.calls])

    def _collect(self, rows: slice) -> Calls:
        mine, theirs = (given[rows] for given in self.given)
        wanted = self.wanted(theirs)
        return [(*inputs, *targets) for inputs, targets in zip(self.found(mine), wanted, strict=True)] if wanted else []


def _part(network: nn.Module, graph: Graph, block: Block) -> fx.GraphModule:
    """The nodes of a block as a module of one input. Its layers are those of `network`."""
    inside = set(block.nodes)
    copy: Any = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node.name == block.entry:
            values[node] = copy.placeholder("x")
        elif node.name in inside:
            values[node] = copy.node_copy(node, values.__getitem__)
    last = next(node for node in graph.nodes if node.name == block.exit)
    copy.output(values[last])
    return fx.GraphModule(network, copy)


def pixels_first(x: Tensor) -> Tensor:
    """Images (N, C, H, W) as (N, H, W, C), so that a batch of them has the fastest layout for convolutions."""
    return x.permute(0, 2, 3, 1).contiguous() if x.dim() == 4 else x


def take(stored: Tensor, chosen: Tensor | slice) -> Tensor:
    """The rows `chosen` (B,) of a collected tensor; images as (B, C, H, W), channels last."""
    rows = stored[chosen]
    return rows.permute(0, 3, 1, 2) if rows.dim() == 4 else rows


def layers_of(model: nn.Module, unit: nn.Module) -> dict[str, QuantizedLayer]:
    """The quantized layers inside `unit`, by their names in `model`."""
    inside = set(unit.modules())
    return {name: layer for name, layer in quantized_layers(model).items() if layer in inside}
