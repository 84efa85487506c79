"""The files of a folder, a zip or a tar, read in memory and never unpacked to disk. Archives are taken as hostile."""

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
# Bytes of all files: images do not compress, so an archive that holds far more than its own size is a bomb.
MAX_TOTAL_FACTOR, MAX_TOTAL_FLOOR = 50, 2**28
# Entries of a tar that describe the next one: long names and attributes.
DESCRIPTIONS, MAX_DESCRIPTION = b"LKxgX", 2**20
BROKEN = (zipfile.BadZipFile, tarfile.TarError, OSError, EOFError, ValueError, zlib.error, lzma.LZMAError)

Read = Callable[[str], bytes]


@contextmanager
def open_tree(root: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[list[str], Read]]:
    """The names of the wanted files below `root`, and the function that reads one of them.

    Raises `UserError` if `root` is no folder or archive, is broken, or holds what no set of images holds: names that
    lead out of it, links, more entries or bytes than are sensible.
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
    """Every file below the folder `root`, also in folders that are links; sorted. A link to a folder that it lies in is
    not followed."""
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
            try:  # a name is there twice: where they differ the archive is damaged, and this may have been an image
                archive.open(info).close()
            except (*BROKEN, RuntimeError, NotImplementedError) as error:
                raise _broken(root, error) from error


def _is_tar(root: Path) -> bool:
    """As tarfile.is_tarfile, which would read the first entry's description, however long."""
    try:
        tarfile.open(root, tarinfo=_Entry).close()
    except tarfile.TarError:
        return False
    except BROKEN as error:
        raise _broken(root, error) from error
    return True


def _read_tar(root: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """A compressed tar can only be read forwards: every wanted file's bytes in one pass."""
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
                tar.members = []  # type: ignore[attr-defined]  # the library keeps every entry it has seen
    except BROKEN as error:
        raise _broken(root, error) from error
    return contents


class _Entry(tarfile.TarInfo):
    """An entry whose own description is of sensible length: the library reads that whole, before anybody can look."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        info = super().frombuf(buf, encoding, errors)
        if info.type in DESCRIPTIONS and info.size > MAX_DESCRIPTION:
            raise ValueError(f"the description of an entry takes {info.size:,} bytes")
        return info


def _check_count(root: Path, count: int) -> None:
    if count > MAX_ENTRIES:
        raise UserError(f"data.root={root} is refused: it has more than {MAX_ENTRIES:,} entries.")


def _check_entry(root: Path, name: str, size: int, link: bool) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    reason = ""
    if path.is_absolute() or ".." in path.parts or (len(name) > 1 and name[1] == ":"):
        reason = "its name leads out of the archive"
    elif link:
        reason = "it is a link"
    elif size > MAX_FILE:
        reason = f"it has {size:,} bytes, and an image at most {MAX_FILE:,}"
    if reason:
        raise UserError(f"data.root={root} is refused because of its entry {name!r}: {reason}.")


def _limit(root: Path) -> int:
    return max(MAX_TOTAL_FLOOR, MAX_TOTAL_FACTOR * root.stat().st_size)


def _bomb(root: Path, limit: int) -> UserError:
    return UserError(
        f"data.root={root} is refused: unpacked it has more than {limit:,} bytes, far more than images are packed into."
    )


def _broken(root: Path, error: BaseException) -> UserError:
    return UserError(f"data.root={root} is a broken archive ({error}). Fetch or pack it again.")
