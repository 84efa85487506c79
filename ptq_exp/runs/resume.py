"""`resume=true`: reuse the results of an earlier job with the same configuration."""

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
    """The record of an earlier finished job with this key, with its files copied to the job's folder; else None.

    A job that was killed during its reporting is reported now. The record is searched on disk, then in the outputs
    that keep records, because the job may have run on another machine.
    """
    record = read_job(start.earlier) if start.earlier else None
    if record is not None and record.key == start.key:
        reports.job(record)  # no effect if it was already reported
        _copy(record.folder, start.folder)
    else:
        record = reports.find(start.key, start.folder)
    if record is None or record.key != start.key:
        return None
    words = without_password(config.overrides)
    record = replace(record, overrides=words, method=tuple(words_of(config)), folder=start.folder)
    write_job(record)
    log.info("%s: already finished, not run again (resume=true).", record.name)
    return record


def _copy(source: Path, target: Path) -> None:
    """Copy the files of an earlier job, because the sweep's report shows its figures. They replace those of another job
    in the same folder."""
    target.mkdir(parents=True, exist_ok=True)
    if source.resolve() == target.resolve():
        return
    for path in source.iterdir():
        own = target / path.name
        if path.name in NOT_COPIED:
            continue
        if path.is_dir():
            shutil.rmtree(own, ignore_errors=True)
            shutil.copytree(path, own)
        elif not own.exists():
            shutil.copy2(path, own)
