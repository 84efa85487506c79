"""A search in words."""

import math
from collections.abc import Sequence
from dataclasses import replace

from ptq_exp.results.records import BRIEF, CALIBRATED, NEAREST, BitWidthResult, SearchRecord, Trial, TrialResult
from ptq_exp.results.series import number, stored_width, without_seed


def light(result: BitWidthResult) -> BitWidthResult:
    """A result without the parts that only its own job shows."""
    return replace(result, layers=(), float_tensors={}, limits=(), exports=(), integers=None, correct=None)


def widths_in_words(found: TrialResult) -> str:
    """`3-bit weights and 4-bit activations`."""
    bits, act_bits = stored_width(found.result), found.result.act_bits
    average = " on average (mixed precision)" if found.trial.mean_bits is not None else ""
    return f"{bits}-bit weights{average}" + (f" and {act_bits}-bit activations" if act_bits is not None else "")


def trial_in_words(trial: Trial) -> str:
    """`quant.bits=2, quant.act_bits=4, learned`."""
    weights = f"quant.mean_bits={number(trial.mean_bits)}" if trial.mean_bits else f"quant.bits={trial.bits}"
    activations = f", quant.act_bits={trial.act_bits}" if trial.act_bits is not None else ""
    how = {NEAREST: "rounded to nearest", CALIBRATED: "activations calibrated after learning the weights"}
    return f"{weights}{activations}, {how.get(trial.how, trial.how)}"


def sentence(record: SearchRecord) -> str:
    """The answer, with its guarantee."""
    best = record.best
    margin = f"margin {number(record.max_drop)}"
    if best is None:
        return (
            f"No width that was tried stays within {number(record.max_drop)} points of the float network's top-1 with "
            f"{number(record.confidence)} % confidence."
        )
    result = best.result
    size, before = result.size_bytes / 1000, result.size_bytes_float / 1000
    return (
        f"{widths_in_words(best)}: {kilobytes(size)} kB instead of {kilobytes(before)} kB ({before / size:.1f} times "
        f"smaller), top-1 {result.top1:.2f} % (float {result.top1_float:.2f} %), at most {max(best.limit, 0):.2f} "
        f"points below float with {number(record.confidence)} % confidence ({margin})."
    )


def named_sentence(record: SearchRecord) -> str:
    """The answer behind the name of its search, for a sweep of several."""
    return f"{record.label or record.network}: {sentence(record)}"


def kilobytes(size: float) -> str:
    """A size in kB with about three digits."""
    return f"{size:,.0f}" if size >= 100 else f"{size:.1f}"


def effort(record: SearchRecord, seconds: str) -> str:
    """How many trials the search took; `seconds` is the time in words."""
    ways = [found.trial.how for found in record.trials]
    learned, brief = len(ways) - ways.count(NEAREST), ways.count(BRIEF)
    several = f" All combinations of the widths would be {record.combinations}." if len(record.over) > 1 else ""
    return (
        f"{len(record.trials)} trials in {seconds}, {learned} of them with learning"
        f"{f' ({brief} briefly)' if brief else ''}.{several}"
    )


def distinguished(records: Sequence[SearchRecord]) -> tuple[SearchRecord, ...]:
    """The same searches, each with the words of its label that not all of them share."""
    words = [record.label.split() for record in records]
    shared = set.intersection(*map(set, words)) if words else set()
    labels = [" ".join(word for word in found if word not in shared) for found in words]
    return tuple(replace(record, label=label) for record, label in zip(records, labels, strict=True))


def most_cautious(records: Sequence[SearchRecord]) -> dict[str, SearchRecord]:
    """For each group of searches that differ only in the seed, the one with the largest network (or none at all). Of
    equally large ones, it is that with most bits of the activations, then the one that may lose most."""
    groups: dict[str, list[SearchRecord]] = {}
    for record in records:
        groups.setdefault(without_seed(record.label), []).append(record)

    def caution(record: SearchRecord) -> tuple[float, ...]:
        if record.best is None:
            return (math.inf,)
        result = record.best.result
        return result.size_bytes, result.act_bits or math.inf, record.best.limit

    return {label: max(found, key=caution) for label, found in groups.items() if len(found) > 1}
