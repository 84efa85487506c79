"""Pairs of modules that a network's graph proves to follow each other: foldable batch norms, chains of layers.

Every function takes `opaque`, classes of modules that are not traced into.
"""

from torch import fx, nn

from ptq_exp.networks.graph.operations import HOMOGENEOUS, POOLINGS, kind
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
        norm = graph.module(node)
        if not isinstance(norm, nn.BatchNorm2d) or not alone(norm, nn.BatchNorm2d) or not graph.once(norm):
            continue
        if norm.running_mean is None or norm.running_var is None or len(node.all_input_nodes) != 1:
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


def _passes(graph: Graph, node: fx.Node) -> bool:
    """Whether the operation commutes with a positive factor per channel."""
    index = node.args[1] if len(node.args) > 1 else None
    # x[index] that selects rows and columns only, with all images and channels
    pixels = isinstance(index, tuple) and len(index) == 4 and index[:2] == (slice(None), slice(None))
    return kind(node, graph.module(node)) in HOMOGENEOUS or pixels
