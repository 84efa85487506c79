"""Tensors as a file describes them: a storage and a view of it. Only the tensors that are used are read."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

MOST_DIMENSIONS = 32


@dataclass(eq=False, repr=False)
class Storage:
    """A one-dimensional array in a file. `read` returns its bytes."""

    dtype: torch.dtype
    elements: int
    read: Callable[[], Any]
    swapped: bool = False  # the file has the other byte order

    def __post_init__(self) -> None:
        if type(self.elements) is not int or self.elements < 0 or not isinstance(self.dtype, torch.dtype):
            raise ValueError("a storage has no valid size or type")

    def part(self, offset: int, elements: int) -> "Storage":
        """The storage of `elements` elements from `offset` on."""
        if offset < 0 or elements < 0 or offset + elements > self.elements:
            raise ValueError("a view of a storage lies outside of it")
        size = self.dtype.itemsize
        return Storage(
            self.dtype,
            elements,
            lambda: memoryview(self.read())[offset * size : (offset + elements) * size],
            self.swapped,
        )

    def view(self, shape: tuple[int, ...], stride: tuple[int, ...], offset: int) -> Tensor:
        """A copy of a view, contiguous. Raises `ValueError` if the storage has another size than it states."""
        content, size = memoryview(self.read()), self.dtype.itemsize
        if content.nbytes != self.elements * size:
            raise ValueError(f"a storage has {content.nbytes} bytes, not {self.elements * size}")
        # An integer stands for any type, since numpy does not have all of them; complex numbers are swapped in halves.
        number = np.dtype(f"{'c' if self.dtype.is_complex else 'i'}{size}").newbyteorder("S" if self.swapped else "=")
        steps = [step * size for step in stride]
        found = np.ndarray(shape, number, content, offset * size, steps)  # checks that the view lies inside
        return torch.from_numpy(np.array(found, number.newbyteorder("="), order="C")).view(self.dtype)


@dataclass(eq=False, repr=False)
class StoredTensor:
    """A strided view of a storage. Without a storage it has a shape but no values."""

    storage: Storage | None = None
    shape: tuple[int, ...] = (0,)
    stride: tuple[int, ...] = (1,)
    offset: int = 0
    dtype: torch.dtype = torch.float32
    coordinates: "StoredTensor | None" = None  # of the values of a sparse tensor, in `shape`

    def __post_init__(self) -> None:
        numbers = (*self.shape, *self.stride, self.offset)
        if not all(type(number) is int and 0 <= number < 2**62 for number in numbers):
            raise ValueError("a tensor has an invalid shape, stride or offset")
        if max(len(self.shape), len(self.stride)) > MOST_DIMENSIONS or len(self.shape) != len(self.stride):
            raise ValueError("the shape and the strides of a tensor do not agree")
        if self.storage is not None and self.coordinates is None and self.elements:
            last = self.offset + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
            if last >= self.storage.elements:
                raise ValueError("a tensor lies outside of its storage")

    @property
    def elements(self) -> int:
        """The number of elements, including those that share their place in the storage."""
        return math.prod(self.shape)

    def set_state(self, state: Any) -> None:
        """The state that numpy stores for an array: (version, shape, type, Fortran order, bytes).

        An array of objects or text stays empty.
        """
        shape, kind, fortran, content = state[-4:]
        if not isinstance(kind, NumpyType):
            return
        self.__dict__.update(array(content, kind, shape, "F" if fortran else "C").__dict__)

    def tensor(self) -> Tensor:
        """The values, contiguous."""
        if self.storage is None:
            return torch.empty(self.shape, dtype=self.dtype, device="meta")
        if self.coordinates is not None:
            indices = self.coordinates.tensor()
            dense = self.shape[len(indices) :]
            values = self.storage.view((self.storage.elements,), (1,), 0).reshape(-1, *dense)
            return torch.sparse_coo_tensor(indices, values, self.shape, check_invariants=True).to_dense()
        if not self.elements:
            return torch.empty(self.shape, dtype=self.dtype)
        return self.storage.view(self.shape, self.stride, self.offset)


class NumpyType:
    """The type of the numbers in a numpy array or scalar."""

    def __init__(self, code: str):
        self.type = np.dtype(code)

    @staticmethod
    def is_plain(code: Any) -> bool:
        """Whether a code of numpy stands for numbers that torch has, too."""
        return isinstance(code, str) and re.fullmatch(r"[<>=|]?(\?|b1|[iu][1248]|f[248]|c8|c16)", code) is not None

    def set_state(self, state: Any) -> None:
        """The state that numpy stores: (version, byte order, ...)."""
        if state[1] in ("<", ">"):
            self.type = self.type.newbyteorder(state[1])


def array(content: Any, kind: NumpyType, shape: Any, order: str) -> StoredTensor:
    """A numpy array. Raises `ValueError` if its bytes do not match its shape."""
    shape = tuple(int(size) for size in shape[: MOST_DIMENSIONS + 1])
    axes = range(len(shape))
    steps = [math.prod(shape[:axis] if order == "F" else shape[axis + 1 :]) for axis in axes]
    dtype = torch.from_numpy(np.empty(0, kind.type.newbyteorder("="))).dtype
    if math.prod(shape) * dtype.itemsize != len(content):
        raise ValueError("the bytes of an array do not match its shape")
    # Python 2 stores bytes as text.
    storage = Storage(
        dtype,
        math.prod(shape),
        lambda: content.encode("latin-1") if isinstance(content, str) else content,
        not kind.type.isnative,
    )
    return StoredTensor(storage, shape, tuple(steps), 0, dtype)
