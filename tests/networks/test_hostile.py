"""Files that are damaged or made to harm: refused by name, or rebuilt; never executed, never another number."""

import gzip
import io
import json
import random
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, Outcome
from example_records import job, result
from PIL import Image
from safetensors import SafetensorError

from ptq_exp.base.errors import UserError
from ptq_exp.base.tensors import load_checked, save_checked
from ptq_exp.data import archive, load_dataset
from ptq_exp.data.options import DataOptions
from ptq_exp.results.files import read_job, to_json, write_job

Cli = Callable[..., Outcome]
CPU = torch.device("cpu")


def png(value: int = 0, size: int = 8) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(value).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


GOOD = {
    f"{split}/{label}/{number}.png": png(number) for split in ("train", "test") for label in "ab" for number in (1, 2)
}


def zip_of(path: Path, entries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in entries.items():
            file.writestr(name, content)
    return path


def tar_of(path: Path, entries: dict[str, bytes], links: dict[str, str] | None = None) -> Path:
    with tarfile.open(path, "w:gz") as file:
        for name, content in entries.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            file.addfile(info)
    return path


def load(root: Path, cache: Path, **changes: object) -> object:
    data = DataOptions(name="image_folder", root=str(root), resize=8, **changes)  # type: ignore[arg-type]
    return load_dataset(data, cache, CPU)


@pytest.mark.parametrize("name", ["../escape/a/1.png", "/etc/a/1.png", "train/../../a/1.png", "C:/a/b/1.png"])
@pytest.mark.parametrize("pack", [zip_of, tar_of])
def test_names_that_lead_out_are_refused(
    tmp_path: Path, name: str, pack: Callable[[Path, dict[str, bytes]], Path]
) -> None:
    root = pack(tmp_path / "images.archive", GOOD | {name: png()})
    with pytest.raises(UserError, match="leads out of the archive"):
        load(root, tmp_path / "cache")
    assert not (tmp_path / "escape").exists()


def test_links_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="it is a link"):
        load(tar_of(tmp_path / "images.tar.gz", GOOD, {"train/a/9.png": "/etc/passwd"}), tmp_path / "cache")
    info = zipfile.ZipInfo("train/a/9.png")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(zip_of(tmp_path / "images.zip", GOOD), "a") as file:
        file.writestr(info, "/etc/passwd")
    with pytest.raises(UserError, match="it is a link"):
        load(tmp_path / "images.zip", tmp_path / "cache")


