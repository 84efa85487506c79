"""What a network's graph tells: the order of its calls, foldable batch norms, chains, joins and blocks.

It knows torch alone. No class of a network is asked for hints.
"""

from ptq_exp.networks.graph.blocks import Block, blocks
from ptq_exp.networks.graph.exposing import expose, exposed, operands
from ptq_exp.networks.graph.operations import Wrapper
from ptq_exp.networks.graph.pairs import Concatenated, batch_norm_pairs, concatenated, layer_pairs
from ptq_exp.networks.graph.tracing import (
    Classes,
    Graph,
    alone,
    check_trace,
    image_shape,
    set_image_shape,
    standard,
    unsteady,
)

__all__ = [
    "Block",
    "Classes",
    "Concatenated",
    "Graph",
    "Wrapper",
    "alone",
    "batch_norm_pairs",
    "blocks",
    "check_trace",
    "concatenated",
    "expose",
    "exposed",
    "image_shape",
    "layer_pairs",
    "operands",
    "set_image_shape",
    "standard",
    "unsteady",
]
