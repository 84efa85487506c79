"""Hostile and odd pickles: nothing in them is imported or called, and each is answered within seconds."""

import io
import pickle
import struct
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import mostly_slow

from ptq_exp.base.errors import UserError
from ptq_exp.networks.reading import read_checkpoint, read_weights

pytestmark = pytest.mark.usefixtures("one_thread")
WEIGHTS = {"conv.weight": torch.arange(24.0).reshape(2, 3, 2, 2), "conv.bias": torch.ones(2)}


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def code() -> bytes:
    return text("open('CANARY', 'w')")


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def called(module: str, name: str, *arguments: bytes) -> bytes:
    return named(module, name) + b"(" + b"".join(arguments) + b"tR"


def stack_global(module: bytes, name: bytes) -> bytes:
    return module + name + b"\x93"


def chain() -> bytes:
    """getattr(__import__("os"), "system")("touch CANARY")."""
    imported = called("builtins", "__import__", text("os"))
    return called("builtins", "getattr", imported, text("system")) + b"(" + text("touch CANARY") + b"tR"


def tensor(storage: bytes, size: bytes = b"K\x04\x85", stride: bytes = b"K\x01\x85", offset: bytes = b"K\x00") -> bytes:
    return called("torch._utils", "_rebuild_tensor_v2", storage, offset, size, stride, b"\x89", b"}")


def storage(elements: int = 4, key: str = "0", kind: str = "FloatStorage") -> bytes:
    number = b"\x8a\x08" + struct.pack("<q", elements)
    return b"(" + text("storage") + named("torch", kind) + text(key) + text("cpu") + number + b"tQ"


def state_dict(value: bytes) -> bytes:
    return b"}" + text("conv.weight") + value + b"s"


class Reduced:
    """What `__reduce_ex__` returns is called by pickle.load."""

    def __reduce_ex__(self, _: object) -> Any:
        return (Path.touch, (Path("CANARY"),))


