"""Files of torch.save in its zip format and its legacy format, and plain pickles, read without executing anything."""

import functools
import io
import zipfile
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO

from ptq_exp.networks.reading.pickled import Budget, Machine, Opaque
from ptq_exp.networks.reading.pickled_names import resolve
from ptq_exp.networks.reading.stored_tensors import Storage

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C  # of torch's legacy format
LOCAL_HEADER = 30  # bytes, before the name of a member
DEPTH = 2  # of pickles in the bytes of pickles


def read_file(content: bytes) -> Any:
    """The content of a checkpoint: dictionaries, lists, numbers, `StoredTensor` and `Opaque` objects.

    Raises `ValueError` and many other types of errors if the file is damaged or no checkpoint.
    """
    return _read(content, Budget(4 * len(content) + 2**20), DEPTH)


def _read(content: bytes, budget: Budget, depth: int) -> Any:
    if content.startswith(b"PK\x03\x04"):
        return _read_zip(content, budget, depth)
    file = io.BytesIO(content)
    found = _machine(file, budget, depth, _no_storage).run()
    return _read_legacy(content, file, budget, depth) if found == MAGIC_NUMBER else found


def _machine(file: BinaryIO, budget: Budget, depth: int, persistent: Callable[[Any], Any]) -> Machine:
    def nested(content: Any) -> Any:
        if depth <= 1 or not isinstance(content, bytes | bytearray):
            return Opaque("nested pickle")
        return _read(bytes(content), budget, depth - 1)

    return Machine(file, budget, resolve, persistent, nested)


def _no_storage(_: Any) -> Any:
    raise ValueError("a persistent id names a storage, but there are none")


def _parts(persistent_id: Any) -> tuple[Any, ...]:
    """(type, key, number of elements, view) of a storage."""
    if not isinstance(persistent_id, tuple) or len(persistent_id) not in (5, 6) or persistent_id[0] != "storage":
        raise ValueError("a persistent id does not name a storage")
    _, dtype, key, _, elements, *view = persistent_id
    if not isinstance(key, str):
        raise ValueError("a storage has no name")
    return dtype, key, elements, view[0] if view else None


def _read_zip(content: bytes, budget: Budget, depth: int) -> Any:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = archive.infolist()
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError("its members are compressed, which torch.save does not do")
    if len({member.filename for member in members}) < len(members):
        raise ValueError("it has two members of the same name")
    if sum(member.file_size for member in members) > len(content):
        raise ValueError("its members overlap")
    named = {member.filename.partition("/")[2]: member for member in members}
    if "data.pkl" not in named or len(named) < len(members):
        raise ValueError("it is a zip file without data.pkl")

    @functools.cache
    def record(name: str) -> memoryview:
        return _member(content, named[name])

    swapped = "byteorder" in named and bytes(record("byteorder")) == b"big"

    def persistent(persistent_id: Any) -> Storage:
        dtype, key, elements, _ = _parts(persistent_id)
        if f"data/{key}" not in named:
            raise ValueError(f"the storage {key[:20]} is missing")
        return Storage(dtype, elements, lambda: record(f"data/{key}"), swapped)

    return _machine(io.BytesIO(record("data.pkl")), budget, depth, persistent).run()


def _member(content: bytes, member: zipfile.ZipInfo) -> memoryview:
    """The bytes of a member that is not compressed. Raises `ValueError` if its checksum is wrong."""
    header = content[member.header_offset : member.header_offset + LOCAL_HEADER]
    start = member.header_offset + LOCAL_HEADER + sum(int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
    found = memoryview(content)[start : start + member.file_size]
    if len(found) != member.file_size or zlib.crc32(found) != member.CRC:
        raise ValueError(f"the checksum of {member.filename[:60]} in it is wrong")
    return found


def _read_legacy(content: bytes, file: BinaryIO, budget: Budget, depth: int) -> Any:
    """Five pickles (magic number, version, machine, object, keys of the storages), then the storages."""
    places: dict[str, tuple[int, int]] = {}
    storages: dict[str, Storage] = {}

    def read(key: str) -> memoryview:
        start, size = places[key]
        return memoryview(content)[start : start + size]

    def persistent(persistent_id: Any) -> Any:
        if isinstance(persistent_id, tuple) and len(persistent_id) == 4 and persistent_id[0] == "module":
            return persistent_id[1]  # a class, with its source code
        dtype, key, elements, view = _parts(persistent_id)
        found = storages.setdefault(key, Storage(dtype, elements, lambda: read(key)))
        if (found.dtype, found.elements) != (dtype, elements):
            raise ValueError(f"the storage {key[:20]} has two sizes")
        return found if view is None else found.part(view[1], view[2])

    version, _, found, keys = (_machine(file, budget, depth, persistent).run() for _ in range(4))
    # Only text is hashed: the hash of nested tuples takes forever.
    if version != 1001 or not all(isinstance(key, str) for key in keys) or not {*storages} <= {*keys}:
        raise ValueError("its storages are missing")
    position = file.tell()
    for key in keys:
        if key not in storages:
            raise ValueError("it has a storage that nothing uses")
        elements = int.from_bytes(content[position : position + 8], "little")
        size = elements * storages[key].dtype.itemsize
        if elements != storages[key].elements or position + 8 + size > len(content):
            raise ValueError("it ends too early")
        places[key] = position + 8, size
        position += 8 + size
    return found


def other_format(content: bytes, name: str) -> str:
    """What to do with a file of another format, as a sentence; empty if the format is not recognized."""
    if content.startswith(b"PK\x03\x04"):
        return _other_zip(content, name)
    for start, sentence in OTHERS.items():
        if content.startswith(start):
            return sentence
    if name.endswith(".onnx"):
        return "It is an ONNX file. Give the state_dict() of the PyTorch network that it was exported from."
    if content[4:8] == b"TFL3" or name.endswith((".pb", ".index", ".tflite")):
        return _KERAS
    return ""


def _other_zip(content: bytes, name: str) -> str:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return ""
    inside = [name.partition("/")[2] for name in names]
    if "constants.pkl" in inside or any(name.startswith("code/") for name in inside):
        return (
            f"It is a TorchScript archive. Its weights alone can be used: "
            f"torch.save(torch.jit.load('{name}').state_dict(), 'weights.pt')."
        )
    if any("exported_program" in name or name.endswith("archive_format") for name in names):
        return (
            f"It is a file of torch.export. Its weights alone can be used: "
            f"torch.save(dict(torch.export.load('{name}').state_dict), 'weights.pt')."
        )
    if any(name.endswith(".npy") for name in names):
        return (
            f"It is a file of numpy.savez. Save it as tensors: "
            f"torch.save({{k: torch.from_numpy(v) for k, v in numpy.load('{name}').items()}}, 'weights.pt')."
        )
    return _KERAS if "model.weights.h5" in names else ""


_KERAS = "It is a file of TensorFlow or Keras. Load its arrays into a PyTorch network and save its state_dict()."
_COMPRESSED = "It is compressed. Unpack it first."
OTHERS = {
    b"\x89HDF\r\n\x1a\n": _KERAS,
    b"\x93NUMPY": "It is a single array of numpy. Give a state_dict().",
    b"version https://git-lfs": "It is the pointer of a Git LFS file. Fetch the file itself with: git lfs pull.",
    b"\x1f\x8b": _COMPRESSED,
    b"\xfd7zXZ\x00": _COMPRESSED,
    b"(\xb5/\xfd": _COMPRESSED,
}
