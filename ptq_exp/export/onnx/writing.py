"""Writing a network as ONNX."""

import copy
import itertools
import json
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
import torch
from onnx import GraphProto, ModelProto, NodeProto, helper
from torch import Tensor, nn

from ptq_exp.base.errors import UserError
from ptq_exp.export.formats import Subject, exported, first_line
from ptq_exp.export.onnx.means import add_dimension_to_means
from ptq_exp.export.onnx.names import DOMAIN, IMAGES, LOGITS
from ptq_exp.export.onnx.nodes import FOUR_BITS, TWO_BITS, Nodes, quantizer_nodes, weight_nodes
from ptq_exp.export.onnx.norms import simplify_norms
from ptq_exp.export.onnx.placeholders import with_placeholders
from ptq_exp.export.onnx.pooling import quantize_before_pooling
from ptq_exp.quantization.grids import code_width
from ptq_exp.quantization.layers import ActivationQuantizer, QuantizedLayer, quantized_layers

IR_VERSIONS = {FOUR_BITS: 10, TWO_BITS: 13}  # the first that have these opsets
REARRANGING = {"Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
# Operators that runtimes run on codes, so that a quantizer behind them meets those of an earlier quantizer.
ON_CODES = REARRANGING | {"AveragePool", "Concat", "MaxPool", "Relu", "Slice", "Split"}
# Ends of the names of constants that get numbers instead.
NUMBERED = (".scale", ".offset", ".zero_point", ".lowest", ".highest", ".factor", ".summand")
ABOUT = ("classes", "mean", "std", "model", "quant", "top1")  # what the file says of its network


def to_onnx(subject: Subject, opsets: Iterable[int]) -> list[ModelProto]:
    """An ONNX model for each of `opsets`: normalized `images` (batch, C, H, W) in, `logits` out, both float32.

    The weights of quantized layers are integer codes of the smallest type of the opset, with a `DequantizeLinear`.
    Every quantizer of activations is a `QuantizeLinear` and a `DequantizeLinear`. A float network becomes a float
    model. Raises `UserError` with the operator or the line that cannot be exported.
    """
    model = _export(with_placeholders(subject.network), subject.image)
    simplify_norms(model.graph)
    add_dimension_to_means(model.graph)
    return [_finished(model, subject, opset) for opset in opsets]


def _finished(written: ModelProto, subject: Subject, opset: int) -> ModelProto:
    model = copy.deepcopy(written)
    _replace(model.graph, dict(subject.network.named_modules()), opset)
    quantize_before_pooling(model.graph)
    _strip(model)
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", opset))
    model.ir_version = IR_VERSIONS[opset]
    helper.set_model_props(model, {key: json.dumps(subject.about[key]) for key in ABOUT if key in subject.about})
    return model


def save(model: ModelProto, path: Path) -> Path:
    """Write the file, and return its path."""
    onnx.save_model(model, path)
    return path


def has_two_bit_weights(network: nn.Module) -> bool:
    """Whether a layer's codes fit two bits."""
    return any(code_width(layer.grid.levels) <= 2 for layer in quantized_layers(network).values())


def _export(network: nn.Module, image: Tensor) -> ModelProto:
    captured = exported(network, image)  # torch.onnx would also take a network that is right for two images only
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                captured, dynamo=True, verbose=False, opset_version=FOUR_BITS, input_names=[IMAGES],
                output_names=[LOGITS],
            )  # fmt: skip
    except Exception as error:  # a dozen types of errors, each with a page of advice
        raise UserError(f"The network cannot be written as ONNX: {_cause(error)}.") from error
    assert program is not None
    return program.model_proto


