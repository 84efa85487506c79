"""The location of a job or a sweep in a store, kept as `mlflow.json` in its folder so that it can be logged later."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from ptq_exp.base.errors import UserError, without_password
from ptq_exp.base.files import write_json
from ptq_exp.base.text import read_text
from ptq_exp.reporting.mlflow.options import TrackingOptions
from ptq_exp.reporting.mlflow.store import PARENT_VARIABLE, default_uri

FILE = "mlflow.json"


@dataclass(frozen=True)
class Place:
    """The location of a run, without passwords, and whether everything has been logged."""

    uri: str
    experiment: str
    name: str
    parent: str | None  # the id of the sweep's run
    run_id: str = ""
    logged: bool = False

    @classmethod
    def of(cls, options: TrackingOptions, name: str) -> "Place | None":
        """The location of a run called `name`, or None without a store."""
        if not options.enabled:
            return None
        uri = without_password(options.uri or default_uri())
        return cls(uri, options.experiment, name, os.environ.get(PARENT_VARIABLE))

    @classmethod
    def read(cls, folder: Path) -> "Place | None":
        """The location stored in a folder, or None if there is no readable file."""
        try:
            return cls(**json.loads(read_text(folder / FILE)))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, folder: Path) -> None:
        """Write `mlflow.json` to a folder atomically."""
        write_json(folder / FILE, asdict(self))

    def options(self, uri: str | None = None) -> TrackingOptions:
        """The options for this store; `uri` replaces the store. Raises `UserError` if a password is missing."""
        where = uri or self.uri
        if ":***@" in where:
            raise UserError(f"The password of {where} was not stored. Give the complete address with --uri.")
        return TrackingOptions(True, where, self.experiment)


def address(folder: Path) -> tuple[str, str]:
    """The address of the run of a job's or a sweep's folder, and the command that serves it if it is not a server's.

    Both are empty if nothing was logged.
    """
    place = Place.read(folder)
    return page_of(place.uri, place.run_id) if place and place.run_id else ("", "")


def page_of(uri: str, run_id: str) -> tuple[str, str]:
    """The same for a run in the store `uri`."""
    if uri.startswith("http"):
        return f"{without_password(uri).rstrip('/')}/#/runs/{run_id}", ""
    store = "" if uri == default_uri() else f" --backend-store-uri {without_password(uri)}"
    return f"http://127.0.0.1:5000/#/runs/{run_id}", f"mlflow ui{store}"
