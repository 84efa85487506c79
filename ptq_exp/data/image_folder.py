"""Images in a tree such as `train/<class>/*` and `test/<class>/*`, as a folder, a zip or a tar.

The images are decoded once into a cache of plain arrays, which later runs map into memory. An archive is read in
memory and never unpacked to disk, so the names inside it are never used as paths.
"""

import hashlib
import io
import json
import os
import shutil
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from PIL import Image, UnidentifiedImageError

from ptq_exp.base.console import log, track
from ptq_exp.base.errors import UserError
from ptq_exp.base.files import digest, file_digest
from ptq_exp.data import class_names
from ptq_exp.data.archive import Read, files_below, open_tree
from ptq_exp.data.dataset import Dataset
from ptq_exp.data.groups import Folders
from ptq_exp.data.label_files import is_label_file
from ptq_exp.data.layout import SPLITS, cifar_itself, parts_of
from ptq_exp.data.options import DataOptions
from ptq_exp.data.pixels import as_rgb
from ptq_exp.data.resizing import MAX_PIXELS, resized
from ptq_exp.data.splits import Member, find_layout, is_wanted

# The exceptions of Pillow, zipfile and zlib for an image or archive member that is damaged, encrypted or not an image.
UNREADABLE = (
    OSError, ValueError, SyntaxError, RuntimeError, zipfile.BadZipFile, zlib.error, Image.DecompressionBombError,
)  # fmt: skip
CACHE_VERSION = 4  # raised when decoding or the order of classes changes, so that older caches are not used


def load(options: DataOptions, cache: Path) -> Dataset:
    """The images of `data.root`, decoded or from the cache.

    Raises `UserError` if the root is missing or has no classes, or an image cannot be read.
    """
    root = existing_root(options)
    folder = cache / "images" / f"{source_digest(root)[:16]}-{_variant(options)}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        cached = _read_cache(folder, root.name)
        if cached is None:
            _decode(root, options, folder)
            cached = _read_cache(folder, root.name)
    if cached is None:
        raise UserError(f"The decoded images in {folder} changed while they were read. Is the disk full or failing?")
    dataset, order = cached
    if order:
        log.info("The classes are in the order of %s: %s.", order, class_names.shown(dataset.classes))
    return dataset


def check(options: DataOptions) -> None:
    """Raise `UserError` if `data.root` is missing or unsuitable."""
    existing_root(options)


def existing_root(options: DataOptions) -> Path:
    """The folder or archive of the images. Raises `UserError` if it is missing, or an original CIFAR archive."""
    if options.root is None:
        raise UserError("data=image_folder needs data.root, the folder or archive of the images.")
    root = Path(options.root).expanduser()
    if not root.exists():
        raise UserError(f"data.root={root} does not exist.")
    if root.is_file() and (advice := cifar_itself(root)):
        raise UserError(advice)
    return root


def _variant(options: DataOptions) -> str:
    """The options that affect the decoded images."""
    words = [str(options.resize or "as-is")]
    words += [f"crop-{options.crop}"] if options.crop is not None else []
    words += [f"share-{options.test_share:g}"] if options.test_share != DataOptions.test_share else []
    if options.labels is not None:
        file = Path(options.labels).expanduser()
        words.append(f"labels-{digest(options.labels, file_digest(file).hex() if file.is_file() else '')[:8]}")
    words += ["skipped"] if options.skip_broken else []
    words += [f"classes-{digest(options.classes)[:8]}"] if options.classes is not None else []
    return "-".join(words)


def source_digest(root: Path) -> str:
    """SHA-256 (hex) of an archive's bytes, or of the names, sizes and times of a folder's files."""
    sha = hashlib.sha256(f"{CACHE_VERSION}\n".encode())
    if root.is_file():
        sha.update(file_digest(root))
    else:
        for path in files_below(root):
            status = path.stat()
            sha.update(os.fsencode(f"{path.relative_to(root)}\0{status.st_size}\0{status.st_mtime_ns}\n"))
            if path.name == class_names.FILE or is_label_file(path.name):  # swapped lines do not change its size
                sha.update(path.read_bytes())
    return sha.hexdigest()


def _read_cache(folder: Path, name: str) -> tuple[Dataset, str] | None:
    """The cached data set and the source of its class order, or None if there is none or its checksum is wrong."""
    try:
        metadata = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))
        arrays: dict[str, Any] = {
            f"{split}_{part}": torch.from_numpy(np.load(folder / f"{split}_{part}.npy", mmap_mode="c"))
            for split in SPLITS
            for part in ("images", "labels")
        }
        dataset = Dataset(name=name, classes=tuple(metadata["classes"]), note=metadata["note"], **arrays)
        return (dataset, str(metadata["order"])) if dataset.fingerprint() == metadata["fingerprint"] else None
    except (OSError, ValueError, EOFError, KeyError, TypeError, SyntaxError, tokenize.TokenError, MemoryError):
        return None  # numpy parses the header of its files as Python source, so a flipped bit can raise any of these


