"""Messages for an image tree whose layout is not `train/<class>/*` and `test/<class>/*`."""

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

SPLITS = ("train", "test")
SUFFIXES = {
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".bmp", ".dib", ".gif", ".webp", ".avif", ".tif",
    ".tiff", ".tga", ".pnm", ".pbm", ".ppm", ".pgm",
}  # fmt: skip
JUNK = {"__MACOSX", ".ipynb_checkpoints", "@eaDir"}  # folders with copies of images made by other programs
OTHER_NAMES = {
    "train": ("training", "trainset", "train_images", "training_set"),
    "test": ("testing", "val", "valid", "validation", "eval", "testset", "test_images", "test_set"),
}
MOST = 8  # maximum number of folders in a message
# CIFAR as published by its authors: archives, folders, and the files inside them.
CIFAR = re.compile(r"cifar-(100?)-(batches-py|python|batches-bin|binary)(\.tar\.gz)?")
BATCHES = re.compile(r"(data_batch_1|test_batch)(\.bin)?|batches\.meta(\.txt)?")


def parts_of(name: str) -> tuple[str, ...]:
    """The folders and the name of a path. Archives from old Windows programs have backslashes."""
    return PurePosixPath(name.replace("\\", "/")).parts


def is_image(name: str) -> bool:
    """Whether a file is an image, judged by its name."""
    parts = parts_of(name)
    hidden = parts[-1].startswith(".") or JUNK & set(parts)
    return not hidden and PurePosixPath(parts[-1]).suffix.lower() in SUFFIXES


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


def nearest(names: Iterable[str]) -> str:
    """One or two sentences on the files found and how to change them to the expected layout."""
    every = [parts_of(name) for name in names if not JUNK & set(parts_of(name))]
    images = [parts_of(name) for name in names if is_image(name)]
    if not images:
        endings = Counter(PurePosixPath(parts[-1]).suffix.lower() or "no extension" for parts in every)
        kinds = ", ".join(ending for ending, _ in endings.most_common(MOST))
        return f"Found no images, but files with these extensions: {kinds}." if every else "Found no files."
    folders = Counter("/".join(parts[:-1]) or "." for parts in images)
    listed = ", ".join(f"{folder} ({count})" for folder, count in folders.most_common(MOST))
    more = f" and {len(folders) - MOST} more" if len(folders) > MOST else ""
    return f"Found images in the folders {listed}{more}. {_advice(images)}"


def _advice(images: list[tuple[str, ...]]) -> str:
    anywhere = {part for parts in images for part in parts[:-1]}
    for split in SPLITS:
        if split not in anywhere:
            likely = [name for name in anywhere if name.lower() in (split, *OTHER_NAMES[split])]
            if likely:
                return f"Rename the folder {min(likely)} to {split}."
    above = {parts[:-2] for parts in images if len(parts) >= 2 and parts[-2] in SPLITS}
    if len(above) > 1:
        return "Swap the levels: train and test come first, with the classes inside them."
    if above:
        return "Sort the images of train and test into one folder per class."
    if any(set(parts[:-3]) & set(SPLITS) for parts in images):
        return "The images are nested too deeply: put them directly into the folders of their classes."
    missing = [split for split in SPLITS if split not in anywhere]
    if len(missing) == 2:
        return "Move the class folders into a folder train, and the test images into a folder test."
    return f"There is no folder {missing[0]}. Create it with images of every class." if missing else ""
