"""Conclusions from the results of several jobs, by series."""

import dataclasses
import functools
import math
import statistics
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ptq_exp.results.records import BitWidthResult, Failure, JobRecord

Series = dict[str, list[BitWidthResult]]  # by label

SEEDS = ("seed=", "quant.calibration_seed=")  # jobs that differ only in these words measure the same setting
# Groups and keys that change where a job computes and what it leaves, but no result.
NO_SETTINGS = (
    "tracking", "output_dir", "cache_dir", "resume", "fail_fast", "quiet", "threads", "hydra", "export",
)  # fmt: skip
MOST_TENSORS = 6  # float tensors in a sentence
NOT_DISTINGUISHABLE, LOWER, HIGHER = "not distinguishable", "lower", "higher"


def as_series(jobs: Sequence[JobRecord], names: Sequence[str] | None = None) -> Series:
    """The results, grouped by the overrides in which their jobs differ, apart from the bit width.

    A label reads as on the command line. A sweep over `quant.bits` alone is one series with the label ''. `names` are
    the labels of the jobs if these are not to be found among themselves.
    """
    series: Series = {}
    for job, label in zip(jobs, labels(jobs) if names is None else names, strict=True):
        series.setdefault(label, []).extend(job.results)
    return series


def labels(jobs: Sequence[JobRecord | Failure], ignored: Collection[str] = ()) -> list[str]:
    """For every job, the words that not all jobs share: overrides as typed, and changes to the method's file.

    If the methods differ, all changes to each are listed, because an override may change one method and not another.
    Keys in the groups `ignored` are left out.
    """
    several = len({method[0] for job in jobs if (method := _method(job))}) > 1
    words = [[word for word in _words(job, several) if _group(word) not in ignored] for job in jobs]
    shared = set.intersection(*map(set, words)) if words else set()
    return [
        " ".join(word for word in found if word not in shared or (several and _is_change(word, job)))
        for job, found in zip(jobs, words, strict=True)
    ]


def _method(job: JobRecord | Failure) -> tuple[str, ...]:
    """The words of a job's method. They are not known for a failed job."""
    return job.method if isinstance(job, JobRecord) else ()


def _group(word: str) -> str:
    """The group, or the key without one, that a typed word sets."""
    return word.lstrip("+").partition("=")[0].partition(".")[0]


def _changes(job: JobRecord | Failure) -> list[str]:
    return [f"quant.{word}" for word in _method(job)[1:]]


def _is_change(word: str, job: JobRecord | Failure) -> bool:
    """Whether a typed word changed the method. Only keys are compared, since 2 and 2.0 are the same value."""
    key = word.lstrip("+").partition("=")[0]
    return any(change.startswith((f"{key}=", f"{key}.")) for change in _changes(job))


def _words(job: JobRecord | Failure, several: bool) -> list[str]:
    """A job's method, the changes to it, and the other overrides, both as typed and from an experiment's file."""
    typed = job.overrides.split(" ")
    if several and _method(job) and not any(word.startswith("quant=") for word in typed):
        typed.insert(0, f"quant={_method(job)[0]}")
    of_method = [word for word in typed if word.lstrip("+").startswith(("quant=", "quant."))]
    of_method.sort(key=lambda word: not word.startswith("quant="))
    known = [word.lstrip("+").partition("=")[0] for word in of_method if not word.startswith("quant=")]
    silent = [word for word in _changes(job) if not any(word.startswith((f"{key}=", f"{key}.")) for key in known)]
    return [*of_method, *silent, *(word for word in typed if word not in of_method)]


def titled(name: str, jobs: Sequence[JobRecord]) -> str:
    """The title of a sweep, with the method of its jobs if all have the same one."""
    methods = {" ".join(job.method) for job in jobs if job.method}
    return f"{name} ({methods.pop()})" if len(methods) == 1 else name


def with_labels(jobs: Sequence[JobRecord], failures: Sequence[Failure]) -> list[Failure]:
    """The failures, with their overrides reduced to those in which they differ from the other jobs of the sweep."""
    found = labels([*jobs, *failures])[len(jobs) :]
    return [dataclasses.replace(failure, overrides=label) for failure, label in zip(failures, found, strict=True)]