big = struct.pack("<Q", 10**12)
LARGE = b"\x8a\x08" + big
CALLS = {
    "os.system": called("os", "system", text("touch CANARY")),
    "posix.system": called("posix", "system", text("touch CANARY")),
    "subprocess": called("subprocess", "check_output", b"(" + text("touch") + text("CANARY") + b"l"),
    "eval": called("builtins", "eval", code()),
    "exec": called("builtins", "exec", code()),
    "exec of Python 2's name": called("__builtin__", "exec", code()),
    "a chain of getattr": chain(),
    "a global with a computed name": stack_global(text("os"), text("system")) + b"(" + text("touch CANARY") + b"tR",
    "a dotted name": stack_global(text("ptq_exp"), text("sys.modules.os.system")) + b"(" + text("touch CANARY") + b"tR",
    "INST": b"(" + text("touch CANARY") + b"ios\nsystem\n",
    "OBJ": b"(" + named("os", "system") + text("touch CANARY") + b"o",
    "NEWOBJ": named("pathlib", "Path") + b"(" + text("CANARY") + b"t\x81",
    "NEWOBJ_EX": named("subprocess", "Popen") + b"(" + text("touch CANARY") + b"t}" + text("shell") + b"\x88s\x92",
    "BUILD with __setstate__": named("collections", "Counter") + b")\x81}" + text("__setstate__")
    + named("os", "system") + b"sb" + text("touch CANARY") + b"b",
    "runpy": called("runpy", "run_path", text("CANARY")),
    "webbrowser": called("webbrowser", "open", text("file:///CANARY")),
    "numpy.load": called("numpy", "load", text("CANARY")),
    "torch.load": called("torch", "load", text("CANARY")),
    "torch.hub": called("torch.hub", "load_state_dict_from_url", text("file:///CANARY")),
    "torch.jit": called("torch.jit", "load", text("CANARY")),
    "functools.partial": called("functools", "partial", named("os", "system"), text("touch CANARY")) + b")R",
    "operator.methodcaller": called("operator", "methodcaller", text("system"), text("touch CANARY")) + b"("
    + named("antigravity", "os") + b"tR",
    "pdb": called("pdb", "run", code()),
    "timeit": called("timeit", "timeit", code()),
    "types.FunctionType": called("types", "FunctionType", called("types", "CodeType", b"K\x00")) + b")R",
    "importlib": called("importlib", "import_module", text("antigravity")),
    "a global alone": named("antigravity", "webbrowser"),
    "ctypes": called("ctypes", "CDLL", text("CANARY")),
    "a reduced object": pickle.dumps(Reduced(), 2)[2:-1],
    "a factory of a defaultdict": called("collections", "defaultdict", named("os", "getcwd")),
    "pickle in pickle": called("pickle", "loads", b"U" + bytes([len(chain()) + 1]) + chain() + b"."),
    "nested bytes for torch.load": called(
        "torch.storage", "_load_from_bytes", b"B" + struct.pack("<I", len(chain()) + 1) + chain() + b"."
    ),
    "nested bytes twice": called(
        "torch.storage", "_load_from_bytes",
        called("_codecs", "encode", text("ctorch.storage\n_load_from_bytes\n(X\x00\x00\x00\x00tR."), text("latin1")),
    ),
    "tensor subclass with a function": called(
        "torch._tensor", "_rebuild_from_type_v2", named("os", "system"), named("a", "b"),
        text("touch CANARY") + b"\x85", b"}",
    ),
    "_reconstructor": called("copyreg", "_reconstructor", named("pty", "spawn"), named("builtins", "object"), b"N"),
    "codec": called("_codecs", "encode", text("CANARY"), text("antigravity")),
}  # fmt: skip
PAIRS = b"}" + b"q\x01" + b"0" + b"".join(b"h\x01h\x01\x86q\x01" + b"0" for _ in range(1000)) + b"h\x01"
KERNEL = tensor(storage(), b"(K\x01K\x01K\x03K\x03t", b"(" + b"K\x00" * 4 + b"t")
SMALL = tensor(storage(), b"K\x03\x85")
BOMBS: dict[str, bytes] = {
    "EXT1": b"\x82\x01",
    "EXT4": b"\x84\x01\x00\x00\x00)R",
    "pairs of pairs": PAIRS,
    "pairs of pairs as a key": b"}" + PAIRS + b"K\x01s",
    "a missing memo": b"h\x07",
    "a memo of a large number": b"K\x01r\xff\xff\xff\xffj\xff\xff\xff\xff",
    "endless memo": b"K\x01" + b"q\x01h\x01" * 750_000,
    "a million marks": b"(" * 1_000_000,
    "a million lists": b"]" * 500_000 + b"a" * 499_999,
    "a million tuples": b")" + b"\x85" * 1_000_000,
    "a million modules": b"N" + b"\x85" * 10 + called("x", "Net") * 200_000,
    "a list in itself": b"]q\x01h\x01a",
    "a dictionary in itself": b"}q\x01" + text("model") + b"h\x01s",
    "a module in itself": called("x", "Net") + b"q\x01}" + b"".join(
        text(name) + b"}" for name in ("_parameters", "_buffers")
    ).replace(b"}", b"}s") + text("_modules") + b"}" + text("again") + b"h\x01ssb",
    "a long integer": b"\x8b\xff\xff\xff\x00" + b"\x7f" * 0xFFFFFF,
    "a long decimal": b"L" + b"9" * 1_000_000 + b"L\n",
    "a length that lies": b"\x8e" + struct.pack("<Q", 2**62) + b"abc",
    "text that ends": b"X\xff\xff\xff\x7fabc",
    "no opcode": b"\xff\xff",
    "nothing on the stack": b"0000",
    "items of an integer": b"K\x01(K\x02K\x03u",
    "an odd number of items": b"}(K\x01u",
    "a call of text": text("os.system") + b"(tR",
    "arguments that are no tuple": named("collections", "OrderedDict") + b"]R",
    "a list copied again and again": b"](" + b"K\x01" * 100_000 + b"eq\x010" + called("builtins", "list", b"h\x01")
    * 100_000,
    "pairs of pairs as a device": called("torch", "device", PAIRS),
    "pairs of pairs as a layout": called("torch._utils", "_rebuild_sparse_tensor", PAIRS, b"N"),
    "pairs of pairs as a storage's key": b"(" + text("storage") + named("torch", "FloatStorage") + PAIRS + b"NK\x01tQ",
    "pairs of pairs as sizes": called("torch", "Size", PAIRS + b"\x85"),
    "a long name again and again": text("a" * 10**6) + b"q\x01" + b"h\x01h\x01\x930" * 100_000,
    "long bytes again and again": text("a" * 10**6) + b"q\x010" + (
        called("numpy.core.multiarray", "_reconstruct", b"N") + b"(K\x01)" + called("numpy", "dtype", text("u1"))
        + b"\x89h\x01tb0"
    ) * 10_000 + b"N",
    "the prefix of a wrapper a thousand times": b"}" + text("module." * 100_000 + "w") + SMALL + b"s",
    "ten thousand layers that normalize": b"}q\x02" + SMALL + b"q\x010(" + b"".join(
        text(f"l{number}.{name}") + b"h\x01" for number in range(9_000) for name in ("mean", "std")
    ) + b"u",
    "a resnet of 12002 layers": b"}q\x02" + KERNEL + b"q\x010(" + b"".join(
        text(f"l{number}.weight") + b"h\x01" for number in range(12_001)
    ) + b"u",
    "buffers out of band": b"\x97",
    "a persistent id of text": b"Pstorage\n",
    "a persistent id of a module": b"(" + text("module") + named("os", "system") + text("a") + text("b") + b"tQ",
    "a persistent id that holds itself": b"(" + text("storage") + named("os", "system") + b"]" + b"N" + b"K\x01tQ",
    "a storage that is missing": state_dict(tensor(storage(key="7"))),
    "a storage that leads out": state_dict(tensor(storage(key="../../etc/passwd"))),
    "a storage of more than it has": state_dict(tensor(storage(10**12), LARGE + b"\x85")),
    "a storage of less than nothing": state_dict(tensor(storage(-4))),
    "a storage of functions": state_dict(tensor(storage(kind="load"))),
    "a tensor beyond its storage": state_dict(tensor(storage(), b"K\x05\x85")),
    "a tensor before its storage": state_dict(tensor(storage(), offset=b"J\xff\xff\xff\xff")),
    "a negative stride": state_dict(tensor(storage(), stride=b"J\xff\xff\xff\xff\x85")),
    "strides that expand": state_dict(tensor(storage(), LARGE + b"\x85", b"K\x00\x85")),
    "sizes that overflow": state_dict(tensor(storage(), b"(" + LARGE * 4 + b"t", b"(" + b"K\x00" * 4 + b"t")),
    "a thousand dimensions": state_dict(
        tensor(storage(), b"(" + b"K\x01" * 1000 + b"t", b"(" + b"K\x00" * 1000 + b"t")
    ),
    "sizes of text": state_dict(tensor(storage(), text("4") + b"\x85")),
    "a tensor of no storage": state_dict(tensor(text("cpu"))),
    "an array of the wrong size": state_dict(called(
        "numpy.core.numeric", "_frombuffer", b"C\x04abcd", called("numpy", "dtype", text("f8")), LARGE + b"\x85",
        text("C"),
    )),
    "an array of objects": state_dict(called("numpy", "dtype", text("O8"))),
    "an array of an expanding type": state_dict(called("numpy", "dtype", text("(1000000000000,)f8"))),
    "a sparse tensor of any size": state_dict(called(
        "torch._utils", "_rebuild_sparse_tensor",
        called("torch.serialization", "_get_layout", text("torch.sparse_coo")),
        b"(" + tensor(storage(2, "1", "LongStorage"), b"K\x02K\x01\x86", b"K\x01K\x01\x86")
        + tensor(storage(1, "2"), b"K\x01\x85") + b"(" + LARGE * 2 + b"tt",
    )),
}  # fmt: skip


