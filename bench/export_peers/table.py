"""The table of docs/export.md: a row per file and runtime, with the tool's own simulation first."""

from typing import Any

from bench.export_peers import SIMULATION, WIDTHS
from bench.export_peers.running import LABELS
from bench.export_peers.writers import TOOLS

HEADER = (
    "tool", "", "file", "bytes", "runs in", "top-1", "agrees with its simulation", "× float, 1 image",
    "× float, 64 images",
)  # fmt: skip
REASON_LENGTH = 80  # characters of a runtime's error that are shown

Line = dict[str, Any]


def table_of(result: dict[str, Any]) -> str:
    """A Markdown table, then what it was measured with."""
    rows = [f"| {' | '.join(HEADER)} |", "|---" * len(HEADER) + "|"]
    written = {tuple(line["task"]): line for line in result["written"]}
    tools, widths = ({key[place] for key in written} for place in (0, 1))
    for tool, (label, cannot) in TOOLS.items():
        for width in WIDTHS:
            if line := written.get((tool, width)):
                rows += [f"| {label} | {width} | {cells} |" for cells in _rows(line, result["runs"])]
            elif width in cannot and tool in tools and width in widths:
                rows.append(f"| {label} | {width} | {cannot[width]} | | | | | | |")
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return "\n".join([*rows, "", f"`{result['command']}`, {result['date']}, {result['hardware']}, {versions}."])


def _rows(line: Line, runs: list[Line]) -> list[str]:
    """The cells from the file on, for each file and runtime of a tool and its widths."""
    if "error" in line:
        return [f"{_short(line['error'])} | | | | | |"]
    cells = []
    if simulation := line.get(SIMULATION):
        cells.append(f"- | | {LABELS[SIMULATION]} | {simulation['top1']:.2f} | | {_speeds(simulation)}")
    for file in line["files"]:
        for run in runs:
            if run["task"] == line["task"] and run["format"] == file["format"]:
                cells.append(f"{file['format']} | {file['size_bytes']} | {_run(run)}")
    return cells


def _run(run: Line) -> str:
    label = LABELS[run["runtime"]]
    if "error" in run:
        return f"{label}: does not load ({_short(run['error'])}) | | | |"
    agreement = f"{run['agreement']:.2f}" if "agreement" in run else "no simulation"
    return f"{label} | {run['top1']:.2f} | {agreement} | {_speeds(run)}"


def _speeds(run: Line) -> str:
    """Two cells."""
    return " | ".join(f"{ratio:.2f}" for ratio in run["speeds"].values())


def _short(reason: str) -> str:
    """The beginning of an error, without what would end a cell."""
    reason = reason.replace("|", "/").replace("\n", " ")
    return reason if len(reason) <= REASON_LENGTH else f"{reason[:REASON_LENGTH].rstrip()}..."
