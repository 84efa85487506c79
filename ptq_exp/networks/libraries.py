"""Constructors of torchvision and timm that a file may name. Files come from others, so no other function may run."""

import importlib
from collections.abc import Callable
from typing import Any

from torch import nn

Arguments = dict[str, Any]


def allowed_arguments(target: str, args: Arguments) -> Arguments | None:
    """The arguments for a constructor of networks of torchvision or timm called `target`, or None for other names.

    The names are those that the library registers, its functions that build a registered network, and its network
    classes. Arguments that read further files are left out: the file that names the network has its weights.
    """
    place, _, name = target.rpartition(".")
    library = place.partition(".")[0]
    parts = target.split(".")
    if library not in _ALLOWED or not all(part.isidentifier() and not part.startswith("_") for part in parts):
        return None
    try:
        found = getattr(importlib.import_module(place), name, None)
        return _ALLOWED[library](found, args)
    except ImportError:  # the library is not installed, or has no such module
        return None


def _of_torchvision(found: Any, args: Arguments) -> Arguments | None:
    from torchvision import models

    registered = map(models.get_model_builder, models.list_models())
    known = found is models.get_model or any(found is builder for builder in registered)
    return args if known or _is_class_of(found, "torchvision.models.") else None


def _of_timm(found: Any, args: Arguments) -> Arguments | None:
    import timm

    # A checkpoint_path would be unpickled, and pretrained=true contacts a server.
    args = {name: value for name, value in args.items() if name not in ("pretrained", "checkpoint_path")}
    if found is timm.create_model:
        return args if timm.is_model(str(args.get("model_name"))) else None  # not a network from a hub or a folder
    name = getattr(found, "__name__", "")
    registered = timm.is_model(name) and timm.model_entrypoint(name) is found
    return args if registered or _is_class_of(found, "timm.models.") else None


def _is_class_of(found: Any, package: str) -> bool:
    return isinstance(found, type) and issubclass(found, nn.Module) and found.__module__.startswith(package)


_ALLOWED: dict[str, Callable[[Any, Arguments], Arguments | None]] = {
    "torchvision": _of_torchvision,
    "timm": _of_timm,
}