def in_zip(content: bytes) -> bytes:
    """A file of torch.save with a pickle of our own and two storages."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/data/0", struct.pack("<4f", 1, 2, 3, 4))
        archive.writestr("archive/data/1", struct.pack("<2q", 5, 6))
        archive.writestr("archive/data/2", struct.pack("<f", 1))
    return buffer.getvalue()


def attempt(path: Path, content: bytes, read: Callable[..., Any] = read_weights) -> Any:
    """The weights, or the message; and whatever is asked of every file."""
    path.write_bytes(content)
    modules, start = {*sys.modules}, time.perf_counter()
    try:
        found: Any = read(str(path), path.parent, 1).weights
    except UserError as error:
        found = str(error)
        assert str(path) in found
        assert len(found) < 1000
    assert time.perf_counter() - start < 10  # a second on a machine that does nothing else
    assert not list(path.parent.rglob("*CANARY*"))
    assert {*sys.modules} == modules
    return found


@pytest.fixture(scope="module", autouse=True)
def read_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever reading imports when it is first used."""
    path = tmp_path_factory.mktemp("first") / "model.pt"
    path.write_bytes(in_zip(BOMBS["a sparse tensor of any size"].replace(LARGE, b"K\x07") + b"."))
    assert read_weights(str(path), path.parent, 1).weights["conv.weight"].shape == (7, 7)
    with pytest.raises(UserError, match="no known network"):
        read_checkpoint(str(path), path.parent, 1)


