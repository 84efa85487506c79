"""Dependencies point down the list of folders and never up, no modules import each other in a circle, and few know the
libraries of the command line and of the tracker."""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

# From the top to the bottom: a folder imports what stands after it.
FOLDERS = (
    "runs", "config", "search", "reporting", "export", "results", "evaluation", "quantization", "training", "networks",
    "data", "base",
)  # fmt: skip
FILES = sorted((ROOT / "ptq_exp").rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def imports(path: Path) -> Iterator[str]:
    """What a file imports anywhere in it, inside of functions and for type checkers, too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports name their module in full"
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                yield submodule if submodule in MODULES else node.module or ""


def folder_of(module: str) -> str:
    """The folder of ptq_exp that a module lies in; empty for the public API and for other packages."""
    first, _, rest = module.partition(".")
    folder = rest.partition(".")[0]
    return folder if first == "ptq_exp" and folder in FOLDERS else ""


def test_every_folder_has_its_place_in_the_list() -> None:
    there = {path.name for path in (ROOT / "ptq_exp").iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert there <= set(FOLDERS)


def test_dependencies_point_down() -> None:
    up = sorted(
        f"{module} imports {found}"
        for module, path in MODULES.items()
        if not module.endswith(".__main__")  # a command under its short name
        for found in set(imports(path))
        if (here := folder_of(module)) and (there := folder_of(found)) and FOLDERS.index(there) < FOLDERS.index(here)
    )
    assert not up, "\n".join(["these point up:", *up])


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {module: {found for found in imports(path) if found in MODULES} for module, path in MODULES.items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("hydra", "ptq_exp.runs."),
        ("mlflow", "ptq_exp.reporting.mlflow"),
        ("tensorboard", "ptq_exp.reporting.tensorboard"),
    ],
)
def test_a_library_has_one_place(library: str, allowed: str) -> None:
    elsewhere = sorted(
        module
        for module, path in MODULES.items()
        if not module.startswith(allowed) and any(found.partition(".")[0] == library for found in imports(path))
    )
    assert not elsewhere


def test_quantization_knows_the_graph_of_a_network_and_nothing_else_of_the_package() -> None:
    graph = ("ptq_exp.networks.graph", "ptq_exp.networks.graph.blocks")  # the function is called like its file
    others = sorted(
        f"{module} imports {found}"
        for module, path in MODULES.items()
        for found in set(imports(path))
        if folder_of(module) == "quantization"
        and found.partition(".")[0] == "ptq_exp"
        and folder_of(found) not in ("quantization", "base")
        and found not in graph
    )
    assert not others, "\n".join(others)


def test_the_public_api_lies_beside_the_folders_and_nothing_else() -> None:
    # report.py gives `python -m ptq_exp.report` its short name.
    assert [path.name for path in sorted((ROOT / "ptq_exp").glob("*.py"))] == ["__init__.py", "report.py"]
