"""Writing a network as ONNX."""

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import GraphProto, ModelProto, NodeProto, helper
from torch import Tensor, nn

from ptq_exp.base.errors import UserError
from ptq_exp.export.onnx.nodes import FOUR_BITS, TWO_BITS, Nodes, quantizer_nodes, weight_nodes
from ptq_exp.export.onnx.placeholders import DOMAIN, with_placeholders
from ptq_exp.quantization.layers import ActivationQuantizer, QuantizedLayer

IMAGES, LOGITS, BATCH = "images", "logits", "batch"


def to_onnx(network: nn.Module, image: Tensor, opset: int = FOUR_BITS) -> ModelProto:
    """`network` as an ONNX model, which takes normalized `images` (batch, C, H, W) and returns `logits`, both float32.

    `image` (C, H, W) is an example. The weights of quantized layers are integer codes of the smallest type that `opset`
    has, with a `DequantizeLinear`. Every quantizer of activations is a pair of `QuantizeLinear` and
    `DequantizeLinear`. A float network becomes a float model. Raises `UserError` with the operator or the line
    that cannot be exported.
    """
    model = _export(with_placeholders(network), image)
    _replace(model.graph, dict(network.named_modules()), opset)
    _strip(model)
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", opset))
    model.ir_version = 10 if opset < TWO_BITS else 13
    return model


def _export(network: nn.Module, image: Tensor) -> ModelProto:
    images = image.cpu()[None].repeat(2, 1, 1, 1)  # a batch of one would become a constant
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network, (images,), dynamo=True, verbose=False, opset_version=FOUR_BITS, input_names=[IMAGES],
            output_names=[LOGITS], dynamic_shapes=({0: torch.export.Dim(BATCH)},),
        )  # fmt: skip
    assert program is not None
    return program.model_proto


def _replace(graph: GraphProto, modules: dict[str, nn.Module], opset: int) -> None:
    """Replace the placeholders by operators. The weights of a layer that is called twice are decoded once."""
    weights: dict[str, str] = {}
    renamed: dict[str, str] = {}
    first: list[Nodes] = []
    body: list[NodeProto] = []
    seen: dict[str, int] = {}
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        if node.domain != DOMAIN:
            body.append(node)
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
        seen[name] = seen.get(name, 0) + 1
        unique = name if seen[name] == 1 else f"{name}.{seen[name]}"
        found, renamed[node.output[0]] = quantizer_nodes(unique, module, node.input[0], opset)
        graph.initializer.extend(found.constants)
        body += found.nodes
    for result in graph.output:
        if result.name in renamed:
            body.append(helper.make_node("Identity", [renamed[result.name]], [result.name]))
    for found in first:
        graph.initializer.extend(found.constants)
    del graph.node[:]
    graph.node.extend([node for found in first for node in found.nodes] + body)


def _strip(model: ModelProto) -> None:
    """Remove what the exporter adds: where each node came from, shapes in between, and the names of its tools."""
    model.producer_name, model.producer_version = "ptq_exp", ""
    graph = model.graph
    del model.metadata_props[:], graph.metadata_props[:], graph.value_info[:], model.functions[:]
    for part in (*graph.node, *graph.initializer, *graph.input, *graph.output):
        del part.metadata_props[:]
        part.doc_string = ""
    for node in graph.node:
        node.name = ""