@pytest.mark.parametrize("kind", CALLS)
@pytest.mark.parametrize("form", ["pickle", "zip"])
def test_a_call_is_not_made_and_the_weights_beside_it_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, form: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if form == "pickle":
        assert "contains no state dict" in attempt(tmp_path / "model.pt", CALLS[kind] + b".")
        return
    beside = text("state_dict") + state_dict(tensor(storage()))
    found = attempt(tmp_path / "model.pt", in_zip(b"}(" + text("args") + CALLS[kind] + beside + b"u."))
    assert torch.equal(found["conv.weight"], torch.tensor([1.0, 2, 3, 4]))


@pytest.mark.parametrize("kind", ["os.system", "eval", "a chain of getattr", "INST", "OBJ", "a reduced object"])
def test_these_calls_work_where_they_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.chdir(tmp_path)
    pickle.loads(CALLS[kind] + b".")
    assert (tmp_path / "CANARY").exists()


@pytest.mark.parametrize("kind", mostly_slow(BOMBS, 30))
@pytest.mark.parametrize("form", mostly_slow(["zip", "pickle"]))
def test_a_bomb_is_answered_in_time(tmp_path: Path, kind: str, form: str) -> None:
    content = BOMBS[kind] + b"."
    content = in_zip(content) if form == "zip" else content
    assert isinstance(attempt(tmp_path / "model.pt", content, read_checkpoint), str)


NAMES = [
    "\x1b]0;title\x07weight",
    "\ud800.weight",
    "layers." + "9" * 5000 + ".weight",
    "a" * 1_000_000,
    "x\n\nx",
    "²",
    "..",
    "",
]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_any_name_of_a_tensor_is_answered_with_text_that_a_terminal_can_show(tmp_path: Path, name: str) -> None:
    path = tmp_path / "model.pt"
    torch.save(
        {"conv.weight": torch.ones(1, 3, 3, 3), name: torch.ones(2, 2), f"layers.{name}.9.x": torch.ones(2)}, path
    )
    with pytest.raises(UserError) as error:
        read_checkpoint(str(path), tmp_path, 1)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 2000


def saved(change: Callable[[zipfile.ZipFile, zipfile.ZipFile], None]) -> bytes:
    """A file of torch.save whose members are written again by `change(old, new)`."""
    source, target = io.BytesIO(), io.BytesIO()
    torch.save(WEIGHTS, source)
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
        change(old, new)
    return target.getvalue()


def compressed(old: zipfile.ZipFile, new: zipfile.ZipFile) -> None:
    new.writestr("archive/bomb", bytes(50_000_000), zipfile.ZIP_DEFLATED)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda old, new: new.writestr(old.namelist()[0], b"N."), "two members of the same name"),
        (compressed, "compressed"),
    ],
)
def test_a_zip_that_torch_does_not_write_is_refused(tmp_path: Path, change: Any, words: str) -> None:
    assert words in attempt(tmp_path / "model.pt", saved(change))


def test_a_member_that_leads_out_is_not_written(tmp_path: Path) -> None:
    found = attempt(tmp_path / "model.pt", saved(lambda old, new: new.writestr("../../CANARY", b"x")))
    assert torch.equal(found["conv.weight"], WEIGHTS["conv.weight"])


def test_members_that_overlap_are_refused(tmp_path: Path) -> None:
    content = saved(lambda old, new: None)
    start, entry = content.index(b"PK\x01\x02"), b"PK\x01\x02"
    second = content.index(entry, start + 4)
    directory = content[start:second]
    copies = [directory.replace(b"data.pkl", b"copy%04d" % number) for number in range(1000)]
    end = bytearray(content[content.rindex(b"PK\x05\x06") :])
    whole = content[start : content.rindex(b"PK\x05\x06")] + b"".join(copies)
    count = whole.count(entry)
    end[8:16] = struct.pack("<HHI", count, count, len(whole))
    assert isinstance(attempt(tmp_path / "model.pt", content[:start] + whole + bytes(end)), str)
