"""Frequent activations on the boundary between two levels: pixels, and what learning leaves there."""

import torch
from torch import Tensor, nn

from ptq_exp.quantization.context import Context
from ptq_exp.quantization.hooks import watching
from ptq_exp.quantization.layers import ActivationQuantizer, quantized_layers
from ptq_exp.quantization.learning import worth_learning
from ptq_exp.quantization.steps.step import Step

NEAR = 5e-6  # of a level: float32 sums in another order differ by less
CLOSE = 1e-3  # of a level: farther from a boundary than any of the changes moves a value
CHANGES = (0.0, 2e-5, -2e-5, 4e-5, -4e-5)  # of a scale, relative
WIDEST = 4  # bits; with more, a level more or less hardly changes a prediction
IMAGES, OFTEN = 128, 4  # a value is frequent if it occurs so often in so many images
# The same for the image, which may have 8 bits: runtimes subtract the zero-point first, so that errors are larger.
PIXELS_NEAR = 1e-4
PIXEL_CHANGES = (0.0, *(sign * step * 1e-5 for step in range(1, 11) for sign in (1, -1)))
PIXEL_IMAGES = 32


class SeparateTies(Step):
    """Change the scales of activations slightly where values lie on the boundary between two levels.

    Images have few different values, and one of them may lie on a boundary. Straight-through gradients move a frequent
    value to and fro across a boundary until it lies on it (Nagel et al. 2022, "Overcoming Oscillations in
    Quantization-Aware Training"). A runtime that computes in another order may then round it to the other level, in
    every image that has it.
    """

    name = "separate ties"
    reads = (
        "act_bits", "act_alpha", "act_learned", "act_input_image", "act_coverage", "rounding", "reconstruction",
        "scales", "layers",
    )  # fmt: skip

    def run(self, context: Context) -> None:
        options, network = context.options, context.network
        if options.scales != "real":
            return
        if options.learns and options.learned_act_bits is not None and worth_learning(context):
            separate_ties(network, context.images[:IMAGES])
        if options.act_bits is not None and options.act_alpha is None and options.quantizes_image:
            first, _ = context.traced.first_and_last(options.layers)
            layer = quantized_layers(network).get(first)
            if layer is not None and layer.activation is not None:
                separate_pixels(network, f"{first}.activation", context.images[:PIXEL_IMAGES])


@torch.no_grad()
def separate_pixels(network: nn.Module, name: str, images: Tensor) -> None:
    """Change the scale of the quantizer `name`, which receives the image, in place.

    Of `PIXEL_CHANGES`, it takes the first that leaves the fewest values near a boundary.
    """
    quantizer = network.get_submodule(name)
    assert isinstance(quantizer, ActivationQuantizer)

    def separate(name: str, inputs: tuple[Tensor, ...]) -> None:
        values, counts = inputs[0].unique(return_counts=True)
        positions = values.double() / quantizer.scale.double()
        near = [counts[_from_boundary(positions / (1 + change)) < PIXELS_NEAR].sum().item() for change in PIXEL_CHANGES]
        quantizer.alpha.mul_(1 + PIXEL_CHANGES[near.index(min(near))])

    with watching(network, {name: quantizer}, inputs=separate) as forward:
        forward(images)


@torch.no_grad()
def separate_ties(network: nn.Module, images: Tensor) -> None:
    """Change the scale of each activation quantizer of up to `WIDEST` bits in place, in the order of execution.

    Of `CHANGES`, it takes the first that leaves the fewest frequent values of `images` on a boundary or at another
    level than before.
    """
    quantizers = {
        name: module for name, module in network.named_modules()
        if isinstance(module, ActivationQuantizer) and module.bits <= WIDEST
    }  # fmt: skip
    before: dict[str, Tensor] = {}

    def record(name: str, inputs: tuple[Tensor, ...]) -> None:
        quantizer = quantizers[name]
        before.setdefault(name, _codes(quantizer, inputs[0] / quantizer.scale).to(torch.uint8))

    def separate(name: str, inputs: tuple[Tensor, ...]) -> None:
        if name in before:  # else it is called again
            quantizer = quantizers[name]
            positions, codes = _frequent(quantizer, inputs[0] / quantizer.scale, before.pop(name))
            doubtful = [_doubtful(quantizer, positions / (1 + change), codes) for change in CHANGES]
            quantizer.alpha.mul_(1 + CHANGES[doubtful.index(min(doubtful))])

    for look in (record, separate):
        with watching(network, quantizers, inputs=look) as forward:
            forward(images)


def _codes(quantizer: ActivationQuantizer, positions: Tensor) -> Tensor:
    """The codes of values that are given in levels, counted from 0."""
    grid = quantizer.grid
    return positions.round().clamp_(grid.low, grid.high) - grid.low


def _from_boundary(positions: Tensor) -> Tensor:
    return (positions - positions.floor() - 0.5).abs()


def _frequent(quantizer: ActivationQuantizer, positions: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """The frequent ones of `positions` close to a boundary, and their `codes`."""
    close = (positions > quantizer.grid.low) & (positions < quantizer.grid.high)
    close &= _from_boundary(positions) < CLOSE
    positions, codes = positions[close], codes[close]
    values = (positions.double() / NEAR).round()
    _, which, counts = values.unique(return_inverse=True, return_counts=True)
    often = counts[which] >= OFTEN
    return positions[often], codes[often]


def _doubtful(quantizer: ActivationQuantizer, positions: Tensor, codes: Tensor) -> int:
    """How many of `positions` are near a boundary or do not have their `codes`."""
    return int(((_from_boundary(positions) < NEAR) | (_codes(quantizer, positions) != codes)).sum())
