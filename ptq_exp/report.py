"""`python -m ptq_exp.report`: the report of a finished sweep or run, or two side by side (`reporting/html`)."""

import sys

from ptq_exp.reporting.html.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
