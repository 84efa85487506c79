"""The names in an image tree: images, folders of splits, and messages for trees that have no classes."""

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from ptq_exp.base.errors import UserError

SPLITS = ("train", "test")
# Folders with the images of a split, in any case. If there are several, the first in this order is used.
FOLDERS = {
    "train": ("train", "training", "trainset", "train_set", "training_set", "train_images"),
    "test": (
        "test", "testing", "testset", "test_set", "test_images", "eval", "evaluation", "val", "valid", "validation",
        "validation_set", "val_images",
    ),
}  # fmt: skip
SPLIT_OF = {folder: split for split, folders in FOLDERS.items() for folder in folders}
SUFFIXES = {
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".bmp", ".dib", ".gif", ".webp", ".avif", ".tif",
    ".tiff", ".tga", ".pnm", ".pbm", ".ppm", ".pgm",
}  # fmt: skip
JUNK = {"__MACOSX", ".ipynb_checkpoints", "@eaDir"}  # folders with copies of images made by other programs
MOST = 8  # maximum number of folders in a message
# CIFAR as published by its authors: archives, folders, and the files inside them.
CIFAR = re.compile(r"cifar-(100?)-(batches-py|python|batches-bin|binary)(\.tar\.gz)?")
BATCHES = re.compile(r"(data_batch_1|test_batch)(\.bin)?|batches\.meta(\.txt)?")


def split_of(folder: str) -> str | None:
    """`train` or `test` for the name of a folder that holds a split, in any case; else None."""
    return SPLIT_OF.get(folder.lower())


def parts_of(name: str) -> tuple[str, ...]:
    """The folders and the name of a path. Archives from old Windows programs have backslashes."""
    # pathlib takes several times as long, and a tree may have half a million names.
    return tuple([part for part in name.replace("\\", "/").split("/") if part not in ("", ".")])


def stem_and_suffix(name: str) -> tuple[str, str]:
    """`1.PNG` as (`1`, `.png`)."""
    stem, _, ending = name.rpartition(".")
    return (stem, f".{ending.lower()}") if stem else (name, "")


def is_image(name: str) -> bool:
    """Whether a file is an image, judged by its name."""
    return stem_and_suffix(name)[1] in SUFFIXES and not is_junk(name)


def is_junk(name: str) -> bool:
    """Whether a file is hidden or a copy made by another program."""
    parts = parts_of(name)
    return not parts or parts[-1].startswith(".") or not JUNK.isdisjoint(parts)


def cifar_itself(root: Path, names: Iterable[str] = ()) -> str:
    """The message for CIFAR in its original form, detected by the names of the root and its files, or an empty string
    for anything else."""
    for parts in [(root.name,), *((root.name, *parts_of(name)) for name in names)]:
        for place, part in enumerate(parts):
            if found := CIFAR.fullmatch(part):
                return _take_cifar(root, parts[:place], found[1], found[2].startswith(("batches-bin", "binary")))
            if found := BATCHES.fullmatch(part):
                folder = parts[: place - 1] if place else None
                return _take_cifar(root, folder, "10", bool(found[2] or found[3]))
    return ""


def _take_cifar(root: Path, holder: tuple[str, ...] | None, number: str, binary: bool) -> str:
    """`holder` is the path from the root's name to the folder that contains the archive or its unpacked folder."""
    inside = root.is_dir() and holder
    place = (
        root.joinpath(*holder[1:]) if inside and holder else root.parent if holder is not None else root.parent.parent
    )
    setting = f"data=cifar{number} data.root={place}"
    if binary:
        return (
            f"data.root={root} is the binary version of CIFAR-{number}, but the Python version is needed. To download "
            f"it, set {setting} data.download=true."
        )
    return f"data.root={root} is the original CIFAR-{number}. Set {setting}."


def no_classes(root: Path, names: list[str], tables: list[str]) -> UserError:
    """The error for a tree of the files `names` in which no classes were found, nor in the `tables` of labels."""
    return UserError(
        cifar_itself(root, names)
        or f"data.root={root} has no classes. {nearest(names)} Expected: train/<class>/* and test/<class>/*; <class>/* "
        f"for at least two classes; or images with a table of their labels{_unfit(tables)}. "
        f"Images end in {', '.join(sorted(SUFFIXES))}."
    )


def _unfit(tables: list[str]) -> str:
    return f" (data.labels; {', '.join(tables[:MOST])} did not fit the images)" if tables else " (data.labels)"


def nearest(names: Iterable[str]) -> str:
    """One or two sentences on the files found and how to change them to an expected layout."""
    every = [parts_of(name) for name in names if not JUNK & set(parts_of(name))]
    images = [parts_of(name) for name in names if is_image(name)]
    if not images:
        endings = Counter(PurePosixPath(parts[-1]).suffix.lower() or "no extension" for parts in every)
        kinds = ", ".join(ending for ending, _ in endings.most_common(MOST))
        return f"Found no images, but files with these extensions: {kinds}." if every else "Found no files."
    folders = Counter("/".join(parts[:-1]) or "." for parts in images)
    listed = ", ".join(f"{folder} ({count})" for folder, count in folders.most_common(MOST))
    more = f" and {len(folders) - MOST} more" if len(folders) > MOST else ""
    return f"Found images in the folders {listed}{more}. Sort the images into one folder per class."