def seed_groups(series: Series) -> Series:
    """The same results, with jobs that differ only in the seed (and bits) grouped together."""
    groups: Series = {}
    for label, rows in series.items():
        groups.setdefault(without_seed(label), []).extend(rows)
    return groups


def without_seed(label: str) -> str:
    """The label of a series' group of seeds."""
    return " ".join(word for word in label.split(" ") if not word.startswith(SEEDS))


def seed_of(label: str) -> str:
    """The words of a label that name seeds."""
    return " ".join(word for word in label.split(" ") if word.startswith(SEEDS))


@dataclass(frozen=True)
class Row:
    """One line of a table: the results of one setting at one bit width, one for each seed."""

    results: tuple[BitWidthResult, ...]
    seeds: tuple[str, ...]  # `seed=0` for each result; empty if the seeds do not vary

    @functools.cached_property
    def mean(self) -> BitWidthResult:
        """The means over the seeds, of every number and of both ends of every interval.

        The mean of the ends is an interval for the mean over these seeds. It is never too narrow, because the seeds
        share the test images.
        """
        first = self.results[0]
        if len(self.results) == 1:
            return first
        known = [result.metrics() for result in self.results]
        names = [name for name in known[0] if hasattr(first, name) and all(name in values for values in known)]
        means: dict[str, Any] = {name: statistics.fmean(values[name] for values in known) for name in names}
        return dataclasses.replace(first, **means, correct=None, exports=(), integers=None)

    def std(self, name: str) -> float | None:
        """The sample standard deviation of a number over the seeds, or None with one seed."""
        values = [getattr(result, name) for result in self.results]
        return statistics.stdev(values) if len(values) > 1 else None


Rows = dict[str, list[Row]]  # by label


def rows_of(series: Series, unfold: bool = False) -> Rows:
    """The lines of a table, fewest stored bits first. Jobs that differ only in their seeds share a line, unless
    `unfold`."""
    found: dict[str, dict[tuple[int | None, ...], list[tuple[BitWidthResult, str]]]] = {}
    for label, results in series.items():
        seen: Counter[tuple[int | None, ...]] = Counter()
        for result in results:
            width = (result.bits, result.act_bits)
            seen[width] += 1  # the same job twice stays two lines
            group = found.setdefault(label if unfold else without_seed(label), {})
            group.setdefault((*width, seen[width]), []).append((result, seed_of(label)))
    rows = {
        label: [
            Row(tuple(result for result, _ in pairs), tuple(seed for _, seed in pairs)) for pairs in groups.values()
        ]
        for label, groups in found.items()
    }
    return {label: sorted(group, key=lambda row: (row.mean.bits_mean, row.mean.bits)) for label, group in rows.items()}


def seed_note(rows: Rows, intervals: bool = True) -> str:
    """What ± and, with `intervals`, the intervals mean in a table. Empty if every line has one seed."""
    counts = sorted({len(row.results) for group in rows.values() for row in group})
    if counts in ([], [1]):
        return ""
    seeds = f"{counts[0]} seeds" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"
    note = f"± is the sample standard deviation over {seeds}."
    return f"{note} Intervals are for the mean over these seeds." if intervals else note


def verdict(row: BitWidthResult) -> str:
    """Whether the 95 % CI of the drop, paired over the test images, excludes zero."""
    if row.top1_drop_ci_low <= 0 <= row.top1_drop_ci_high:
        return NOT_DISTINGUISHABLE
    return LOWER if row.top1_drop_ci_low > 0 else HIGHER


def stored_width(row: BitWidthResult) -> str:
    """The mean number of bits per stored weight, including the sign: `5`, `2.03`."""
    return number(row.bits_mean)


def nominal_width(row: BitWidthResult) -> str:
    """`quant.bits` if it differs from the stored bits, for example by a sign bit; else an empty string."""
    return "" if stored_width(row) == str(row.bits) else str(row.bits)


def number(value: float) -> str:
    """A number with up to two decimals, without trailing zeros."""
    return f"{round(value, 2) + 0.0:.2f}".rstrip("0").rstrip(".")  # + 0.0: no "-0"


