"""`python -m ptq_exp.runs.upload <folder>`: log finished jobs that could not be logged when they ran."""

import sys
from pathlib import Path

from ptq_exp.base.arguments import ArgumentParser
from ptq_exp.config.mistakes import exit_code
from ptq_exp.reporting.mlflow.content import upload_folder


def main() -> int:
    """Log the folder of a run or a sweep, or a tree of such folders."""
    parser = ArgumentParser(prog="python -m ptq_exp.runs.upload", description=__doc__)
    parser.add_argument("folder", type=Path, help="the folder of a job or a sweep, or one that contains several")
    parser.add_argument("--uri", help="a store to use instead of the one in the jobs' configuration")
    arguments = parser.parse_args()
    return exit_code(lambda: upload_folder(arguments.folder, arguments.uri))


if __name__ == "__main__":
    sys.exit(main())
