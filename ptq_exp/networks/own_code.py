"""The code of the user that a network consists of: a file, and what it imports from its own folder."""

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path

from ptq_exp.base.files import file_digest


def digests(file: Path, root: Path) -> dict[str, str]:
    """The SHA-256 (hex) of `file` and of all files below `root` that it imports, by their paths below `root`.

    The files are read and not run, so that the result does not depend on what is imported already.
    """
    found: dict[Path, str] = {}
    root = root.absolute()
    left = [file.absolute()]
    while left:
        path = left.pop()
        if path not in found and path.is_file():
            found[path] = file_digest(path).hex()
            left += [place for parts in _imports(path, root) for place in (_module(parts), parts / "__init__.py")]
    return {path.relative_to(root).as_posix(): digest for path, digest in sorted(found.items())}


def file_of(module: str) -> Path | None:
    """The file of an importable module, which is not run; its packages are. None for other modules."""
    try:
        spec = importlib.util.find_spec(module)
    except Exception:  # whatever the code of its packages raises
        return None
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


def _imports(file: Path, root: Path) -> Iterator[Path]:
    """What the import statements of `file` may name: paths below `root`, without the suffix."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _packages(root, alias.name)
        elif isinstance(node, ast.ImportFrom):
            start = file.parents[node.level - 1] if node.level else root
            if start.is_relative_to(root):
                for alias in node.names:  # the name may be that of a module
                    yield from _packages(start, ".".join(filter(None, [node.module, alias.name])))


def _packages(start: Path, module: str) -> Iterator[Path]:
    """`a`, `a/b` and `a/b/c` for the module a.b.c."""
    for part in module.split("."):
        if part.isidentifier():
            start = start / part
            yield start


def _module(path: Path) -> Path:
    return path.with_name(f"{path.name}.py")
