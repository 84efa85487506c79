"""The report on one layer: plain data without torch, so that plotting processes need not import it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerReport:
    """One row of the per-layer table. For a layer with an alpha per channel, `alpha` is their mean."""

    layer: str
    shape: str
    weights: int
    stored_bits: float  # per weight, sign included; 1.6 for three levels
    alpha: float
    weight_std: float
    weight_max: float  # largest magnitude
    clipped_percent: float  # weights beyond alpha
    sparsity_float_percent: float  # weights that are exactly zero in the float network
    sparsity_percent: float  # ... and in the quantized one
    levels_used: int  # distinct codes in use (per channel: the mean over channels, rounded)
    levels_available: int
    sqnr_db: float  # of the weights: 10 log10(sum w^2 / sum (w - w_q)^2)
    output_sqnr_db: float  # of the layer's output in the quantized network, against the float network's
    act_bits: int | None
    act_alpha: float | None
    # Those that can be used: a channel of 27 weights with its own alpha uses 27. None in records of earlier versions.
    levels_usable: int | None = None

    @property
    def most_levels(self) -> int:
        """The most levels that the layer, or each of its channels, can use."""
        return self.levels_usable or self.levels_available