def _cause(error: BaseException) -> str:
    """The first line of the error that stands at the end of a chain of causes."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error) if isinstance(error, Exception) else str(error)


def _replace(graph: GraphProto, modules: dict[str, nn.Module], opset: int) -> None:
    """Replace the placeholders by operators. The weights of a layer that is called twice are decoded once."""
    weights: dict[str, str] = {}
    renamed: dict[str, str] = {}
    first: list[Nodes] = []
    body: list[NodeProto] = []
    seen: dict[str, int] = {}
    quantized: dict[tuple[str, int, int, float], str] = {}  # two layers that quantize a tensor alike share the nodes
    decoded: set[str] = set()  # tensors behind a quantizer and operators on codes
    fixed = _fixed(graph)
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        if node.domain != DOMAIN:
            body.append(node)
            if node.op_type in ON_CODES and decoded & set(node.input):
                decoded |= set(node.output)
            continue
        name = node.attribute[0].s.decode()
        module = modules[name]
        if isinstance(module, QuantizedLayer):
            if name not in weights:
                found, weights[name] = weight_nodes(name, module, opset)
                first.append(found)
            renamed[node.output[0]] = weights[name]
            continue
        assert isinstance(module, ActivationQuantizer)
        alike = node.input[0], module.grid.low, module.grid.high, module.alpha.item()
        if alike not in quantized:
            seen[name] = seen.get(name, 0) + 1
            unique, source = name if seen[name] == 1 else f"{name}.{seen[name]}", node.input[0]
            stays = source in decoded or node.output[0] in fixed
            found, quantized[alike] = quantizer_nodes(unique, module, source, opset, stays)
            decoded.add(quantized[alike])
            graph.initializer.extend(found.constants)
            body += found.nodes
        renamed[node.output[0]] = quantized[alike]
    for result in graph.output:
        if result.name in renamed:
            body.append(helper.make_node("Identity", [renamed[result.name]], [result.name]))
    for found in first:
        graph.initializer.extend(found.constants)
    del graph.node[:]
    graph.node.extend([node for found in first for node in found.nodes] + body)


def _fixed(graph: GraphProto) -> set[str]:
    """The results of quantizers that runtimes must not merge with the operator in front, or move before it.

    ONNX Runtime's softmax of codes is inexact. OpenVINO merges a sum that is quantized with the convolution in front,
    whose own quantizer then does not round. Where a class token joins the tokens that a convolution's values are made
    into, it moves their quantizer before the reshaping, with wrong levels.
    """
    made_by = {name: node for node in graph.node for name in node.output}
    joined = {name for node in graph.node if node.op_type == "Concat" for name in node.input}
    fixed: set[str] = set()
    for node in graph.node:
        if node.domain != DOMAIN or not node.input or node.input[0] not in made_by:  # no quantizer, or of the image
            continue
        source, result = made_by[node.input[0]], node.output[0]
        if source.op_type == "Softmax" or (source.op_type in REARRANGING and result in joined):
            fixed.add(result)
        if source.op_type in ("Relu", "Clip"):
            source = made_by.get(source.input[0], source)
        operands = [made_by.get(name) for name in source.input]
        if source.op_type == "Add" and any(operand and operand.domain == DOMAIN for operand in operands):
            fixed.add(result)
    return fixed


def _strip(model: ModelProto) -> None:
    """Remove what the exporter adds: where each node came from, shapes in between, and the names of its tools."""
    model.producer_name, model.producer_version = "ptq_exp", ""
    graph = model.graph
    del model.metadata_props[:], graph.metadata_props[:], graph.value_info[:], model.functions[:]
    for part in (*graph.node, *graph.initializer, *graph.input, *graph.output):
        del part.metadata_props[:]
        part.ClearField("doc_string")
    for node in graph.node:
        node.ClearField("name")
    _shorten(graph)


def _shorten(graph: GraphProto) -> None:
    """Number the values in between and the constants of quantizers, whose names take more room than the weights of
    small networks.

    Codes, and weights and biases that stay float, keep their names. Equal constants of quantizers are stored once.
    """
    taken = {value.name for value in (*graph.initializer, *graph.input, *graph.output)}
    results = {result.name for result in graph.output}
    values, constants = _fresh("v", taken), _fresh("c", taken)
    names = {name: next(values) for node in graph.node for name in node.output if name not in results}
    kept: dict[bytes, str] = {}
    for tensor in list(graph.initializer):
        if not tensor.name.endswith(NUMBERED):
            continue
        value = bytes([tensor.data_type]) + tensor.raw_data
        single = not tensor.dims and len(value) > 1
        if single and value in kept:
            names[tensor.name] = kept[value]
            graph.initializer.remove(tensor)
            continue
        names[tensor.name] = next(constants)
        tensor.name = names[tensor.name]
        if single:
            kept[value] = tensor.name
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]


def _fresh(letter: str, taken: set[str]) -> Iterator[str]:
    """Numbered names that are not `taken`, as a parameter of the network may be."""
    return (name for number in itertools.count() if (name := f"{letter}{number}") not in taken)
