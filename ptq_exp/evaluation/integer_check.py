"""The result of the integer reference. Imports no torch, because records contain it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LevelRow:
    """A quantizer of activations, in the simulation and in the integer reference."""

    tensor: str  # the layer or the operand
    bits: int
    values: int  # that were compared
    other_level_percent: float  # with the same codes in front of the layer: the order of summation alone
    largest_distance: float  # from the boundary between two levels, in levels, of the values on another level
    accumulator_bits: int | None  # that the sums of the layer need on the images, sign included; None for operands
    accumulator_bits_at_most: int | None  # whatever the image


@dataclass(frozen=True)
class IntegerCheck:
    """How a network in integer arithmetic differs from its simulation in float32."""

    images: int
    agreement: float  # percent of the images with the same prediction, ties rounded half to even as in the simulation
    agreement_exact_biases: float  # the same with biases that are not rounded to the scale of the accumulator
    agreement_half_away: float  # the same with ties rounded away from zero, as some runtimes do
    other_level_percent: float  # of all activations, with the same codes in front of the layer
    exact_bias_percent: float  # the same with biases that are not rounded: the order of summation alone
    largest_distance: float  # from the boundary between two levels, in levels, of these
    propagated_percent: float  # of all activations, if the differences of earlier layers reach the later ones
    rows: tuple[LevelRow, ...]

    def metrics(self) -> dict[str, float]:
        """The measured numbers, by name."""
        widest = max((row.accumulator_bits or 0 for row in self.rows), default=0)
        return {"integer_agreement": self.agreement, "integer_agreement_exact_biases": self.agreement_exact_biases,
                "integer_other_level_percent": self.other_level_percent,
                "accumulator_bits": float(widest)}  # fmt: skip

    def sentence(self) -> str:
        """What the log and the table say."""
        bits = [row.accumulator_bits_at_most for row in self.rows if row.accumulator_bits_at_most]
        seen = [row.accumulator_bits for row in self.rows if row.accumulator_bits]
        over = sum(width > 16 for width in seen)
        return (
            f"Integer reference on {self.images} images: {self.agreement:.2f} % of the predictions are those of the "
            f"simulation.{self._cause()} Accumulators need at most {max(bits, default=0)} bits for any image, and "
            f"{max(seen, default=0)} on these ({over} of {len(seen)} layers more than 16)."
        )

    def _cause(self) -> str:
        if not self.other_level_percent:
            return ""
        reasons = []
        if self.exact_bias_percent:
            reasons.append(
                f"{self.exact_bias_percent:.2g} % by the order of summation (all within {self.largest_distance:.1g} "
                f"levels of the boundary between two)"
            )
        if self.other_level_percent > 2 * self.exact_bias_percent:
            reasons.append(
                f"{self.other_level_percent - self.exact_bias_percent:.2g} % by biases rounded to the scale of the "
                f"accumulator, without which {self.agreement_exact_biases:.2f} % of the predictions agree "
                f"(quant.integer_biases=true simulates the rounding)"
            )
        return f" {self.other_level_percent:.2g} % of the activations land on another level: {', '.join(reasons)}."
