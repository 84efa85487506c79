"""Activations that learning leaves on the boundary between two levels."""

import torch
from torch import Tensor, nn

from ptq_exp.quantization.context import Context
from ptq_exp.quantization.hooks import watching
from ptq_exp.quantization.layers import ActivationQuantizer
from ptq_exp.quantization.learning import worth_learning
from ptq_exp.quantization.steps.step import Step

NEAR = 5e-6  # of a level: float32 sums in another order differ by less
CLOSE = 1e-3  # of a level: farther from a boundary than any of the changes moves a value
CHANGES = (0.0, 2e-5, -2e-5, 4e-5, -4e-5)  # of a scale, relative
WIDEST = 4  # bits; with more, a level more or less hardly changes a prediction
IMAGES, OFTEN = 128, 4  # a value is frequent if it occurs so often in so many images


class SeparateTies(Step):
    """Change the learned scales of activations slightly where values lie on the boundary between two levels.

    Straight-through gradients move a frequent value to and fro across a boundary until it lies on it (Nagel et al.
    2022, "Overcoming Oscillations in Quantization-Aware Training"). A runtime that adds in another order may then round
    it to the other level, in every image that has it.
    """

    name = "separate ties"
    reads = ("act_bits", "act_learned", "rounding", "reconstruction", "scales")

    def run(self, context: Context) -> None:
        options = context.options
        learned = options.learns and options.learned_act_bits is not None and worth_learning(context)
        if learned and options.scales == "real":
            separate_ties(context.network, context.images[:IMAGES])


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
