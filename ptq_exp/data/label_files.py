"""Labels in a table beside the images, as competitions ship them: `trainLabels.csv` with `id,label`."""

import csv
import re
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from ptq_exp.base.errors import UserError
from ptq_exp.data import class_names
from ptq_exp.data.archive import BROKEN, Read
from ptq_exp.data.groups import OUTSIDE, Group
from ptq_exp.data.layout import SUFFIXES as IMAGE_SUFFIXES
from ptq_exp.data.layout import is_junk, parts_of, split_of, stem_and_suffix

SUFFIXES = {".csv", ".tsv", ".txt"}
LABEL_HEADERS = {
    "label", "labels", "class", "class_name", "classname", "class_id", "category", "target", "species", "breed",
    "diagnosis", "y",
}  # fmt: skip
# A table that nobody named counts if half of its rows name an image, and it labels a fifth of the images: tables of
# other things, such as the names of the classes, may contain a few numbers that are also names of images.
ROWS_MATCHED, IMAGES_LABELLED = 0.5, 0.2
SAMPLE = 200  # rows that decide which column names the images
UNREADABLE = (*BROKEN, RuntimeError, NotImplementedError, csv.Error)


def is_label_file(name: str) -> bool:
    """Whether a file may be a table of labels, judged by its name. A sample submission contains invented labels."""
    if stem_and_suffix(name)[1] not in SUFFIXES or is_junk(name):
        return False
    file = parts_of(name)[-1]
    return file != class_names.FILE and "submission" not in file.lower()


@dataclass
class Labels:
    """The labels that a table gives to the images of a group."""

    group: Group
    labels: dict[str, str] = field(default_factory=dict)  # image -> class
    rows: set[int] = field(default_factory=set)  # the rows that name an image
    count: int = 0  # of all rows
    conflict: tuple[str, str, str] | None = None  # an image and two labels that it has


class Table:
    """A table of labels: tab, comma, semicolon or space between columns, with or without a header."""

    def __init__(self, name: str, content: bytes):
        """Raises `ValueError` or `csv.Error` if the content is not text in two or more columns."""
        self.name = name
        lines = [line for line in content.decode("utf-8-sig").splitlines() if line.strip()]
        separator = next((mark for mark in "\t,; " if lines and mark in lines[0].strip()), ",")
        self.rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=separator)]
        if not self.rows or len(self.rows[0]) < 2:
            raise ValueError("it has fewer than two columns")
        self.split = _split_in_name(name)

    def fitting(self, pools: list["_Pool"], given: bool) -> list[Labels]:
        """The groups whose images the table labels. A table that the user has not `given` must fit them well."""
        about = [pool for pool in pools if self.split and split_of(pool.group.name) == self.split]
        outside = [pool for pool in pools if self.split and pool.group.name == OUTSIDE]
        everywhere = pools if given or self.split is None else []
        found = [self._labels(pool) for pool in about or outside or everywhere]
        found = [each for each in found if each.rows]
        first = next((each for each in found if split_of(each.group.name) == "train"), None)
        if first:  # names such as 1.png occur in every split, and it is the training images that come with labels
            found = [each for each in found if each is first or not each.rows & first.rows]
        matched = len(set[int]().union(*(each.rows for each in found)))
        if given or not found or matched < ROWS_MATCHED * found[0].count:
            return found if given else []
        return [each for each in found if len(each.labels) >= IMAGES_LABELLED * len(each.group.images)]

    def _labels(self, pool: "_Pool") -> Labels:
        image, label, header = self._columns(pool)
        found = Labels(pool.group, count=len(self.rows) - header)
        for number, row in enumerate(self.rows):
            if (number == 0 and header) or len(row) <= max(image, label) or not row[label]:
                continue
            for match in pool.find(row[image]):
                found.rows.add(number)
                if found.labels.setdefault(match, row[label]) != row[label] and not found.conflict:
                    found.conflict = match, found.labels[match], row[label]
        return found

    def _columns(self, pool: "_Pool") -> tuple[int, int, bool]:
        """The columns of image and label, and whether the first row is a header."""
        width = len(self.rows[0])
        hits = [0] * width
        for row in islice(self.rows, SAMPLE):
            for column, cell in enumerate(row[:width]):
                hits[column] += bool(pool.find(cell))
        image = hits.index(max(hits))
        header = not pool.find(self.rows[0][image])
        titled = [column for column, title in enumerate(self.rows[0]) if title.lower() in LABEL_HEADERS]
        named = [column for column in titled if header and column != image]
        return image, named[0] if named else image + 1 if image + 1 < width else image - 1, header


