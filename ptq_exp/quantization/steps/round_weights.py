"""The plan of bit widths per layer, and rounding of the weights to nearest."""

import torch
from torch import Tensor

from ptq_exp.base.errors import UserError, check_choice
from ptq_exp.quantization.allocation import plan_mixed
from ptq_exp.quantization.context import Context
from ptq_exp.quantization.grids import POWER_OF_TWO, SYMMETRIC
from ptq_exp.quantization.hooks import BATCH, watching
from ptq_exp.quantization.options import QuantConfig
from ptq_exp.quantization.ranges import ALPHA_RULES
from ptq_exp.quantization.rounding import plan_bits, round_weights
from ptq_exp.quantization.steps.step import Step
from ptq_exp.quantization.widths import check_widths

REDUCED = 7  # bits: 2 x 255 x 63 fits into 16 bits with a sign


class RoundWeights(Step):
    """Plan the bit widths, then round the weights of a copy of the float network."""

    name = "round weights"
    reads = (
        "bits", "sign_bit", "grid", "alpha_rule", "alpha_multiplier", "percentile", "lp_norm", "granularity", "layers",
        "first_and_last", "layer_bits", "mixed", "mixed_candidates", "mean_bits", "size_budget",
        # The share of a budget for the weights, and the measurement of sensitivities, depend on later steps.
        "act_bits", "bias_correction", "reconstruction", "reduce_range", "calibration_images",
    )  # fmt: skip

    def check(self, options: QuantConfig) -> None:
        check_choice("quant.alpha_rule", options.alpha_rule, ALPHA_RULES)
        check_widths(options)
        _check_mixed(options)
        if options.reduce_range and options.grid not in (SYMMETRIC, POWER_OF_TWO):
            raise UserError(
                f"quant.reduce_range=true needs quant.grid={SYMMETRIC} or {POWER_OF_TWO}, not {options.grid}: other "
                f"grids have codes that need wider sums in any case."
            )
        several = bool(options.layer_bits) or options.first_and_last == "eight"
        several |= options.reduce_range and options.act_bits is not None
        if several and options.granularity == "model" and options.alpha_rule in ("mse", "lp"):
            raise UserError(
                f"quant.alpha_rule={options.alpha_rule} finds the best range for one bit width, so layers of different "
                f"widths cannot share it. Set quant.granularity=channel or tensor."
            )

    def run(self, context: Context) -> None:
        if context.options.mixed:
            context.plan, context.sensitivity = plan_mixed(context)
        else:
            context.plan = plan_bits(context.traced, context.options, context.bits)
        if context.options.reduce_range and context.options.act_bits is not None:
            context.plan = _reduced(context)
        context.network = round_weights(context.traced, context.options, context.plan)


def _reduced(context: Context) -> dict[str, float]:
    """The plan with at most seven stored bits for the layers whose inputs have negative values."""
    most = REDUCED - 1 if context.options.sign_bit == "extra" else REDUCED
    if max(context.plan.values(), default=0) <= most:
        return context.plan
    signed = _signed(context)
    return {name: min(bits, most) if name in signed else bits for name, bits in context.plan.items()}


@torch.no_grad()
def _signed(context: Context) -> set[str]:
    """The layers whose inputs have negative values on the calibration images, found once for all bit widths."""

    def compute() -> set[str]:
        found: set[str] = set()

        def look(name: str, inputs: tuple[Tensor, ...]) -> None:
            if inputs[0].amin() < 0:
                found.add(name)

        with watching(context.reference, context.plan, inputs=look) as forward:
            for batch in context.images.split(BATCH):
                forward(batch)
        return found

    return context.calibration.once(("signed", context.reference, *context.plan), compute)


def _check_mixed(options: QuantConfig) -> None:
    if options.mean_bits is not None and options.size_budget is not None:
        raise UserError("quant.mean_bits and quant.size_budget set the same limit. Give only one of them.")
    if (options.mean_bits or options.size_budget) and not options.mixed:
        raise UserError("quant.mean_bits and quant.size_budget have no effect without quant.mixed=true.")
    if options.mixed and (options.layer_bits or options.first_and_last != "same"):
        raise UserError("quant.mixed=true chooses every layer's bits. Do not set layer_bits or first_and_last.")
    if options.mixed and options.granularity == "model":
        raise UserError("Mixed precision needs one range per layer. Set quant.granularity=channel or tensor.")
