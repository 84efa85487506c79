"""Save and load a quantized network: integer codes, scales and the float rest, as safetensors."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from ptq_exp.errors import UserError
from ptq_exp.quantization.grids import UniformGrid
from ptq_exp.quantization.layers import ActivationQuantizer, QuantizedLayer


def save_quantized(model: nn.Module, path: Path, metadata: dict[str, Any]) -> None:
    """Write `model`, each layer's codes in the smallest integer type that holds its grid.

    `metadata` (JSON) is for whoever loads it: `load_quantized` hands it back.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLayer)}
    tensors = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in model.state_dict().items()
        if name.removesuffix(".layer.weight") not in layers
    }
    description = {}
    for name, layer in layers.items():
        tensors[f"{name}.codes"] = tensors[f"{name}.codes"].to(_smallest_type(layer.grid))
        description[name] = {
            "grid": [layer.grid.low, layer.grid.high],
            "activation": layer.activation.grid.levels.bit_length() - 1 if layer.activation else None,
        }
    save_file(tensors, path, {"ptq_exp": json.dumps(metadata | {"layers": description})})


def _smallest_type(grid: UniformGrid) -> torch.dtype:
    for dtype in (torch.int8, torch.int16):
        if torch.iinfo(dtype).min <= grid.low and grid.high <= torch.iinfo(dtype).max:
            return dtype
    return torch.int32


def load_quantized(path: Path, float_model: nn.Module) -> tuple[nn.Module, dict[str, Any]]:
    """Turn `float_model`, a network of the same architecture, into the quantized network of `path`, in place.

    Its logits are bit for bit those of the network that was saved. Raises `UserError` where the file is another
    network's.
    """
    with safe_open(path, framework="pt") as file:
        metadata: dict[str, Any] = json.loads((file.metadata() or {}).get("ptq_exp", "{}"))
        tensors = {key: file.get_tensor(key) for key in list(file.keys())}
    try:
        for name, found in metadata["layers"].items():
            layer = float_model.get_submodule(name)
            assert isinstance(layer, nn.Conv2d | nn.Linear)
            wrapped = QuantizedLayer(layer, UniformGrid(*found["grid"]), torch.ones(tensors[f"{name}.scale"].numel()))
            if found["activation"] is not None:
                wrapped.activation = ActivationQuantizer(found["activation"], 1.0)
            wrapped.scale.copy_(tensors[f"{name}.scale"])
            wrapped.set_codes(tensors.pop(f"{name}.codes").float())
            tensors |= {f"{name}.codes": wrapped.codes, f"{name}.layer.weight": wrapped.layer.weight.data}
            float_model.set_submodule(name, wrapped)
        float_model.load_state_dict(tensors)
    except (KeyError, AttributeError, AssertionError, RuntimeError) as error:
        raise UserError(f"{path} is not a quantized network of this architecture ({error}).") from error
    return float_model.eval(), metadata
