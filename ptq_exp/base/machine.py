"""The machine that a job runs on: arithmetic, GPUs, compilers, installed packages.

Functions that need torch import it themselves, so that `--help` and other importers of this module need not wait for
it.
"""

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

if TYPE_CHECKING:
    import torch


# mallopt's parameters (malloc.h): the size in bytes from which a block has its own pages, which are returned to the
# system immediately when it is freed; and the free memory at the end of the heap from which it is returned.
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1
LARGEST_BLOCK, KEEP = 32 * 2**20, 2**31 - 1


@contextlib.contextmanager
def tf32(enabled: bool) -> Iterator[None]:
    """Enable or disable TF32 within the block, then restore the settings."""
    import torch

    convolutions, products = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = enabled
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = convolutions, products


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next layer. This has no effect with other C libraries.

    By default, glibc returns blocks of a few megabytes to the system. Every activation of a layer is such a block, and
    new pages for each cost more than the layer's arithmetic.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST_BLOCK)
        libc.mallopt(M_TRIM_THRESHOLD, KEEP)


@cache
def triton_works(device: "torch.device", probe: "Callable[[torch.device], None]") -> bool:
    """Whether Triton kernels run on `device`: Triton is installed, finds its C compiler, and supports the device (or
    interprets its kernels, as in tests). `probe` launches a small kernel there."""
    import torch

    if importlib.util.find_spec("triton") is None:
        return False
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if not interpreted and (device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0)):
        return False
    try:
        probe(device)
    except Exception:  # Triton, the compiler and the driver raise many types
        return False
    return True


_claimed: dict[int, FileLock | None] = {}  # the number of this process's GPU, and its lock


def claim(cards: list[str]) -> int:
    """The number of a GPU in `cards` (unique names on this machine) that no other process of this user has claimed.

    This gives each job its own GPU, even if the jobs of a sweep are processes of one machine that all see every GPU.
    The claim lasts until the process ends, even if it is killed. If all GPUs are claimed, they are shared.
    """
    if not _claimed:
        number, lock = next(filter(None, map(_try, enumerate(cards))), (os.getpid() % len(cards), None))
        _claimed[number] = lock
    return next(iter(_claimed))


def _try(card: tuple[int, str]) -> tuple[int, FileLock] | None:
    number, name = card
    lock = FileLock(Path(tempfile.gettempdir()) / f"ptq_exp-{os.getuid()}-{name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    return number, lock


def installed(packages: Iterable[str]) -> dict[str, str]:
    """The versions of the installed distributions among `packages`."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Drop what compiled code writes to standard output, such as the debugging lines of solvers."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
