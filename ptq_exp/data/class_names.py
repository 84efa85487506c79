"""The order of the class folders, which assigns each class to an output of the network."""

import re
import unicodedata
from collections.abc import Callable, Sequence

from ptq_exp.base.errors import UserError

FILE = "classes.txt"  # beside train and test: one name per line, in the order of the network's outputs


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


CIFAR10 = _names("airplane automobile bird cat deer dog frog horse ship truck")
CIFAR100 = _names(
    """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
    caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
    flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
    motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
    poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
    squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
    wardrobe whale willow_tree wolf woman worm
    """
)
DIGITS = _names("zero one two three four five six seven eight nine")
KNOWN = {"CIFAR-10": CIFAR10, "CIFAR-100": CIFAR100, "the digits": DIGITS}
# Other names in use. They count only if all folders together match one of the known sets, so none is misinterpreted.
SYNONYMS = {
    "plane": "airplane", "aeroplane": "airplane", "aircraft": "airplane", "car": "automobile", "auto": "automobile",
    "boat": "ship", "lorry": "truck", "maple": "mapletree", "oak": "oaktree", "palm": "palmtree", "pine": "pinetree",
    "willow": "willowtree", "computerkeyboard": "keyboard",
}  # fmt: skip
FEW = 12  # maximum number of names in a message


def ordered(found: Sequence[str], wanted: Sequence[str] | None, where: str) -> tuple[list[str], str]:
    """The class folders `found` in the order of the network's outputs, and the source of this order ("": alphabetical).

    A list `wanted`, whose source is `where`, takes precedence. Without one, the names of a known data set (in any case
    and with common synonyms) have its order, and numbered names are sorted by number. Raises `UserError` if the list
    does not match the folders.
    """
    alphabetical = sorted(found)
    if wanted is not None:
        order, reason = _as_listed(alphabetical, wanted, where), where
    else:
        order, reason = _as_known(alphabetical)
    return order, "" if order == alphabetical else reason


def _as_listed(found: list[str], wanted: Sequence[str], where: str) -> list[str]:
    folders = {_composed(name): name for name in found}
    names = [_composed(name) for name in wanted]
    differences = {
        "no such folder:": sorted(set(names) - set(folders)),
        "not listed:": sorted(set(folders) - set(names)),
        "listed twice:": sorted({name for name in names if names.count(name) > 1}),
    }
    if any(differences.values()):
        told = "; ".join(f"{words} {shown(differing)}" for words, differing in differences.items() if differing)
        raise UserError(f"{where} does not match the {len(found)} class folders: {told}.")
    return [folders[name] for name in names]


def _as_known(found: list[str]) -> tuple[list[str], str]:
    for name, known in KNOWN.items():
        places = {_plain(word): place for place, word in enumerate(known)}
        positions = {folder: places.get(_canonical(folder, places)) for folder in found}
        if len(found) == len(known) and set(positions.values()) == set(places.values()):
            return sorted(found, key=lambda folder: positions[folder] or 0), name
    for number in (_trailing_number, _leading_number):
        if order := _by_number(found, number):
            return order, "their numbers"
    return found, ""


def _canonical(folder: str, places: dict[str, int]) -> str:
    """The known word for a folder's name, which may be the word, a synonym, or the plural of either."""
    word = _plain(folder)
    candidates = [word, word.removesuffix("s")]
    return next((c for w in candidates for c in (w, SYNONYMS.get(w, "")) if c in places), word)


def _by_number(found: list[str], number: Callable[[str], tuple[str, int] | None]) -> list[str] | None:
    """The names sorted by number, or None unless all have distinct numbers and otherwise the same text."""
    numbers = {name: number(name) for name in found}
    known = {name: value for name, value in numbers.items() if value is not None}
    alike = len({text for text, _ in known.values()}) == 1
    if len(known) < len(found) or not alike or len({value for _, value in known.values()}) < len(found):
        return None
    return sorted(found, key=lambda name: known[name][1])


def _trailing_number(name: str) -> tuple[str, int] | None:
    """`7` and `class_7`."""
    parts = re.fullmatch(r"(\D*)([0-9]+)", name)
    return (parts[1], int(parts[2])) if parts else None


def _leading_number(name: str) -> tuple[str, int] | None:
    """`7_horse` and `7 - horse`."""
    parts = re.fullmatch(r"([0-9]+)[\W_].*", name)
    return ("", int(parts[1])) if parts else None


def _plain(name: str) -> str:
    """The name with only letters and digits, case-folded."""
    return re.sub(r"[\W_]+", "", name.casefold())


def _composed(name: str) -> str:
    """The name with composed accented letters, because archives from a Mac have decomposed ones."""
    return unicodedata.normalize("NFC", name)


def shown(names: Sequence[str]) -> str:
    """The names as text, shortened if there are many."""
    more = f" and {len(names) - FEW} more" if len(names) > FEW else ""
    return ", ".join(repr(name) for name in names[:FEW]) + more
