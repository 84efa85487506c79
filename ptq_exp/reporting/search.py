"""A search in tables: its trials, and the answers of several searches. For the terminal, Markdown and HTML."""

from collections.abc import Sequence

from ptq_exp.base.console import duration
from ptq_exp.reporting.table import JOB, Cells
from ptq_exp.results.records import BRIEF, CALIBRATED, LEARNED, NEAREST, SearchRecord, TrialResult
from ptq_exp.results.search import effort, kilobytes, most_cautious
from ptq_exp.results.series import number, stored_width

HOW = "made by"
WORDS = (JOB, HOW, "limit")
WAYS = {NEAREST: "rounding", BRIEF: "brief learning", CALIBRATED: "calibration", LEARNED: "learning"}
TRIALS = ["trial", "bits/\nweight", "act.\nbits", HOW, "top-1\n%", "drop", "limit", "kB"]
ANSWERS = [JOB, "float\n%", "top-1\n%", "bits/\nweight", "act.\nbits", "kB", "×\nsmaller", "drop\nat most"]


def trial_cells(record: SearchRecord) -> Cells:
    """One line per trial, in order. The network that was found has a star."""
    return Cells(TRIALS, [_trial(n, found, n == record.chosen) for n, found in enumerate(record.trials)])


def _trial(place: int, found: TrialResult, chosen: bool) -> list[str]:
    result = found.result
    return [
        f"{place + 1}{' *' if chosen else ''}",
        stored_width(result),
        _bits(result.act_bits),
        WAYS[found.trial.how] + (", mixed" if found.trial.mean_bits is not None else ""),
        f"{result.top1:.2f}",
        f"{result.top1_drop:+.2f}",
        f"{found.limit:.2f} {'<' if found.passed else '≥'} {number(found.margin)}",
        kilobytes(result.size_bytes / 1000),
    ]


def answer_cells(records: Sequence[SearchRecord]) -> Cells:
    """One line per search; searches that differ only in the seed are followed by the most cautious answer."""
    lines = [_answer(record.label or record.network, record) for record in records]
    groups = most_cautious(records)
    lines += [_answer(f"{label or record.network}, most cautious seed", record) for label, record in groups.items()]
    return Cells(ANSWERS, lines)


def _answer(label: str, record: SearchRecord) -> list[str]:
    baseline = f"{record.trials[0].result.top1_float:.2f}" if record.trials else ""
    if record.best is None:
        return [label, baseline, "none fits", "", "", "", "", ""]
    result = record.best.result
    return [
        label,
        baseline,
        f"{result.top1:.2f}",
        stored_width(result),
        _bits(result.act_bits),
        kilobytes(result.size_bytes / 1000),
        f"{result.size_bytes_float / result.size_bytes:.1f}",
        f"{max(record.best.limit, 0):.2f}",
    ]


def _bits(bits: int | None) -> str:
    return "float" if bits is None else str(bits)


def explanation(record: SearchRecord) -> str:
    """What the columns of `trial_cells` mean."""
    each = "" if record.level <= record.confidence else f", which gives each test {record.level:.3g} %"
    return (
        f"limit: upper confidence limit of the drop in points, and the margin. {record.images:,} test images; "
        f"{number(record.confidence)} % confidence for the whole search{each}. * the network that was found"
    )


def conclusions(record: SearchRecord) -> list[str]:
    """The sentences below the table of trials: what they took, and what stopped the search."""
    return [effort(record, f"{duration(record.seconds)} ({record.hardware})"), *record.obstacles]
