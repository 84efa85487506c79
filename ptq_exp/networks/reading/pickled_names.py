"""The names in a pickle that are understood, and what is done instead of importing and calling them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ptq_exp.networks.reading.pickled import Known, Machine, Opaque, plain_key
from ptq_exp.networks.reading.stored_tensors import MOST_DIMENSIONS, NumpyType, Storage, StoredTensor, array


def resolve(name: str) -> Any:
    """The object in place of the global `name`."""
    if name in VALUES:
        return VALUES[name]
    name = name.replace("numpy._core.", "numpy.core.")
    return Known(name, FUNCTIONS[name]) if name in FUNCTIONS else Opaque(name[:200])


def _storage_types() -> dict[str, torch.dtype]:
    kinds = {
        "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
        "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
        "Bool": torch.bool, "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128,
        "QInt8": torch.int8, "QUInt8": torch.uint8, "QInt32": torch.int32,  # of quantized tensors, which are not read
    }  # fmt: skip
    places = ("torch", "torch.cuda")
    named = {f"{place}.{name}Storage": dtype for place in places for name, dtype in kinds.items()}
    return named | {"torch.storage.UntypedStorage": torch.uint8, "torch.UntypedStorage": torch.uint8}


# A storage type is its dtype: both only say how the bytes are to be read.
VALUES: dict[str, Any] = _storage_types() | {
    f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)
}


def _tensor(_: Machine, storage: Any, offset: Any, shape: Any, stride: Any, *more: Any) -> StoredTensor:
    """Also with what follows: requires_grad, hooks, and in version 3 the type of the elements."""
    dtype = more[2] if len(more) > 2 and isinstance(more[2], torch.dtype) else storage.dtype
    if dtype != storage.dtype:  # an untyped storage
        storage = Storage(dtype, storage.elements // dtype.itemsize, storage.read, storage.swapped)
    return StoredTensor(storage, _numbers(shape), _numbers(stride), offset, dtype)


class QuantizedError(ValueError):
    """The file holds tensors that torch has quantized."""


def _quantized(_: Machine, *more: Any) -> None:
    raise QuantizedError


def _numbers(values: Any) -> tuple[Any, ...]:
    return tuple(values[: MOST_DIMENSIONS + 1])


def _tensor_without_values(_: Machine, dtype: Any, shape: Any, stride: Any, *more: Any) -> StoredTensor:
    return StoredTensor(None, _numbers(shape), _numbers(stride), 0, dtype)


def _sparse(_: Machine, layout: Any, data: Any) -> Any:
    if layout != "torch.sparse_coo":
        return Opaque("sparse tensor")
    indices, values, shape = data[:3]
    if values.elements != values.storage.elements or indices.elements > indices.storage.elements:
        raise ValueError("a sparse tensor does not use its whole storage")
    shape = _numbers(shape)
    return StoredTensor(values.storage, shape, (0,) * len(shape), 0, values.dtype, coordinates=indices)


def _of_subclass(machine: Machine, function: Any, kind: Any, arguments: Any, state: Any) -> Any:
    if not isinstance(function, Known) or function.interpret is _of_subclass:
        return Opaque(kind.name if isinstance(kind, Opaque) else "tensor", arguments)
    return function.interpret(machine, *arguments)


def _dictionary(machine: Machine, items: Any = (), *_: Any) -> dict[Any, Any]:
    """A dictionary from another or from pairs, as OrderedDict is stored by Python 2."""
    if isinstance(items, Known | Opaque):  # the factory of a defaultdict
        return {}
    machine.budget.spend(8 * len(items))
    pairs = items.items() if isinstance(items, dict) else items
    return {plain_key(key): value for key, value in pairs}


def _list(machine: Machine, items: Any = ()) -> list[Any]:
    machine.budget.spend(8 * len(items))
    return list(items)


def _reconstructed(machine: Machine, kind: Any, base: Any, state: Any) -> Any:
    """An object as protocols 0 and 1 store it: of class `kind`, with the content of its built-in `base`."""
    name = kind.name if isinstance(kind, Known | Opaque) else "object"
    items = _dictionary(machine, state) if isinstance(state, dict) else {}
    elements = _list(machine, state) if isinstance(state, list) else []
    return Opaque(name, items=items, elements=elements)


def _encoded(machine: Machine, text: Any, encoding: Any = "utf-8", *_: Any) -> Any:
    """Protocol 2 stores bytes as text in Latin-1."""
    machine.budget.spend(len(text))
    if encoding not in ("latin1", "latin-1", "utf-8"):
        return Opaque("encoded text")
    return text.encode(encoding)


def _scalar(machine: Machine, kind: NumpyType, content: Any = b"") -> Any:
    content = content.encode("latin-1") if isinstance(content, str) and len(content) < 64 else content
    if not isinstance(kind, NumpyType) or len(content) != kind.type.itemsize:
        return Opaque("numpy scalar")
    return np.frombuffer(content, kind.type)[0].item()


def _array(_: Machine, content: Any, kind: NumpyType, shape: Any, order: Any = "C", *more: Any) -> Any:
    return array(content, kind, shape, order) if isinstance(kind, NumpyType) else Opaque("numpy array")


def _nested(machine: Machine, content: Any) -> Any:
    """A storage in the pickle itself, as `pickle.dump` stores tensors."""
    machine.budget.spend(len(content))
    return machine.nested(content)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor,
    "torch._utils._rebuild_qtensor": _quantized,
    "torch._utils._rebuild_parameter": lambda machine, data, *more: data,
    "torch._utils._rebuild_parameter_with_state": lambda machine, data, *more: data,
    "torch._utils._rebuild_meta_tensor_no_storage": _tensor_without_values,
    "torch._utils._rebuild_sparse_tensor": _sparse,
    "torch._tensor._rebuild_from_type_v2": _of_subclass,
    "torch.serialization._get_layout": lambda machine, name: name,
    "torch.storage._load_from_bytes": _nested,
    "torch.Size": lambda machine, sizes=(): _numbers(sizes),
    "torch.device": lambda machine, *place: Opaque("torch.device"),
    "collections.OrderedDict": _dictionary,
    "collections.defaultdict": _dictionary,
    "builtins.dict": _dictionary,
    "__builtin__.dict": _dictionary,
    "builtins.list": _list,
    "__builtin__.list": _list,
    "builtins.set": _list,
    "__builtin__.set": _list,
    "builtins.frozenset": _list,
    "__builtin__.frozenset": _list,
    "builtins.complex": lambda machine, real, imaginary=0.0: complex(float(real), float(imaginary)),
    "builtins.bytearray": lambda machine, content=b"", *_: content if isinstance(content, bytes) else b"",
    "copy_reg._reconstructor": _reconstructed,
    "copyreg._reconstructor": _reconstructed,
    "_codecs.encode": _encoded,
    "numpy.dtype": lambda machine, code, *more: NumpyType(code) if NumpyType.is_plain(code) else Opaque("numpy type"),
    "numpy.core.multiarray.scalar": _scalar,
    "numpy.core.multiarray._reconstruct": lambda machine, *kind: StoredTensor(),
    "numpy.core.numeric._frombuffer": _array,
}
