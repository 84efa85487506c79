"""`python -m ptq_exp.report [RUN] --format latex`: the report or the table of a finished run, from MLflow alone or from
its folder below outputs/, which takes a tenth of the time."""

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ptq_exp.base.arguments import ArgumentParser
from ptq_exp.base.errors import UserError
from ptq_exp.base.text import write_text
from ptq_exp.config.mistakes import exit_code
from ptq_exp.reporting.html import REPORT_FILE
from ptq_exp.reporting.mlflow.store import default_uri
from ptq_exp.results.files import RESULTS_FILE, SWEEP_FILE, read_job, read_sweep
from ptq_exp.results.records import JobRecord, SweepRecord

RUN_HELP = "id of a sweep's or a job's run in the store (default: the newest), or its folder below outputs/"
FORMATS = ("html", "text", "latex", "csv", "markdown")

# The functions below import torch and MLflow, which --help does not need.


def main() -> int:
    """Write the report or the table of one sweep or job, or compare two."""
    parser = ArgumentParser(prog="python -m ptq_exp.report", description=__doc__)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("run", nargs="?", metavar="RUN", help=RUN_HELP)
    what.add_argument("--parent", dest="parent", metavar="RUN", help="the same as RUN")
    what.add_argument("--compare", nargs=2, metavar=("A", "B"), help="two runs or folders to compare side by side")
    parser.add_argument(
        "--format", choices=FORMATS, default="html",
        help="html: the report, with figures; text: the table as in the terminal; latex, csv, markdown: the table",
    )  # fmt: skip
    parser.add_argument("--seeds", action="store_true", help="show a line for each seed instead of mean ± std")
    parser.add_argument("--uri", default=default_uri(), help="the MLflow store (default: the store of run.py)")
    parser.add_argument(
        "--output", type=Path, help=f"output file (default: {REPORT_FILE} for html, else standard output)"
    )
    arguments = parser.parse_args()
    return exit_code(lambda: _write(arguments))


def _write(arguments: argparse.Namespace) -> str:
    """Write the output and return the text to print."""
    html = arguments.format == "html"
    ids = arguments.compare or [arguments.run or arguments.parent or newest(arguments.uri)]
    with tempfile.TemporaryDirectory() as scratch:
        records = [
            fetch(arguments.uri, run_id, Path(scratch) / name, html) for run_id, name in zip(ids, "ab", strict=False)
        ]
        if arguments.compare:
            check_comparable(records[0], records[1], *ids)
        if html:
            content = html_page(records, arguments.seeds, arguments.uri, ids[0])
        elif arguments.compare:
            content = comparison_table(records[0], records[1], arguments.format, arguments.seeds)
        else:
            content = table(records[0], arguments.format, arguments.seeds)
    output = arguments.output or (Path(REPORT_FILE) if html else None)
    if output is None:
        return content.rstrip("\n")
    write_text(output, content)
    said = comparison_table(records[0], records[1], "text", arguments.seeds) if html and arguments.compare else ""
    return f"{said}Written: {output}"


def newest(uri: str) -> str:
    """The id of the run in the store that began last."""
    from ptq_exp.reporting.mlflow.reading import newest_run  # MLflow is imported only where it is needed

    return newest_run(uri)


def fetch(uri: str, run_id: str, folder: Path, drawn: bool) -> JobRecord | SweepRecord:
    """The record of a job or a sweep, with its figures if `drawn`. Raises `UserError` if there is nothing to report."""
    if Path(run_id).is_dir():
        return kept(Path(run_id))
    if "/" in run_id:  # no id has one
        raise UserError(f"There is no folder {run_id}.")
    from ptq_exp.reporting.mlflow.reading import existing_run, fetch_job, fetch_sweep

    run, title = existing_run(uri, run_id)
    assert run.client is not None
    if record := fetch_job(run.client, run.run_id, folder, drawn):
        return record
    sweep = fetch_sweep(run, title, folder, drawn)
    if not sweep.jobs:
        raise UserError(f"{title} (run {run_id}) has no finished job with a record, so there is nothing to report.")
    return sweep


def kept(folder: Path) -> JobRecord | SweepRecord:
    """The record in the folder of a job or a sweep, whose figures lie there."""
    if job := read_job(folder):
        return job
    sweep = read_sweep(folder)
    if not sweep.jobs:
        # DATE/TIME/JOB at most: a deeper look would read all folders of a package or a disk.
        below = [file.parent for depth in (1, 2, 3) for file in folder.glob("*/" * depth + RESULTS_FILE)]
        runs = sorted({place.parent if (place.parent / SWEEP_FILE).is_file() else place for place in below})
        where = f"The last of the {len(runs)} runs below it is {runs[-1]}." if runs else "Runs are in outputs/."
        raise UserError(f"{folder} has no finished job, so there is nothing to report. {where}")
    return sweep


