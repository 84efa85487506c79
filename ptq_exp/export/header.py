"""A C99 header: the packed codes of all quantized layers, and the sums of the first convolution in int32.

It is verified in C: a compiler builds it, decodes the weights, and computes the sums of an image
(`compiled_header.py`).
"""

import re
import textwrap
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from ptq_exp.evaluation.integers import accumulators, largest_accumulator
from ptq_exp.export.compiled_header import load_header
from ptq_exp.export.formats import Format, Subject, Written, runner
from ptq_exp.export.packed_file import code_bits
from ptq_exp.export.packing import pack
from ptq_exp.quantization.grids import LevelGrid, UniformGrid
from ptq_exp.quantization.layers import QuantizedLayer, quantized_layers
from ptq_exp.quantization.options import TERNARY

WIDTH = 100  # characters in a line of numbers

OPENING = """\
/* {stem}: the weights of a network quantized by ptq_exp.
 *
 * For each quantized layer, NAME_codes holds its weights as packed codes, in C order of NAME_shape (output channels,
 * input channels, height, width). They form one stream of bits, each code with its lowest bit first, which fills every
 * byte from its lowest bit. Codes of 1.6 bits (three levels) lie five to a byte: c0 + 3 c1 + 9 c2 + 27 c3 + 81 c4.
 * NAME_weight(i) decodes the weight of index i. A stored code c represents (c + lowest - zero_point) * scale, or
 * values[c] * scale for grids of arbitrary levels, with one scale and zero-point, or one per output channel.
 * NAME_bias holds the biases, if there are any. If the input of a layer is quantized, its codes times NAME_input_scale
 * are the values that the layer multiplies with its weights.
 *
 * Images are normalized: (pixel / 255 - mean) / std, mean {mean}, std {std}.
 * {integers}
 * Not in this file: {left}.
 */
#ifndef {guard}
#define {guard}

#include <stdint.h>

static inline int32_t ptq_code(const uint8_t *codes, int bits, long i)
{{
    int32_t code = 0;
    for (int k = 0; k < bits; k++)
        code |= (int32_t)(codes[(i * bits + k) / 8] >> ((i * bits + k) % 8) & 1) << k;
    return code;
}}

static inline int32_t ptq_ternary_code(const uint8_t *codes, long i)
{{
    static const int powers[5] = {{1, 3, 9, 27, 81}};
    return codes[i / 5] / powers[i % 5] % 3;
}}
"""

FIRST = """
/* The sums of {name} for an image of codes [{channels}][height][width], in int32:
 *     sum over the patch of (input code) * (code + lowest - zero_point), plus the code of the bias.
 * An input code is the normalized pixel divided by {c}_input_scale, rounded half to even, and clipped to
 * {low} ... {high}. An output is its sum times {c}_input_scale times the scale of its channel. A pixel of the padding
 * is the code 0. Bias codes are the biases in units of the product of both scales, rounded. */
{bias_codes}
static inline void {c}_sums(const int32_t *codes, int height, int width, int32_t *sums)
{{
    const int rows = (height + 2 * {pad_y} - {dilation_y} * ({kernel_y} - 1) - 1) / {stride_y} + 1;
    const int columns = (width + 2 * {pad_x} - {dilation_x} * ({kernel_x} - 1) - 1) / {stride_x} + 1;
    for (int o = 0; o < {outputs}; o++)
        for (int row = 0; row < rows; row++)
            for (int column = 0; column < columns; column++) {{
                int32_t sum = {c}_bias_codes[o];
                for (int i = 0; i < {group_inputs}; i++)
                    for (int y = 0; y < {kernel_y}; y++)
                        for (int x = 0; x < {kernel_x}; x++) {{
                            const int from_y = row * {stride_y} + y * {dilation_y} - {pad_y};
                            const int from_x = column * {stride_x} + x * {dilation_x} - {pad_x};
                            const int channel = o / {group_outputs} * {group_inputs} + i;
                            const long weight = ((long)(o * {group_inputs} + i) * {kernel_y} + y) * {kernel_x} + x;
                            if (from_y >= 0 && from_y < height && from_x >= 0 && from_x < width)
                                sum += codes[(channel * height + from_y) * width + from_x] * {c}_integer(weight);
                        }}
                sums[(o * rows + row) * columns + column] = sum;
            }}
}}

/* An example to check by hand: the codes of a patch of {patch_height} x {patch_width} pixels, and the sums of all
 * channels for it, which {c}_sums gives at row {row} and column {column}. */
{patch}
{expected}
"""


