"""The plan, which layer gets how many bits, and the weights rounded to nearest."""

import copy

from ptq_exp.base.errors import UserError, check_choice
from ptq_exp.quantization.allocation import plan_mixed
from ptq_exp.quantization.checks import check_bits, check_percentile, check_positive
from ptq_exp.quantization.context import Context
from ptq_exp.quantization.grids import GRIDS, TWO_SIDED
from ptq_exp.quantization.options import TERNARY, QuantConfig
from ptq_exp.quantization.ranges import ALPHA_RULES
from ptq_exp.quantization.rounding import plan_bits, round_weights
from ptq_exp.quantization.steps.step import Step


class RoundWeights(Step):
    """Plan the bit widths, then round the weights of a copy of the float network."""

    name = "round weights"
    reads = (
        "bits", "sign_bit", "grid", "alpha_rule", "alpha_multiplier", "percentile", "lp_norm", "granularity", "layers",
        "first_and_last", "layer_bits", "mixed", "mixed_candidates", "mean_bits", "size_budget",
        # What a budget leaves for the weights, and how sensitivities are measured, depends on later steps.
        "act_bits", "bias_correction", "reconstruction",
    )  # fmt: skip

    def check(self, options: QuantConfig) -> None:
        check_choice("quant.alpha_rule", options.alpha_rule, ALPHA_RULES)
        check_choice("quant.grid", options.grid, GRIDS)
        check_choice("quant.sign_bit", options.sign_bit, ["extra", "included"])
        check_choice("quant.granularity", options.granularity, ["model", "tensor", "channel"])
        check_choice("quant.layers", options.layers, ["conv", "all"])
        check_choice("quant.first_and_last", options.first_and_last, ["same", "eight", "float"])
        _check_widths(options)
        names = ("alpha_multiplier", "lp_norm", "mean_bits", "size_budget")
        check_positive({f"quant.{name}": getattr(options, name) for name in names})
        check_percentile("quant.percentile", options.percentile)
        _check_mixed(options)
        several = bool(options.layer_bits) or options.first_and_last == "eight"
        if several and options.granularity == "model" and options.alpha_rule in ("mse", "lp"):
            raise UserError(
                f"quant.alpha_rule={options.alpha_rule} finds the best range for one bit width: layers of several "
                f"widths cannot share it. Set quant.granularity=channel or tensor."
            )

    def run(self, context: Context) -> None:
        if context.options.mixed:
            context.plan, context.sensitivity = plan_mixed(context)
        else:
            context.plan = plan_bits(context.reference, context.options, context.bits)
        context.network = copy.deepcopy(context.reference)
        round_weights(context.network, context.options, context.plan)


def _check_widths(options: QuantConfig) -> None:
    widths, two_sided = options.bit_widths(), options.grid in TWO_SIDED
    if not widths:
        raise UserError("quant.bits is empty. Give a bit width or a list of them, quant.bits='[4,8]' for example.")
    for key, bits in (
        [("quant.bits", b) for b in widths]
        + [(f"quant.layer_bits.{name}", b) for name, b in options.layer_bits.items()]
        + [("quant.mixed_candidates", b) for b in options.mixed_candidates if options.mixed]
    ):
        if bits == TERNARY and two_sided and key != "quant.bits":
            continue
        check_bits(key, bits)
        if bits == 1 and options.sign_bit == "included" and not two_sided:
            raise UserError(
                f"{key}=1 with quant.sign_bit=included leaves no level but zero. Use 2 bits (three levels), "
                f"quant.sign_bit=extra, or quant.grid=float_zero_point."
            )
    if len(set(widths)) < len(widths):
        raise UserError(f"quant.bits={widths} names a bit width twice.")


def _check_mixed(options: QuantConfig) -> None:
    if options.mean_bits is not None and options.size_budget is not None:
        raise UserError("quant.mean_bits and quant.size_budget are two names of one limit. Give one of them.")
    if (options.mean_bits or options.size_budget) and not options.mixed:
        raise UserError("quant.mean_bits and quant.size_budget have no effect without quant.mixed=true.")
    if options.mixed and (options.layer_bits or options.first_and_last != "same"):
        raise UserError("quant.mixed=true chooses every layer's bits: leave layer_bits and first_and_last alone.")
    if options.mixed and options.granularity == "model":
        raise UserError("Mixed precision needs a range for each layer. Set quant.granularity=channel or tensor.")
