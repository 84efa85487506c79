"""The Hydra callback of a multirun: one parent run in MLflow around the jobs, and one table at the end."""

import atexit
import os
import sys
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback

# tracking, results and summary import torch or plots: they are imported once a sweep starts, not for --help.


class SweepCallback(Callback):
    """Opens the parent run before the first job and closes it after the last, also when a job failed.

    Hydra skips `on_multirun_end` when a job failed, so the end is registered with `atexit`, too.
    """

    def __init__(self) -> None:
        self.finished = True

    def on_multirun_start(self, config: Any, **_: Any) -> None:
        """Create the store and the parent run; tell the jobs, whichever process they run in, by the environment."""
        HydraConfig.instance().set_config(config)  # `config` refers to it by ${hydra:...}
        from ptq_exp import background, tracking
        from ptq_exp.config import TrackingConfig
        from ptq_exp.errors import UserError
        from ptq_exp.experiment import SWEEP_VARIABLE

        self.folder = Path(config.hydra.sweep.dir).absolute()
        self.name = sweep_name(list(config.hydra.overrides.task))
        settings = TrackingConfig(config.tracking.enabled, config.tracking.uri, config.tracking.experiment)
        try:
            self.parent = tracking.start(settings, self.name)
        except UserError as error:  # Hydra would turn it into a warning and go on
            print(f"Error: {error}", file=sys.stderr)
            raise SystemExit(1) from error
        os.environ[SWEEP_VARIABLE] = str(self.folder)
        if self.parent.run_id:
            os.environ[tracking.PARENT_VARIABLE] = self.parent.run_id
        self.finished = False
        self.process = os.getpid()
        background.start()
        atexit.register(self.finish, aborted=True)

    def on_multirun_end(self, config: Any, **_: Any) -> None:
        """Every job finished."""
        self.finish()

    def finish(self, aborted: bool = False) -> None:
        """Log the sweep's table, curves and figure on the parent run and show the table. Runs once, in the
        process that started the sweep; `aborted` marks the parent as failed."""
        if self.finished or os.getpid() != self.process:
            return
        self.finished = True
        from ptq_exp import background, tracking
        from ptq_exp.console import console
        from ptq_exp.experiment import SWEEP_VARIABLE
        from ptq_exp.results import read_jobs
        from ptq_exp.summary import as_series, terminal_table

        for variable in (SWEEP_VARIABLE, tracking.PARENT_VARIABLE):
            os.environ.pop(variable, None)
        failure = None
        try:
            background.finish()
        except Exception as error:  # said below, after what can be shown has been shown
            failure, aborted = error, True
        jobs = read_jobs(self.folder)
        if jobs:
            series, title = as_series(jobs), self.name
            console.print(terminal_table(series, title))
            self._log(series, title, curves=all(len(job["rows"]) == 1 for job in jobs))
        self.parent.end("FAILED" if aborted else "FINISHED")
        console.print(self.parent.how_to_open() or f"Results: {self.folder}")
        if failure is not None:
            print(f"Error: not everything could be logged: {failure}", file=sys.stderr)
            raise SystemExit(1) from failure

    def _log(self, series: dict[str, list[dict[str, Any]]], title: str, curves: bool) -> None:
        from ptq_exp import plots, tracking
        from ptq_exp.summary import markdown_table

        figures = self.folder / "sweep"
        plots.accuracy_against_bits(series, figures / "accuracy_against_bits.png")
        (figures / "table.md").write_text(markdown_table(series, title))
        lowest = min((row for rows in series.values() for row in rows), key=lambda row: row["top1"])
        note = f"{markdown_table(series, title)}\n\n{lowest['bits']} bits. {lowest['diagnosis']}"
        self.parent.log(tags={"mlflow.note.content": note})
        self.parent.log_folder(figures)
        # A job with several bit widths logs its curve itself: a copy would draw it twice.
        for label, rows in series.items() if curves else ():
            curve = [(row["bits"], {"top1_vs_bits": row["top1"]}) for row in rows]
            if len({bits for bits, _ in curve}) < 2:
                continue
            if len(series) == 1:
                self.parent.log_series(curve)
            else:
                child = tracking.child(self.parent, f"curve {label}")
                child.log_series(curve)
                child.end()


def sweep_name(overrides: list[str]) -> str:
    """`sweep quant.bits=4,8`: the overrides that take several values, or all of them where none does."""
    parsed = OverridesParser.create().parse_overrides(overrides)
    swept = [text for text, override in zip(overrides, parsed, strict=True) if override.is_sweep_override()]
    return " ".join(["sweep", *(swept or overrides)])
