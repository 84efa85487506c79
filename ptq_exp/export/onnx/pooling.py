"""Quantizers in front of max pooling, where runtimes merge them with the convolution."""

from collections import Counter

from onnx import GraphProto, NodeProto

from ptq_exp.export.onnx.graphs import replace_nodes


def quantize_before_pooling(graph: GraphProto) -> None:
    """Move quantizers from behind a `MaxPool` to its front, in place. Rounding is monotonic: the maximum is the same.

    What is pooled, and the maxima, must have no other use. Runtimes then compute and pool codes instead of floats.
    """
    uses = Counter(name for node in graph.node for name in node.input)
    uses.update(result.name for result in graph.output)
    reader = {name: node for node in graph.node for name in node.input if uses[name] == 1}
    pools = [node for node in graph.node if node.op_type == "MaxPool" and node.input[0] in reader]
    front: dict[str, list[NodeProto]] = {}  # what a pooling node now returns -> the nodes in front of it
    for pool in pools:
        quantize = reader.get(pool.output[0])
        if quantize is None or quantize.op_type != "QuantizeLinear":
            continue
        decode = reader[quantize.output[0]]
        x, pooled, result = pool.input[0], pool.output[0], decode.output[0]
        quantize.input[0], decode.output[0] = x, pooled
        pool.input[0], pool.output[0] = pooled, result
        front[result] = [quantize, decode]
    moved = {node.output[0] for nodes in front.values() for node in nodes}
    kept = [node for node in graph.node if node.output[0] not in moved]
    replace_nodes(graph, [each for node in kept for each in (*front.get(node.output[0], ()), node)], ())
