"""The likeliest cause of a quantized network's accuracy loss, derived from its per-layer report.

The final ranges are used, because distillation may have changed each layer's range from a shared initial one. The
advice was chosen by experiment: `python -m bench.advice` applies it and measures its effect.
"""

import math
from dataclasses import dataclass

from ptq_exp.quantization.layer_report import LayerReport
from ptq_exp.quantization.options import QuantConfig
from ptq_exp.quantization.report import Report

STARVED = 0.5  # a layer that uses less than this share of its levels wastes a bit
NEGLIGIBLE = 20.0  # dB: noise with one hundredth of the weights' energy
CLIPPED = 1.0  # percent of a layer's weights beyond its range above which clipping is reported
MARGIN = 3.0  # dB: if an output is noisier than all weights by more than this, weights are not the cause
RANGE_OF_ACTIVATIONS = "quant.act_rule=mse"
SMALLEST_ERROR = ("mse", "lp")  # rules of alpha that clip only where this lowers the error
SHARED = 1e-4  # relative: closer alphas count as equal

ONE_RANGE, CLIPPING, WIDE_RANGE, ACTIVATIONS, FEW_LEVELS = (
    "one range", "clipping", "wide range", "activations", "few levels",
)  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """The likeliest cause of a loss, the observation in short and in full, and the advice: overrides to try, or none if
    none are known."""

    cause: str
    short: str
    text: str
    advice: tuple[str, ...]


def diagnose(report: Report, config: QuantConfig, significant: bool = True) -> str:
    """The finding and the advice as text.

    `significant` tells whether the accuracy loss is significant. If it is not, the text names the likeliest cause of a
    loss or, if no layer loses much signal, states that there is no significant loss.
    """
    worst = _worst(report)
    if not significant and worst.sqnr_db >= NEGLIGIBLE:
        return f"No significant loss. The layer with the lowest SQNR is {worst.layer} ({worst.sqnr_db:.1f} dB)."
    found = find(report, config)
    lead = "Likeliest cause:" if significant else "No significant loss. Likeliest to cost accuracy:"
    advice = f" Try {' '.join(found.advice)}." if found.advice else ""
    return f"{lead} {found.text}.{advice}"


def diagnose_in_short(report: Report, config: QuantConfig, told: set[str]) -> str:
    """The cause of a significant loss in one sentence for the terminal, with the advice unless `told` contains it.

    `told` is the advice of the earlier sentences. New advice is added to it.
    """
    found = find(report, config)
    advice = f" Try {' '.join(found.advice)}." if found.advice else ""
    if advice in told:
        advice = ""
    told.add(advice)
    return f"Likeliest cause: {found.short}.{advice}"


def find(report: Report, config: QuantConfig) -> Finding:
    """The likeliest cause. The named layer is the one whose weights have the lowest SQNR."""
    rows, worst = report.layers, _worst(report)
    hurt = min(rows, key=lambda row: row.output_sqnr_db)
    if hurt.act_bits is not None and hurt.output_sqnr_db < worst.sqnr_db - MARGIN:
        text = (
            f"{hurt.act_bits}-bit activations on the way to {hurt.layer}, whose output keeps "
            f"{hurt.output_sqnr_db:.1f} dB of signal over noise, where all weights keep {worst.sqnr_db:.1f} or more"
        )
        short = f"{hurt.act_bits}-bit activations, most before {hurt.layer} ({hurt.output_sqnr_db:.1f} dB)"
        finer = (RANGE_OF_ACTIVATIONS,) if config.act_rule != "mse" else _learning(report, config)
        return Finding(ACTIVATIONS, short, text, finer)
    starved = [row for row in rows if row.levels_used < STARVED * row.most_levels]
    if worst in starved and has_one_range(report) and worst.alpha > worst.weight_max:
        short = f"one alpha for all layers leaves {worst.layer} {_levels(worst)}"
        return Finding(ONE_RANGE, short, _one_range(worst, starved, rows, config), _better_range(config))
    if worst.clipped_percent > CLIPPED:
        return _clipping(worst, config, _better_range(config) or _learning(report, config))
    if worst in starved:
        text = (
            f"a range wider than the weights of {worst.layer}, which use {worst.levels_used} of "
            f"{worst.levels_available} levels; {_signal(worst)}"
        )
        short = f"a range that leaves {worst.layer} {_levels(worst)}"
        return Finding(WIDE_RANGE, short, text, _better_range(config) or _learning(report, config))
    text = (
        f"rounding to {worst.levels_available} levels, most in {worst.layer}, which uses {worst.levels_used} of them; "
        f"{_signal(worst)}"
    )
    short = f"rounding to {worst.levels_available} levels, most in {worst.layer} ({worst.sqnr_db:.1f} dB)"
    return Finding(FEW_LEVELS, short, text, _more_levels(report, config) or _learning(report, config))


def has_one_range(report: Report) -> bool:
    """Whether all layers end with the same alpha, regardless of the initial ones."""
    first = report.layers[0].alpha
    return len(report.layers) > 1 and all(math.isclose(row.alpha, first, rel_tol=SHARED) for row in report.layers)


def _worst(report: Report) -> LayerReport:
    return min(report.layers, key=lambda row: row.sqnr_db)


def _clipping(worst: LayerReport, config: QuantConfig, advice: tuple[str, ...]) -> Finding:
    """A range narrower than the weights. If its rule looks for the smallest error, the levels are too few for both."""
    beyond = f"{worst.clipped_percent:.1f} % of the weights"
    range_of = f"alpha {worst.alpha:.3g}, largest weight {worst.weight_max:.3g}"
    if config.alpha_rule in SMALLEST_ERROR:
        levels = f"{worst.levels_available} levels are few for {worst.layer}"
        short = f"{levels}: the range with the smallest error clips {beyond}"
        return Finding(CLIPPING, short, f"{short} ({range_of}); {_signal(worst)}", advice)
    text = f"clipping in {worst.layer}, where {beyond} lie beyond the range ({range_of}); {_signal(worst)}"
    return Finding(CLIPPING, f"{beyond} of {worst.layer} are clipped", text, advice)


def _levels(row: LayerReport) -> str:
    return f"{row.levels_used} of {row.levels_available} levels"


def _signal(row: LayerReport) -> str:
    """The SQNR of a layer's weights and output, as text."""
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
    """The missing parts of the range that helped most often. It is found in seconds."""
    channel = () if config.granularity == "channel" else ("quant.granularity=channel",)
    return channel + (() if config.alpha_rule == "lp" else ("quant.alpha_rule=lp",))


def _more_levels(report: Report, config: QuantConfig) -> tuple[str, ...]:
    """A grid fitted to both ends of the weights. With the same stored bits it has one more level and wastes none."""
    return () if config.grid != "symmetric" else ("quant.grid=asymmetric", *_same_storage(report, config))


def _learning(report: Report, config: QuantConfig) -> tuple[str, ...]:
    """Learned rounding and distillation with the same stored bits, unless they were used already."""
    return () if config.reconstruction.distill_steps else ("quant=best", *_same_storage(report, config))


def _same_storage(report: Report, config: QuantConfig) -> tuple[str, ...]:
    """The `quant.bits` with the same storage for a method without an extra sign bit, if they differ."""
    on_top = config.sign_bit == "extra" and config.grid not in ("asymmetric", "float_zero_point")
    return (f"quant.bits={round(report.bits_mean)}",) if on_top else ()
