"""One sentence that says what costs a quantized network the most accuracy, read off its per-layer report."""

from ptq_exp.quantization.report import LayerReport, Report
from ptq_exp.quantization.spec import QuantConfig

STARVED = 0.5  # a layer that uses less than this share of its levels wastes a bit
NEGLIGIBLE = 20.0  # dB: noise with a hundredth of the weights' energy
CLIPPED = 1.0  # percent of a layer's weights beyond its range that is worth naming


def diagnose(report: Report, config: QuantConfig, significant: bool = True) -> str:
    """The sentence. The layer named is the one whose weights lost the most (lowest SQNR).

    `significant` tells whether the network lost accuracy beyond chance: where it did not, the sentence says what would
    cost the most, or, where no layer loses much signal, that nothing needs explaining.
    """
    rows = report.layers
    worst = min(rows, key=lambda row: row.sqnr_db)
    if not significant and worst.sqnr_db >= NEGLIGIBLE:
        return (
            f"Nothing to explain: the accuracy is not distinguishable from the float network's. The layer that loses "
            f"the most signal is {worst.layer}, with {worst.sqnr_db:.1f} dB left."
        )
    # A small layer cannot use more levels than it has weights.
    starved = [row for row in rows if row.levels_used < STARVED * min(row.levels_available, row.weights)]
    loss = (
        f"its weights keep {worst.sqnr_db:.1f} dB of signal over rounding noise, its output {worst.output_sqnr_db:.1f}"
    )
    lead = "What costs the most accuracy:" if significant else "No loss beyond chance. Likeliest to cost accuracy:"
    if worst in starved and config.granularity == "model" and worst.alpha > worst.weight_max:
        share = sum(row.weights for row in starved) / sum(row.weights for row in rows)
        return (
            f"{lead} one alpha ({worst.alpha:.3g}) for all layers, set by {_setter(config)}. It is "
            f"{worst.alpha / worst.weight_max:.1f} times the largest weight of {worst.layer}, which is left with "
            f"{worst.levels_used} of {worst.levels_available} levels ({loss}); {len(starved)} of {len(rows)} layers, "
            f"with {100 * share:.0f} % of the weights, use less than half of theirs. Try quant.granularity=channel "
            f"with quant.alpha_rule=mse."
        )
    if worst.clipped_percent > CLIPPED:
        return (
            f"{lead} clipping in {worst.layer}: {worst.clipped_percent:.1f} % of its weights lie beyond alpha "
            f"({worst.alpha:.3g}; largest {worst.weight_max:.3g}); {loss}. {_other_range(config)}"
        )
    if worst in starved:
        return (
            f"{lead} a range wider than the weights of {worst.layer}, which use {worst.levels_used} of "
            f"{worst.levels_available} levels; {loss}. Try quant.alpha_rule=mse or a finer quant.granularity."
        )
    hurt = min(rows, key=lambda row: row.output_sqnr_db)
    if hurt.act_bits is not None and hurt.output_sqnr_db < hurt.sqnr_db - 3:
        return (
            f"{lead} {hurt.act_bits}-bit activations on the way to {hurt.layer}: its output keeps "
            f"{hurt.output_sqnr_db:.1f} dB, its weights alone {hurt.sqnr_db:.1f}. Try quant=best, which learns the "
            f"clipping values."
        )
    return f"{lead} {_few_levels(worst, loss, config)}"


def _other_range(config: QuantConfig) -> str:
    if config.alpha_rule not in ("mse", "lp"):
        return "Try quant.alpha_rule=mse."
    chosen = "That alpha is already the one with the smallest error"
    return f"{chosen}: what helps now is {_remedy(config)}."


def _remedy(config: QuantConfig) -> str:
    return "learned rounding (quant=best)" if config.rounding == "nearest" else "more bits there (quant=mixed)"


def _setter(config: QuantConfig) -> str:
    return "the first convolution's spread" if config.alpha_rule == "first_conv_std" else "the network as a whole"


def _few_levels(worst: LayerReport, loss: str, config: QuantConfig) -> str:
    return (
        f"the rounding itself, {worst.levels_available} levels, most in {worst.layer}; {loss}. The levels are well "
        f"used ({worst.levels_used} of {worst.levels_available}): what helps now is {_remedy(config)}."
    )
