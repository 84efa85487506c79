"""Published data sets that torchvision downloads, verifies and reads."""

import contextlib
import http.client
import io
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from torchvision.datasets.utils import check_integrity

from ptq_exp.base.console import console, is_quiet, log
from ptq_exp.base.errors import UserError
from ptq_exp.base.sockets import socket_timeout
from ptq_exp.data.options import DataOptions

# What torchvision's readers raise for files that are missing, damaged or cut off.
UNREADABLE = (RuntimeError, AssertionError, ValueError, TypeError, EOFError, OSError)


class DataUnavailable(UserError):
    """The data set is not on disk and could not be downloaded."""


@dataclass(frozen=True)
class Published:
    """A data set of torchvision: how to read it, and the files it consists of, relative to its root."""

    name: str  # of the data set in messages
    read: Callable[..., Any]  # read(root, train: bool, download: bool): one split, with `data` and its labels
    unpacked: tuple[str, ...]  # the files or folders that are read
    archives: Callable[[], dict[str, str]]  # the files as published and their MD5
    url: Callable[[], str]  # where they are downloaded from, for messages

    def check(self, options: DataOptions) -> None:
        """Raise `DataUnavailable` if nothing of the data set is on disk and it may not be downloaded."""
        root = options.folder
        if not (options.download or any((root / name).exists() for name in (*self.unpacked, *self.archives()))):
            raise self._missing(root)

    def load(self, options: DataOptions) -> tuple[Any, Any]:
        """torchvision's training and test split in `data.root`. They are unpacked or downloaded first if they are
        missing there.

        Raises `DataUnavailable` if they are not on disk and cannot be downloaded within `data.timeout`.
        """
        root = options.folder
        with contextlib.suppress(*UNREADABLE):
            return self._splits(root)
        packed = [name for name, md5 in self.archives().items() if check_integrity(str(root / name), md5)]
        if not options.download and len(packed) < len(self.archives()):
            raise self._missing(root)
        self._fetch(root, packed, options.timeout)
        return self._splits(root)

    def _splits(self, root: Path) -> tuple[Any, Any]:
        return self.read(root, train=True, download=False), self.read(root, train=False, download=False)

    def _missing(self, root: Path) -> DataUnavailable:
        unpacked, archives = (_listed(names) for names in (self.unpacked, tuple(self.archives())))
        files = unpacked if unpacked == archives else f"{unpacked} or the files as published ({archives})"
        return DataUnavailable(
            f"{self.name} is not in {root} (or a file there is damaged). Put {files} there, set data.root to its "
            "folder, or set data.download=true."
        )

    def _fetch(self, root: Path, packed: list[str], timeout: float) -> None:
        """Download what is not `packed` in `root`, verify and unpack it into `root`, atomically.

        torchvision checks the MD5 of every archive. The files appear in `root` by renaming, so that a killed download
        leaves no files that look like the data. A second process waits for the first.
        """
        try:
            root.mkdir(parents=True, exist_ok=True)
            with FileLock(root / f".{self.unpacked[0]}.lock"), socket_timeout(timeout):
                with contextlib.suppress(*UNREADABLE):
                    self._splits(root)
                    return  # another process was faster
                whole = len(packed) == len(self.archives())
                log.info("%s %s to %s.", "Unpacking" if whole else "Downloading", self.name, root)
                with tempfile.TemporaryDirectory(prefix=".download-", dir=root) as scratch, _own_progress_bar():
                    for name in packed:
                        (Path(scratch) / name).parent.mkdir(parents=True, exist_ok=True)
                        shutil.copyfile(root / name, Path(scratch) / name)
                    for train in (True, False):
                        self.read(scratch, train=train, download=True)
                    for name in self.unpacked:
                        target = root / name
                        if target.is_dir():  # incomplete or damaged, or torchvision would have read it
                            shutil.rmtree(target)
                        os.replace(Path(scratch) / name, target)
        except (*UNREADABLE, http.client.HTTPException) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__  # urllib wraps the reason
            raise DataUnavailable(
                f"{self.name} could not be downloaded from {self.url()} ({reason}). Put {_listed(self.unpacked)} into "
                f"{root}, set data.root to its folder, or use data=digits, which needs no internet connection."
            ) from error


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names)


def _own_progress_bar() -> contextlib.AbstractContextManager[Any]:
    """Show torchvision's progress bar on stderr, but only in a terminal and not with quiet=true."""
    shown = console.is_terminal and not is_quiet()
    return contextlib.nullcontext() if shown else contextlib.redirect_stderr(io.StringIO())
