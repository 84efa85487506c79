"""Atomic writing of files, and digests of files and values."""

import dataclasses
import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ptq_exp.base.text import write_text


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it, so that `path` is never incomplete."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    os.close(handle)
    try:
        write(Path(name))
        Path(name).chmod(0o644)  # a temporary file is private to its owner, a finished one is not
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def write_json(path: Path, content: Any, indent: int | None = None) -> None:
    """Write `content` as JSON atomically. The folder is created if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=indent)
    write_atomically(path, lambda temporary: write_text(temporary, text))


def digest(*parts: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of `parts`. It is the same for equal values on every machine."""
    plain = [dataclasses.asdict(p) if dataclasses.is_dataclass(p) and not isinstance(p, type) else p for p in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def file_digest(path: Path) -> bytes:
    """SHA-256 of a file, computed once per process, because every job of a sweep needs it and files may be large."""
    status = path.stat()
    return _digest_of(path.absolute(), status.st_size, status.st_mtime_ns)


@functools.cache
def _digest_of(path: Path, size: int, modified: int) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def check_writable(folder: Path) -> None:
    """Create `folder` if needed. Raises `OSError` if no file can be created in it."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass
