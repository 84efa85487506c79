"""Process-wide settings of the arithmetic: how exactly CUDA computes, and what a CPU's memory allocator keeps."""

import contextlib
import ctypes
from collections.abc import Iterator

import torch

from ptq_exp.base.gpus import claim as claim
from ptq_exp.base.versions import installed as installed

# mallopt's parameters (malloc.h): from how many bytes on a block has pages of its own, which are given back at once;
# and how much free memory at the end of the heap is given back.
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1
LARGEST_BLOCK, KEEP = 32 * 2**20, 2**31 - 1


@contextlib.contextmanager
def tf32(enabled: bool) -> Iterator[None]:
    """Allow TF32 inside, leave the settings as they were."""
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
