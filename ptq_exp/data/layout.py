"""What to say where a tree of images is not laid out as `train/<class>/*` and `test/<class>/*`."""

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

SPLITS = ("train", "test")
SUFFIXES = {
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".bmp", ".dib", ".gif", ".webp", ".avif", ".tif",
    ".tiff", ".tga", ".pnm", ".pbm", ".ppm", ".pgm",
}  # fmt: skip
JUNK = {"__MACOSX", ".ipynb_checkpoints", "@eaDir"}  # folders in which systems keep copies of images
OTHER_NAMES = {
    "train": ("training", "trainset", "train_images", "training_set"),
    "test": ("testing", "val", "valid", "validation", "eval", "testset", "test_images", "test_set"),
}
MOST = 8  # folders that a message names
# CIFAR as its authors publish it: archives, folders, and files inside of them.
CIFAR = re.compile(r"cifar-(100?)-(batches-py|python|batches-bin|binary)(\.tar\.gz)?")
BATCHES = re.compile(r"(data_batch_1|test_batch)(\.bin)?|batches\.meta(\.txt)?")


def parts_of(name: str) -> tuple[str, ...]:
    """Folders and name; archives from old Windows programs have backslashes."""
    return PurePosixPath(name.replace("\\", "/")).parts


def is_image(name: str) -> bool:
    """Whether a file is an image, by its name."""
    parts = parts_of(name)
    hidden = parts[-1].startswith(".") or JUNK & set(parts)
    return not hidden and PurePosixPath(parts[-1]).suffix.lower() in SUFFIXES


def cifar_itself(root: Path, names: Iterable[str] = ()) -> str:
    """The sentence for CIFAR in its original form, by the root's name and those of the files in it; empty where it is
    something else."""
    for parts in [(root.name,), *((root.name, *parts_of(name)) for name in names)]:
        for place, part in enumerate(parts):
            if found := CIFAR.fullmatch(part):
                return _take_cifar(root, parts[:place], found[1], found[2].startswith(("batches-bin", "binary")))
            if found := BATCHES.fullmatch(part):
                folder = parts[: place - 1] if place else None
                return _take_cifar(root, folder, "10", bool(found[2] or found[3]))
    return ""


def _take_cifar(root: Path, holder: tuple[str, ...] | None, number: str, binary: bool) -> str:
    """`holder` are the folders from the root's name down to what holds the archive or its folder."""
    inside = root.is_dir() and holder
    place = (
        root.joinpath(*holder[1:]) if inside and holder else root.parent if holder is not None else root.parent.parent
    )
    setting = f"data=cifar{number} data.root={place}"
    if binary:
        return (
            f"data.root={root} is the binary version of CIFAR-{number}. What is read is the Python version, which "
            f"{setting} data.download=true fetches."
        )
    return f"data.root={root} is CIFAR-{number} itself. Set {setting}."


def nearest(names: Iterable[str]) -> str:
    """What was found, and what would make it the layout expected: one or two sentences."""
    every = [parts_of(name) for name in names if not JUNK & set(parts_of(name))]
    images = [parts_of(name) for name in names if is_image(name)]
    if not images:
        endings = Counter(PurePosixPath(parts[-1]).suffix.lower() or "no ending" for parts in every)
        kinds = ", ".join(ending for ending, _ in endings.most_common(MOST))
        return f"Found are no images, but files with these endings: {kinds}." if every else "No file was found."
    folders = Counter("/".join(parts[:-1]) or "." for parts in images)
    listed = ", ".join(f"{folder} ({count})" for folder, count in folders.most_common(MOST))
    more = f" and {len(folders) - MOST} more" if len(folders) > MOST else ""
    return f"Found are images in the folders {listed}{more}. {_advice(images)}"


def _advice(images: list[tuple[str, ...]]) -> str:
    anywhere = {part for parts in images for part in parts[:-1]}
    for split in SPLITS:
        if split not in anywhere:
            likely = [name for name in anywhere if name.lower() in (split, *OTHER_NAMES[split])]
            if likely:
                return f"Rename the folder {min(likely)} to {split}."
    above = {parts[:-2] for parts in images if len(parts) >= 2 and parts[-2] in SPLITS}
    if len(above) > 1:
        return "Swap the levels: train and test come first, the classes inside of them."
    if above:
        return "Sort the images of train and test into one folder for each class."
    if any(set(parts[:-3]) & set(SPLITS) for parts in images):
        return "The images lie too deep: they are expected directly in the folders of their classes."
    missing = [split for split in SPLITS if split not in anywhere]
    if len(missing) == 2:
        return "Move the class folders into a folder train, and images kept for testing into a folder test."
    return f"There is no folder {missing[0]}: put images of every class there." if missing else ""
