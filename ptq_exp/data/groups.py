"""The images of a tree, grouped by the folder of their split, and their classes by the names of folders."""

from dataclasses import dataclass, field

from ptq_exp.data.layout import parts_of, split_of

OUTSIDE = ""  # the name of the group of images that are in no folder of a split

Folders = tuple[str, ...]


@dataclass
class Group:
    """The images in the folders of one split, and their classes. Images without a class are not used."""

    name: str  # of the split's folder, in lower case
    images: dict[str, tuple[Folders, Folders]] = field(default_factory=dict)  # folders above and below the split's
    classes: dict[str, str] = field(default_factory=dict)  # image -> class
    class_first: bool = False  # whether the folders of the classes are above those of the splits

    @property
    def distinct(self) -> set[str]:
        """The names of the classes."""
        return set(self.classes.values())

    @property
    def beside(self) -> set[Folders]:
        """The folders in which a list of the classes counts: those that contain the folders of the split."""
        return {above[:-1] if self.class_first else above for above, _ in self.images.values()}

    def label_by_folders(self) -> None:
        """The class of an image is the first folder below that of its split, or the one above it (`cat/train/1.png`).

        If a class has images both directly in its folder and deeper, only the former are used: the others may be masks.
        """
        below = {name: folders[0] for name, (_, folders) in self.images.items() if folders}
        above = {name: folders[-1] for name, (folders, _) in self.images.items() if folders}
        self.class_first = len(set(above.values())) >= 2 > len(set(below.values()))
        direct = {label for name, label in below.items() if self._depth(name) == 1}
        kept = {name: label for name, label in below.items() if self._depth(name) == 1 or label not in direct}
        self.classes = above if self.class_first else kept

    def _depth(self, name: str) -> int:
        return len(self.images[name][1])


def grouped(images: list[str]) -> dict[str, Group]:
    """The images by the first folder that has the name of a split, below the folders that all images share."""
    paths = {name: parts_of(name)[:-1] for name in images}
    common = _shared(list(paths.values()))
    places = {
        name: next((place for place in range(len(common), len(path)) if split_of(path[place])), None)
        for name, path in paths.items()
    }
    if all(place is None for place in places.values()):  # all may be in the folder of one split
        last = max((place for place, folder in enumerate(common) if split_of(folder)), default=None)
        places = dict.fromkeys(paths, last)
    groups: dict[str, Group] = {}
    for name, path in paths.items():
        place = places[name]
        key = OUTSIDE if place is None else path[place].lower()
        above, below = (len(common), len(common)) if place is None else (place, place + 1)
        groups.setdefault(key, Group(key)).images[name] = path[:above], path[below:]
    _return_a_class_called_train(groups)
    for group in groups.values():
        group.label_by_folders()
    return groups


def _shared(paths: list[Folders]) -> Folders:
    """The first folders of all paths."""
    low, high = min(paths, default=()), max(paths, default=())
    length = next((place for place, (one, other) in enumerate(zip(low, high, strict=False)) if one != other), len(low))
    return low[:length]


def _return_a_class_called_train(groups: dict[str, Group]) -> None:
    """Among folders of classes without splits, one called `train` that holds images is a class, as in CIFAR-100."""
    if set(groups) != {OUTSIDE, "train"}:
        return
    outside, train = groups[OUTSIDE], groups["train"]
    if len(outside.images) >= len(train.images) and not any(below for _, below in train.images.values()):
        outside.images |= {name: (above, ("train",)) for name, (above, _) in train.images.items()}
        del groups["train"]