def html_page(records: list[JobRecord | SweepRecord], unfold: bool, uri: str, run_id: str) -> str:
    """The report of one record, or the page that compares two. Figures over all jobs that the store lacks are drawn."""
    from ptq_exp.reporting.html.comparison import comparison
    from ptq_exp.reporting.html.content import Results, report, sweep_results
    from ptq_exp.reporting.html.pictures import images
    from ptq_exp.reporting.mlflow.place import address, page_of

    tracked = address(Path(run_id)) if Path(run_id).is_dir() else page_of(uri, run_id)
    results = [
        sweep_results(record, tracked) if isinstance(record, SweepRecord) else Results.of_job(record, tracked)
        for record in records
    ]
    if len(results) == 2:
        return comparison(results[0], results[1], unfold)
    (record,) = records
    if not isinstance(record, SweepRecord):
        return report(results[0], {}, unfold)
    record.figures.mkdir(exist_ok=True)
    drawn = images(record.figures)
    if not drawn:  # the sweep did not end
        from ptq_exp.reporting.plots.overall import draw_sweep

        draw_sweep(record)
        drawn = images(record.figures)
    return report(results[0], drawn, unfold)


def table(record: JobRecord | SweepRecord, form: str, unfold: bool) -> str:
    """The result table in one of the formats."""
    from dataclasses import replace

    from ptq_exp.reporting.table import ResultTable
    from ptq_exp.reporting.tables import TableContent
    from ptq_exp.reporting.tables.delimited import delimited
    from ptq_exp.reporting.tables.latex import latex
    from ptq_exp.reporting.tables.markdown import markdown

    content = TableContent.of_sweep(record) if isinstance(record, SweepRecord) else TableContent.of_job(record)
    content = replace(content, unfold=unfold)
    writers: dict[str, Callable[[TableContent], str]] = {"latex": latex, "csv": delimited, "markdown": markdown}
    if form in writers:
        return writers[form](content)
    return shown(ResultTable(content.series, content.title, content.failures, unfold))


def comparison_table(first: JobRecord | SweepRecord, second: JobRecord | SweepRecord, form: str, unfold: bool) -> str:
    """The table of paired differences in one of the formats."""
    from ptq_exp.reporting.comparisons import (
        ComparisonTable,
        compared,
        comparison_cells,
        comparison_latex,
        comparison_notes,
    )
    from ptq_exp.reporting.tables.delimited import comparison_csv
    from ptq_exp.reporting.tables.markdown import markdown_cells

    found = compared(jobs_of(first), jobs_of(second), unfold)
    if form == "csv":
        return comparison_csv(found.pairs)
    if form == "latex":
        return comparison_latex(f"{name_of(first)} and {name_of(second)}", found.pairs)
    if form == "markdown":
        cells = comparison_cells(found.pairs)
        return "\n\n".join([markdown_cells(cells) if cells else found.nothing, *comparison_notes(found.pairs)])
    return shown(ComparisonTable(found))


def check_comparable(first: JobRecord | SweepRecord, second: JobRecord | SweepRecord, name: str, other: str) -> None:
    """Raise `UserError` if the two, called `name` and `other`, have no data set in common."""
    ours, theirs = ({job.dataset.name for job in jobs_of(record) if job.dataset} for record in (first, second))
    if ours and theirs and not ours & theirs:
        pairs = [
            f"{place} has those of {' and '.join(sorted(names))}" for place, names in ((name, ours), (other, theirs))
        ]
        raise UserError(f"A comparison needs the same test images, but {', '.join(pairs)}.")


def jobs_of(record: JobRecord | SweepRecord) -> tuple[JobRecord, ...]:
    """The jobs of a sweep, or the job itself."""
    return record.jobs if isinstance(record, SweepRecord) else (record,)


def name_of(record: JobRecord | SweepRecord) -> str:
    """What a record is called."""
    return record.name if isinstance(record, SweepRecord) else record.title


def shown(what: Any) -> str:
    """What the terminal shows of a table, as wide as it is."""
    from ptq_exp.base.console import console

    with console.capture() as captured:
        console.print(what)
    return captured.get()


if __name__ == "__main__":
    sys.exit(main())
