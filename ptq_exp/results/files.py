"""The only writer and the only reader of records: JSON with a version number and a checksum."""

import contextlib
import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from ptq_exp.base.files import digest, write_json
from ptq_exp.base.text import read_text, write_text
from ptq_exp.results import first_edition
from ptq_exp.results.records import Failure, JobRecord, SearchRecord, SweepRecord
from ptq_exp.results.search import distinguished

VERSION = 2  # raised when the fields change; files of version 1 have no number and are read by `first_edition`
RESULTS_FILE = "results.json"  # complete or absent
FAILURE_FILE = "failure.json"
SWEEP_FILE = "sweep.json"
SEARCH_FILE = "search.json"

T = TypeVar("T")


def write_job(record: JobRecord) -> None:
    """Write `results.json` to the job's folder atomically."""
    content = {"version": VERSION} | to_json(record)
    write_json(record.folder / RESULTS_FILE, content | {"sha256": digest(content)}, indent=1)


def read_job(folder: Path) -> JobRecord | None:
    """The record in a job's folder, or None if the job did not finish or the file is damaged."""
    try:
        content = json.loads(read_text(folder / RESULTS_FILE))
        if content.pop("sha256") != digest(content):
            return None
        if "version" not in content:
            return first_edition.job(content, folder)
        if content.pop("version") != VERSION:
            return None
        return from_json(JobRecord, content | {"folder": str(folder)})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def write_failure(failure: Failure) -> None:
    """Write `failure.json` to the job's folder."""
    failure.folder.mkdir(parents=True, exist_ok=True)
    write_text(failure.folder / FAILURE_FILE, json.dumps(to_json(failure)))


def write_sweep(folder: Path, name: str, command: list[str]) -> None:
    """Write the name and the command of a sweep to its folder."""
    write_json(folder / SWEEP_FILE, {"name": name, "command": command})


def write_search(record: SearchRecord, folder: Path) -> None:
    """Write the record of a search to a folder."""
    write_json(folder / SEARCH_FILE, to_json(record), indent=1)


def read_search(folder: Path) -> SearchRecord | None:
    """The record of the search in a folder, or None if there is none."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        content = json.loads(read_text(folder / SEARCH_FILE))
        return from_json(SearchRecord, content | {"folder": str(folder)})
    return None


def read_sweep(folder: Path, known: Mapping[Path, JobRecord] | None = None) -> SweepRecord:
    """A sweep with all records and failures in its folder. Records in `known`, by folder, are not read from disk."""
    about: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        about = json.loads(read_text(folder / SWEEP_FILE))
    jobs, failures, searches = [], [], []
    for place in job_folders(folder):
        if search := read_search(place):
            searches.append(search)
        if record := (known or {}).get(place.absolute()) or read_job(place):
            jobs.append(record)
        with contextlib.suppress(OSError, ValueError):
            failures.append(from_json(Failure, json.loads(read_text(place / FAILURE_FILE))))
    name = about.get("name", folder.name)
    return SweepRecord(
        name, folder, tuple(about.get("command", [])), tuple(jobs), tuple(failures),
        search=read_search(folder), searches=distinguished(searches),
    )  # fmt: skip


def job_folders(sweep_folder: Path) -> list[Path]:
    """The folders of a sweep's jobs, in job order."""
    folders = [path for path in sweep_folder.iterdir() if path.is_dir()] if sweep_folder.is_dir() else []
    return sorted(folders, key=lambda path: (len(path.name), path.name))


def to_json(value: Any) -> Any:
    """Plain lists, dictionaries, strings and numbers. Non-finite numbers become strings, since JSON has none."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        stored = [entry.name for entry in dataclasses.fields(value) if entry.metadata.get("stored", True)]
        return {name: to_json(getattr(value, name)) for name in stored}
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, float) and value - value != 0:  # infinite, or not a number
        return str(value)
    return str(value) if isinstance(value, Path) else value


def from_json(kind: type[T], value: Any) -> T:
    """The inverse of `to_json`, by the types of the fields. Unknown keys are ignored.

    Raises `KeyError`, `TypeError` or `ValueError` if `value` is not of this kind.
    """
    return typing.cast(T, _read(kind, value))


def _read(kind: Any, value: Any) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return None if value is None else _read(next(a for a in arguments if a is not type(None)), value)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        known = {entry.name for entry in dataclasses.fields(kind)} & value.keys()
        return kind(**{name: _read(hints[name], value[name]) for name in known})  # type: ignore[operator]
    if origin is tuple:
        return tuple(_read(arguments[0], item) for item in value)
    if origin is dict:
        return {key: _read(arguments[1], item) for key, item in value.items()}
    return value if kind is Any else kind(value)
