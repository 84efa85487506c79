"""The command lines of the small programs (`python -m ptq_exp.report`, ...)."""

import argparse
import re
from typing import NoReturn

from ptq_exp.base.errors import did_you_mean
from ptq_exp.base.text import complain


class ArgumentParser(argparse.ArgumentParser):
    """Answers a mistake like run.py: in one sentence with the nearest valid spelling, and with exit code 1."""

    def error(self, message: str) -> NoReturn:
        choices = re.search(r"invalid choice: '?([^' ]*)'? \(choose from (.*)\)", message)
        near = did_you_mean(choices[1], re.findall(r"[\w-]+", choices[2])) if choices else ""
        complain(f"{message}.{near} --help lists the arguments.")
        raise SystemExit(1)
