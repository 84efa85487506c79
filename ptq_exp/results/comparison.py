"""Methods compared with each other: paired tests on the same test images, at the same bits."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from ptq_exp.evaluation.paired import Difference, difference
from ptq_exp.results.series import NOT_DISTINGUISHABLE, Row, Rows, guesses, number

BETTER, WORSE, NOT_TESTED = "better", "worse", "not tested"
WHY_NOT_TESTED = (
    "Not tested: the two were measured on different test images, or by a version that did not record which images are "
    "classified correctly."
)


class Width(NamedTuple):
    """The bits at which methods are compared. Mixed precision rarely hits a mean exactly, so one decimal counts."""

    stored: float  # mean stored bits per weight, to one decimal
    act_bits: int

    @classmethod
    def of(cls, row: Row) -> "Width":
        """The width of a line; `act_bits` is 0 if only weights are quantized."""
        return cls(round(row.mean.bits_mean, 1), row.mean.act_bits or 0)

    def __str__(self) -> str:
        return f"w{number(self.stored)} a{self.act_bits}" if self.act_bits else number(self.stored)

    def words(self) -> str:
        """`4 bits per weight`."""
        return f"{number(self.stored)} bits per weight" + (f", {self.act_bits}-bit activations" * bool(self.act_bits))


@dataclass(frozen=True)
class Comparison:
    """Two methods at the same bits. The difference is `first` minus `second`, in points of top-1."""

    width: Width
    first: str
    second: str
    points: float
    tested: Difference | None

    @property
    def verdict(self) -> str:
        """Whether the 95 % interval of the difference excludes zero."""
        if self.tested is None:
            return NOT_TESTED
        if self.tested.ci_low <= 0 <= self.tested.ci_high:
            return NOT_DISTINGUISHABLE
        return BETTER if self.tested.ci_low > 0 else WORSE

    def numbers(self) -> str:
        """`+1.20 points, 95 % CI +0.40 – +2.00`."""
        interval = f", 95 % CI {self.tested.ci_low:+.2f} – {self.tested.ci_high:+.2f}" if self.tested else ""
        return f"{self.points:+.2f} points{interval}"


def compare(first: Row, second: Row) -> Difference | None:
    """The difference of two lines, or None if their test images differ or are unknown.

    Lines with the same seeds are paired seed by seed, other lines in all combinations. The ends of the intervals are
    averaged, as in `Row.mean`.
    """
    if len(set(first.seeds)) == len(first.seeds) and set(first.seeds) == set(second.seeds):
        by_seed = dict(zip(second.seeds, second.results, strict=True))
        pairs = [(result, by_seed[seed]) for result, seed in zip(first.results, first.seeds, strict=True)]
    else:
        pairs = [(ours, theirs) for ours in first.results for theirs in second.results]
    found = [difference(ours.correct, theirs.correct) for ours, theirs in pairs]
    known = [each for each in found if each is not None]
    if len(known) < len(found):
        return None
    return Difference(*(statistics.fmean(getattr(d, name) for d in known) for name in ("points", "ci_low", "ci_high")))


def comparison(width: Width, first: tuple[str, Row], second: tuple[str, Row]) -> Comparison:
    """Two lines with their labels."""
    (ours, one), (theirs, other) = first, second
    return Comparison(width, ours, theirs, one.mean.top1 - other.mean.top1, compare(one, other))


def by_width(rows: Rows) -> dict[Width, list[tuple[str, Row]]]:
    """The lines at every width with their labels, fewest bits first."""
    found: dict[Width, list[tuple[str, Row]]] = {}
    for label, group in rows.items():
        for row in group:
            found.setdefault(Width.of(row), []).append((label, row))
    return dict(sorted(found.items()))


def against_best(rows: Rows) -> list[Comparison]:
    """The best method at each width against every other one there, the nearest first. Networks whose float network is
    no better than guessing are not compared."""
    found = []
    judged = {label: [row for row in group if not guesses(row.mean)] for label, group in rows.items()}
    for width, lines in by_width(judged).items():
        best, *others = sorted(lines, key=lambda line: -line[1].mean.top1)
        found += [comparison(width, best, other) for other in others if other[0] != best[0]]
    return found


def significantly_best(rows: Rows) -> list[tuple[str, Row]]:
    """The lines that are significantly better than every other line at their width, with their labels."""
    verdicts: dict[Width, list[str]] = {}
    for found in against_best(rows):
        verdicts.setdefault(found.width, []).append(found.verdict)
    return [
        _best(lines)
        for width, lines in by_width(rows).items() if set(verdicts.get(width, [])) == {BETTER}
    ]  # fmt: skip


def side_by_side(first: Rows, second: Rows) -> list[Comparison]:
    """Two sweeps at each width that both have: series with the same label or, if there is none, the best of each."""
    ours, theirs = by_width(first), by_width(second)
    found = []
    for width in (width for width in ours if width in theirs):
        same = [(one, other) for one in ours[width] for other in theirs[width] if one[0] == other[0]]
        found += [comparison(width, *pair) for pair in same or [(_best(ours[width]), _best(theirs[width]))]]
    return found


def _best(lines: list[tuple[str, Row]]) -> tuple[str, Row]:
    return max(lines, key=lambda line: line[1].mean.top1)


def sentences(comparisons: Iterable[Comparison]) -> list[str]:
    """One sentence per width on the best method there, from `against_best`."""
    groups: dict[Width, list[Comparison]] = {}
    for found in comparisons:
        groups.setdefault(found.width, []).append(found)
    return [_sentence(width, group) for width, group in groups.items() if all(found.tested for found in group)]


def _sentence(width: Width, group: list[Comparison]) -> str:
    best, nearest = group[0].first, group[0]
    if tied := [found for found in group if found.verdict != BETTER]:
        labels = [found.second for found in tied]
        names = " and ".join(filter(None, [", ".join(labels[:-1]), labels[-1]]))
        shown = f" ({tied[0].numbers()})" if len(tied) == 1 else ""
        return f"{width.words()}: {best} is not distinguishable from {names}{shown}."
    others = nearest.second if len(group) == 1 else f"every other method; the nearest is {nearest.second}"
    return f"{width.words()}: {best} is significantly better than {others} ({nearest.numbers()})."
