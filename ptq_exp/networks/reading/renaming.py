"""Names and shapes of state dicts: what differs, in words, and the renamings that are regular between projects."""

import re
from collections import defaultdict
from collections.abc import Iterable

from torch import Tensor

Shapes = dict[str, tuple[int, ...]]
COUNTERS = "num_batches_tracked"  # of batch norm; older versions of torch did not store them
SHORTCUTS = r"short_?cut|downsample|identity|identity_conv|skip|skip_connection|residual|proj|projection"
IN_SHORTCUT = re.compile(rf"\.({SHORTCUTS})\.")
STAGE = re.compile(r"^(?:layers?|stages?|blocks?|groups?)[._]?(\d{1,4})\.")
# From the names of a project to those that most projects use.
RENAMES = [
    (r"^features\.init_block\.conv\.", "conv1."),  # pytorchcv
    (r"^features\.init_block\.bn\.", "bn1."),
    (r"^features\.stage(\d+)\.unit(\d{1,4})\.body\.conv(\d)\.conv\.", r"layer\1.unit\2.conv\3."),
    (r"^features\.stage(\d+)\.unit(\d{1,4})\.body\.conv(\d)\.bn\.", r"layer\1.unit\2.bn\3."),
    (r"^features\.stage(\d+)\.unit(\d{1,4})\.identity_conv\.conv\.", r"layer\1.unit\2.shortcut.0."),
    (r"^features\.stage(\d+)\.unit(\d{1,4})\.identity_conv\.bn\.", r"layer\1.unit\2.shortcut.1."),
    (IN_SHORTCUT.pattern, ".shortcut."),
    (r"^(fc|linear|classifier|head|output|last_linear)\.(weight|bias)$", r"linear.\2"),
]


def shapes_of(weights: dict[str, Tensor]) -> Shapes:
    """The shape of every tensor by its name."""
    return {key: tuple(value.shape) for key, value in weights.items()}


def regular_names(names: Iterable[str]) -> dict[str, list[str]]:
    """The names by the form that they have after all renamings. Several names in one form are ambiguous."""
    names = list(names)
    prefix = common_prefix(names)
    plain = {}
    for name in names:
        form = name.removeprefix(prefix)
        for pattern, replacement in RENAMES:
            form = re.sub(pattern, replacement, form)
        # pytorchcv numbers the blocks of a stage from 1.
        plain[name] = re.sub(r"\.unit(\d{1,4})\.", lambda match: f".{int(match[1]) - 1}.", form)
    stages = [int(match[1]) for form in plain.values() if (match := STAGE.match(form))]
    found = defaultdict(list)
    for name, form in plain.items():  # projects number their stages from 0 or from 1
        found[STAGE.sub(lambda match: f"layer{int(match[1]) - min(stages) + 1}.", form)].append(name)
    return dict(found)


def common_prefix(names: list[str]) -> str:
    """The leading components that all names share, with the dot; empty if there are none."""
    modules = [name.split(".")[:-1] for name in names]
    shared: list[str] = []
    for components in zip(*modules, strict=False):
        if len(set(components)) > 1:
            break
        shared.append(components[0])
    return "".join(f"{component}." for component in shared)


def renamed(found: Shapes, expected: Iterable[str]) -> Shapes:
    """The shapes under the `expected` names where a renaming leads to one."""
    wanted = {form: names[0] for form, names in regular_names(expected).items() if len(names) == 1}
    forms = {names[0]: form for form, names in regular_names(found).items() if len(names) == 1}
    return {wanted.get(forms.get(key, ""), key): shape for key, shape in found.items()}


def differences(expected: Shapes, found: Shapes) -> str:
    """The differences between the `expected` shapes of a network and those `found`. Empty if they fit."""
    problems = {
        "missing": [key for key in expected if key not in found and not key.endswith(COUNTERS)],
        "unexpected": [key for key in found if key not in expected],
        "different shape": [
            f"{key} {found[key]} instead of {shape}" for key, shape in expected.items()
            if key in found and found[key] != shape
        ],
    }  # fmt: skip
    return "; ".join(f"{name}: {shortened(keys)}" for name, keys in problems.items() if keys)


def describe(found: Shapes) -> str:
    """A description of a state dict: the number of layers of each kind, the first, the last, and the classes."""
    weights = {key: shape for key, shape in found.items() if len(shape) >= 2}
    if not weights:
        return f"none of its tensors has the shape of a layer's weights. Its keys: {shortened(list(found))}"
    main = [shape for key, shape in weights.items() if not IN_SHORTCUT.search(key)]
    convolutions, matrices = (sum(len(shape) == rank for shape in main) for rank in (4, 2))
    (first, first_shape), (last, last_shape) = next(iter(weights.items())), list(weights.items())[-1]
    beside = f" and {len(weights) - len(main)} in shortcuts" if len(weights) > len(main) else ""
    return (
        f"{len(main)} layers ({convolutions} convolutions, {matrices} linear){beside}; the first is "
        f"{shortened([first])} {first_shape}, the last {shortened([last])} {last_shape}, for {last_shape[0]} classes. "
        f"Its keys: {shortened(list(found))}"
    )


def shortened(keys: list[str], most: int = 8) -> str:
    """The first keys of a possibly long list, as text that a terminal can show whatever a file calls its tensors."""
    listed = ["".join(letter if letter.isprintable() else "?" for letter in key[:101]) for key in keys[:most]]
    listed = [key if len(key) <= 100 else f"{key[:100]}..." for key in listed]
    return ", ".join(listed) + (f" and {len(keys) - most} more" if len(keys) > most else "")
