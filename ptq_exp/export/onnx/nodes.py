"""The ONNX operators of weights and of quantizers: integer codes with `DequantizeLinear` and `QuantizeLinear`."""

import math

import torch
from onnx import NodeProto, TensorProto, helper
from torch import Tensor

from ptq_exp.export.packing import pack
from ptq_exp.quantization.grids import LevelGrid, code_width
from ptq_exp.quantization.layers import ActivationQuantizer, QuantizedLayer

FOUR_BITS, TWO_BITS = 21, 25  # the opsets that introduced these types
# Processors without VNNI add two products of unsigned activations and signed weights in 16 bits, which saturate:
# 2 x 255 x 64 is the most that fits in any case.
SAFE = 64
UNSIGNED = {2: TensorProto.UINT2, 4: TensorProto.UINT4, 8: TensorProto.UINT8, 16: TensorProto.UINT16}
SIGNED = {2: TensorProto.INT2, 4: TensorProto.INT4, 8: TensorProto.INT8, 16: TensorProto.INT16, 32: TensorProto.INT32}
BYTES = {TensorProto.FLOAT: torch.float32, TensorProto.INT8: torch.int8, TensorProto.UINT8: torch.uint8,
         TensorProto.INT16: torch.int16, TensorProto.UINT16: torch.uint16, TensorProto.INT32: torch.int32}  # fmt: skip


class Nodes:
    """Nodes and constants in the order of execution. The names of their results begin with `name`."""

    def __init__(self, name: str, opset: int):
        self.name, self.opset = name, opset
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def constant(self, name: str, values: Tensor, kind: int = TensorProto.FLOAT) -> str:
        """Add a constant of ONNX's type `kind`. Returns its name."""
        tensor = TensorProto(name=f"{self.name}.{name}", data_type=kind, dims=values.shape)
        if kind in BYTES:
            tensor.raw_data = values.detach().cpu().to(BYTES[kind]).contiguous().numpy().tobytes()
        else:  # two or four bits: the first code lies in the lowest bits
            bits = 2 if kind in (UNSIGNED[2], SIGNED[2]) else 4
            tensor.raw_data = pack(values.cpu().to(torch.int64) & (2**bits - 1), bits).numpy().tobytes()
        self.constants.append(tensor)
        return tensor.name

    def node(self, kind: str, inputs: list[str], output: str, **attributes: int) -> str:
        """Add a node. Returns the name of its result."""
        result = f"{self.name}.{output}"
        self.nodes.append(helper.make_node(kind, inputs, [result], name=result, **attributes))
        return result

    def width(self, levels: int) -> int:
        """The bits of the smallest type for so many levels in this opset."""
        smallest = 2 if self.opset >= TWO_BITS else 4
        return max(smallest, 2 ** math.ceil(math.log2(code_width(levels))))


def weight_nodes(name: str, layer: QuantizedLayer, opset: int) -> tuple[Nodes, str]:
    """The weights of `layer` from their codes, and the name of the result, float32 of the shape of the weights."""
    nodes, grid = Nodes(name, opset), layer.grid
    if isinstance(grid, LevelGrid):
        return nodes, _levels(nodes, layer, grid)
    signed = grid.low < 0
    width = nodes.width(2 * grid.high + 1 if signed else grid.levels)
    kind = (SIGNED if signed else UNSIGNED)[width]
    codes, scale, zero_point = layer.codes, layer.scale.flatten(), layer.zero_point.flatten()
    if kind == TensorProto.INT8 and _may_saturate(layer):  # runtimes use wider, slower sums for unsigned weights
        kind, codes, zero_point = TensorProto.UINT8, codes + 128, zero_point + 128
    stored = nodes.constant("codes", codes, kind)
    if layer.activation is not None and width < 8:  # decoded once to the type that runtimes compute with
        kind = TensorProto.INT8 if signed else TensorProto.UINT8
        stored = nodes.node("Cast", [stored], "bytes", to=kind)
    axis = {"axis": 0} if scale.numel() > 1 else {}
    shape = scale.shape if axis else ()
    inputs = [stored, nodes.constant("scale", scale.reshape(shape))]
    shared = bool((zero_point == zero_point[0]).all() and (zero_point == zero_point.round()).all())
    if shared and zero_point.any():
        inputs.append(nodes.constant("zero_point", zero_point.reshape(shape), kind))
    weights = nodes.node("DequantizeLinear", inputs, "weight", **axis)
    if shared:
        return nodes, weights
    # The operator takes no zero-point between two levels, and integer convolutions none that differs among channels.
    offset = nodes.constant("offset", -(layer.zero_point * layer.scale))
    return nodes, nodes.node("Add", [weights, offset], "shifted_weight")


def _may_saturate(layer: QuantizedLayer) -> bool:
    """Whether sums of 16 bits are often too narrow for a layer with 8-bit weights.

    Where the input has negative values, zero is a code in the middle, so all codes are large. Behind a ReLU most codes
    are small, and two large ones hardly ever meet two large weights.
    """
    activation = layer.activation
    return activation is not None and activation.grid.low < 0 and bool(layer.codes.abs().max() > SAFE)


def _levels(nodes: Nodes, layer: QuantizedLayer, grid: LevelGrid) -> str:
    """Weights on arbitrary levels, looked up in a table."""
    codes = nodes.constant("codes", layer.codes, UNSIGNED[nodes.width(grid.levels)])
    levels = nodes.constant("levels", torch.tensor(grid.values))
    index = nodes.node("Cast", [codes], "index", to=TensorProto.INT32)
    values = nodes.node("Gather", [levels, index], "values")
    return nodes.node("Mul", [values, nodes.constant("scale", layer.scale)], "weight")


def quantizer_nodes(
    name: str, quantizer: ActivationQuantizer, source: str, opset: int, stays: bool = False
) -> tuple[Nodes, str]:
    """The tensor called `source` rounded to the quantizer's levels, and the name of the result.

    The codes are unsigned: the zero-point is minus the lowest code. With `stays`, no runtime may move the quantizer to
    an earlier operator or merge it with an earlier quantizer: neither happens behind `Max`. OpenVINO takes `Max` and
    `Min` for `Clip`, so the upper end is compared.
    """
    nodes, grid = Nodes(name, opset), quantizer.grid
    # The type is not stored. ONNX Runtime moves it to operators that do not have four-bit types, such as MaxPool.
    width, step = max(8, nodes.width(grid.levels)), quantizer.scale
    narrow = grid.levels < 2**width  # else the type saturates
    lowest = nodes.constant("lowest", grid.low * step) if stays or narrow else ""
    highest = nodes.constant("highest", grid.high * step) if narrow else ""
    if stays:
        source = nodes.node("Max", [source, lowest], "raised")
        source = _lowered(nodes, source, highest) if narrow else source
    elif narrow:
        source = nodes.node("Clip", [source, lowest, highest], "clipped")
    zero_point = nodes.constant("zero_point", torch.tensor(-grid.low), UNSIGNED[width])
    scale = nodes.constant("scale", step)
    codes = nodes.node("QuantizeLinear", [source, scale, zero_point], "codes")
    return nodes, nodes.node("DequantizeLinear", [codes, scale, zero_point], "quantized")


def _lowered(nodes: Nodes, source: str, highest: str) -> str:
    """The same as `Min`."""
    beyond = nodes.node("Greater", [source, highest], "greater")
    return nodes.node("Where", [beyond, highest, source], "lowered")
