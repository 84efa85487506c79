"""Blocks of a network's graph: the parts with one entry and one exit that hold a join."""

from dataclasses import dataclass

from torch import fx

from ptq_exp.networks.graph.dominance import immediate
from ptq_exp.networks.graph.operations import (
    ACTIVATIONS,
    is_addition,
    is_concatenation,
    is_fixed,
    is_product,
    is_size,
    kind,
    sources,
    stacks,
)
from ptq_exp.networks.graph.tracing import Graph, owner


@dataclass(frozen=True)
class Block:
    """A part of the network with one entry and one exit: the nodes that compute `exit` from `entry`, by name."""

    name: str
    entry: str
    exit: str
    nodes: tuple[str, ...]  # in the order of execution, without the entry
    layers: tuple[str, ...]  # that it calls


def blocks(graph: Graph) -> list[Block]:
    """The smallest parts with one entry and one exit that contain layers and a join, in the order of execution.

    A join is an addition or a concatenation. Outside of these blocks, products (gates, attention) are joins too. A
    block includes the activation functions that follow it. The network itself is not a block.
    """
    finder = _BlockFinder(graph)
    sums = [n for n in graph.nodes if is_concatenation(n, graph.module(n)) or is_addition(n, graph.module(n))]
    found = _innermost([block for node in sums if (block := finder.around(node))])
    inside = {name for block in found for name in block.nodes}
    products = [node for node in graph.nodes if is_product(node, graph.module(node)) and node.name not in inside]
    gates = [block for node in products if (block := finder.around(node)) and not inside & set(block.nodes)]
    order = {node.name: place for place, node in enumerate(graph.nodes)}
    return _named(sorted(found + _innermost(gates), key=lambda block: order[block.entry]), graph)


def _innermost(found: list[Block]) -> list[Block]:
    """The blocks that contain no other, each once."""
    unique = {(block.entry, block.exit): block for block in found}.values()
    return [block for block in unique if not any(set(other.nodes) < set(block.nodes) for other in unique)]


class _BlockFinder:
    """Finds the smallest part of a graph around a join, by dominance: each path from the image to a node passes its
    dominator, and each path from a node to the output passes its post-dominator."""

    def __init__(self, graph: Graph):
        self.graph = graph
        nodes = [node for node in graph.nodes if not is_fixed(node) and not is_size(node)]
        self.order = {node: place for place, node in enumerate(nodes)}
        self.above = immediate(nodes, {node: sources(node) for node in nodes})
        users = {node: [user for user in node.users if user in self.order] for node in nodes}
        self.below = immediate(nodes[::-1], users)

    def around(self, join: fx.Node) -> Block | None:
        """The smallest block that contains `join`, or None."""
        entry, end = self.above.get(join), join
        while entry is not None and end.op != "output":
            inside = self._between(entry, end)
            leaving = self._leaving(inside)
            if not leaving and not self._is_tuple(entry):
                return self._block(entry, end, inside)
            if not leaving:
                entry = self.above.get(entry)
                continue
            ends = [self.below.get(node) for node in leaving]
            end = max((node for node in ends if node), key=self.order.__getitem__, default=end)
            entry = self._dominator(entry, end) if None not in ends else None
        return None

    def _leaving(self, inside: list[fx.Node]) -> list[fx.Node]:
        """The nodes before the last that are used outside, apart from their sizes, and the last if it is a tuple."""
        outside = self.order.keys() - set(inside)
        used = [node for node in inside[:-1] if node in self.order and not outside.isdisjoint(node.users)]
        return [*used, inside[-1]] if self._is_tuple(inside[-1]) else used

    def _is_tuple(self, node: fx.Node) -> bool:
        """Whether the value is several tensors: a stack of them, or one that seems so, because it is only indexed."""
        indexed = all(getattr(u.target, "__name__", "") == "getitem" and isinstance(u.args[1], int) for u in node.users)
        return (node.op != "placeholder" and bool(node.users) and indexed) or stacks(node, self.graph.module(node))

    def _dominator(self, entry: fx.Node, end: fx.Node) -> fx.Node | None:
        """The last dominator of `end` that is `entry` or above it."""
        found = self.above.get(end)
        while found is not None and self.order[found] > self.order[entry]:
            found = self.above.get(found)
        return found

    def _block(self, entry: fx.Node, end: fx.Node, inside: list[fx.Node]) -> Block | None:
        while len(end.users) == 1 and kind(user := next(iter(end.users)), self.graph.module(user)) in ACTIVATIONS:
            end = user
            inside.append(user)
        layers = [str(node.target) for node in inside if self.graph.layer(node) is not None]
        whole = entry.op == "placeholder" and all(user.op == "output" for user in end.users)
        if not layers or whole or any(node.op == "placeholder" for node in inside):
            return None
        return Block("", entry.name, end.name, tuple(node.name for node in inside), tuple(dict.fromkeys(layers)))

    def _between(self, entry: fx.Node, end: fx.Node) -> list[fx.Node]:
        """The nodes that `end` is computed from, down to `entry`, in the order of execution."""
        needed, left = {end}, [end]
        while left:
            for source in left.pop().all_input_nodes:
                if source not in needed and source is not entry:
                    needed.add(source)
                    left.append(source)
        return [node for node in self.graph.nodes if node in needed]


def _named(found: list[Block], graph: Graph) -> list[Block]:
    """The blocks, each called by the innermost module that contains it."""
    by_name = {node.name: node for node in graph.nodes}
    taken: set[str] = set()
    named = []
    for block in found:
        nodes = [by_name[name] for name in block.nodes]
        while kind(nodes[-1], graph.module(nodes[-1])) in ACTIVATIONS:  # may be those of the next module
            nodes.pop()
        owners = [path for node in nodes if (path := owner(node))]
        closer = [layer.rpartition(".")[0] for layer in block.layers]
        options = [_common(owners), _common(closer), f"{_common(owners)}.{block.exit}".lstrip(".")]
        name = next((option for option in options if option and option not in taken), block.exit)
        taken.add(name)
        named.append(Block(name, block.entry, block.exit, block.nodes, block.layers))
    return named


def _common(names: list[str]) -> str:
    """The innermost module that contains all modules called `names`."""
    parts = [name.split(".") if name else [] for name in names]
    shared = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        shared.append(level[0])
    return ".".join(shared)