class Header(Format):
    """`#include "quantized_w4.h"`, in one C file of a program."""

    def write(self, subject: Subject, folder: Path, name: str) -> list[Written]:
        path = folder / f"{name}.h"
        layers = quantized_layers(subject.network)
        if not layers:  # a float network, to compare with
            return [Written(path, "", "", lambda _: runner(subject.network))]
        names, (first, reason) = c_names(layers), first_convolution(subject)
        path.write_text(header(subject, path.name, names, first, reason), encoding="utf-8")
        load = partial(load_header, subject=subject, names=names, first=first)
        return [Written(path, "C: weights, first sums" if first else "C: weights", "header", load, False)]


def header(subject: Subject, stem: str, names: dict[str, str], first: str, reason: str) -> str:
    """The text of the file. `first` is the layer with an integer pass; if it is empty, `reason` says why."""
    layers = quantized_layers(subject.network)
    about = subject.about
    opening = OPENING.format(
        stem=stem, guard=re.sub(r"\W", "_", stem).upper(), mean=about.get("mean"), std=about.get("std"),
        left=wrapped(_left(subject.network, layers)),
        integers=f"{names[first]}_sums is the integer pass of the first convolution." if first else reason,
    )  # fmt: skip
    parts = [opening, *(_layer(name, names[name], layer) for name, layer in layers.items())]
    if first:
        parts.append(_first(subject, first, names[first]))
    return "".join([*parts, "\n#endif\n"])


def c_names(names: Iterable[str]) -> dict[str, str]:
    """An identifier of C for each name of a layer. Two names that give the same one are numbered."""
    found: dict[str, str] = {}
    for name in names:
        plain = re.sub(r"\W", "_", name)
        plain = plain if plain[:1].isalpha() else f"layer_{plain}"
        found[name] = plain if plain not in found.values() else f"{plain}_{len(found)}"
    return found


def first_convolution(subject: Subject) -> tuple[str, str]:
    """The name of the convolution that the image enters, if integers describe it, else an empty name and the reason."""
    order: list[str] = []
    layers = quantized_layers(subject.network)
    hooks = [
        layer.register_forward_pre_hook(lambda module, args, name=name: order.append(name))  # type: ignore[misc]
        for name, layer in layers.items()
    ]
    with torch.no_grad():
        subject.network(subject.image[None])
    for hook in hooks:
        hook.remove()
    first = layers[order[0]]
    if first.activation is None:
        return "", "The image is not quantized, so there is no integer pass of the first layer."
    if not isinstance(first.layer, nn.Conv2d):
        return "", "The first layer is not a convolution, so there is no integer pass of it."
    whole = isinstance(first.grid, UniformGrid) and torch.equal(first.zero_point, first.zero_point.round())
    if not whole or first.layer.padding_mode != "zeros" or isinstance(first.layer.padding, str):
        return "", "The first convolution has zero-points between levels or unusual padding: no integer pass of it."
    if largest_accumulator(first) >= 2**31:
        return "", "The sums of the first convolution need more than 32 bits: no integer pass of it."
    return order[0], ""


def _left(network: nn.Module, layers: dict[str, QuantizedLayer]) -> list[str]:
    """The tensors of floats that the header does not contain."""
    state = [name for name, tensor in network.state_dict().items() if tensor.is_floating_point()]
    return [name for name in state if not name.startswith(tuple(f"{layer}." for layer in layers))]


def wrapped(names: list[str]) -> str:
    """The names in lines of a comment."""
    return "\n *     ".join(textwrap.wrap(", ".join(names) or "nothing", WIDTH, break_on_hyphens=False))


