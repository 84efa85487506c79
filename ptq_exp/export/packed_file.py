"""The packed file of a quantized network: docs/packed-format.md describes it byte by byte.

It is a safetensors file with few tensors, because every name in the header costs as much as a hundred weights of
seven bits: all codes in one (packed), all float values in another, and a description that says where each begins.
"""

import json
import math
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ptq_exp.base.tensors import load_checked, save_checked
from ptq_exp.export.packing import pack, packed_bytes, unpack
from ptq_exp.quantization.grids import code_width
from ptq_exp.quantization.options import TERNARY

FORMAT = {"format": "ptq_exp packed", "version": 1}
CODES, FLOATS, DESCRIPTION = "codes", "floats", "description"


def is_packed(metadata: dict[str, Any]) -> bool:
    """Whether the metadata of a safetensors file of ours are those of a packed file."""
    return metadata.get("format") == FORMAT["format"]


def write_packed(path: Path, tensors: dict[str, Tensor], layers: dict[str, dict[str, Any]], about: Any) -> None:
    """Write the codes and the other tensors of a network, and what describes it (JSON).

    `layers` has the entries `lowest` (int, the lowest code), `levels` (their number) and `bits` of every quantized
    layer; `tensors` has its codes (integers) as `<layer>.codes`.
    """
    codes, floats, others = [], [], {}
    description: dict[str, Any] = {"layers": {}, "floats": {}, **about}
    for name, layer in layers.items():
        values = tensors[f"{name}.codes"]
        bits = code_bits(layer["bits"], layer["levels"])
        codes.append(pack(values - layer["lowest"], bits))
        description["layers"][name] = layer | {"shape": list(values.shape), "code_bits": bits}
    for name, tensor in tensors.items():
        if name.removesuffix(".codes") in layers:
            continue
        if tensor.dtype == torch.float32:
            description["floats"][name] = list(tensor.shape)
            floats.append(tensor.flatten())
        else:
            others[name] = tensor
    text = json.dumps(description, separators=(",", ":")).encode()
    content = {
        CODES: torch.cat(codes),
        FLOATS: torch.cat([*floats, torch.empty(0)]),
        DESCRIPTION: torch.frombuffer(bytearray(zlib.compress(text, 9)), dtype=torch.uint8),
        **{f"other.{name}": tensor for name, tensor in others.items()},
    }
    save_checked(content, path, FORMAT)


def code_bits(bits: float, levels: int) -> float:
    """The bits of a packed code: a whole number, or 1.6 for five codes of three levels in a byte."""
    return TERNARY if bits == TERNARY else code_width(levels)


def read_packed(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors by name, with the codes of layers as int32, and the description.

    Raises `ValueError`, `KeyError` or `OSError` if the file is damaged, or no packed file.
    """
    content, metadata = load_checked(path)
    if not is_packed(metadata):
        return content, metadata
    if metadata["version"] != FORMAT["version"]:
        raise ValueError(f"its format has version {metadata['version']}; this program reads {FORMAT['version']}")
    description = json.loads(zlib.decompress(content[DESCRIPTION].numpy().tobytes()))
    tensors, begin = {}, 0
    for name, layer in description["layers"].items():
        count = math.prod(layer["shape"])
        end = begin + packed_bytes(layer["code_bits"], count)
        codes = unpack(content[CODES][begin:end], layer["code_bits"], count)
        tensors[f"{name}.codes"] = codes.view(layer["shape"]) + layer["lowest"]
        begin = end
    begin = 0
    for name, shape in description["floats"].items():
        end = begin + math.prod(shape)
        tensors[name] = content[FLOATS][begin:end].view(shape).clone()
        begin = end
    others = {name.removeprefix("other."): x for name, x in content.items() if name.startswith("other.")}
    return tensors | others, description
