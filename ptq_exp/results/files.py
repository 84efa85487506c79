"""What is kept of every job: `results.json` or `failure.json` in its folder, and where `resume=true` finds it.

A job is known by its key, a digest of its configuration and files. `<cache>/jobs/<key>.json` points to the folder and
the MLflow run of the last job with that key.
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ptq_exp.base.console import log
from ptq_exp.base.errors import UserError, without_password
from ptq_exp.base.text import read_text, write_text
from ptq_exp.config import Config, digest
from ptq_exp.data.image_folder import file_digest, source_digest
from ptq_exp.networks.store import write_atomically
from ptq_exp.quantization.learning import RECONSTRUCTION_VERSION
from ptq_exp.results.series import Failure, Row, failure_line

RESULTS_FILE = "results.json"  # complete or not there: rows, and all that is logged besides the artifacts
FAILURE_FILE = "failure.json"
STOP_FILE = "stopped"  # in a sweep's folder: a job failed, and fail_fast=true
UNRELATED = (
    "tracking", "output_dir", "overrides", "cache_dir", "resume", "fail_fast", "quiet", "command", "threads", "method",
    "searchpath",
)  # fmt: skip

# Set by the sweep callback: the folder of the sweep. Its jobs leave the table to it.
SWEEP_VARIABLE = "PTQ_EXP_SWEEP"


def job_key(config: Config, device_type: str) -> str:
    """SHA-256 (hex) of all that decides a job's result: equal for a job that would only repeat another."""
    relevant = {key: value for key, value in dataclasses.asdict(config).items() if key not in UNRELATED}
    relevant["quant"]["name"] = ""  # what a method is called decides nothing
    checkpoint = Path(config.checkpoint).expanduser()
    file = file_digest(checkpoint).hex() if checkpoint.is_file() else ""
    root = config.data_root
    images = source_digest(root) if config.data.name == "image_folder" and root.exists() else ""
    there = config.data.name == "auto" and root.exists()  # decides what auto means
    where = [config.tracking.enabled, config.tracking.uri, config.tracking.experiment]
    where += [config.tracking.register] if config.tracking.register else []
    return digest(relevant, file, images, there, where, device_type, RECONSTRUCTION_VERSION)


@dataclasses.dataclass
class Ledger:
    """The pointer from a job's key to what the last job with that key left."""

    path: Path

    @classmethod
    def of(cls, config: Config, key: str) -> "Ledger":
        """The pointer for a job's key."""
        return cls(config.cache / "jobs" / f"{key[:32]}.json")

    def read(self) -> dict[str, Any]:
        """`folder` and `run_id`; nothing where there is none or it cannot be read."""
        try:
            found = json.loads(read_text(self.path))
            return {"folder": Path(found["folder"]), "run_id": str(found["run_id"])}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def write(self, folder: Path, run_id: str) -> None:
        """Point to a job that begins."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = json.dumps({"folder": str(folder.absolute()), "run_id": run_id})
        write_atomically(self.path, lambda path: write_text(path, content))


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Leave `results.json` in the job's folder, complete or not at all."""
    content = json.dumps(record | {"sha256": digest(_without_sum(record))}, indent=1)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / RESULTS_FILE, lambda path: write_text(path, content))


def read_record(folder: Path) -> dict[str, Any] | None:
    """What a finished job left in its folder; None where it did not finish or the file is damaged."""
    try:
        record: dict[str, Any] = json.loads(read_text(folder / RESULTS_FILE))
        return record if record["sha256"] == digest(_without_sum(record)) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _without_sum(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != "sha256"}


def job_folders(sweep_folder: Path) -> list[Path]:
    """The folders of a sweep's jobs, in the order of the jobs."""
    folders = [path for path in sweep_folder.iterdir() if path.is_dir()] if sweep_folder.is_dir() else []
    return sorted(folders, key=lambda path: (len(path.name), path.name))


def read_jobs(sweep_folder: Path, with_folder: bool = False) -> list[dict[str, Any]]:
    """The records of the finished jobs of a sweep, in the order of the jobs; `with_folder` adds each one's `folder`."""
    found = [(folder, record) for folder in job_folders(sweep_folder) if (record := read_record(folder))]
    return [record | {"folder": folder} if with_folder else record for folder, record in found]


def read_failures(sweep_folder: Path) -> list[Failure]:
    """What the failed jobs of a sweep left."""
    found = []
    for folder in job_folders(sweep_folder):
        with contextlib.suppress(OSError, ValueError):
            found.append(json.loads(read_text(folder / FAILURE_FILE)))
    return found


@contextlib.contextmanager
def failure_kept(folder: Path, bits: object, overrides: str, fail_fast: bool) -> Iterator[None]:
    """Leave `failure.json` where a job fails. With `fail_fast` the jobs of the sweep after it are not begun."""
    sweep = os.environ.get(SWEEP_VARIABLE)
    stop = Path(sweep) / STOP_FILE if sweep else None
    try:
        if stop and stop.exists():
            raise UserError("Not run: another job failed, and fail_fast=true.")
        yield
    except Exception as error:
        reason = without_password(str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}")
        words = without_password(overrides)
        failure = {"bits": str(bits), "overrides": words, "error": reason, "log": str(folder / "run.log")}
        failure["run_id"] = getattr(error, "run_id", "")  # of the job's run in MLflow, where it came so far
        with contextlib.suppress(OSError):  # the disk may be what failed
            folder.mkdir(parents=True, exist_ok=True)
            write_text(folder / FAILURE_FILE, json.dumps(failure))
            if stop and fail_fast:
                stop.touch()
        if sweep:
            log.error("%s", failure_line(failure))
        raise


def rows_of(record: dict[str, Any]) -> list[Row]:
    """The rows of a record."""
    rows: list[Row] = record["rows"]
    return rows