def _layer(name: str, c: str, layer: QuantizedLayer) -> str:
    """The arrays and the functions of a layer."""
    grid, bits = layer.grid, code_bits(layer.bits, layer.grid.levels)
    count = layer.scale.numel()
    channel = f"i / {layer.codes[0].numel()}" if count > 1 else "0"
    code = f"ptq_ternary_code({c}_codes, i)" if bits == TERNARY else f"ptq_code({c}_codes, {int(bits)}, i)"
    lines = [
        f"\n/* {name}: {'linear' if layer.codes.dim() == 2 else 'convolution'}, {layer.codes.numel()} weights of "
        f"{bits:g} bits, lowest code {grid.low}. */",
        array("int", f"{c}_shape", layer.codes.shape),
        array("uint8_t", f"{c}_codes", pack(layer.codes - grid.low, bits).tolist()),
        array("float", f"{c}_scale", floats(layer.scale)),
    ]
    if layer.activation is not None:
        low, high, scale = layer.activation.grid.low, layer.activation.grid.high, floats(layer.activation.scale)[0]
        lines.append(f"static const float {c}_input_scale = {scale}; /* input codes from {low} to {high} */")
    if layer.bias is not None:
        lines.append(array("float", f"{c}_bias", floats(layer.bias)))
    if isinstance(grid, LevelGrid):
        lines.append(array("float", f"{c}_values", floats(torch.tensor(grid.values))))
        value = f"{c}_values[{code}]"
    else:
        lines.append(_function("int32_t", f"{c}_code", f"{code} + ({grid.low})"))
        value = f"(float){c}_code(i)"
        if layer.zero_point.any():
            lines.append(array("float", f"{c}_zero_point", floats(layer.zero_point)))
            value = f"({value} - {c}_zero_point[{channel}])"
    return "\n".join([*lines, _function("float", f"{c}_weight", f"{value} * {c}_scale[{channel}]"), ""])


def _first(subject: Subject, name: str, c: str) -> str:
    """The integer pass of the first convolution, with an example."""
    quantized = quantized_layers(subject.network)[name]
    layer, activation = quantized.layer, quantized.activation
    assert isinstance(layer, nn.Conv2d)
    assert activation is not None
    assert not isinstance(layer.padding, str)
    image = subject.image
    # The smallest image with a position of the kernel that lies inside of it.
    position = [-(-pad // stride) for pad, stride in zip(layer.padding, layer.stride, strict=True)]
    begin = [at * stride - pad for at, stride, pad in zip(position, layer.stride, layer.padding, strict=True)]
    size = [
        start + (count - 1) * step + 1
        for start, count, step in zip(begin, layer.kernel_size, layer.dilation, strict=True)
    ]
    top, left = (image.shape[1] - size[0]) // 2, (image.shape[2] - size[1]) // 2
    patch, sums, bias_codes = accumulators(quantized, image[None, :, top : top + size[0], left : left + size[1]])
    zero_points = quantized.zero_point.flatten()
    integer = f"{c}_code(i)"
    lines = ""
    if zero_points.any():
        index = f"i / {quantized.codes[0].numel()}" if len(zero_points) > 1 else "0"
        lines = array("int32_t", f"{c}_integer_zero_point", zero_points.int().tolist()) + "\n"
        integer += f" - {c}_integer_zero_point[{index}]"
    return lines + _function("int32_t", f"{c}_integer", integer) + FIRST.format(
        name=name, c=c, channels=layer.in_channels, outputs=layer.out_channels, low=activation.grid.low,
        high=activation.grid.high,
        bias_codes=array("int32_t", f"{c}_bias_codes", integers(bias_codes.expand(layer.out_channels))),
        pad_y=layer.padding[0], pad_x=layer.padding[1], stride_y=layer.stride[0], stride_x=layer.stride[1],
        dilation_y=layer.dilation[0], dilation_x=layer.dilation[1], kernel_y=layer.kernel_size[0],
        kernel_x=layer.kernel_size[1], group_inputs=layer.in_channels // layer.groups,
        group_outputs=layer.out_channels // layer.groups, patch_height=size[0], patch_width=size[1], row=position[0],
        column=position[1],
        patch=array("int32_t", f"{c}_example_codes", integers(patch)),
        expected=array("int32_t", f"{c}_example_sums", integers(sums[0, :, position[0], position[1]])),
    )  # fmt: skip


def _function(kind: str, name: str, value: str) -> str:
    return f"static inline {kind} {name}(long i) {{ return {value}; }}"


def array(kind: str, name: str, values: Iterable[object]) -> str:
    """A constant array, in lines of at most `WIDTH` characters."""
    texts = [str(value) for value in values]
    lines, line = [], " "
    for text in texts:
        if len(line) + len(text) > WIDTH:
            lines.append(line)
            line = " "
        line += f" {text},"
    return "\n".join([f"static const {kind} {name}[{len(texts)}] = {{", *lines, line, "};"])


def integers(values: Tensor) -> list[int]:
    """The whole numbers in a tensor of doubles."""
    return [int(value) for value in values.flatten().tolist()]


def floats(values: Tensor) -> list[str]:
    """Literals of C that give exactly these values of float32."""
    texts = [f"{value:.9g}" for value in values.detach().flatten().tolist()]
    return [f"{text}f" if re.search(r"[.e]", text) else f"{text}.0f" for text in texts]
