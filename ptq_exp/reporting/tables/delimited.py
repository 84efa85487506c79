"""The result table as CSV for programs: every number with all its digits."""

import csv
import io
import statistics
from collections.abc import Iterable
from typing import Any

from ptq_exp.reporting.tables import TableContent
from ptq_exp.results.comparison import Comparison
from ptq_exp.results.records import BitWidthResult
from ptq_exp.results.series import Row, verdict

ENDS = ("_ci_low", "_ci_high")


def delimited(content: TableContent) -> str:
    """One line per setting and bit width, with `<number>_mean`, `<number>_std` and `seeds`. With `unfold`, one line per
    job and bit width, with the numbers under their own names.

    The settings in which jobs differ have a column each. Failed jobs come last, with their `error`.
    """
    lines = [
        {"series": label} | settings(label) | _widths(row) | (_single(row) if content.unfold else _several(row))
        for label, rows in content.rows.items() for row in rows
    ]  # fmt: skip
    for failure in content.failures:
        named = {"series": failure.overrides} | settings(failure.overrides)
        lines.append(named | {"bits": failure.bits, "error": failure.error})
    return as_csv(lines)


def comparison_csv(comparisons: Iterable[Comparison]) -> str:
    """One line per pair of methods: `first` minus `second`, in points of top-1."""
    return as_csv([
        {
            "bits_per_weight": found.width.stored, "act_bits": found.width.act_bits or "", "first": found.first,
            "second": found.second, "difference": found.points,
            "ci_low": found.tested.ci_low if found.tested else "",
            "ci_high": found.tested.ci_high if found.tested else "", "verdict": found.verdict,
        }
        for found in comparisons
    ])  # fmt: skip


def settings(label: str) -> dict[str, str]:
    """The values in a label by key: `quant=best seed=0`. A value may contain blanks."""
    found: dict[str, str] = {}
    for word in label.split(" "):
        key, equals, value = word.partition("=")
        if equals:
            found[key.lstrip("+")] = value
        elif found and word:
            found[list(found)[-1]] += f" {word}"
    return found


def as_csv(lines: list[dict[str, Any]]) -> str:
    """Lines with all columns that any of them has, in the order in which they appear."""
    columns = list(dict.fromkeys(key for line in lines for key in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _widths(row: Row) -> dict[str, Any]:
    mean = row.mean
    act_bits = "" if mean.act_bits is None else mean.act_bits
    return {"bits": mean.bits, "bits_per_weight": mean.bits_mean, "act_bits": act_bits}


def _numbers(result: BitWidthResult) -> dict[str, float]:
    return {name: value for name, value in result.metrics().items() if name != "bits_mean"}


def _single(row: Row) -> dict[str, Any]:
    return _numbers(row.mean) | {"against_float": verdict(row.mean)}


def _several(row: Row) -> dict[str, Any]:
    """Means and sample standard deviations. The standard deviation of one seed is empty, and intervals have none."""
    known = [_numbers(result) for result in row.results]
    found: dict[str, Any] = {"seeds": len(row.results)}
    for name in known[0]:
        values = [numbers[name] for numbers in known if name in numbers]
        mean = statistics.fmean(values)
        std = statistics.stdev(values) if len(values) > 1 else ""
        found |= {name: mean} if name.endswith(ENDS) else {f"{name}_mean": mean, f"{name}_std": std}
    return found | {"against_float": verdict(row.mean)}
