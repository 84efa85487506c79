"""Hydra in, one dictionary of metrics out: `python run.py --help` lists what can be changed."""

import os
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore

from ptq_exp.base import background
from ptq_exp.base.text import write_what_fits
from ptq_exp.config import Config
from ptq_exp.config.help import page
from ptq_exp.config.mistakes import refuse_mixtures, tell
from ptq_exp.runs.callbacks import close_sweep

CONF = Path(__file__).resolve().parent / "conf"
# Groups that allow any key come from their YAML files alone.
ConfigStore.instance().store(name="schema", node=Config(model={}, optimizer={}, scheduler={}))


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def main(cfg: Any) -> dict[str, float]:
    """Run one job or one search. torch is imported here, so that --cfg responds at once."""
    from ptq_exp.runs.search import run

    return run(cfg)


def command_line() -> int:
    """Run `main`. A user's mistake leads to a message and exit code 1, with a traceback only on request."""
    write_what_fits()
    if {"--help", "-h"} & set(sys.argv):
        print(page(sys.argv[1:]))
        return 0
    show_traceback = "--traceback" in sys.argv or os.environ.get("HYDRA_FULL_ERROR") == "1"
    arguments = [argument for argument in sys.argv[1:] if argument != "--traceback"]
    # argparse requires all overrides on one side of -m, but users often append overrides after -m. The remedy of
    # argparse, parse_intermixed_args, is not available: Hydra creates the parser and calls parse_args.
    sys.argv[1:] = sorted(arguments, key=lambda argument: argument not in {"-m", "--multirun"})
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises errors instead of printing them
    try:
        refuse_mixtures(arguments, CONF)
        main()
    except KeyboardInterrupt:
        background.interrupt()
        close_sweep()
        print(background.INTERRUPTED, file=sys.stderr)
        sys.stdout.flush()
        os._exit(130)  # shutting down the interpreter takes a second
    except SystemExit as stop:
        if isinstance(stop.__cause__, Exception):  # a callback refused to start
            return tell(stop.__cause__, CONF, show_traceback)
        if stop.code != 2:
            raise
        # argparse has already named the unknown argument.
        print("Error: keys have no dashes: quant.bits=4, not --bits 4. --help lists the options.", file=sys.stderr)
        return 1
    except Exception as error:
        close_sweep()
        return tell(error, CONF, show_traceback)
    return 0


if __name__ == "__main__":
    background.heed_interrupts()
    sys.exit(command_line())