class _Pool:
    """Finds the images of a group that a table names: with all, some or no folders, and with any image extension or
    none."""

    def __init__(self, group: Group):
        self.group = group
        self.by_name: dict[tuple[str, ...], list[str]] = defaultdict(list)
        for image in group.images:
            *folders, name = parts_of(image)
            for key in {name, stem_and_suffix(name)[0]}:
                self.by_name[(key,)].append(image)
                self.by_name[*folders[-1:] or [""], key].append(image)

    def find(self, cell: str) -> list[str]:
        """Every image with the name in `cell`."""
        *folders, name = parts_of(cell) or ("",)
        stem, suffix = stem_and_suffix(name)
        return self._find(folders, name) or (self._find(folders, stem) if suffix in IMAGE_SUFFIXES else [])

    def _find(self, folders: list[str], name: str) -> list[str]:
        if not folders:
            return self.by_name.get((name,), [])
        found = [*self.by_name.get((folders[-1], name), []), *self.by_name.get(("", name), [])]
        return [image for image in found if _same_end(parts_of(image)[:-1], tuple(folders))]


def _same_end(first: tuple[str, ...], second: tuple[str, ...]) -> bool:
    shared = min(len(first), len(second))
    return shared == 0 or first[-shared:] == second[-shared:]


def _split_in_name(name: str) -> str | None:
    """The split that a table is about, from its name (`trainLabels.csv`) or its folder."""
    *folders, file = parts_of(name)
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", stem_and_suffix(file)[0])
    return next((split for word in [*words, *reversed(folders)] if (split := split_of(word))), None)


def label_by_tables(
    groups: dict[str, Group], chosen: str | None, names: list[str], read: Read
) -> tuple[list[str], list[str]]:
    """Give the images of each group without folders of classes the labels of the one table that fits.

    A `chosen` table takes precedence over folders. Images outside of folders of splits belong to the split in the
    table's name. Returns notes and the tables that do not fit. Raises `UserError` if the chosen table does not fit, if
    several fit, or if one gives an image two labels.
    """
    tables = _read_tables(chosen, names, read)
    pools = [_Pool(group) for group in groups.values() if tables and (chosen or len(group.distinct) < 2)]
    fitting: dict[str, list[tuple[Table, Labels]]] = defaultdict(list)
    for table in tables:
        for found in table.fitting(pools, given=chosen is not None):
            fitting[found.group.name or table.split or OUTSIDE].append((table, found))
    if chosen and not fitting:
        example = next((row[0] for row in tables[0].rows[1:]), "nothing")
        image = next((name for group in groups.values() for name in group.images), "absent")
        raise UserError(
            f"data.labels={chosen}: none of its names matches an image below data.root. It names {example!r}, and an "
            f"image is {image!r}."
        )
    notes = [_take(groups, name, several) for name, several in fitting.items()]
    used = {table.name for several in fitting.values() for table, _ in several}
    return notes, [table.name for table in tables if table.name not in used]


def _take(groups: dict[str, Group], name: str, several: list[tuple[Table, Labels]]) -> str:
    """Replace the classes of the group `name` by the labels of the only table. Returns a note."""
    table, found = several[0]
    if len(several) > 1:
        files = " and ".join(table.name for table, _ in several)
        raise UserError(f"The labels of the images are in {files}. Choose one with data.labels={table.name}.")
    if found.conflict:
        image, *two = found.conflict
        raise UserError(f"{table.name} gives the image {image} two labels: {two[0]!r} and {two[1]!r}.")
    group = found.group
    notes = [f"The labels of {len(found.labels):,} images are those in {table.name}."]
    if name == group.name and (missing := [image for image in group.images if image not in found.labels]):
        notes.append(f"{len(missing):,} images without a label are not used, the first is {min(missing)}.")
    if absent := found.count - len(found.rows):
        notes.append(f"{absent:,} of its rows label no image.")
    groups[name] = Group(name, {image: group.images[image] for image in found.labels}, found.labels)
    return " ".join(notes)


def _read_tables(chosen: str | None, names: list[str], read: Read) -> list[Table]:
    """The table `chosen`, a path in the tree or on disk, or every file in the tree that may be one."""
    candidates = [name for name in names if is_label_file(name)]
    if chosen is None:
        tables = []
        for name in candidates:
            try:
                tables.append(Table(name, read(name)))
            except UNREADABLE:
                continue  # text about something else
        return tables
    wanted, path = parts_of(chosen), Path(chosen).expanduser()
    inside = [name for name in names if parts_of(name)[-len(wanted) :] == wanted]
    if len(inside) != 1 and not path.is_file():
        listed = ", ".join(candidates[: class_names.FEW]) or "none"
        raise UserError(f"data.labels={chosen} is not a file, on disk or in data.root. Tables in data.root: {listed}.")
    try:
        return [Table(inside[0], read(inside[0])) if len(inside) == 1 else Table(path.name, path.read_bytes())]
    except UNREADABLE as error:
        raise UserError(f"data.labels={chosen} is not a table of images and their labels: {error}.") from error
