"""Float networks: building, reading checkpoints from other projects, storing, and graph analysis.

A network is one file here with a function `build(classes, **options) -> nn.Module` and one YAML file under
`conf/model/`. Its key `architecture` names the file; its other keys are the options. Training belongs to `training`.
"""

import importlib
import inspect
import pkgutil
from typing import Any

from torch import nn

from ptq_exp.base.errors import UserError, check_choice, did_you_mean

_NOT_NETWORKS = {"graph", "libraries", "options", "reading", "store"}


def architectures() -> list[str]:
    """The networks of this package, by the names of their files."""
    return [module.name for module in pkgutil.iter_modules(__path__) if module.name not in _NOT_NETWORKS]


def allowed_options(architecture: str) -> list[str]:
    """The options of one of `architectures()`: the arguments of its `build` except the classes."""
    build = importlib.import_module(f"{__name__}.{architecture}").build
    return [name for name in inspect.signature(build).parameters if name != "classes"]


def build_model(architecture: str, classes: int, **options: Any) -> nn.Module:
    """Build `ptq_exp/networks/<architecture>.py` for `classes` classes.

    Raises `UserError` for an unknown architecture, an unknown option or an impossible value.
    """
    check_choice("model.architecture", architecture, architectures())
    allowed = allowed_options(architecture)
    for option in options:
        if option not in allowed:
            raise UserError(
                f"model.{option} is not an option of {architecture}.{did_you_mean(option, allowed)} "
                f"Allowed: {', '.join(allowed)}."
            )
    model: nn.Module = importlib.import_module(f"{__name__}.{architecture}").build(classes=classes, **options)
    return model
