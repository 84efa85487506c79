"""The table of docs/results.md: beneath each network, one row per tool, with ptq_exp's own from bench.foreign first."""

import re
from typing import Any

from bench.accuracy import mean_and_std
from bench.peers import TOOLS, adapter
from bench.peers.networks import NETWORKS, WIDTHS

Line = dict[str, Any]


def current(lines: list[Line]) -> list[Line]:
    """The results that were measured with today's settings."""
    return [line for line in lines if line["settings"] == adapter(line["task"][0]).SETTINGS]


def table_of(lines: list[Line], ours: list[Line]) -> str:
    """A Markdown table of top-1 by network, tool and widths.

    `lines` are results of this benchmark, `ours` those of bench.foreign. A cell without a number says why. Exceptions
    are listed beneath the table.
    """
    rows = [f"| network | tool | float | {' | '.join(WIDTHS)} |", "|---" * (len(WIDTHS) + 3) + "|"]
    failures: list[str] = []
    for name in NETWORKS:
        own = [line for line in ours if line["task"][0] == name]
        if own:
            values = [[line["top1"] for line in own if line["task"][1] == width] for width in WIDTHS]
            rows.append(row(name, "ptq_exp", own, [mean_and_std(found) if found else "-" for found in values]))
        for tool in TOOLS:
            found = {line["task"][2]: line for line in lines if line["task"][:2] == [tool, name]}
            if found:
                cells = [cell(tool, found.get(width), width, failures) for width in WIDTHS]
                rows.append(row(name, TOOLS[tool].label, list(found.values()), cells))
    notes = [f"({number}) `{failure}`" for number, failure in enumerate(failures, 1)]
    return "\n".join([*rows, *([""] if notes else []), *notes])


def row(name: str, tool: str, lines: list[Line], cells: list[str]) -> str:
    """One row of the table."""
    return f"| {name} | {tool} | {lines[0]['top1_float']:.2f} | {' | '.join(cells)} |"


def cell(tool: str, line: Line | None, width: str, failures: list[str]) -> str:
    """Top-1, or why there is none. An exception is added to `failures`, if it is not yet among them."""
    if line is None:
        return adapter(tool).CANNOT.get(width, "-")
    if "top1" in line:
        return f"{line['top1']:.2f}"
    failure = re.sub(r"\d{3,}", "...", line["error"])  # numbers of nodes differ between networks
    if failure not in failures:
        failures.append(failure)
    return f"failed ({failures.index(failure) + 1})"
