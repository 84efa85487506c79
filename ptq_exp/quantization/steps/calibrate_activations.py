"""Activation quantizers with ranges from the float network's activations on the calibration images."""

import math

from torch import nn

from ptq_exp.base.errors import UserError, check_choice
from ptq_exp.networks.graph import additions
from ptq_exp.quantization.activations import OBSERVERS, Observation, observe
from ptq_exp.quantization.context import Context, shown
from ptq_exp.quantization.grids import activation_grid
from ptq_exp.quantization.hooks import BATCH
from ptq_exp.quantization.layers import ActivationQuantizer, QuantizedAddition, quantized_layers
from ptq_exp.quantization.modules import replace_module
from ptq_exp.quantization.options import QuantConfig
from ptq_exp.quantization.rounding import EIGHT, target_layers
from ptq_exp.quantization.steps.step import Step
from ptq_exp.quantization.widths import check_bits


class CalibrateActivations(Step):
    """Insert a quantizer before every quantized layer and, if requested, before every residual addition.

    The layer that receives the image is skipped unless `act_input_image` is set. A number for `act_alpha` overrides the
    ranges. Tensors with negative values get a signed grid.
    """

    name = "calibrate activations"
    reads = (
        "act_bits", "act_alpha", "act_rule", "act_percentile", "act_input_image", "act_residual", "layers",
        "first_and_last", "calibration_images",
    )  # fmt: skip

    def check(self, options: QuantConfig) -> None:
        check_choice("quant.act_rule", options.act_rule, OBSERVERS)
        if options.act_bits is not None:
            check_bits("quant.act_bits", options.act_bits)

    def run(self, context: Context) -> None:
        options, network = context.options, context.network
        if options.act_bits is None:
            return
        everything = list(target_layers(context.reference, options.layers))
        layers = quantized_layers(network)
        names = [name for name in layers if options.act_input_image or name != everything[0]]
        joints = additions(context.reference) if options.act_residual else []
        ends = {everything[0], everything[-1]} if options.first_and_last == "eight" else set()
        for name, observations in _observations(context, names + joints).items():
            if name in layers:
                width = EIGHT if name in ends else options.act_bits
                layers[name].activation = _quantizer(options, observations[0], width).to(context.images.device)
                context.observed[name] = observations[0]
            else:
                operands = [_quantizer(options, operand, options.act_bits) for operand in observations]
                joint: nn.Module = QuantizedAddition(network.get_submodule(name), *operands)
                replace_module(network, name, joint.to(context.images.device))


def _observations(context: Context, names: list[str]) -> dict[str, list[Observation]]:
    """The observed inputs of the modules called `names` in the float network, without modules that do not run."""

    def compute() -> dict[str, list[Observation]]:
        steps = 2 * math.ceil(len(context.images) / BATCH)
        with shown(context.progress, "Calibrating activations", steps) as advance:
            return observe(context.reference, names, context.images, advance)

    every = context.calibration.once(("observations", context.reference, *names), compute)
    return {name: found for name, found in every.items() if found}  # a module may exist but never run


def _quantizer(options: QuantConfig, seen: Observation, bits: int) -> ActivationQuantizer:
    signed = seen.low < 0
    if signed and bits == 1:
        raise UserError(
            "quant.act_bits=1 leaves tensors with negative values (the image, residual sums) no level above zero. "
            "Use 2 bits, or leave act_input_image and act_residual false."
        )
    alpha = options.act_alpha
    if alpha is None:
        alpha = OBSERVERS[options.act_rule](seen, activation_grid(bits, signed), options.act_percentile)
    return ActivationQuantizer(bits, alpha, signed)
