"""What to search for: the configuration group `search`. Imports no torch, so that `--help` is fast."""

from dataclasses import dataclass

from ptq_exp.base.errors import UserError, check_choice
from ptq_exp.base.options import option

WEIGHTS, ACTIVATIONS, MIXED = "weights", "activations", "mixed"


@dataclass
class SearchOptions:
    """Group `search`. With `name=null`, a job quantizes to `quant.bits` and searches for nothing."""

    name: str | None = option(
        None, "fewest: find the smallest network within max_drop; null: no search", choices=["fewest"]
    )
    max_drop: float = option(1.0, "margin: the largest acceptable drop of top-1, in points", above=0, below=100)
    over: list[str] = option(
        [WEIGHTS],
        "what may become narrower: weights, activations, or both (weights first)",
        kind="list[str]: weights, activations",
    )
    confidence: float = option(
        95.0, "percent; the confidence that the network found is within the margin", at_least=50, below=100
    )
    bits: list[int] | None = option(
        None,
        "values of quant.bits to try, from wide to narrow; null: 8, 6, 5, 4, 3, 2 and, if activations are not searched "
        "(one bit leaves them little of the margin), 1",
        at_least=1,
        at_most=16,
    )
    act_bits: list[int] = option(
        [8, 6, 5, 4, 3, 2], "values of quant.act_bits to try, from wide to narrow", at_least=1, at_most=16
    )
    mixed: bool = option(
        True, "true: below the narrowest width for all weights, also try a width for each layer (mixed precision)"
    )
    brief: float = option(
        0.05,
        "weights: before a width is learned, learn it with this share of quant.reconstruction.steps, without "
        "distillation, unless that is fewer than 50 steps; 0: do not",
        at_least=0,
        below=1,
    )
    reserve: float = option(
        0.25, "share of the margin that the weights leave to the activations if both are searched", at_least=0, below=1
    )

    @property
    def widths(self) -> list[int]:
        """The values of `quant.bits` to try."""
        return self.bits or [8, 6, 5, 4, 3, 2, *([] if ACTIVATIONS in self.over else [1])]

    def check(self) -> None:
        """Raise `UserError` for values that do not describe a search."""
        for entry in self.over:
            check_choice("search.over", entry, [WEIGHTS, ACTIVATIONS])
        if not self.over:
            raise UserError("search.over is empty. Give [weights], [activations] or [weights,activations].")
        for key, widths in (("search.bits", self.bits), ("search.act_bits", self.act_bits)):
            if widths is not None and not widths:
                raise UserError(f"{key} is empty. Give bit widths from wide to narrow, for example {key}='[8,4,2]'.")
            if widths is not None and sorted(set(widths), reverse=True) != list(widths):
                raise UserError(f"{key}={widths} must descend from wide to narrow, for example {key}='[8,4,2]'.")
