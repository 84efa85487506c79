"""A network with what its graph tells, found once for all steps that ask."""

from functools import cached_property

from torch import nn

from ptq_exp.base.errors import UserError
from ptq_exp.networks.graph import Graph
from ptq_exp.quantization.effective_weights import Layer, target_layers
from ptq_exp.quantization.layers import OPAQUE


class Traced:
    """A network and its graph. The modules of the network must not be replaced while this is in use.

    `graph` is None if the network cannot be traced, and `failure` then says why.
    """

    def __init__(self, network: nn.Module):
        self.network = network
        self.graph: Graph | None = None
        self.failure = ""
        try:
            self.graph = Graph(network, OPAQUE)
        except UserError as error:
            self.failure = str(error)

    @cached_property
    def _layers(self) -> dict[str, Layer]:
        return target_layers(self.network, "all")

    def layers(self, kinds: str) -> dict[str, Layer]:
        """The result of `target_layers`."""
        return {n: m for n, m in self._layers.items() if kinds == "all" or isinstance(m, nn.Conv2d)}

    def first_and_last(self, kinds: str) -> tuple[str, str]:
        """The first and the last of these layers that run. Without a graph, the network's own order counts."""
        layers = self.layers(kinds)
        nodes = self.graph.nodes if self.graph else []
        called = [name for node in nodes if (name := str(node.target)) in layers and node.op == "call_module"]
        # Layers inside a module that cannot be traced may be the first or the last.
        ordered = called if set(called) == set(layers) else list(layers)
        return ordered[0], ordered[-1]
