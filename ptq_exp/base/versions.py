"""What is installed, and in which version."""

import importlib.metadata
from collections.abc import Iterable


def installed(packages: Iterable[str]) -> dict[str, str]:
    """The versions of those of the distributions `packages` that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
