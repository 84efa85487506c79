"""`python -m ptq_exp.report --parent <run>`: build the report of a finished sweep or run from MLflow alone."""

import argparse
import sys
import tempfile
from pathlib import Path

from ptq_exp.base.errors import UserError
from ptq_exp.base.text import write_text
from ptq_exp.config.mistakes import exit_code
from ptq_exp.reporting.html import REPORT_FILE
from ptq_exp.reporting.mlflow.store import default_uri


def main() -> int:
    """Build the report of one sweep or run, or compare two side by side."""
    parser = argparse.ArgumentParser(prog="python -m ptq_exp.report", description=__doc__)
    parser.add_argument("--uri", default=default_uri(), help="the MLflow store (default: the store of run.py)")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--parent", metavar="RUN", help="id of a sweep's parent run, or of a single run")
    what.add_argument("--compare", nargs=2, metavar=("A", "B"), help="ids of two runs to compare side by side")
    parser.add_argument("--output", type=Path, default=Path(REPORT_FILE), help=f"output file (default: {REPORT_FILE})")
    arguments = parser.parse_args()
    return exit_code(lambda: _write(arguments))


def _write(arguments: argparse.Namespace) -> str:
    """Write the page and return the message to print."""
    # These modules import torch and MLflow, which --help does not need.
    from ptq_exp.reporting.html.content import Results, comparison, images, report, sweep_results
    from ptq_exp.reporting.mlflow.reading import existing_run, fetch_job, fetch_sweep
    from ptq_exp.reporting.plots.figures import draw_sweep

    def fetch(run_id: str, folder: Path) -> Results:
        """Download a run's results for a report. The figures of a sweep over all jobs are drawn again."""
        run, title = existing_run(arguments.uri, run_id)
        assert run.client is not None
        if record := fetch_job(run.client, run.run_id, folder):
            return Results.of_job(record)
        sweep = fetch_sweep(run, title, folder)
        if not sweep.jobs:
            raise UserError(f"{title} (run {run_id}) has no finished job with a record, so there is nothing to report.")
        draw_sweep(sweep)
        return sweep_results(sweep)

    with tempfile.TemporaryDirectory() as scratch:
        folders = [Path(scratch) / name for name in "ab"]
        if arguments.compare:
            content = comparison(*(fetch(*each) for each in zip(arguments.compare, folders, strict=True)))
        else:
            results = fetch(arguments.parent, folders[0])
            content = report(results, images(folders[0] / "sweep"))
    write_text(arguments.output, content)
    return f"Written: {arguments.output}"


if __name__ == "__main__":
    sys.exit(main())
