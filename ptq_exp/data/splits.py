"""The training and test images of a tree and their classes, in the layouts that are in use.

* `train/<class>/*` and `test/<class>/*`, with other names for the splits, and with folders inside the classes
* `<class>/train/*` and `<class>/test/*`
* `<class>/*` without splits: a fixed share of each class becomes the test images
* images without folders of classes, with a table of their labels (`label_files`)
"""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from ptq_exp.base.errors import UserError
from ptq_exp.data.archive import Read
from ptq_exp.data.dataset import fixed_shuffle
from ptq_exp.data.groups import OUTSIDE, Folders, Group, grouped
from ptq_exp.data.label_files import is_label_file, label_by_tables
from ptq_exp.data.layout import FOLDERS, is_image, no_classes
from ptq_exp.data.options import DataOptions

Member = tuple[str, str, str]  # one image: its split, its class and its name in the tree


@dataclass
class Layout:
    """The images that are used, how they were chosen, and the folders in which a list of the classes counts."""

    members: list[Member]
    note: str
    beside: set[Folders]


def is_wanted(name: str) -> bool:
    """Whether the content of a file may matter: an image, a table of labels or a list of the classes."""
    return is_image(name) or is_label_file(name)


def find_layout(root: Path, names: list[str], seen: list[str], read: Read, options: DataOptions) -> Layout:
    """The training and test images among the files `names`. `seen` are all files in the tree, for messages.

    Raises `UserError` if there are no classes, a table of labels does not fit, or test has classes of its own.
    """
    groups = grouped([name for name in names if is_image(name)])
    notes: list[str] = []
    unfit: list[str] = []
    if options.labels is not None or any(len(group.distinct) < 2 for group in groups.values()):
        notes, unfit = label_by_tables(groups, options.labels, names, read)
    train, test = _chosen(groups)
    if train is None:
        raise no_classes(root, seen, unfit)
    if test is None:
        members, note = _divided(root, train, groups, options.test_share)
        notes.append(note)
    elif unknown := test.distinct - train.distinct:
        raise UserError(f"data.root={root}: test has the classes {sorted(unknown)}, which are not in train.")
    else:
        members = [("train", label, name) for name, label in train.classes.items()]
        members += [("test", label, name) for name, label in test.classes.items()]
    notes += [
        _unused(group, labelled=bool(group.distinct & train.distinct))
        for group in groups.values() if group.name != OUTSIDE and group not in (train, test)
    ]  # fmt: skip
    return Layout(members, " ".join(notes), train.beside | (test.beside if test else set()))


def _chosen(groups: dict[str, Group]) -> tuple[Group | None, Group | None]:
    """The groups for training and test; no test group if one group has to be divided; neither without classes."""
    train, *_ = [*_labelled(groups, "train"), None]
    tests = _labelled(groups, "test")
    if train is not None:
        # A single folder that is no class of the training images holds all of the images, and not a class of them.
        tests = [test for test in tests if len(test.distinct) > 1 or test.distinct <= train.distinct]
        if tests:
            return train, tests[0]
    outside = [groups[OUTSIDE]] if OUTSIDE in groups else []
    return next((group for group in [train, *tests, *outside] if group and len(group.distinct) > 1), None), None


def _labelled(groups: dict[str, Group], split: str) -> list[Group]:
    return [groups[name] for name in FOLDERS[split] if name in groups and groups[name].classes]


def _divided(root: Path, group: Group, groups: dict[str, Group], share: float) -> tuple[list[Member], str]:
    """The images of one group with the given share of each class as test images, and a note that says so.

    The images of a class are sorted by name. The shuffle depends only on their number.
    """
    by_class: dict[str, list[str]] = defaultdict(list)
    for name, label in sorted(group.classes.items()):
        by_class[label].append(name)
    members: list[Member] = []
    for label, names in by_class.items():
        count = min(max(1, int(share * len(names) + 0.5)), len(names) - 1)
        held_out = set(fixed_shuffle(len(names))[:count].tolist())
        members += [("test" if place in held_out else "train", label, name) for place, name in enumerate(names)]
    test = sum(split == "test" for split, *_ in members)
    if not test:
        raise UserError(f"data.root={root} has no test images, and no class has two images to set one aside.")
    lacking = "test images with labels" if any(name in FOLDERS["test"] for name in groups) else "test folder"
    if group.name in FOLDERS["test"]:
        lacking = "training images with labels"
    return members, (
        f"No {lacking}: {100 * share:g} % of each class ({test:,} of {len(members):,} images), chosen by a fixed "
        "shuffle, are the test images. A network that was trained on these images would look better than it is."
    )


def _unused(group: Group, labelled: bool) -> str:
    count = "The image" if len(group.images) == 1 else f"The {len(group.images):,} images"
    verb = "is" if len(group.images) == 1 else "are"
    reason = "" if labelled else "without labels "
    return f"{count} {reason}in {group.name} {verb} not used."