@pytest.mark.parametrize("pack", [zip_of, tar_of])
def test_bombs_are_refused(
    tmp_path: Path, pack: Callable[[Path, dict[str, bytes]], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    zeros = bytes(archive.MAX_FILE + 1)
    with pytest.raises(UserError, match="an image may have at most"):
        load(pack(tmp_path / "one", GOOD | {"train/a/9.png": zeros}), tmp_path / "cache")
    monkeypatch.setattr(archive, "MAX_TOTAL_FLOOR", 2**22)
    many = {f"train/a/{number}.png": bytes(2**20) for number in range(10, 20)}
    with pytest.raises(UserError, match="it unpacks to more than"):
        load(pack(tmp_path / "many", GOOD | many), tmp_path / "cache")


@pytest.mark.parametrize("pack", [zip_of, tar_of])
def test_too_many_entries_are_refused(
    tmp_path: Path, pack: Callable[[Path, dict[str, bytes]], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "MAX_ENTRIES", 1000)
    root = pack(tmp_path / "images.archive", GOOD | {f"train/a/x{number}.txt": b"" for number in range(1001)})
    with pytest.raises(UserError, match="more than 1,000 entries"):
        load(root, tmp_path / "cache")


def million_in_a_tar(path: Path) -> Path:
    header = tarfile.TarInfo("train/a/1.txt").tobuf()
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(1000):
            file.write(1000 * header)
    return path


def million_in_a_zip(path: Path) -> Path:
    """Its list of contents names a million empty files; zipfile would need a minute to write it."""
    local = struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 0, 0, 0, 0, 0, 0, 1, 0) + b"x"
    one = struct.pack("<4s6H3I5H2I", b"PK\1\2", 45, 20, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0)
    listed = b"".join(one + b"%07d" % number for number in range(10**6))
    size, count = len(listed), 10**6
    end64 = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, len(local))
    where = struct.pack("<4sIQI", b"PK\6\7", 0, len(local) + size, 1)
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    path.write_bytes(local + listed + end64 + where + end)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("pack", [million_in_a_zip, million_in_a_tar])
def test_a_million_entries_are_refused(tmp_path: Path, pack: Callable[[Path], Path]) -> None:
    with pytest.raises(UserError, match="more than 500,000 entries"):
        load(pack(tmp_path / "images.archive"), tmp_path / "cache")


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
def test_a_bomb_in_the_description_of_an_entry_is_refused(tmp_path: Path, kind: bytes) -> None:
    """tarfile reads it whole before it hands out the entry: here four gigabytes, were they all there."""
    info = tarfile.TarInfo("train/a/9.png")
    info.type, info.size = kind, 2**32
    with gzip.open(tmp_path / "images.tar.gz", "wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT) + bytes(2**21))
    with pytest.raises(UserError, match="description of an entry takes 4,294,967,296 bytes"):
        load(tmp_path / "images.tar.gz", tmp_path / "cache")


def test_a_huge_image_is_named(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("1", (20_000, 10_000)).save(buffer, "PNG")
    with pytest.raises(UserError, match=r"train/a/9\.png cannot be read as an image"):
        load(zip_of(tmp_path / "images.zip", GOOD | {"train/a/9.png": buffer.getvalue()}), tmp_path / "cache")


def test_broken_images_are_left_out_and_counted_where_asked(tmp_path: Path) -> None:
    broken = {"train/a/8.png": b"not an image", "test/b/9.png": png(9)[:30]}
    root = zip_of(tmp_path / "images.zip", GOOD | broken)
    with pytest.raises(UserError, match=r"data\.skip_broken=true"):
        load(root, tmp_path / "cache")
    for _ in range(2):  # decoded, then from the cache
        data = load(root, tmp_path / "cache", skip_broken=True)
        assert (len(data.train_images), len(data.test_images)) == (4, 4)  # type: ignore[attr-defined]
        assert "Skipped 2 images that cannot be read" in data.note  # type: ignore[attr-defined]
    only = zip_of(tmp_path / "only.zip", {"train/a/1.png": png(), "test/a/1.png": b"broken"})
    with pytest.raises(UserError, match="none of the 1 images of test"):
        load(only, tmp_path / "cache", skip_broken=True)


# Damage -----------------------------------------------------------------------------------------------------------


def damaged(content: bytes, chance: random.Random, kind: str) -> bytes:
    if kind == "truncated":
        return content[: chance.randrange(len(content))]
    changed = bytearray(content)
    place = chance.randrange(len(content))
    changed[place] ^= 1 << chance.randrange(8)
    return bytes(changed)


def tensors_file(path: Path) -> Callable[[], object]:
    save_checked({"a.weight": torch.arange(200.0), "b.codes": torch.arange(50, dtype=torch.int8)}, path, {"bits": 4})

    def read() -> object:
        tensors, about = load_checked(path)
        return {key: value.tolist() for key, value in tensors.items()}, about

    return read


def record_file(path: Path) -> Callable[[], object]:
    write_job(job(result(4, 81.25), folder=path.parent))
    shutil.move(path.parent / "results.json", path)

    def read() -> object:
        shutil.copy(path, path.parent / "results.json")
        return to_json(read_job(path.parent))

    return read


def images_file(path: Path) -> Callable[[], object]:
    zip_of(path, GOOD)

    def read() -> object:
        cache = path.parent / "cache"
        shutil.rmtree(cache, ignore_errors=True)
        return load(path, cache).fingerprint()  # type: ignore[attr-defined]

    return read


def cache_file(path: Path) -> Callable[[], object]:
    root = zip_of(path.parent / "images.zip", GOOD)
    load(root, path.parent / "cache")
    (array,) = (path.parent / "cache").rglob("train_images.npy")
    shutil.copy(array, path)

    def read() -> object:
        shutil.copy(path, array)
        return load(root, path.parent / "cache").fingerprint()  # type: ignore[attr-defined]

    return read


@pytest.mark.parametrize("kind", ["flipped", "truncated"])
@pytest.mark.parametrize("make", [tensors_file, record_file, images_file, cache_file], ids=lambda make: make.__name__)
def test_damage_is_never_another_number(
    tmp_path: Path, make: Callable[[Path], Callable[[], object]], kind: str
) -> None:
    """A hundred seeded damages of every kind: an error, nothing, or exactly what was written."""
    path = tmp_path / "file"
    read = make(path)
    whole, content = read(), path.read_bytes()
    chance = random.Random(11)
    caught = 0
    for _ in range(100):
        path.write_bytes(damaged(content, chance, kind))
        try:
            found = read()
        except (UserError, ValueError, OSError, SafetensorError):
            found = None
        caught += found is None
        assert found is None or json.dumps(found) == json.dumps(whole)
    assert caught > 0 or make is cache_file  # a damaged cache is rebuilt


def test_a_damaged_checkpoint_of_our_own_is_refused(cli: Cli, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    # A seed of its own: what an earlier test of this process prepared would not be trained, nor stored, again.
    assert cli(*TINY, "quant.bits=4", "seed=71", f"cache_dir={cache}").code == 0
    (stored,) = cache.rglob("last.safetensors")
    copy = tmp_path / "mine.safetensors"
    content = bytearray(stored.read_bytes())
    content[-100] ^= 1
    copy.write_bytes(content)
    outcome = cli(*TINY, "quant.bits=4", f"checkpoint={copy}")
    assert outcome.code == 1
    assert "checksum is wrong" in outcome.err
