"""The table of docs/results.md: one row per tool beneath each network, next to ptq_exp's own."""

from typing import Any

from bench.foreign import WIDTHS
from bench.peers import TOOLS, adapter
from bench.peers.networks import NETWORKS


def current(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The results that were measured with today's settings."""
    return [line for line in lines if line["settings"] == adapter(line["task"][0]).SETTINGS]


def table_of(lines: list[dict[str, Any]]) -> str:
    """A Markdown table of top-1 by network, tool and widths."""
    rows = [f"| network | tool | float | {' | '.join(WIDTHS)} |", "|---" * (len(WIDTHS) + 3) + "|"]
    for name in NETWORKS:
        for tool in TOOLS:
            own = {line["task"][2]: line for line in lines if line["task"][:2] == [tool, name]}
            if own:
                cells = [cell(tool, own.get(width), width) for width in WIDTHS]
                top1_float = next(iter(own.values()))["top1_float"]
                rows.append(f"| {name} | {TOOLS[tool].label} | {top1_float:.2f} | {' | '.join(cells)} |")
    return "\n".join(rows)


def cell(tool: str, line: dict[str, Any] | None, width: str) -> str:
    """Top-1, or why there is none."""
    if line is None:
        return adapter(tool).CANNOT.get(width, "-")
    return f"{line['top1']:.2f}" if "top1" in line else line["error"]
