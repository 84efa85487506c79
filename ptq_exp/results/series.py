"""What the results of several jobs say, by series."""

import dataclasses
from collections.abc import Sequence

from ptq_exp.results.records import BitWidthResult, Failure, JobRecord

Series = dict[str, list[BitWidthResult]]  # by label

NOT_DISTINGUISHABLE, LOWER, HIGHER = "not distinguishable", "lower", "higher"


def as_series(jobs: Sequence[JobRecord]) -> Series:
    """The rows by what sets their jobs apart besides the bit width, written as on the command line.

    A sweep over `quant.bits` alone is one series called ''.
    """
    series: Series = {}
    for job, label in zip(jobs, labels(jobs), strict=True):
        series.setdefault(label, []).extend(job.results)
    return series


def labels(jobs: Sequence[JobRecord | Failure]) -> list[str]:
    """Of every job, what not all of them have: overrides as typed, and what they changed in their method's file.

    Where the methods differ, all changes of each are named: the same override changes one method and not the next.
    """
    several = len({method[0] for job in jobs if (method := _method(job))}) > 1
    words = [_words(job, several) for job in jobs]
    shared = set.intersection(*map(set, words)) if words else set()
    return [
        " ".join(word for word in found if word not in shared or (several and _is_change(word, job)))
        for job, found in zip(jobs, words, strict=True)
    ]


def _method(job: JobRecord | Failure) -> tuple[str, ...]:
    """The words of a job's method; a job that failed does not say them."""
    return job.method if isinstance(job, JobRecord) else ()


def _changes(job: JobRecord | Failure) -> list[str]:
    return [f"quant.{word}" for word in _method(job)[1:]]


def _is_change(word: str, job: JobRecord | Failure) -> bool:
    """Whether a typed word changed the method: by its key, since 2 and 2.0 are one value."""
    key = word.lstrip("+").partition("=")[0]
    return any(change.startswith((f"{key}=", f"{key}.")) for change in _changes(job))


def _words(job: JobRecord | Failure, several: bool) -> list[str]:
    """Method, changes in it and the other overrides of a job: those as typed, and those of an experiment's file."""
    typed = job.overrides.split(" ")
    if several and _method(job) and not any(word.startswith("quant=") for word in typed):
        typed.insert(0, f"quant={_method(job)[0]}")
    of_method = [word for word in typed if word.lstrip("+").startswith(("quant=", "quant."))]
    of_method.sort(key=lambda word: not word.startswith("quant="))
    known = [word.lstrip("+").partition("=")[0] for word in of_method if not word.startswith("quant=")]
    silent = [word for word in _changes(job) if not any(word.startswith((f"{key}=", f"{key}.")) for key in known)]
    return [*of_method, *silent, *(word for word in typed if word not in of_method)]


def titled(name: str, jobs: Sequence[JobRecord]) -> str:
    """The title of a sweep, with the method of its jobs where all have the same one."""
    methods = {" ".join(job.method) for job in jobs if job.method}
    return f"{name} ({methods.pop()})" if len(methods) == 1 else name


def with_labels(jobs: Sequence[JobRecord], failures: Sequence[Failure]) -> list[Failure]:
    """The failures, their overrides cut to what sets them apart from the other jobs of the sweep."""
    found = labels([*jobs, *failures])[len(jobs) :]
    return [dataclasses.replace(failure, overrides=label) for failure, label in zip(failures, found, strict=True)]


def seed_groups(series: Series) -> Series:
    """The same rows, those of jobs that differ in nothing but the seed (and bits) together."""
    groups: Series = {}
    for label, rows in series.items():
        groups.setdefault(without_seed(label), []).extend(rows)
    return groups


def without_seed(label: str) -> str:
    """The label of a series' group of seeds."""
    return " ".join(word for word in label.split(" ") if not word.startswith("seed="))


def verdict(row: BitWidthResult) -> str:
    """Whether the 95 % CI of the drop, from both networks' answers to the same images, excludes zero."""
    if row.top1_drop_ci_low <= 0 <= row.top1_drop_ci_high:
        return NOT_DISTINGUISHABLE
    return LOWER if row.top1_drop_ci_low > 0 else HIGHER


def stored_width(row: BitWidthResult) -> str:
    """The bits that a quantized weight takes when stored, its sign included, on average: `5`, `2.03`."""
    return number(row.bits_mean)


def nominal_width(row: BitWidthResult) -> str:
    """`quant.bits` where it is another number than the stored bits, as with a sign on top of them; else nothing."""
    return "" if stored_width(row) == str(row.bits) else str(row.bits)


def number(value: float) -> str:
    """To two decimals, without zeros at the end."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def width(row: BitWidthResult) -> str:
    """Both in words: `4 bits per weight`, `5 bits per weight (quant.bits=4)`."""
    nominal = nominal_width(row)
    return f"{stored_width(row)} bits per weight" + (f" (quant.bits={nominal})" if nominal else "")


def answers(series: Series) -> list[str]:
    """How few bits each series (or group of seeds) can take, one sentence each, and which of several takes the fewest.

    Widths are compared by what is stored: the sign counts, wherever it comes from.
    """
    found = {label: _answer(rows) for label, rows in seed_groups(series).items()}
    sentences = [f"{label}: {text}" if label else text for label, (_, text) in found.items()]
    fewest = {label: row for label, (row, _) in found.items() if row}
    if len(found) > 1 and fewest:
        least = min(row.bits_mean for row in fewest.values())
        best = [label for label, row in fewest.items() if stored_width(row) == number(least)]
        sentences.append(f"Fewest of all: {number(least)} bits per weight, by {' and '.join(best)}.")
    return sentences


def _answer(rows: list[BitWidthResult]) -> tuple[BitWidthResult | None, str]:
    """The row of the fewest bits without a significant loss, and the sentence."""
    if all(row.top1_float_ci_low <= row.chance for row in rows):
        chance = f"{rows[0].chance:.3g} %"
        return None, f"The float network is no better than guessing ({chance}), so no bit width can be judged."
    by_width = {row.bits: row for row in sorted(rows, key=lambda row: row.bits_mean)}
    lossy = {row.bits for row in rows if verdict(row) == LOWER}  # in one seed, at least
    good = [bits for bits in by_width if bits not in lossy]
    tried = f"of those tried ({', '.join(map(stored_width, by_width.values()))}"
    tried += f"; quant.bits={','.join(map(str, by_width))})" if any(map(nominal_width, rows)) else ")"
    if not good:
        return None, f"Every bit width {tried} loses accuracy significantly."
    most = max(row.top1_drop_ci_high for row in rows if row.bits == good[0])
    fewest = by_width[good[0]]
    return fewest, (
        f"Fewest bits per weight without a significant loss, {tried}: {stored_width(fewest)} (the 95 % CI of the drop "
        f"reaches {max(most, 0):.2f} points)."
    )
