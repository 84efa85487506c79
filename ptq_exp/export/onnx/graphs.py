"""Changes to ONNX graphs."""

from collections.abc import Iterable

from onnx import GraphProto, NodeProto, TensorProto


def dimensions_of(graph: GraphProto) -> dict[str, int]:
    """The number of dimensions of every tensor, as far as the graph states it."""
    values = (*graph.value_info, *graph.input, *graph.output)
    return {value.name: len(value.type.tensor_type.shape.dim) for value in values}


def replace_nodes(graph: GraphProto, nodes: list[NodeProto], constants: Iterable[TensorProto]) -> None:
    """Replace all nodes, in place, and add `constants`. Constants that no node reads any more are removed."""
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend([*kept, *constants])
