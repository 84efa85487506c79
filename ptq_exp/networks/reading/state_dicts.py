"""Finding the state dict in the content of a checkpoint file, whatever holds it."""

import re
from collections.abc import Iterator
from typing import Any

from ptq_exp.networks.reading.pickled import Opaque
from ptq_exp.networks.reading.stored_tensors import StoredTensor

DEPTH = 8  # of containers
MOST_ENTRIES = 500_000  # of dictionaries that are searched: a hostile file must not take long
LONGEST_NAME = 1000
# Not the weights of the last step but their average, or the state of an optimizer.
AVERAGED = re.compile(r"ema|swa|averag|shadow|teacher|polyak", re.IGNORECASE)
OPTIMIZER = re.compile(r"optim|sched|scaler|momentum|exp_avg|grads?\b|(^|\.)opt(\.|$)", re.IGNORECASE)
Values = dict[str, StoredTensor]


def find_state_dicts(content: Any) -> dict[str, Values]:
    """The state dicts in a file by their place (`model.state_dict`), the one to use first. Empty if there is none.

    Weights come before their averages. A dictionary that holds at least one matrix comes before one that holds only
    vectors, and one nearer to the top before one farther down.
    """
    found = {path: values for path, values in _search(content) if not OPTIMIZER.search(path)}

    def rank(path: str) -> tuple[bool, bool, int]:
        return not has_matrices(found[path]), bool(AVERAGED.search(path)), path.count(".") + bool(path)

    return {path: found[path] for path in sorted(found, key=rank)}


def has_matrices(values: Values) -> bool:
    """Whether it can be a network."""
    return any(_dimensions(value) >= 2 for value in values.values())


def _dimensions(value: StoredTensor) -> int:
    return len(value.shape)


def _size(value: Any) -> int:
    return 1 + (value.size() if isinstance(value, Opaque) else len(value) if isinstance(value, dict) else 0)


def _search(content: Any) -> Iterator[tuple[str, Values]]:
    """Every dictionary with tensors and every module, breadth first. An object is visited once."""
    queue: list[tuple[str, int, Any]] = [("", 0, content)]
    seen: set[int] = set()
    entries = 0
    for path, depth, value in queue:  # grows
        if id(value) in seen:
            continue
        seen.add(id(value))
        entries += _size(value)
        if entries > MOST_ENTRIES:
            return
        if module := _module_parts(value):
            yield path, _module_state(*module)
            continue
        inside = value.content() if isinstance(value, Opaque) else value
        if not isinstance(inside, dict):
            continue
        named = {key: item for key, item in inside.items() if isinstance(key, str)}
        tensors = {key: item for key, item in named.items() if isinstance(item, StoredTensor)}
        if any(_dimensions(item) for item in tensors.values()):
            yield path, tensors
        if depth < DEPTH:
            containers = [(key, item) for key, item in named.items() if isinstance(item, dict | Opaque)]
            queue += [(f"{path}.{key[:100]}".lstrip("."), depth + 1, item) for key, item in containers]


def _module_parts(value: Any) -> tuple[dict, dict, dict, Any] | None:
    """(parameters, buffers, modules, names of buffers that are not saved) of a pickled torch.nn.Module."""
    if not isinstance(value, Opaque) or value.size() > MOST_ENTRIES:
        return None
    inside = value.content()
    parts = [inside.get(name) for name in ("_parameters", "_buffers", "_modules")]
    if not all(isinstance(part, dict) for part in parts):
        return None
    parameters, buffers, modules = parts
    return parameters or {}, buffers or {}, modules or {}, inside.get("_non_persistent_buffers_set")


def _module_state(*parts: Any) -> Values:
    """The state dict of a pickled module, with the names and in the order that torch gives."""
    found: Values = {}
    stack: list[tuple[str, tuple[Any, ...]]] = [("", parts)]
    entries = 0
    while stack:
        prefix, (parameters, buffers, modules, unsaved) = stack.pop()
        entries += 1 + len(parameters) + len(buffers) + sum(map(_size, modules.values()))
        if entries > MOST_ENTRIES or len(prefix) > LONGEST_NAME:
            raise ValueError("its modules are nested too deeply")
        left_out = [name for name in unsaved[:100] if isinstance(name, str)] if isinstance(unsaved, list) else []
        saved = {name: value for name, value in buffers.items() if name not in left_out}
        for name, value in (parameters | saved).items():
            if isinstance(value, StoredTensor) and isinstance(name, str):
                found[f"{prefix}{name[:LONGEST_NAME]}"] = value
        inner = [(f"{prefix}{str(name)[:LONGEST_NAME]}.", _module_parts(module)) for name, module in modules.items()]
        stack += [(name, module) for name, module in reversed(inner) if module]
    return found
