"""What costs a quantized network the most accuracy, in a sentence or two, read off its per-layer report.

The ranges are read as they are at the end: distillation may have moved every layer's away from the one that all began
with. Which advice is given when was tried out: `python -m bench.advice` applies it and measures what it changes.
"""

import math
from dataclasses import dataclass

from ptq_exp.quantization.layer_report import LayerReport
from ptq_exp.quantization.options import QuantConfig
from ptq_exp.quantization.report import Report

STARVED = 0.5  # a layer that uses less than this share of its levels wastes a bit
NEGLIGIBLE = 20.0  # dB: noise with a hundredth of the weights' energy
CLIPPED = 1.0  # percent of a layer's weights beyond its range that is worth naming
MARGIN = 3.0  # dB: an output this much noisier than any layer's weights has its noise from elsewhere
RANGE_OF_ACTIVATIONS = "quant.act_rule=mse"
SHARED = 1e-4  # relative: closer alphas are one

ONE_RANGE, CLIPPING, WIDE_RANGE, ACTIVATIONS, FEW_LEVELS = (
    "one range", "clipping", "wide range", "activations", "few levels",
)  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """The likeliest cause of a loss, what was seen, and what to change: overrides, none where nothing is known."""

    cause: str
    text: str
    advice: tuple[str, ...]


def diagnose(report: Report, config: QuantConfig, significant: bool = True) -> str:
    """The finding and the advice in words.

    `significant` tells whether the network lost accuracy beyond chance: where it did not, the words say what would cost
    the most, or, where no layer loses much signal, that nothing needs explaining.
    """
    worst = _worst(report)
    if not significant and worst.sqnr_db >= NEGLIGIBLE:
        return f"No significant loss. The layer with the least signal left is {worst.layer} ({worst.sqnr_db:.1f} dB)."
    found = find(report, config)
    lead = "Likeliest cause:" if significant else "No significant loss. Likeliest to cost accuracy:"
    advice = f" Try {' '.join(found.advice)}." if found.advice else ""
    return f"{lead} {found.text}.{advice}"


def find(report: Report, config: QuantConfig) -> Finding:
    """The likeliest cause. The layer named is the one whose weights lost the most (lowest SQNR)."""
    rows, worst = report.layers, _worst(report)
    hurt = min(rows, key=lambda row: row.output_sqnr_db)
    if hurt.act_bits is not None and hurt.output_sqnr_db < worst.sqnr_db - MARGIN:
        text = (
            f"{hurt.act_bits}-bit activations on the way to {hurt.layer}, whose output keeps "
            f"{hurt.output_sqnr_db:.1f} dB of signal over noise, where all weights keep {worst.sqnr_db:.1f} or more"
        )
        finer = (RANGE_OF_ACTIVATIONS,) if config.act_rule != "mse" else _learning(report, config)
        return Finding(ACTIVATIONS, text, finer)
    starved = [row for row in rows if row.levels_used < STARVED * _most_levels(row, config)]
    if worst in starved and has_one_range(report) and worst.alpha > worst.weight_max:
        return Finding(ONE_RANGE, _one_range(worst, starved, rows, config), _better_range(config))
    if worst.clipped_percent > CLIPPED:
        text = (
            f"clipping in {worst.layer}, where {worst.clipped_percent:.1f} % of the weights lie beyond alpha "
            f"({worst.alpha:.3g}; largest weight {worst.weight_max:.3g}); {_signal(worst)}"
        )
        return Finding(CLIPPING, text, _better_range(config) or _learning(report, config))
    if worst in starved:
        text = (
            f"a range wider than the weights of {worst.layer}, which use {worst.levels_used} of "
            f"{worst.levels_available} levels; {_signal(worst)}"
        )
        return Finding(WIDE_RANGE, text, _better_range(config) or _learning(report, config))
    text = (
        f"rounding to {worst.levels_available} levels, most in {worst.layer}, which uses {worst.levels_used} of them; "
        f"{_signal(worst)}"
    )
    return Finding(FEW_LEVELS, text, _more_levels(report, config) or _learning(report, config))


def has_one_range(report: Report) -> bool:
    """Whether all layers have one alpha now, whatever they began with."""
    first = report.layers[0].alpha
    return len(report.layers) > 1 and all(math.isclose(row.alpha, first, rel_tol=SHARED) for row in report.layers)


def _worst(report: Report) -> LayerReport:
    return min(report.layers, key=lambda row: row.sqnr_db)


def _most_levels(row: LayerReport, config: QuantConfig) -> int:
    """The levels that a layer, or each of its channels, could use: no more than it has weights."""
    channels = int(row.shape.partition("x")[0]) if config.granularity == "channel" else 1
    return min(row.levels_available, row.weights // channels)


def _signal(row: LayerReport) -> str:
    """How much is left of a layer."""
    return f"its weights keep {row.sqnr_db:.1f} dB of signal over rounding noise, its output {row.output_sqnr_db:.1f}"


def _one_range(worst: LayerReport, starved: list[LayerReport], rows: list[LayerReport], config: QuantConfig) -> str:
    share = sum(row.weights for row in starved) / sum(row.weights for row in rows)
    origin = "the first convolution's spread" if config.alpha_rule == "first_conv_std" else "the network as a whole"
    return (
        f"one alpha ({worst.alpha:.3g}) for all layers, set by {origin}. It is "
        f"{worst.alpha / worst.weight_max:.1f} times the largest weight of {worst.layer}, which is left with "
        f"{worst.levels_used} of {worst.levels_available} levels ({_signal(worst)}); {len(starved)} of {len(rows)} "
        f"layers, with {100 * share:.0f} % of the weights, use less than half of theirs"
    )


def _better_range(config: QuantConfig) -> tuple[str, ...]:
    """What is missing of the range that helped the most often; it is found in seconds."""
    channel = () if config.granularity == "channel" else ("quant.granularity=channel",)
    return channel + (() if config.alpha_rule == "lp" else ("quant.alpha_rule=lp",))


def _more_levels(report: Report, config: QuantConfig) -> tuple[str, ...]:
    """A grid that fits both ends of the weights, at as many stored bits, has a level more and wastes none on a side."""
    return () if config.grid != "symmetric" else ("quant.grid=asymmetric", *_same_storage(report, config))


def _learning(report: Report, config: QuantConfig) -> tuple[str, ...]:
    """Learned rounding and distillation, at as many stored bits, unless that is what was done."""
    return () if config.reconstruction.distill_steps else ("quant=best", *_same_storage(report, config))


def _same_storage(report: Report, config: QuantConfig) -> tuple[str, ...]:
    """The bits that a method without a sign on top of them takes for the same storage, where they are others."""
    on_top = config.sign_bit == "extra" and config.grid not in ("asymmetric", "float_zero_point")
    return (f"quant.bits={round(report.bits_mean)}",) if on_top else ()
