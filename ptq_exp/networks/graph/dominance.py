"""Dominators in a graph without cycles."""

from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

Node = TypeVar("Node", bound=Hashable)


def immediate(nodes: Sequence[Node], before: Mapping[Node, Sequence[Node]]) -> dict[Node, Node | None]:
    """The immediate dominator of every node: the last node that every path from the start to it passes.

    `nodes` are in topological order and `before` holds the predecessors of each. A node without predecessors, and one
    that is reached from several starts, has None. (Cooper, Harvey & Kennedy 2001, without loops.)
    """
    found: dict[Node, Node | None] = {}
    depth: dict[Node | None, int] = {None: 0}
    for node in nodes:
        sources = [source for source in before[node] if source in found]
        dominator: Node | None = sources[0] if sources else None
        for source in sources[1:]:
            other: Node | None = source
            while dominator != other:
                if depth[dominator] >= depth[other]:
                    dominator = found[dominator] if dominator is not None else None
                else:
                    other = found[other] if other is not None else None
        found[node] = dominator
        depth[node] = depth[dominator] + 1
    return found
