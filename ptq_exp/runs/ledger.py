"""Job keys, the pointers by which `resume=true` finds earlier jobs, and the records of failed jobs.

`<cache>/jobs/<key>.json` points to the folder of the last job with that key.
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path

from ptq_exp.base.console import log
from ptq_exp.base.errors import UserError, without_password
from ptq_exp.base.files import digest, file_digest, write_json
from ptq_exp.base.text import read_text
from ptq_exp.config import Config
from ptq_exp.data.image_folder import source_digest
from ptq_exp.networks import custom
from ptq_exp.quantization.learning import RECONSTRUCTION_VERSION
from ptq_exp.results.files import VERSION, write_failure
from ptq_exp.results.records import Failure

STOP_FILE = "stopped"  # in a sweep's folder: a job failed, and fail_fast=true
UNRELATED = (
    "tracking", "output_dir", "overrides", "cache_dir", "resume", "fail_fast", "quiet", "command", "threads", "method",
    "searchpath",
)  # fmt: skip

# The folder of the sweep, set by the sweep callback. The sweep prints the table, so its jobs do not.
SWEEP_VARIABLE = "PTQ_EXP_SWEEP"


def job_key(config: Config, device_type: str) -> str:
    """SHA-256 (hex) of everything that determines a job's result: a repeated job has the same key."""
    relevant = {key: value for key, value in dataclasses.asdict(config).items() if key not in UNRELATED}
    relevant["model"] = custom.identity(relevant["model"])
    if config.search.name is None:
        del relevant["search"]
    relevant["quant"]["name"] = ""  # a method's name does not affect the result
    checkpoint = Path(config.checkpoint).expanduser()
    file = file_digest(checkpoint).hex() if checkpoint.is_file() else ""
    root = config.data.folder
    images = source_digest(root) if config.data.name == "image_folder" and root.exists() else ""
    table = Path(config.data.labels or "").expanduser()  # it may lie outside the root
    labels = file_digest(table).hex() if table.is_file() else ""
    there = config.data.name == "auto" and root.exists()  # decides the meaning of auto
    where = [config.tracking.enabled, config.tracking.uri, config.tracking.experiment]
    where += [config.tracking.register] if config.tracking.register else []
    versions = [VERSION, RECONSTRUCTION_VERSION]
    return digest(relevant, file, images, labels, there, where, device_type, versions)


@dataclasses.dataclass(frozen=True)
class Ledger:
    """The pointer from a job's key to the folder of the last job with that key that finished, or else began."""

    path: Path

    @classmethod
    def of(cls, config: Config, key: str) -> "Ledger":
        """The pointer for a job's key."""
        return cls(config.cache / "jobs" / f"{key[:32]}.json")

    def read(self) -> Path | None:
        """The folder, or None if there is no pointer or it cannot be read."""
        try:
            return Path(json.loads(read_text(self.path))["folder"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, folder: Path) -> None:
        """Point to the folder of a job."""
        write_json(self.path, {"folder": str(folder.absolute())})


@contextlib.contextmanager
def failure_kept(folder: Path, bits: object, overrides: str, fail_fast: bool) -> Iterator[None]:
    """Write `failure.json` if a job fails. With `fail_fast`, the sweep's later jobs do not start."""
    sweep = os.environ.get(SWEEP_VARIABLE)
    stop = Path(sweep) / STOP_FILE if sweep else None
    try:
        if stop and stop.exists():
            raise UserError("Not run because another job failed (fail_fast=true).")
        yield
    except Exception as error:
        reason = without_password(str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}")
        failure = Failure(str(bits), without_password(overrides), reason, str(folder / "run.log"))
        with contextlib.suppress(OSError):  # the disk may be what failed
            write_failure(failure)
            if stop and fail_fast:
                stop.touch()
        if sweep:
            log.error("%s", failure)
        raise
