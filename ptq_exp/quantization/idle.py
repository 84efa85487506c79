"""Options of a method that have no effect beside the others. Imports no torch."""

from collections.abc import Callable, Iterable

from ptq_exp.quantization.options import QuantConfig

Condition = Callable[[QuantConfig], object]


def _reads_images(options: QuantConfig) -> bool:
    """Whether the quantized network depends on the calibration images."""
    corrections = options.bias_correction or options.batch_norm_reestimation
    return options.act_bits is not None or corrections or options.mixed or _learns(options)


def _distills(options: QuantConfig) -> bool:
    return options.reconstruction.distill_steps > 0


def _learns(options: QuantConfig) -> bool:
    return options.learns


# Keys, when they have an effect, and what is missing otherwise. Rules of your own may read the keys of all rules.
_RULES = ("first_conv_std", "std", "max", "percentile", "mse", "lp")
_NEEDS: list[tuple[tuple[str, ...], Condition, str]] = [
    (
        ("act_alpha", "act_rule", "act_percentile", "act_coverage", "act_zero_point", "act_learned", "act_input_image",
         "act_residual", "reduce_range", "scales", "reconstruction.act_lr", "reconstruction.act_up_to_bits",
         "reconstruction.drop"),
        lambda options: options.act_bits is not None, "without quant.act_bits",
    ),
    (("act_rule", "act_percentile"), lambda options: options.act_alpha is None, "with quant.act_alpha"),
    (("act_percentile",), lambda options: options.act_rule not in ("max", "mse"), "without quant.act_rule=percentile"),
    (
        ("act_input_image", "act_residual"), lambda options: options.act_coverage != "all",
        "with quant.act_coverage=all, which contains it",
    ),
    (("act_learned",), _learns, "with quant.rounding=nearest"),
    (
        ("alpha_multiplier",), lambda options: options.alpha_rule not in {*_RULES} - {"std", "first_conv_std"},
        "without quant.alpha_rule=std or first_conv_std",
    ),
    (
        ("percentile",), lambda options: options.alpha_rule not in {*_RULES} - {"percentile"},
        "without quant.alpha_rule=percentile",
    ),
    (("lp_norm",), lambda options: options.alpha_rule not in {*_RULES} - {"lp"}, "without quant.alpha_rule=lp"),
    (
        ("sign_bit",), lambda options: options.grid not in ("asymmetric", "float_zero_point"),
        "with a grid that has a zero-point, whose codes need no sign",
    ),
    (("mixed_candidates",), lambda options: options.mixed, "without quant.mixed=true"),
    (("bits",), lambda options: options.mean_bits is None, "with quant.mean_bits"),
    (("bits",), lambda options: options.size_budget is None, "with quant.size_budget"),
    (
        ("reconstruction.steps", "reconstruction.batch_size", "reconstruction.lr", "reconstruction.act_lr",
         "reconstruction.penalty", "reconstruction.drop"),
        lambda options: options.rounding != "nearest", "with quant.rounding=nearest",
    ),
    (
        ("reconstruction.up_to_bits", "reconstruction.act_up_to_bits", "reconstruction.memory_gib"), _learns,
        "with quant.rounding=nearest",
    ),
    (
        tuple(f"reconstruction.distill_{name}" for name in
              ("batch_size", "lr", "mixup", "cutmix", "temperature", "mirrored")),
        _distills, "with quant.reconstruction.distill_steps=0",
    ),
    (
        ("calibration_images", "calibration_seed"), _reads_images,
        "on the quantized network: its weights are rounded to nearest, which does not look at images",
    ),
]  # fmt: skip


def idle(options: QuantConfig, given: Iterable[str]) -> list[str]:
    """One sentence for each key of `quant` among the `given` ones that has no effect, such as `act_rule`."""
    found: dict[str, str] = {}
    for key in given:
        for keys, active, why in _NEEDS:
            if key in keys and not active(options):
                found.setdefault(key, f"quant.{key} has no effect {why}.")
    return list(found.values())
