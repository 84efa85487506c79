"""Jobs and sweeps as runs in TensorBoard: one folder of event files for each."""

import importlib.util
import shutil
import tempfile
from pathlib import Path

from ptq_exp.base.errors import UserError
from ptq_exp.reporting import JobStart, Reporter, SweepStart
from ptq_exp.reporting.tensorboard import content
from ptq_exp.results.files import SWEEP_FILE
from ptq_exp.results.records import JobRecord, SweepRecord

SWEEP = "sweep"  # the run of a sweep itself


class TensorBoard(Reporter):
    """Writes below the folder `tracking.tensorboard`. Without one, every call does nothing.

    The runs of a sweep share a folder, whose name is the date and the time of its start. TensorBoard shows it in front
    of the names of its runs.
    """

    def job_begins(self, start: JobStart) -> None:
        """Raise `UserError` before any work if TensorBoard is not installed."""
        self._check()

    def sweep_begins(self, start: SweepStart) -> None:
        """Raise `UserError` before any job if TensorBoard is not installed."""
        self._check()

    def job(self, record: JobRecord) -> None:
        """Write a job's metrics, training, hyperparameters, figures and table. A job that is there is left alone."""
        if self.tracking.tensorboard is None:
            return
        swept = (record.folder.parent / SWEEP_FILE).exists()
        target = self._runs(record.folder.parent if swept else record.folder)
        target /= _file_name(f"{record.name} ({record.folder.name})" if swept else record.name)
        if not target.exists():
            # The folder appears when it is complete, so that a job that is killed meanwhile is written again.
            with tempfile.TemporaryDirectory(dir=record.folder) as scratch:
                content.write_job(record, Path(scratch) / "run")
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(Path(scratch) / "run", target)

    def sweep(self, record: SweepRecord) -> None:
        """Write a sweep's table and figures, and its curves over the bits if each job has one bit width."""
        if self.tracking.tensorboard is None:
            return
        runs = self._runs(record.folder)
        for old in [runs / SWEEP, *runs.glob(f"{content.CURVE}*")]:
            shutil.rmtree(old, ignore_errors=True)
        content.write_sweep(record, runs / SWEEP)
        for label, rows in content.curves(record).items():
            content.write_curve(rows, runs / _file_name(f"{content.CURVE} {label}".strip()))

    def where(self) -> list[str]:
        """How to view the runs."""
        folder = self.tracking.tensorboard
        return [f"See it in TensorBoard: run `tensorboard --logdir {folder}`"] if folder else []

    def _runs(self, folder: Path) -> Path:
        """The folder of the runs of a sweep or a single job, from the folder of its results."""
        assert self.tracking.tensorboard is not None
        return Path(self.tracking.tensorboard) / " ".join(folder.absolute().parts[-2:])

    def _check(self) -> None:
        if self.tracking.tensorboard is not None and importlib.util.find_spec("tensorboard") is None:
            raise UserError(
                "tracking.tensorboard needs a package that is not installed: pip install tensorboard, or "
                "pip install 'ptq_exp[tensorboard]'."
            )


def _file_name(name: str) -> str:
    return name.replace("/", "_")
