"""The result table, in the terminal and on the MLflow page. A row is what a job writes for one bit width."""

from typing import Any

from rich.table import Table

Row = dict[str, Any]
Failure = dict[str, str]  # of a failed job: `bits`, `overrides`, `error`, the path of its `log` and its `run_id`

JOB = "job"
HEADINGS = ["bits", "top-1 %", "95 % interval", "drop", "its interval", "against float", "agreement %", "size"]
VERDICT = HEADINGS.index("against float")
NOT_DISTINGUISHABLE, LOWER = "not distinguishable", "lower"


def as_series(jobs: list[dict[str, Any]]) -> dict[str, list[Row]]:
    """The rows by what sets their jobs apart besides the bit width, written as on the command line.

    A sweep over `quant.bits` alone is one series called ''.
    """
    series: dict[str, list[Row]] = {}
    for job, label in zip(jobs, labels(jobs), strict=True):
        series.setdefault(label, []).extend(job["rows"])
    return series


def labels(jobs: list[dict[str, Any]]) -> list[str]:
    """Of every job, the overrides that not all of them have."""
    overrides = [job["overrides"].split(" ") for job in jobs]
    shared = set.intersection(*map(set, overrides)) if overrides else set()
    return [" ".join(word for word in words if word not in shared) for words in overrides]


def with_labels(jobs: list[dict[str, Any]], failures: list[Failure]) -> list[Failure]:
    """The failures, their overrides cut to what sets them apart from the other jobs of the sweep."""
    found = labels([*jobs, *failures])[len(jobs) :]
    return [failure | {"overrides": label} for failure, label in zip(failures, found, strict=True)]


def seed_groups(series: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """The same rows, those of jobs that differ in nothing but the seed (and bits) together."""
    groups: dict[str, list[Row]] = {}
    for label, rows in series.items():
        groups.setdefault(without_seed(label), []).extend(rows)
    return groups


def without_seed(label: str) -> str:
    """The label of a series' group of seeds."""
    return " ".join(word for word in label.split(" ") if not word.startswith("seed="))


def verdict(row: Row) -> str:
    """Whether the drop can be told from zero: its 95 % interval, from both networks' answers to the same images."""
    if row["top1_drop_ci_low"] <= 0 <= row["top1_drop_ci_high"]:
        return NOT_DISTINGUISHABLE
    return LOWER if row["top1_drop_ci_low"] > 0 else "higher"


def answers(series: dict[str, list[Row]]) -> list[str]:
    """How few bits each series (or group of seeds) can take: one sentence each."""
    found = {label: _answer(rows) for label, rows in seed_groups(series).items()}
    return [f"{label}: {text}" if label else text[0].upper() + text[1:] for label, text in found.items()]


def _answer(rows: list[Row]) -> str:
    if all(row.get("top1_float_ci_low", 100.0) <= row.get("chance", 0.0) for row in rows):
        return f"the float network is no better than guessing ({rows[0]['chance']:.3g} %): its bits mean nothing yet."
    lossy = {row["bits"] for row in rows if verdict(row) == LOWER}  # in one seed, at least
    good = sorted({row["bits"] for row in rows} - lossy)
    if not good:
        return "every bit width tried loses accuracy against float."
    most = max(row["top1_drop_ci_high"] for row in rows if row["bits"] == good[0])
    return (
        f"{good[0]} bits are the fewest that show no loss against float; these images do not rule out a loss of up to "
        f"{max(most, 0):.2f} points."
    )


def cells(row: Row) -> list[str]:
    """One row as text, under `HEADINGS`."""
    width = str(row["bits"]) if row["act_bits"] is None else f"w{row['bits']} a{row['act_bits']}"
    interval = f"{row['top1_ci_low']:.2f} – {row['top1_ci_high']:.2f}"
    size = f"{row['size_bytes'] / 1000:.1f} kB"
    drop = f"{row['top1_drop_ci_low']:+.2f} – {row['top1_drop_ci_high']:+.2f}"
    top1, change, same = f"{row['top1']:.2f}", f"{row['top1_drop']:+.2f}", f"{row['agreement']:.2f}"
    return [width, top1, interval, change, drop, verdict(row), same, size]


def terminal_table(series: dict[str, list[Row]], title: str, failures: list[Failure] | None = None) -> Table:
    """The result table for the terminal, the float network first and failed jobs last."""
    table = Table(title=title, title_justify="left", title_style="bold")
    headings, lines = table_lines(series, failures or [])
    for heading in headings:
        words = heading in (JOB, HEADINGS[VERDICT])
        table.add_column(heading, justify="left" if words else "right", no_wrap=heading != HEADINGS[VERDICT])
    for line in lines:
        table.add_row(*line)
    return table


def markdown_table(series: dict[str, list[Row]], title: str, failures: list[Failure] | None = None) -> str:
    """The same table in Markdown, for the page of a run."""
    headings, lines = table_lines(series, failures or [])
    rows = [headings, ["---"] * len(headings), *lines]
    return f"**{title}**\n\n" + "\n".join("| " + " | ".join(row) + " |" for row in rows)


def failure_line(failure: Failure) -> str:
    """What failed, why, and where its log is."""
    job = " ".join(filter(None, [f"quant.bits={failure['bits']}", failure["overrides"]]))
    return f"FAILED {job}: {failure['error']} (log: {failure['log']})"


def table_lines(series: dict[str, list[Row]], failures: list[Failure]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells; the column of jobs only where there are several series, each float network once."""
    named, lines, shown = bool(series) and list(series) != [""], [], None
    for label, rows in series.items():
        job = [label] if named else []
        if _float_cells(rows[0]) != shown:
            shown = _float_cells(rows[0])
            lines.append([*job, *shown])
        lines += [[*job, *cells(row)] for row in sorted(rows, key=lambda row: row["bits"])]
    empty = [""] * (len(HEADINGS) - 2)
    lines += [[f["overrides"]] * named + [str(f["bits"]), "failed", *empty] for f in failures]
    return [JOB] * named + HEADINGS, lines


def _float_cells(row: Row) -> list[str]:
    interval = f"{row['top1_float_ci_low']:.2f} – {row['top1_float_ci_high']:.2f}"
    return ["float", f"{row['top1_float']:.2f}", interval, *[""] * 4, f"{row['size_bytes_float'] / 1000:.1f} kB"]
