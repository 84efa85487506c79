"""Modules that a network's graph proves to follow each other: foldable batch norms, chains of layers, dense blocks.

`opaque` are classes of modules that are not traced into.
"""

from collections import defaultdict
from dataclasses import dataclass

from torch import fx, nn

from ptq_exp.networks.graph.operations import HOMOGENEOUS, POOLINGS, joined, joins_channels, kind
from ptq_exp.networks.graph.tracing import Classes, Graph, alone


def batch_norm_pairs(model: nn.Module, opaque: Classes = ()) -> list[tuple[str, str]]:
    """(convolution, batch norm) for every batch norm that the graph proves to be foldable.

    Only the norm uses the convolution's output. Each is called once. The convolution alone uses its weights. The norm
    has running statistics; without them it would use those of the batch. Raises `UserError` if the network cannot be
    traced.
    """
    graph = Graph(model, opaque)
    pairs = []
    for node in graph.nodes:
        if not _is_fixed_norm(graph, node) or len(node.all_input_nodes) != 1:
            continue
        (source,) = node.all_input_nodes
        conv = graph.module(source)
        if isinstance(conv, nn.Conv2d) and graph.own(conv) and len(source.users) == 1:
            pairs.append((str(source.target), str(node.target)))
    return pairs


def layer_pairs(model: nn.Module, opaque: Classes = ()) -> list[tuple[str, str]]:
    """(layer, next layer) for every pair with only ReLU, pooling and the like in between, and no branch.

    Each layer is called once, and nothing else uses its parameters. Raises `UserError` if the network cannot be traced.
    """
    graph = Graph(model, opaque)
    pairs = []
    for node in graph.nodes:
        first = graph.module(node)
        if first is None or not graph.own(first):
            continue
        here, flat = node, isinstance(first, nn.Linear)
        while len(here.users) == 1:
            here = next(iter(here.users))
            second = graph.module(here)
            if isinstance(second, nn.Conv2d | nn.Linear):
                # A linear layer on unflattened images would treat their columns as channels.
                if graph.own(second) and flat == isinstance(second, nn.Linear):
                    pairs.append((str(node.target), str(here.target)))
                break
            if isinstance(second, nn.Flatten) and (second.start_dim, second.end_dim) == (1, -1):
                flat = True
            elif not (_passes(graph, here) or (not flat and kind(here, second) in POOLINGS)):
                break
    return pairs


@dataclass(frozen=True)
class Concatenated:
    """A convolution whose channels only reach batch norms, each time concatenated with other channels."""

    layer: str
    joins: tuple[tuple[str, int], ...]  # each concatenation, and the place of the channels among its operands
    norms: tuple[tuple[str, int], ...]  # each norm, and the number that the first of the channels has in it
    direct: bool  # whether nothing lies between the convolution and the concatenations


def concatenated(graph: Graph) -> list[Concatenated]:
    """Every such convolution, as in a DenseNet. Only ReLU, pooling and the like lie between it and the concatenations.

    The concatenations may be functions or the modules that `expose` makes of them.
    """
    joins: dict[fx.Node, list[tuple[str, int]]] = defaultdict(list)
    norms: dict[fx.Node, list[tuple[str, int]]] = defaultdict(list)
    for node in graph.nodes:
        if not joins_channels(node, graph.module(node)) or not all(_is_fixed_norm(graph, n) for n in node.users):
            continue
        first = 0
        for part in joined(node, graph.module(node)):
            if (maker := _maker(graph, part)) is None:
                break  # the numbers of the channels behind it are unknown
            joins[part].append((str(node.target), node.all_input_nodes.index(part)))
            norms[part] += [(str(norm.target), first) for norm in node.users]
            first += graph.modules[str(maker.target)].out_channels
    return [
        Concatenated(str(maker.target), tuple(joins[part]), tuple(norms[part]), direct=maker is part)
        for part in joins
        if (maker := _maker(graph, part)) and len(norms[part]) == sum(len(user.users) for user in part.users)
    ]


def _maker(graph: Graph, node: fx.Node) -> fx.Node | None:
    """The convolution that computes the channels of `node`, and nothing else that is used."""
    while not isinstance(layer := graph.module(node), nn.Conv2d):
        if not (_passes(graph, node) or kind(node, layer) in POOLINGS) or len(node.all_input_nodes) != 1:
            return None
        (node,) = node.all_input_nodes
        if len(node.users) != 1:
            return None
    return node if graph.own(layer) else None


def _is_fixed_norm(graph: Graph, node: fx.Node) -> bool:
    """Whether the node calls a batch norm that is called once and has running statistics."""
    norm = graph.module(node)
    if not isinstance(norm, nn.BatchNorm2d) or not alone(norm, nn.BatchNorm2d) or not graph.once(norm):
        return False
    return norm.running_mean is not None and norm.running_var is not None


def _passes(graph: Graph, node: fx.Node) -> bool:
    """Whether the operation commutes with a positive factor per channel."""
    index = node.args[1] if len(node.args) > 1 else None
    # x[index] that selects rows and columns only, with all images and channels
    pixels = isinstance(index, tuple) and len(index) == 4 and index[:2] == (slice(None), slice(None))
    return kind(node, graph.module(node)) in HOMOGENEOUS or pixels
