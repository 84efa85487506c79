"""`python -m ptq_exp.export`: the command of `runs/export.py` under its short name."""

import sys

from ptq_exp.runs.export import main

if __name__ == "__main__":
    sys.exit(main())
