"""`resume=true`: what an earlier job with the same configuration left, so that nothing is done twice."""

import shutil
from dataclasses import replace
from pathlib import Path

from ptq_exp.base.console import log
from ptq_exp.base.errors import without_password
from ptq_exp.config import Config
from ptq_exp.config.method import words_of
from ptq_exp.reporting import JobStart, Reports
from ptq_exp.results.files import FAILURE_FILE, RESULTS_FILE, read_job, write_job
from ptq_exp.results.records import JobRecord

NOT_COPIED = (RESULTS_FILE, FAILURE_FILE, "run.log", "hydra")


def finished(config: Config, start: JobStart, reports: Reports) -> JobRecord | None:
    """The record of the job with this key, if it finished before, with its files in the job's folder; else None.

    A job that was killed while it was reported is reported now. The record is looked for on disk, then in the outputs
    that keep records, since the job may have run on another machine.
    """
    record = read_job(start.earlier) if start.earlier else None
    if record is not None and record.key == start.key:
        reports.job(record)  # without effect where it was reported
        _copy(record.folder, start.folder)
    else:
        record = reports.find(start.key, start.folder)
    if record is None or record.key != start.key:
        return None
    words = without_password(config.overrides)
    record = replace(record, overrides=words, method=tuple(words_of(config)), folder=start.folder)
    write_job(record)
    log.info("%s: finished before, not run again (resume=true).", record.name)
    return record


def _copy(source: Path, target: Path) -> None:
    """What outputs left in the earlier folder: the sweep's report shows the figures."""
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.name not in NOT_COPIED and not (target / path.name).exists():
            shutil.copytree(path, target / path.name) if path.is_dir() else shutil.copy2(path, target / path.name)
