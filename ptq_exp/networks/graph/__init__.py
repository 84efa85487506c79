"""What a network's graph tells: the order of its calls, foldable batch norms, chains, joins and blocks.

It knows torch alone. No class of a network is asked for hints.
"""

from torch import nn

from ptq_exp.networks.graph.blocks import Block, blocks
from ptq_exp.networks.graph.pairs import batch_norm_pairs, layer_pairs
from ptq_exp.networks.graph.tracing import Classes, Graph, only_adds

__all__ = ["Block", "Classes", "Graph", "additions", "batch_norm_pairs", "blocks", "layer_pairs"]


def additions(model: nn.Module) -> list[str]:
    """The modules that only add their two inputs, as in residual networks."""
    return [name for name, module in model.named_modules() if only_adds(module)]
