"""Any network: what a class or function of the user returns.

`model.target` names it, as `package.module.Name` or as `path/to/file.py:Name`, and `model.args` holds its arguments.
"""

import contextlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from ptq_exp.base.errors import UserError, did_you_mean
from ptq_exp.base.files import file_digest
from ptq_exp.networks.graph.calling import only_logits
from ptq_exp.networks.libraries import allowed_arguments
from ptq_exp.networks.own_code import digests, file_of

CLASSES = ("num_classes", "classes", "n_classes", "nclass", "num_class")  # names of the argument in common use
FORMS = "Give a dotted name (torchvision.models.mobilenet_v2) or a file and a name (path/to/nets.py:WideResNet)."


def build(classes: int, target: str | None = None, args: dict[str, Any] | None = None) -> nn.Module:
    """The network that `target` returns for `args`. The number of classes goes to the argument called num_classes,
    classes or the like, unless it is in `args`.

    Raises `UserError` if there is no such target, it rejects the arguments, or it returns no network.
    """
    function = find(target)
    given = dict(args or {})
    name = _classes_argument(function)
    if name and not set(CLASSES) & given.keys():
        given[name] = classes
    try:
        try:
            network = function(**given)
        except TypeError as error:
            if name != CLASSES[0] or name in (args or {}) or name not in str(error):
                raise
            network = function(**(args or {}))  # it takes any arguments, but not this one
    except Exception as error:  # whatever the user's code raises
        raise UserError(
            f"model.target={target} cannot be built with model.args={given}: {type(error).__name__}: {error}. "
            f"Its arguments: {_arguments(function)}."
        ) from error
    if not isinstance(network, nn.Module):
        raise UserError(f"model.target={target} returns a {type(network).__name__}, but a torch.nn.Module is needed.")
    if lazy := [name for name, tensor in network.named_parameters() if is_lazy(tensor)]:
        raise UserError(
            f"model.target={target} returns layers without a size: {', '.join(lazy[:3])}. Lazy layers get theirs at "
            f"the first call, so call the network once in the function that model.target names."
        )
    only_logits(network)
    return network


def find(target: str | None) -> Any:
    """The class or function called `target`. Raises `UserError` if there is none."""
    if not target:
        raise UserError(f"model=custom needs model.target, the class or function that returns the network. {FORMS}")
    place, colon, name = target.rpartition(":")
    if not colon:
        place, _, name = target.rpartition(".")
    if not place or not name:
        raise UserError(f"model.target={target} is not a name of a class or function. {FORMS}")
    module = _module(target, place)
    found = getattr(module, name, None)
    if not callable(found):
        there = [word for word, value in vars(module).items() if callable(value) and not word.startswith("_")]
        raise UserError(f"model.target={target}: {place} has no class or function {name}.{did_you_mean(name, there)}")
    return found


def source_file(target: str) -> Path | None:
    """The file of a target in the form `file.py:Name`, or None for a dotted name."""
    place, colon, _ = target.rpartition(":")
    return Path(place).expanduser() if colon and place.endswith(".py") else None


def identity(options: dict[str, Any]) -> dict[str, Any]:
    """What determines the network of `options`: for a file of the user, its name instead of its path, and the contents
    of the file and of what it imports from its folder."""
    target = str(options.get("target") or "")
    file = source_file(target)
    if file is not None:
        root, target = file.parent, f"{file.name}:{target.rpartition(':')[2]}"
    else:
        place = target.replace(":", ".").rpartition(".")[0]
        with _importable(Path.cwd()):
            file = file_of(place) if place else None
        if file is None:
            return options
        root = file.parents[place.count(".") + (file.name == "__init__.py")]
    if not file.is_file() or _installed(file.resolve()):
        return options
    return options | {"target": target, "code": digests(file, root)}


def _installed(file: Path) -> bool:
    """Whether a file belongs to an installed package."""
    folders = Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve()
    return any(file.is_relative_to(folder) for folder in folders) or "site-packages" in file.parts


def as_stored(options: dict[str, Any]) -> dict[str, Any]:
    """The options with what `trusted` needs: an absolute path and the digest of the file."""
    file = source_file(str(options.get("target")))
    if file is None or not file.is_file():
        return options
    name = options["target"].rpartition(":")[2]
    return options | {"target": f"{file.absolute()}:{name}", "source": file_digest(file).hex()}


def trusted(options: dict[str, Any]) -> dict[str, Any] | None:
    """The arguments of `build` in a stored file, or None if the file must not decide which code runs.

    A file may come from others. It may name a constructor of networks of torchvision or timm, or a file that is on this
    machine with exactly the content that it had when the network was stored.
    """
    target, args = str(options.get("target")), options.get("args")
    file = source_file(target)
    if file is None:
        args = allowed_arguments(target, dict(args or {}))
        return None if args is None else {"target": target, "args": args}
    known = not _installed(file.absolute()) and file.is_file() and file_digest(file).hex() == options.get("source")
    return {"target": target, "args": args} if known else None


def _module(target: str, place: str) -> ModuleType:
    file = source_file(target)
    try:
        with _importable(file.parent if file else Path.cwd()):
            if file is None:
                return importlib.import_module(place)
            if not file.is_file():
                near = did_you_mean(file.name, [path.name for path in file.parent.glob("*.py")])
                raise UserError(f"model.target={target}: there is no file {file}.{near}")
            # A name of its own per content, so that an edited file is read again.
            name = f"ptq_exp_target_{file_digest(file).hex()[:16]}"
            if name not in sys.modules:
                spec = importlib.util.spec_from_file_location(name, file)
                assert spec is not None
                assert spec.loader is not None
                sys.modules[name] = importlib.util.module_from_spec(spec)
                try:
                    spec.loader.exec_module(sys.modules[name])
                except BaseException:
                    del sys.modules[name]
                    raise
            return sys.modules[name]
    except UserError:
        raise
    except ModuleNotFoundError as error:
        missing = "" if error.name and place.startswith(error.name) else f" (it imports {error.name})"
        raise UserError(f"model.target={target}: {place} cannot be imported{missing}: {error}. {FORMS}") from error
    except Exception as error:  # whatever the user's code raises
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"model.target={target}: {place} cannot be imported: {reason}.") from error


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Modules of `folder` can be imported, as in a script there."""
    before = list(sys.path)
    sys.path.insert(0, str(folder.absolute()))
    try:
        yield
    finally:
        sys.path[:] = before


def _classes_argument(function: Any) -> str | None:
    """The name of the argument that takes the number of classes, or None. It may be among `**kwargs`."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return None
    named = next((name for name in CLASSES if name in parameters), None)
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    return named or (CLASSES[0] if open_ended else None)


def _arguments(function: Any) -> str:
    with contextlib.suppress(TypeError, ValueError):
        return ", ".join(map(str, inspect.signature(function).parameters.values())) or "none"
    return "unknown"
