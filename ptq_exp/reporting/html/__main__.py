"""`python -m ptq_exp.report --parent <run>`: the report of a finished sweep or run, from MLflow alone."""

import argparse
import sys
import tempfile
from pathlib import Path

from ptq_exp.base.errors import UserError
from ptq_exp.base.text import write_text
from ptq_exp.config.mistakes import exit_code
from ptq_exp.reporting.html.build import REPORT_FILE, Results, comparison, images, job_results, report, sweep_results
from ptq_exp.reporting.mlflow.store import default_uri


def main() -> int:
    """Build the report of one sweep, or put two side by side."""
    parser = argparse.ArgumentParser(prog="python -m ptq_exp.report", description=__doc__)
    parser.add_argument("--uri", default=default_uri(), help="the MLflow store (default: that of run.py)")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--parent", metavar="RUN", help="id of a sweep's parent run, or of a single run")
    what.add_argument("--compare", nargs=2, metavar=("A", "B"), help="ids of two of them, to be put side by side")
    parser.add_argument("--output", type=Path, default=Path(REPORT_FILE), help=f"the file (default: {REPORT_FILE})")
    arguments = parser.parse_args()
    return exit_code(lambda: write(arguments))


def write(arguments: argparse.Namespace) -> str:
    """Write the page; what was done, in words."""
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.compare:
            found = [fetch(arguments.uri, run, Path(scratch) / str(n)) for n, run in enumerate(arguments.compare)]
            content = comparison(*found)
        else:
            folder = Path(scratch) / "run"
            content = page_of(fetch(arguments.uri, arguments.parent, folder), folder)
    write_text(arguments.output, content)
    return f"Written: {arguments.output}"


def fetch(uri: str, run_id: str, folder: Path) -> Results:
    """Download what a report needs of a run into `folder`. Raises `UserError` where there is nothing to report."""
    # These import torch and MLflow: --help does not need them.
    from ptq_exp.reporting.mlflow.reading import existing_run
    from ptq_exp.runs.sweep import fetch_job, fetch_sweep

    run, title = existing_run(uri, run_id)
    folder.mkdir(parents=True)
    if fetch_job(run, run.run_id, folder):
        return job_results(folder)
    results = sweep_results(folder, title, fetch_sweep(run, folder))
    if not results.jobs:
        raise UserError(f"{title} (run {run_id}) has no finished job with a record, so there is nothing to report.")
    return results


def page_of(results: Results, folder: Path) -> str:
    """The report; the figures over all jobs are drawn again."""
    from ptq_exp.reporting.figures import draw_sweep

    if not results.sweep:
        return report(results, {})
    target = folder / "sweep"
    draw_sweep(target, results.jobs)
    return report(results, images(target))


if __name__ == "__main__":
    sys.exit(main())
