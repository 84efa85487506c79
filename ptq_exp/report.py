"""`python -m ptq_exp.report`: the command of `runs/report.py` under its short name."""

import sys

from ptq_exp.runs.report import main

if __name__ == "__main__":
    sys.exit(main())