def width(row: BitWidthResult) -> str:
    """Both widths as text: `4 bits per weight`, `5 bits per weight (quant.bits=4)`."""
    nominal = nominal_width(row)
    return f"{stored_width(row)} bits per weight" + (f" (quant.bits={nominal})" if nominal else "")


def answers(series: Series) -> list[str]:
    """One sentence per series (or group of seeds) on its fewest bits without a significant loss, and one on the best.

    Widths are compared by their stored bits, including the sign.
    """
    sentences = [f"{label}: {text}" if label else text for label, text in answer_of_each(series).items()]
    return [*sentences, *fewest_of_all(series)]


def answer_of_each(series: Series) -> dict[str, str]:
    """The sentence on each series (or group of seeds), by label."""
    return {label: _answer([row.mean for row in rows])[1] for label, rows in rows_of(series).items()}


def fewest_of_all(series: Series) -> list[str]:
    """The sentence on the series with the fewest bits, or none if there is one series or all lose accuracy."""
    found = {label: _answer([row.mean for row in rows])[0] for label, rows in rows_of(series).items()}
    fewest = {label: row for label, row in found.items() if row}
    if len(found) < 2 or not fewest:
        return []
    least = min(row.bits_mean for row in fewest.values())
    best = [label for label, row in fewest.items() if stored_width(row) == number(least)]
    return [
        f"Fewest bits per weight without a significant loss, of all settings: {number(least)}, with {', '.join(best)}."
    ]


def coverage(results: Iterable[BitWidthResult]) -> list[str]:
    """Which share of the weights is quantized, each tensor that stays float with its reason, and what is not available
    for this network. Each sentence once."""
    sentences: dict[str, None] = {}
    for result in results:
        if result.quantized_percent is not None:
            sentences[_share(result.quantized_percent, result.float_tensors)] = None
        sentences |= dict.fromkeys(result.limits)
    return list(sentences)


def coverage_of(series: Series) -> list[str]:
    """The same for several series, whose labels precede the sentences that they do not share."""
    found = {label: coverage(results) for label, results in series.items()}
    shared = [sentence for sentence in next(iter(found.values()), []) if all(sentence in own for own in found.values())]
    others = [f"{label}: {said}" for label, own in found.items() for said in own if said not in shared]
    return [*shared, *others]


def _share(percent: float, others: dict[str, str]) -> str:
    shown = "100" if not others else f"{math.floor(10 * percent) / 10:.1f}"  # rounded down: 100 means all
    names = [f"{name} ({reason})" for name, reason in others.items()]
    more = f" and {len(names) - MOST_TENSORS} more, which the report lists" if len(names) > MOST_TENSORS else ""
    stay = f" Float: {', '.join(names[:MOST_TENSORS])}{more}." if names else ""
    return f"{shown} % of the weights are quantized.{stay}"


def guesses(row: BitWidthResult) -> bool:
    """Whether the float network is no better than guessing, as far as its test images can tell."""
    return row.top1_float_ci_low <= row.chance


def _answer(rows: list[BitWidthResult]) -> tuple[BitWidthResult | None, str]:
    """The result with the fewest bits without a significant loss, or None, and the sentence about it. `rows` are sorted
    by their stored bits."""
    if all(map(guesses, rows)):
        chance = f"{rows[0].chance:.3g} %"
        return None, f"The float network is no better than guessing ({chance}), so no bit width can be judged."
    by_width = {row.bits: row for row in rows}
    lossy = {row.bits for row in rows if verdict(row) == LOWER}
    good = [bits for bits in by_width if bits not in lossy]
    tried = f"tried ({', '.join(map(stored_width, by_width.values()))}"
    tried += f"; quant.bits={','.join(map(str, by_width))})" if any(map(nominal_width, rows)) else ")"
    if not good:
        every = f"Every bit width {tried} loses" if len(by_width) > 1 else f"The only bit width {tried} loses"
        return None, f"{every} accuracy significantly."
    most = max(row.top1_drop_ci_high for row in rows if row.bits == good[0])
    fewest = by_width[good[0]]
    return fewest, (
        f"Fewest bits per weight without a significant loss, of those {tried}: {stored_width(fewest)} (the 95 % CI of "
        f"the drop reaches {max(most, 0):.2f} points)."
    )
