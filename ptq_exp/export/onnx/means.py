"""Means over tokens: OpenVINO 2026 computes a `ReduceMean` of quantized values with three dimensions wrongly.

ONNX Runtime agrees with the simulation there. With a fourth dimension, both do.
"""

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from ptq_exp.export.onnx.graphs import dimensions_of, replace_nodes
from ptq_exp.export.onnx.names import DOMAIN

PLACE, ALL_DIMENSIONS = "means.place", "means.axes"


def add_dimension_to_means(graph: GraphProto) -> None:
    """Give quantized values of three dimensions a fourth one for each `ReduceMean`, in place, with the same result."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    dimensions = dimensions_of(graph)
    quantized = {name for node in graph.node if node.domain == DOMAIN for name in node.output}
    added: dict[str, TensorProto] = {}
    nodes: list[NodeProto] = []
    for node in graph.node:
        given = node.input[0] if node.input else ""
        axes = numpy_helper.to_array(constants[node.input[1]]) if _has_axes(node, constants) else np.empty(0)
        if given not in quantized or dimensions.get(given) != 3 or not len(axes) or not (axes % 3).all():
            nodes.append(node)
            continue
        output = node.output[0]
        wide, mean = f"{output}.wide", f"{output}.mean"
        moved = np.sort(axes % 3) + 1
        name = f"{ALL_DIMENSIONS}{''.join(map(str, moved))}"
        for key, value in ((name, moved), (PLACE, np.array([1]))):
            added[key] = numpy_helper.from_array(value.astype(np.int64), key)
        keep = next((attribute.i for attribute in node.attribute if attribute.name == "keepdims"), 1)
        nodes.append(helper.make_node("Unsqueeze", [given, PLACE], [wide]))
        nodes.append(helper.make_node("ReduceMean", [wide, name], [mean], keepdims=keep))
        nodes.append(helper.make_node("Squeeze", [mean, PLACE], [output]))
    replace_nodes(graph, nodes, added.values())


def _has_axes(node: NodeProto, constants: dict[str, TensorProto]) -> bool:
    return node.op_type == "ReduceMean" and len(node.input) == 2 and node.input[1] in constants
