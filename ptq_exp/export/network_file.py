"""Save and load a quantized network: integer codes, scales and the remaining float values."""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ptq_exp.base.errors import UserError
from ptq_exp.export.packed_file import read_packed, write_packed
from ptq_exp.networks.graph import expose, exposed, image_shape, set_image_shape
from ptq_exp.quantization.grids import Grid, LevelGrid, UniformGrid
from ptq_exp.quantization.layers import (
    OPAQUE,
    ActivationQuantizer,
    QuantizedLayer,
    QuantizedOperation,
    quantized_layers,
)
from ptq_exp.quantization.modules import counters, load_unique_state, make_plain, replace_module, unique_state


def save_quantized(model: nn.Module, path: Path, metadata: dict[str, Any]) -> None:
    """Write `model` with packed codes. `load_quantized` returns `metadata` (JSON)."""
    layers, counted = quantized_layers(model), counters(model)
    tensors = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in unique_state(model).items()
        if name.removesuffix(".layer.weight") not in layers
        and name not in counted
        and not _is_implied(model, name, tensor)
    }
    described = {name: _describe(layer) for name, layer in layers.items()}
    write_packed(path, tensors, described, metadata | _structure(model))


def _is_implied(model: nn.Module, name: str, tensor: Tensor) -> bool:
    """Whether the tensor need not be stored: the zero-points of a symmetric grid."""
    place, _, last = name.rpartition(".")
    return last == "zero_point" and isinstance(model.get_submodule(place), QuantizedLayer) and not tensor.any()


def _describe(layer: QuantizedLayer) -> dict[str, Any]:
    grid = layer.grid
    values = {"values": grid.values} if isinstance(grid, LevelGrid) else {}
    return {"bits": layer.bits, "lowest": grid.low, "levels": grid.levels} | values


def _structure(model: nn.Module) -> dict[str, Any]:
    """What distinguishes the modules of a quantized network from those of the float network."""
    return {
        "operations": exposed(model),
        "image_shape": image_shape(model),  # the code of the network may ask for it when the operations are found
        "batch_norms": [
            name.removesuffix(".operation")  # its input may be quantized
            for name, module in model.named_modules()
            if isinstance(module, nn.BatchNorm2d)
        ],
        "activations": {
            name: {"bits": module.bits, "low": module.grid.low}
            for name, module in model.named_modules()
            if isinstance(module, ActivationQuantizer)
        },
    }


def _grid(found: dict[str, Any]) -> Grid:
    if "values" in found:
        return LevelGrid(tuple(found["values"]))
    return UniformGrid(found["lowest"], found["lowest"] + found["levels"] - 1)


def load_quantized(path: Path, float_model: nn.Module) -> tuple[nn.Module, dict[str, Any]]:
    """The quantized network of `path`, made of `float_model`, a network of the same architecture, and its metadata.

    Its logits are bit for bit those of the saved network. Raises `UserError` if the file is damaged or belongs to
    another network.
    """
    try:
        tensors, metadata = read_packed(path)
        _as_today(tensors, metadata)
        make_plain(float_model.eval())
        for name, module in list(float_model.named_modules()):
            if isinstance(module, nn.BatchNorm2d) and not _left(name, tensors, metadata):
                replace_module(float_model, name, nn.Identity())  # it was folded into its convolution
        if (operations := metadata.get("operations")) is not None:
            if shape := metadata.get("image_shape"):
                set_image_shape(float_model, shape)
            float_model = expose(float_model, operations == "additions", OPAQUE)
        for name, found in metadata["layers"].items():
            _wrap_layer(float_model, name, found, tensors)
        _wrap_activations(float_model, metadata["activations"])
        counted = counters(float_model)
        kept = {key: value for key, value in unique_state(float_model).items() if key in counted}
        load_unique_state(float_model, kept | tensors)
    except (KeyError, AttributeError, TypeError, RuntimeError, ValueError, OSError, SafetensorError) as error:
        raise UserError(f"{path} is not a quantized network of this architecture ({error}).") from error
    return float_model, metadata


def _left(name: str, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> bool:
    """Whether a batch norm was not folded. Older files do not list batch norms, but each of theirs had weights."""
    return name in metadata["batch_norms"] if "batch_norms" in metadata else f"{name}.weight" in tensors


def _wrap_layer(model: nn.Module, name: str, found: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    layer = model.get_submodule(name)
    if not isinstance(layer, nn.Conv2d | nn.Linear):
        raise TypeError(f"{name} is a {type(layer).__name__}")
    bias = tensors.get(f"{name}.layer.bias")
    layer.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
    scale = tensors[f"{name}.scale"]
    zero_point = tensors.setdefault(f"{name}.zero_point", torch.zeros_like(scale))
    wrapped = QuantizedLayer(layer, _grid(found), scale.flatten(), zero_point.flatten(), found["bits"])
    wrapped.set_codes(tensors[f"{name}.codes"])
    tensors |= {f"{name}.codes": wrapped.codes, f"{name}.layer.weight": wrapped.layer.weight.data}
    replace_module(model, name, wrapped)


def _wrap_activations(model: nn.Module, described: dict[str, dict[str, Any]]) -> None:
    """Add the quantizers: `<layer>.activation` for layers, `<operation>.operands.0` and so on for operations."""
    operands: dict[str, dict[int, ActivationQuantizer]] = {}
    for name, found in described.items():
        parent, _, role = name.rpartition(".")
        if role == "activation":
            layer = model.get_submodule(parent)
            assert isinstance(layer, QuantizedLayer)
            layer.activation = _quantizer(found)
        else:
            operands.setdefault(parent.removesuffix(".operands"), {})[int(role)] = _quantizer(found)
    for operation, own in operands.items():
        several = [own.get(place) for place in range(max(own) + 1)]
        replace_module(model, operation, QuantizedOperation(model.get_submodule(operation), several))


def _quantizer(found: dict[str, Any]) -> ActivationQuantizer:
    return ActivationQuantizer(found["bits"], 1.0, found["low"])


def _as_today(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Rename what had other names in a file of the first edition, in place: grids, and the quantizers, which were those
    of additions, or signed."""
    for found in metadata["layers"].values():
        grid = found.pop("grid", {})
        if "values" in grid:
            found["values"] = grid["values"]
        elif grid:
            found |= {"lowest": grid["low"], "levels": grid["high"] - grid["low"] + 1}
    if "operations" in metadata:
        return
    for position, place in (("first", 0), ("second", 1)):
        old, new = re.compile(rf"\.{position}(?=\.alpha$|$)"), f".operands.{place}"
        for content in (tensors, metadata["activations"]):
            for name in [name for name in content if old.search(name)]:
                content[old.sub(new, name)] = content.pop(name)
    for found in metadata["activations"].values():
        if "signed" in found:
            found["low"] = -(2 ** (found["bits"] - 1)) if found.pop("signed") else 0
