"""CIFAR-10 and, through `load_cifar`, CIFAR-100 (Krizhevsky 2009), with torchvision's reader."""

import contextlib
import http.client
import io
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torchvision import datasets

from ptq_exp.base.console import console, is_quiet, log
from ptq_exp.base.errors import UserError
from ptq_exp.base.sockets import socket_timeout
from ptq_exp.data.dataset import CIFAR10_MEAN, CIFAR10_STD, Dataset
from ptq_exp.data.options import DataOptions

READER = datasets.CIFAR10


class DataUnavailable(UserError):
    """The data set is not on disk and could not be downloaded."""


def missing(reader: type[datasets.CIFAR10], root: Path) -> DataUnavailable:
    """The error for data that is not on disk and may not be downloaded."""
    return DataUnavailable(
        f"{reader.__name__.lower()} is not in {root} (or a file there is damaged). Put the folder {reader.base_folder} "
        f"or the archive {reader.filename} there, set data.root to its folder, or set data.download=true."
    )


def load(options: DataOptions, cache: Path) -> Dataset:
    """CIFAR-10: 50,000 training and 10,000 test images in 10 classes."""
    return load_cifar("cifar10", READER, CIFAR10_MEAN, CIFAR10_STD, options)


def load_cifar(
    name: str, reader: type[datasets.CIFAR10], mean: tuple[float, ...], std: tuple[float, ...], options: DataOptions
) -> Dataset:
    """Read one of the CIFAR data sets from `data.root`. It is downloaded first if it is missing and that is allowed.

    Raises `DataUnavailable` if it is not on disk and cannot be downloaded within `data.timeout`.
    """
    root = options.folder
    try:
        train, test = reader(root, train=True), reader(root, train=False)
    except RuntimeError:  # torchvision: a file is missing or its checksum is wrong
        if not (options.download or (root / reader.filename).is_file()):
            raise missing(reader, root) from None
        download(reader, root, options.timeout)
        train, test = reader(root, train=True), reader(root, train=False)
    return Dataset(
        name=name,
        classes=tuple(train.classes),
        train_images=torch.from_numpy(train.data).permute(0, 3, 1, 2).contiguous(),
        train_labels=torch.tensor(train.targets),
        test_images=torch.from_numpy(test.data).permute(0, 3, 1, 2).contiguous(),
        test_labels=torch.tensor(test.targets),
        mean=mean,
        std=std,
    )


def download(reader: type[datasets.CIFAR10], root: Path, timeout: float) -> None:
    """Download, verify and unpack the archive into `root`, atomically. An existing archive is not downloaded again.

    torchvision checks the archive's MD5. The files appear in `root` by one rename, so that a killed download leaves no
    files that look like the data. A second process waits for the first.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{reader.base_folder}.lock"), socket_timeout(timeout):
            if _complete(reader, root):
                return
            packed = (root / reader.filename).absolute()
            log.info("%s %s to %s.", "Unpacking" if packed.is_file() else "Downloading", reader.__name__, root)
            with tempfile.TemporaryDirectory(prefix=".download-", dir=root) as scratch, _own_progress_bar():
                if packed.is_file():
                    (Path(scratch) / reader.filename).symlink_to(packed)
                reader(scratch, download=True)
                target = root / reader.base_folder
                if target.exists():  # incomplete or damaged, or torchvision would have read it
                    shutil.rmtree(target)
                os.replace(Path(scratch) / reader.base_folder, target)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise DataUnavailable(
            f"{reader.__name__} is not in {root} and could not be downloaded from {reader.url} "
            f"({type(error).__name__}: {error}). Download it elsewhere and put the folder {reader.base_folder} "
            f"into {root}, set data.root to its folder, or use data=digits, which needs no internet connection."
        ) from error


def _complete(reader: type[datasets.CIFAR10], root: Path) -> bool:
    try:
        reader(root)
    except RuntimeError:
        return False
    return True


def _own_progress_bar() -> contextlib.AbstractContextManager[Any]:
    """Show torchvision's progress bar on stderr, but only in a terminal and not with quiet=true."""
    shown = console.is_terminal and not is_quiet()
    return contextlib.nullcontext() if shown else contextlib.redirect_stderr(io.StringIO())
