"""Batch norms that no layer can take in, as in networks whose norms come before the convolution."""

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from ptq_exp.export.onnx.graphs import dimensions_of, replace_nodes


def simplify_norms(graph: GraphProto) -> None:
    """Replace every `BatchNormalization` by `Mul` and `Add`, in place: two constants per channel instead of four.

    Runtimes compute the same product and sum. A norm whose statistics are no constants, or whose input has an unknown
    number of dimensions, stays.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    dimensions = dimensions_of(graph)
    found: dict[tuple[str, ...], tuple[TensorProto, TensorProto]] = {}  # the constants of norms that are called twice
    nodes: list[NodeProto] = []
    for node in graph.node:
        statistics, size = tuple(node.input[1:]), dimensions.get(node.output[0], 0)
        if node.op_type != "BatchNormalization" or size < 2 or not constants.keys() >= set(statistics):
            nodes.append(node)
            continue
        if statistics not in found:
            found[statistics] = _factor_and_summand(node, [constants[name] for name in statistics], size)
        factor, summand = found[statistics]
        product = f"{node.output[0]}.product"
        nodes.append(helper.make_node("Mul", [node.input[0], factor.name], [product]))
        nodes.append(helper.make_node("Add", [product, summand.name], [node.output[0]]))
    replace_nodes(graph, nodes, (tensor for pair in found.values() for tensor in pair))


def _factor_and_summand(node: NodeProto, statistics: list[TensorProto], size: int) -> tuple[TensorProto, TensorProto]:
    """The constants of `Mul` and `Add` for an input of `size` dimensions, the second of which has the channels."""
    epsilon = next((attribute.f for attribute in node.attribute if attribute.name == "epsilon"), 1e-5)
    weight, bias, mean, variance = (numpy_helper.to_array(tensor).astype(np.float64) for tensor in statistics)
    factor = weight / np.sqrt(variance + epsilon)
    shape = (-1, *[1] * (size - 2))
    values = factor, bias - mean * factor
    first, second = (value.astype(np.float32).reshape(shape) for value in values)
    name = node.output[0]
    return numpy_helper.from_array(first, f"{name}.factor"), numpy_helper.from_array(second, f"{name}.summand")