def _decode(root: Path, options: DataOptions, folder: Path) -> None:
    """Decode every image below `root` into `folder`, which is created atomically."""
    broken: list[str] = []
    seen: dict[str, None] = {}  # every file, since the others explain why no images were found

    def wanted(name: str) -> bool:
        seen[name] = None
        return is_wanted(name) or parts_of(name)[-1] == class_names.FILE

    with open_tree(root, wanted) as (names, read):
        layout = find_layout(root, names, list(seen), read, options)
        members = layout.members
        classes, order = class_names.ordered(
            list({member[1] for member in members}), *_class_list(options, root, layout.beside, names, read)
        )
        arrays: dict[str, np.ndarray] = {}
        size: tuple[int, ...] | None = None
        for split in SPLITS:
            chosen = sorted(member for member in members if member[0] == split)
            decoded = track(_decode_all(chosen, read, options), len(chosen), f"Decoding {split} images")
            pairs = list(zip(chosen, decoded, strict=True))
            broken += [member[2] for member, image in pairs if image is None]
            whole = [(member, image) for member, image in pairs if image is not None]
            if not whole:
                raise UserError(f"data.root={root}: none of the {len(chosen)} images of {split} can be read.")
            size = size or whole[0][1].shape
            if odd := next((member[2] for member, image in whole if image.shape != size), None):
                raise UserError(f"{odd} differs in size from other images. Set one size, such as data.resize=32.")
            arrays[f"{split}_images"] = np.stack([image for _, image in whole])
            arrays[f"{split}_labels"] = np.array([classes.index(member[1]) for member, _ in whole], dtype=np.int64)
    tensors: dict[str, Any] = {key: torch.from_numpy(array) for key, array in arrays.items()}
    fingerprint = Dataset(name="", classes=tuple(classes), **tensors).fingerprint()
    notes = [layout.note] if layout.note else []
    notes += [f"Skipped {len(broken)} images that cannot be read, the first is {broken[0]}."] if broken else []
    if absent := sorted(set(range(len(classes))) - set(arrays["test_labels"].tolist())):
        notes.append(f"There are no test images of the classes {[classes[label] for label in absent]}.")
    note = " ".join(notes)
    with tempfile.TemporaryDirectory(prefix=".decoding-", dir=folder.parent) as scratch:
        complete = Path(scratch) / "complete"
        complete.mkdir()
        for key, array in arrays.items():
            np.save(complete / f"{key}.npy", array)
        content = {"classes": classes, "order": order, "fingerprint": fingerprint, "note": note}
        (complete / "metadata.json").write_text(json.dumps(content), encoding="utf-8")
        if folder.exists():  # its checksum was wrong
            shutil.rmtree(folder)
        os.replace(complete, folder)


def _decode_all(members: list[Member], read: Read, options: DataOptions) -> Iterator[Any]:
    """Decode in threads, since Pillow releases the interpreter lock. With `skip_broken`, unreadable images are None."""

    def decode(key: str) -> np.ndarray | None:
        try:
            file = Image.open(io.BytesIO(read(key)))
            if file.width * file.height > MAX_PIXELS:
                raise ValueError(f"{file.width}x{file.height} pixels are too many")
            image = resized(as_rgb(file), options.resize, options.crop)
            return np.asarray(image).transpose(2, 0, 1)
        except UNREADABLE as error:
            if options.skip_broken:
                return None
            raise UserError(
                f"{key} cannot be read as an image ({_plain(error)}). Repair or remove it, "
                "or skip such images with data.skip_broken=true."
            ) from error

    with ThreadPoolExecutor() as pool:
        yield from pool.map(lambda member: decode(member[2]), members)


def _plain(error: BaseException) -> str:
    """The error text without the address of the object that was given to Pillow."""
    return "unknown format" if isinstance(error, UnidentifiedImageError) else str(error)


def _class_list(
    options: DataOptions, root: Path, beside: set[Folders], names: list[str], read: Read
) -> tuple[list[str] | None, str]:
    """The user's list of classes, or None, and its source. The configuration takes precedence over a file."""
    if options.classes is not None:
        return list(options.classes), "data.classes"
    files = [name for name in names if parts_of(name)[-1] == class_names.FILE and parts_of(name)[:-1] in beside]
    if not files:
        return None, ""
    try:
        lines = read(files[0]).decode("utf-8-sig").splitlines()
    except UNREADABLE as error:
        raise UserError(f"{files[0]} in data.root={root} cannot be read as UTF-8 text ({error}).") from error
    return [line.strip() for line in lines if line.strip()], files[0]
