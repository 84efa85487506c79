"""The machine that a job runs on: its arithmetic, its GPUs, its compilers, what is installed.

Functions that need torch import it themselves: `--help` and others that import this module must not wait for it.
"""

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

if TYPE_CHECKING:
    import torch


# mallopt's parameters (malloc.h): from how many bytes on a block has pages of its own, which are given back at once;
# and how much free memory at the end of the heap is given back.
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1
LARGEST_BLOCK, KEEP = 32 * 2**20, 2**31 - 1


@contextlib.contextmanager
def tf32(enabled: bool) -> Iterator[None]:
    """Allow TF32 inside, leave the settings as they were."""
    import torch

    convolutions, products = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = enabled
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = convolutions, products


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next layer; without effect elsewhere.

    It gives blocks of a few megabytes back to the system, and every activation of a layer is such a block: fresh
    pages for each cost more than the layer's arithmetic.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST_BLOCK)
        libc.mallopt(M_TRIM_THRESHOLD, KEEP)


@cache
def triton_works(device: "torch.device", probe: "Callable[[torch.device], None]") -> bool:
    """Whether Triton kernels run on `device`: Triton is installed, finds the C compiler it needs, and knows the device
    (or interprets its kernels, as tests do). `probe` launches a small kernel there."""
    import torch

    if importlib.util.find_spec("triton") is None:
        return False
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if not interpreted and (device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0)):
        return False
    try:
        probe(device)
    except Exception:  # Triton's, the compiler's or the driver's: there are many
        return False
    return True


_claimed: dict[int, FileLock | None] = {}  # by number: this process's GPU, and the lock that says so


def claim(cards: list[str]) -> int:
    """The number of one of `cards`, names that are unique on this machine, which no other process of this user has.

    This gives each job its own GPU, even when the jobs of a sweep are processes of one machine that all see every GPU.
    The GPU is this process's until the process ends, however it ends. Where all are taken they are shared.
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
    """The versions of those of the distributions `packages` that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
