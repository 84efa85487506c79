"""The files of a folder, a zip or a tar, read in memory and never unpacked to disk. Archives are not trusted."""

import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Self

from ptq_exp.base.errors import UserError

MAX_ENTRIES = 500_000
MAX_FILE = 2**26  # bytes of one image file; a photograph takes a few million
# Bytes of all files. Images do not compress, so an archive with far more data than its own size is a bomb.
MAX_TOTAL_FACTOR, MAX_TOTAL_FLOOR = 50, 2**28
# Entries of a tar that describe the next one: long names and attributes.
DESCRIPTIONS, MAX_DESCRIPTION = b"LKxgX", 2**20
BROKEN = (zipfile.BadZipFile, tarfile.TarError, OSError, EOFError, ValueError, zlib.error, lzma.LZMAError)

Read = Callable[[str], bytes]


@contextmanager
def open_tree(root: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[list[str], Read]]:
    """Yield the names of the wanted files below `root`, and a function that reads one of them.

    Raises `UserError` if `root` is not a folder or archive, is damaged, or has unsafe content: names that lead out of
    it, links, or too many entries or bytes.
    """
    if root.is_dir():
        names = [path.relative_to(root).as_posix() for path in files_below(root)]
        yield [name for name in names if wanted(name)], lambda name: (root / name).read_bytes()
    elif zipfile.is_zipfile(root):
        try:
            archive = zipfile.ZipFile(root)
        except BROKEN as error:
            raise _broken(root, error) from error
        with archive:
            _check_zip(root, archive, wanted)
            yield [name for name in archive.namelist() if wanted(name)], archive.read
    elif _is_tar(root):
        contents = _read_tar(root, wanted)
        yield list(contents), contents.__getitem__
    else:
        raise UserError(f"data.root={root} is neither a folder nor a zip or tar archive.")


def files_below(root: Path) -> list[Path]:
    """Every file below the folder `root`, sorted, including files in linked folders. A link to one of its own parent
    folders is not followed."""
    found: list[Path] = []

    def walk(folder: Path, above: frozenset[str]) -> None:
        real = os.path.realpath(folder)
        if real in above:
            return
        for path in folder.iterdir():
            if path.is_dir():
                walk(path, above | {real})
            elif path.is_file():
                found.append(path)

    walk(root, frozenset())
    return sorted(found)


def _check_zip(root: Path, archive: zipfile.ZipFile, wanted: Callable[[str], bool]) -> None:
    entries, total, limit = archive.infolist(), 0, _limit(root)
    _check_count(root, len(entries))
    for info in entries:
        _check_entry(root, info.filename, info.file_size, link=(info.external_attr >> 28) == 0o12)
        total += info.file_size
        if total > limit:
            raise _bomb(root, limit)
        if not wanted(info.filename) and not info.is_dir():
            try:  # a zip stores each name twice; if they differ, it is damaged, and this may have been an image
                archive.open(info).close()
            except (*BROKEN, RuntimeError, NotImplementedError) as error:
                raise _broken(root, error) from error


def _is_tar(root: Path) -> bool:
    """Like tarfile.is_tarfile, which would read the first entry's description regardless of its length."""
    try:
        tarfile.open(root, tarinfo=_Entry).close()
    except tarfile.TarError:
        return False
    except BROKEN as error:
        raise _broken(root, error) from error
    return True


def _read_tar(root: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """Read every wanted file in one pass, since a compressed tar can only be read forwards."""
    contents: dict[str, bytes] = {}
    limit = _limit(root)
    try:
        with tarfile.open(root, tarinfo=_Entry) as tar:
            for number, info in enumerate(tar, start=1):
                _check_count(root, number)
                _check_entry(root, info.name, info.size if info.isfile() else 0, info.issym() or info.islnk())
                if info.offset_data + info.size > limit:
                    raise _bomb(root, limit)
                if info.isfile() and wanted(info.name) and (file := tar.extractfile(info)):
                    contents[info.name] = file.read()
                tar.members = []  # type: ignore[attr-defined]  # the library would keep every entry
    except BROKEN as error:
        raise _broken(root, error) from error
    return contents


class _Entry(tarfile.TarInfo):
    """An entry with a limited length of its description, because the library reads it completely before any check."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        info = super().frombuf(buf, encoding, errors)
        if info.type in DESCRIPTIONS and info.size > MAX_DESCRIPTION:
            raise ValueError(f"the description of an entry takes {info.size:,} bytes")
        return info


def _check_count(root: Path, count: int) -> None:
    if count > MAX_ENTRIES:
        raise UserError(f"data.root={root} is rejected: it has more than {MAX_ENTRIES:,} entries.")


def _check_entry(root: Path, name: str, size: int, link: bool) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    reason = ""
    if path.is_absolute() or ".." in path.parts or (len(name) > 1 and name[1] == ":"):
        reason = "its name leads out of the archive"
    elif link:
        reason = "it is a link"
    elif size > MAX_FILE:
        reason = f"it has {size:,} bytes, but an image may have at most {MAX_FILE:,}"
    if reason:
        raise UserError(f"data.root={root} is rejected because of its entry {name!r}: {reason}.")


def _limit(root: Path) -> int:
    return max(MAX_TOTAL_FLOOR, MAX_TOTAL_FACTOR * root.stat().st_size)


def _bomb(root: Path, limit: int) -> UserError:
    return UserError(
        f"data.root={root} is rejected: it unpacks to more than {limit:,} bytes, far more than expected for images."
    )


def _broken(root: Path, error: BaseException) -> UserError:
    return UserError(f"data.root={root} is a damaged archive ({error}). Download or pack it again.")
