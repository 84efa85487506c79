"""Activation quantizers with ranges from the float network's activations on the calibration images."""

import math
from typing import ClassVar

from ptq_exp.base.errors import UserError, check_choice
from ptq_exp.quantization.activations import OBSERVERS, Observation, observe, with_zero_point
from ptq_exp.quantization.context import Context, shown
from ptq_exp.quantization.coverage import quantized_operands
from ptq_exp.quantization.grids import activation_grid
from ptq_exp.quantization.hooks import BATCH
from ptq_exp.quantization.layers import ActivationQuantizer, QuantizedOperation, quantized_layers
from ptq_exp.quantization.modules import replace_module
from ptq_exp.quantization.options import QuantConfig
from ptq_exp.quantization.rounding import EIGHT
from ptq_exp.quantization.steps.step import Step
from ptq_exp.quantization.widths import check_bits


class CalibrateActivations(Step):
    """Insert a quantizer before every quantized layer and, if requested, before other operations.

    The layer that receives the image is skipped unless `act_input_image` is set or everything is covered. A number for
    `act_alpha` overrides the ranges. Tensors with negative values get a signed grid, or a zero-point.
    """

    name = "calibrate activations"
    reads = (
        "act_bits", "act_alpha", "act_rule", "act_percentile", "act_input_image", "act_residual", "act_coverage",
        "act_zero_point", "act_learned", "scales", "grid", "layers", "first_and_last", "calibration_images",
    )  # fmt: skip
    after_learning: ClassVar[bool] = False

    def check(self, options: QuantConfig) -> None:
        check_choice("quant.act_rule", options.act_rule, OBSERVERS)
        if options.act_alpha is not None and not math.isfinite(options.act_alpha):
            raise UserError(f"quant.act_alpha={options.act_alpha} is not finite.")
        if options.scales == "power_of_two" and options.grid != "power_of_two":
            raise UserError(
                f"quant.scales=power_of_two needs weights with such scales, too. Set quant.grid=power_of_two, not "
                f"{options.grid}."
            )
        if options.act_bits is not None:
            check_bits("quant.act_bits", options.act_bits)

    def run(self, context: Context) -> None:
        options, network = context.options, context.network
        if options.act_bits is None or options.act_learned is self.after_learning:
            return
        first, last = context.traced.first_and_last(options.layers)
        layers = quantized_layers(network)
        names = [name for name in layers if options.quantizes_image or name != first]
        operations = quantized_operands(context.traced, options)
        ends = {first, last} if options.first_and_last == "eight" else set()
        for name, observations in _observations(context, [*names, *operations]).items():
            if name in layers:
                if not math.isfinite(observations[0].limit):
                    raise UserError(f"The input of {name} is not finite on the calibration images.")
                width = EIGHT if name in ends else options.act_bits
                layers[name].activation = _quantizer(options, observations[0], width).to(context.images.device)
                context.observed[name] = observations[0]
            else:
                operands = _operands(options, [observations.get(place) for place in range(operations[name])])
                operation = QuantizedOperation(network.get_submodule(name), operands)
                replace_module(network, name, operation.to(context.images.device))


class CalibrateAfterLearning(CalibrateActivations):
    """The same step for `act_learned=false`: after the weights have been learned with float activations."""

    name = "calibrate activations after learning"
    after_learning = True


def _operands(options: QuantConfig, observations: list[Observation | None]) -> list[ActivationQuantizer | None]:
    """The quantizers of an operation's tensors. Integers, masks and scores with infinite values need none."""
    assert options.act_bits is not None
    return [
        _quantizer(options, seen, options.act_bits) if seen and math.isfinite(seen.limit) else None
        for seen in observations
    ]


def _observations(context: Context, names: list[str]) -> dict[str, dict[int, Observation]]:
    """The observed inputs of the modules called `names` in the float network, without modules that do not run."""
    both = context.options.act_zero_point

    def compute() -> dict[str, dict[int, Observation]]:
        steps = 2 * math.ceil(len(context.images) / BATCH)
        with shown(context.progress, "Calibrating activations", steps) as advance:
            return observe(context.reference, names, context.images, advance, both)

    every = context.calibration.once(("observations", context.reference, both, *names), compute)
    return {name: found for name, found in every.items() if found}  # a module may exist but never run


def _quantizer(options: QuantConfig, seen: Observation, bits: int) -> ActivationQuantizer:
    signed = seen.low < 0
    if signed and options.act_zero_point and options.act_alpha is None:
        end, low = with_zero_point(seen, bits, options.act_rule, options.act_percentile)
        return ActivationQuantizer(bits, _snapped(options, end, low + 2**bits - 1), low)
    if signed and bits == 1:
        raise UserError(
            "quant.act_bits=1 leaves tensors with negative values (the image, residual sums) no level above zero. "
            "Use 2 bits, or quant.act_zero_point=true."
        )
    grid, alpha = activation_grid(bits, signed), options.act_alpha
    if alpha is None:
        alpha = OBSERVERS[options.act_rule](seen, grid, options.act_percentile)
    return ActivationQuantizer(bits, _snapped(options, alpha, grid.high), grid.low)


def _snapped(options: QuantConfig, alpha: float, high: int) -> float:
    """The clipping value with the nearest power of two as its scale, where these are wanted."""
    if options.scales == "real":
        return alpha
    return high * 2.0 ** round(math.log2(alpha / high))
