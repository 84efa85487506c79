"""A PyTorch program (torch.export), which needs torch and not this package. Its weights are packed codes."""

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ptq_exp.export.formats import DecodedLayer, Format, Runner, Subject, Written, exported, runner
from ptq_exp.export.packing import PER_BYTE, pack
from ptq_exp.networks.graph.calling import needs_contiguous_images, standard_strides
from ptq_exp.quantization.grids import LevelGrid, code_width
from ptq_exp.quantization.layers import QuantizedLayer, quantized_layers
from ptq_exp.quantization.modules import copy_network, replace_module
from ptq_exp.quantization.options import TERNARY

SMALLEST = {8: torch.uint8, 16: torch.int32, 32: torch.int32}  # torch computes little with uint16


class Program(Format):
    """`torch.export.load("quantized_w4.pt2").module()` takes normalized images and returns logits."""

    def write(self, subject: Subject, folder: Path, name: str) -> list[Written]:
        path = folder / f"{name}.pt2"
        network = copy_network(subject.network)
        for layer_name, layer in quantized_layers(network).items():
            replace_module(network, layer_name, PackedLayer(layer))
        program = exported(network, subject.image)
        for node in program.graph.nodes:  # where each node came from: half of the file
            for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node", "torch_fn"):
                node.meta.pop(key, None)
        torch.export.save(program, path)
        load = partial(_load, contiguous=needs_contiguous_images(subject.network))
        return [Written(path, "PyTorch, torch.export", "program", load)]


def _load(path: Path, contiguous: bool) -> Runner:
    """A network that calls `view` on images was exported for PyTorch's default memory format."""
    module = torch.export.load(path).module()
    return runner(lambda images: module(standard_strides(images) if contiguous else images))


class PackedLayer(DecodedLayer):
    """A quantized layer that decodes its weights at every call: codes of 1, 2, 4 or 8 bits, or five to a byte."""

    packed: Tensor
    scale: Tensor
    zero_point: Tensor
    levels: Tensor
    steps: Tensor

    def __init__(self, layer: QuantizedLayer):
        super().__init__(layer)
        grid, self.lowest, self.ternary = layer.grid, layer.grid.low, layer.bits == TERNARY
        self.bits = next(bits for bits in (1, 2, 4, 8, 16, 32) if bits >= code_width(grid.levels))
        codes = layer.codes - grid.low
        if self.ternary:
            packed, steps = pack(codes, TERNARY), 3 ** torch.arange(PER_BYTE)
        elif self.bits <= 4:
            packed, steps = pack(codes, self.bits), torch.arange(0, 8, self.bits)
        else:
            packed, steps = codes.to(SMALLEST[self.bits]), torch.empty(0)
        self.register_buffer("packed", packed)
        self.register_buffer("steps", steps.to(torch.uint8))
        self.register_buffer("scale", layer.scale)
        self.register_buffer("zero_point", layer.zero_point)
        self.register_buffer("levels", torch.tensor(grid.values) if isinstance(grid, LevelGrid) else None)

    @property
    def weight(self) -> Tensor:
        codes = self._codes()
        if self.levels is not None:
            return self.levels[codes.long()] * self.scale
        return (codes.to(self.scale.dtype) + self.lowest - self.zero_point) * self.scale

    def _codes(self) -> Tensor:
        if self.ternary:
            groups = torch.remainder(torch.div(self.packed[:, None], self.steps, rounding_mode="floor"), 3)
        elif self.bits <= 4:
            groups = torch.bitwise_right_shift(self.packed[:, None], self.steps) & (2**self.bits - 1)
        else:
            return self.packed
        return groups.flatten()[: self.shape.numel()].view(self.shape)
