"""`python -m ptq_exp.reporting.mlflow upload <folder>`: log finished jobs that could not be logged when they ran."""

import argparse
import sys
from pathlib import Path

from ptq_exp.config.mistakes import exit_code
from ptq_exp.runs.sweep import upload_folder


def main() -> int:
    """Upload a run's folder, a sweep's or a whole tree of them."""
    parser = argparse.ArgumentParser(prog="python -m ptq_exp.reporting.mlflow", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    upload = commands.add_parser("upload", help="log what a folder of results holds and the store does not")
    upload.add_argument("folder", type=Path, help="of a job, of a sweep, or one that holds several")
    upload.add_argument("--uri", help="another store than the one that the jobs were meant for")
    arguments = parser.parse_args()
    return exit_code(lambda: upload_folder(arguments.folder, arguments.uri))


if __name__ == "__main__":
    sys.exit(main())
