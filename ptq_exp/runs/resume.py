"""`resume=true`: what an earlier job with the same configuration left, so that nothing is done twice."""

import shutil
from pathlib import Path

from ptq_exp.base.console import log
from ptq_exp.base.errors import without_password
from ptq_exp.config import Config
from ptq_exp.config.method import words_of
from ptq_exp.reporting.mlflow import reading
from ptq_exp.reporting.mlflow.upload import upload
from ptq_exp.results.files import RESULTS_FILE, Ledger, read_record, rows_of, write_record
from ptq_exp.results.series import Row


def finished(config: Config, key: str, ledger: Ledger, folder: Path) -> list[Row] | None:
    """The rows of the job with this key where it finished before, and its record in `folder`; None where it did not.

    A job that was killed while it was logged is logged now. Looked for on disk, then in the MLflow store, since the job
    may have run on another machine.
    """
    record, there = None, ledger.read()
    if there:
        record = read_record(there["folder"])
        if record is not None and record["job"] == key and not record["uploaded"]:
            upload(there["folder"])
            record = read_record(there["folder"])
    if record is None and config.tracking.enabled:
        record = _from_store(config, key, folder)
    if record is None or record["job"] != key:
        return None
    elsewhere = there["folder"] / "artifacts" if there else folder
    if elsewhere.is_dir() and not (folder / "artifacts").exists():
        shutil.copytree(elsewhere, folder / "artifacts")  # the sweep's report shows them
    write_record(folder, record | {"overrides": without_password(config.overrides), "method": words_of(config)})
    log.info("%s: finished before, not run again (resume=true).", record["run"]["name"] if record["run"] else folder)
    return rows_of(record)


def _from_store(config: Config, key: str, folder: Path) -> dict[str, object] | None:
    run_id = reading.fetch_job(config.tracking, key, RESULTS_FILE, folder)
    record = read_record(folder) if run_id else None
    return record and record | {"uploaded": True, "run_id": run_id}
