"""The Hydra callback of a multirun: one parent run in MLflow around the jobs, and one table at the end."""

import atexit
import itertools
import math
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from hydra.types import RunMode

from ptq_exp.base.errors import without_password

# Our launchers' files bear the names of the plugins', so that either may be typed; Hydra finds that worth a warning.
warnings.filterwarnings("ignore", message=r"\s*'hydra/launcher/\w+' is validated against")

# The keys and groups that decide whether files fit each other: of a long sweep only these are checked beforehand.
DECIDES_FILES = {"model", "data", "checkpoint", "device", "experiment"}
MOST_CHECKED = 8  # composing a configuration takes a tenth of a second

# sweep and what it needs import torch and plots: they are imported once a sweep starts, not for --help.


class SweepCallback(Callback):
    """Opens the parent run before the first job and closes it after the last, also when a job failed.

    Hydra skips `on_multirun_end` when a job failed: then `close_sweep` does it.
    """

    def __init__(self) -> None:
        self.finished = True

    def on_run_start(self, config: Any, **_: Any) -> None:
        """Refuse a single job that cannot succeed, before it leaves anything behind."""
        refuse_hopeless(lambda: [config])

    def on_multirun_start(self, config: Any, config_name: str | None = None, **_: Any) -> None:
        """Create the store and the parent run; tell the jobs, whichever process they run in, by the environment."""
        HydraConfig.instance().set_config(config)  # `config` refers to it by ${hydra:...}
        refuse_hopeless(lambda: job_configs(config_name, list(config.hydra.overrides.task)))
        from ptq_exp.base.console import set_quiet
        from ptq_exp.base.paths import PROJECT_ROOT
        from ptq_exp.config import SWEPT_VARIABLE
        from ptq_exp.reporting import mlflow as tracking
        from ptq_exp.reporting.mlflow.options import TrackingOptions
        from ptq_exp.results.files import SWEEP_VARIABLE
        from ptq_exp.runs import background, sweep

        self.folder = Path(config.hydra.sweep.dir).absolute()
        overrides = list(config.hydra.overrides.task)
        self.name = sweep_name(overrides)
        set_quiet(config.quiet is True)
        settings = TrackingOptions(config.tracking.enabled, config.tracking.uri, config.tracking.experiment)
        cache = Path(config.cache_dir) if config.cache_dir else PROJECT_ROOT / "cache"
        try:
            self.parent = sweep.begin(settings, self.name, overrides, self.folder, cache, config.resume is True)
        except Exception as error:
            raise SystemExit(1) from error  # run.py explains it; Hydra would turn it into a warning and go on
        os.environ[SWEEP_VARIABLE] = str(self.folder)
        os.environ[SWEPT_VARIABLE] = " ".join(sorted(swept(overrides)))
        if self.parent.run_id:
            os.environ[tracking.PARENT_VARIABLE] = self.parent.run_id
        self.finished = False
        self.process = os.getpid()
        background.start()
        _begun.append(self)

    def on_multirun_end(self, config: Any, **_: Any) -> None:
        """Every job finished."""
        self.finish()

    def finish(self) -> None:
        """Show the sweep's table and log it on the parent run. Runs once, in the process that started the sweep."""
        if self.finished or os.getpid() != self.process:
            return
        self.finished = True
        try:
            self._finish()
        except Exception as error:  # Hydra would turn it into a warning and exit code 0
            from ptq_exp.reporting import mlflow as tracking

            tracking.end_open_runs("FAILED")
            raise SystemExit(f"Error: the sweep's end failed, its jobs are kept in {self.folder}: {error!r}") from error

    def _finish(self) -> None:
        from ptq_exp.base.console import console, is_quiet
        from ptq_exp.config import SWEPT_VARIABLE
        from ptq_exp.reporting import mlflow as tracking
        from ptq_exp.reporting.html.build import REPORT_FILE
        from ptq_exp.reporting.table import ResultTable
        from ptq_exp.results.files import SWEEP_VARIABLE, read_failures, read_jobs
        from ptq_exp.results.series import answers, as_series, failure_line, titled, with_labels
        from ptq_exp.runs import background, sweep

        for variable in (SWEEP_VARIABLE, SWEPT_VARIABLE, tracking.PARENT_VARIABLE):
            os.environ.pop(variable, None)
        problems = background.finish()
        if background.interrupted():
            tracking.end_open_runs("KILLED")
            return
        try:
            sweep.gather(self.parent, self.folder)
            problems += sweep.upload_jobs(self.folder)
        except Exception as error:  # the store went away: what was computed here is on disk
            problems.append(str(error))
        jobs = read_jobs(self.folder)
        failures = with_labels(jobs, read_failures(self.folder))
        if jobs or failures:
            console.print(ResultTable(as_series(jobs), titled(self.name, jobs), failures))
        for failure in failures:
            console.print(failure_line(failure))
        if not is_quiet():
            for sentence in answers(as_series(jobs)):
                console.print(sentence)
        try:
            sweep.log_sweep(self.parent, self.folder, self.name, "FAILED" if failures or problems else "FINISHED")
        except Exception as error:
            problems.append(str(error))
        if not is_quiet():
            console.print(f"Report: {self.folder / 'sweep' / REPORT_FILE}")
            console.print(self.parent.how_to_open() or f"Results: {self.folder}")
        if problems:
            print(f"Error: not everything could be logged: {problems[0]}", file=sys.stderr)
            print(f"To log it later: python -m ptq_exp.reporting.mlflow upload {self.folder}", file=sys.stderr)
            raise SystemExit(1)


_begun: list[SweepCallback] = []


@atexit.register
def close_sweep() -> None:
    """Finish the sweep that this process began, if it has not ended."""
    while _begun:
        _begun.pop().finish()


def sweep_name(overrides: list[str]) -> str:
    """`sweep quant.bits=4,8`: the overrides that take several values, or all of them where none does."""
    return without_password(" ".join(["sweep", *(swept(overrides).values() or overrides)]))


def swept(overrides: list[str]) -> dict[str, str]:
    """The overrides that take several values, by their keys."""
    parsed = OverridesParser.create().parse_overrides(overrides)
    return {
        override.get_key_element().lstrip("+"): text
        for text, override in zip(overrides, parsed, strict=True) if override.is_sweep_override()
    }  # fmt: skip


def job_configs(config_name: str | None, overrides: list[str]) -> list[Any]:
    """The configurations of a sweep's jobs; of a long sweep without the keys that decide nothing about files."""
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    parser = OverridesParser.create(config_loader=hydra.config_loader)  # which knows what model=glob(resnet*) means
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
    if len(jobs) > MOST_CHECKED:  # too many to look at beforehand: each is checked in its turn
        return []
    return [hydra.compose_config(config_name, list(job), RunMode.RUN, with_log_configuration=False) for job in jobs]


def refuse_hopeless(configs: Callable[[], list[Any]]) -> None:
    """End the program, with the error as its cause, where no job can succeed.

    Whatever is raised here must end it: Hydra turns other exceptions of a callback into warnings and goes on.
    """
    from ptq_exp.config import before_the_job
    from ptq_exp.runs.preflight import check_all

    try:
        check_all([before_the_job(config) for config in configs()])
    except Exception as error:
        raise SystemExit(1) from error
