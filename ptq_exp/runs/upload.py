"""`python -m ptq_exp.runs.upload <folder>`: log finished jobs that could not be logged when they ran."""

import argparse
import sys
from pathlib import Path

from ptq_exp.config.mistakes import exit_code
from ptq_exp.reporting.mlflow.content import upload_folder


def main() -> int:
    """Log a run's folder, a sweep's or a whole tree of them."""
    parser = argparse.ArgumentParser(prog="python -m ptq_exp.runs.upload", description=__doc__)
    parser.add_argument("folder", type=Path, help="of a job, of a sweep, or one that holds several")
    parser.add_argument("--uri", help="another store than the one that the jobs were meant for")
    arguments = parser.parse_args()
    return exit_code(lambda: upload_folder(arguments.folder, arguments.uri))


if __name__ == "__main__":
    sys.exit(main())
