"""The Hydra callback of a multirun: it notifies the outputs before the first job and reports all jobs at the end."""

import atexit
import itertools
import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback

from ptq_exp.base.errors import without_password
from ptq_exp.config import SWEPT_VARIABLE, before_the_job

# Our launchers' files have the same names as the plugins' so that either can be typed. Hydra warns about that.
warnings.filterwarnings("ignore", message=r"\s*'hydra/launcher/\w+' is validated against")

# The keys and groups that decide whether files fit each other. In a long sweep only these are checked beforehand.
DECIDES_FILES = {"model", "data", "checkpoint", "device", "experiment"}
MOST_CHECKED = 8  # composing a configuration takes 0.1 s

# Sweep and the preflight checks need torch, the console needs rich. They are imported when a run starts: not by --help.


class SweepCallback(Callback):
    """Begins the sweep before its first job and finishes it after the last, even if a job failed.

    Hydra skips `on_multirun_end` if a job failed. In that case `close_sweep` finishes the sweep.
    """

    def __init__(self) -> None:
        self.finished = True

    def on_run_start(self, config: Any, **_: Any) -> None:
        """Reject a single job that cannot succeed, before it writes anything."""
        refuse_hopeless(lambda: [config])

    def on_multirun_start(self, config: Any, **_: Any) -> None:
        """Create the store and the parent run before any job starts."""
        HydraConfig.instance().set_config(config)  # `config` refers to it by ${hydra:...}
        overrides = list(config.hydra.overrides.task)
        refuse_hopeless(lambda: job_configs(config))
        from ptq_exp.base.console import set_quiet
        from ptq_exp.base.outlook import outlook
        from ptq_exp.reporting import SweepStart
        from ptq_exp.runs.sweep import Sweep

        set_quiet(config.quiet is True)
        outlook.sweep_begins(job_count(overrides))
        known = before_the_job(config)
        folder = Path(config.hydra.sweep.dir).absolute()
        start = SweepStart(sweep_name(overrides), overrides, folder, known.cache, known.resume)
        self.sweep = Sweep(known.tracking, start)
        try:
            self.sweep.begin()
        except Exception as error:
            raise SystemExit(1) from error  # run.py explains it; Hydra would turn it into a warning and continue
        os.environ[SWEPT_VARIABLE] = " ".join(sorted(swept(overrides)))
        self.finished = False
        self.process = os.getpid()
        _begun.append(self)

    def on_multirun_end(self, config: Any, **_: Any) -> None:
        """Finish the sweep after every job has ended."""
        self.finish()

    def finish(self) -> None:
        """Report the sweep. This happens once, in the process that started the sweep."""
        if self.finished or os.getpid() != self.process:
            return
        self.finished = True
        os.environ.pop(SWEPT_VARIABLE, None)
        try:
            self.sweep.finish()
        except Exception as error:  # Hydra would turn it into a warning and exit code 0
            self.sweep.reports.close("FAILED")
            kept = self.sweep.start.folder
            raise SystemExit(f"Error: finishing the sweep failed. Its jobs are kept in {kept}: {error!r}") from error


_begun: list[SweepCallback] = []


@atexit.register
def close_sweep() -> None:
    """Finish the sweep that this process began, if it has not ended."""
    while _begun:
        _begun.pop().finish()


def sweep_name(overrides: list[str]) -> str:
    """`sweep quant.bits=4,8`: the overrides with several values, or all overrides if none has several."""
    return without_password(" ".join(["sweep", *(swept(overrides).values() or overrides)]))


def swept(overrides: list[str]) -> dict[str, str]:
    """The overrides with several values, by key."""
    parsed = OverridesParser.create().parse_overrides(overrides)
    return {
        override.get_key_element().lstrip("+"): text
        for text, override in zip(overrides, parsed, strict=True) if override.is_sweep_override()
    }  # fmt: skip


def job_count(overrides: list[str]) -> int:
    """The number of jobs of a sweep."""
    loader = GlobalHydra.instance().hydra
    parser = OverridesParser.create(config_loader=loader.config_loader if loader else None)
    parsed = parser.parse_overrides(overrides)
    return math.prod(len(list(each.sweep_string_iterator())) for each in parsed if each.is_sweep_override())


def job_configs(sweep: Any) -> list[Any]:
    """The configurations of a sweep's jobs. In a long sweep, only the keys in `DECIDES_FILES` vary."""
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    overrides = list(sweep.hydra.overrides.task)
    parser = OverridesParser.create(config_loader=hydra.config_loader)  # it resolves model=glob(resnet*)
    every, files = [], []
    for text, override in zip(overrides, parser.parse_overrides(overrides), strict=True):
        key = override.get_key_element()
        swept_here = override.is_sweep_override()
        values = [f"{key}={value}" for value in override.sweep_string_iterator()] if swept_here else [text]
        every.append(values)
        if not swept_here or key.lstrip("+").partition(".")[0] in DECIDES_FILES:
            files.append(values)
    short = math.prod(map(len, every)) <= MOST_CHECKED
    jobs = list(itertools.product(*(every if short else files)))
    if len(jobs) > MOST_CHECKED:  # too many to check beforehand: each job checks itself when it starts
        return []
    return [hydra.config_loader.load_sweep_config(sweep, list(job)) for job in jobs]  # as Hydra's launchers do


def refuse_hopeless(configs: Callable[[], list[Any]]) -> None:
    """Raise `SystemExit`, with the error as its cause, if no job can succeed.

    Only `SystemExit` ends the program: Hydra turns other exceptions of a callback into warnings and continues.
    """
    from ptq_exp.runs.preflight import check_all

    try:
        check_all([before_the_job(config) for config in configs()])
    except Exception as error:
        raise SystemExit(1) from error
