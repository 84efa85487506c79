"""`python -m ptq_exp.runs.doctor`: what a bug report needs; whether devices, data and the MLflow store are there."""

import os
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from ptq_exp.base.errors import UserError, without_password
from ptq_exp.base.machine import installed
from ptq_exp.base.paths import PROJECT_ROOT
from ptq_exp.config import Config

PACKAGES = ("torch", "torchvision", "hydra-core", "omegaconf", "mlflow", "numpy", "scipy", "safetensors", "matplotlib")
EXTRAS = {
    "joblib": "hydra-joblib-launcher", "slurm": "hydra-submitit-launcher", "ray": "hydra-ray-launcher",
    "postgres": "psycopg2-binary", "bench": "aimet-torch",
}  # fmt: skip
Section = Iterator[tuple[str, str]]


def main() -> int:
    """Print one line a finding, Markdown that can be pasted into an issue; 1 where something needs mending."""
    problems = 0
    for title, section in (
        ("Versions", versions), ("Extras", extras), ("Devices", devices), ("Data", data), ("Store", store),
    ):  # fmt: skip
        print(f"**{title}**\n")
        problems += _print(section)
        print()
    print("Everything needed is there." if problems == 0 else f"{problems} of the above need mending.")
    return 1 if problems else 0


def _print(section: Callable[[], Section]) -> int:
    problems = 0
    lines = section()
    while True:
        try:
            name, finding = next(lines)
            print(f"* {name}: {finding}")
        except StopIteration:
            return problems
        except (UserError, ImportError, OSError) as error:  # ends the section: the others are still worth a look
            print(f"* **to mend**: {error}")
            problems += 1


def versions() -> Section:
    """Python, the system, this project's commit and the packages that matter."""
    yield "Python", f"{platform.python_version()} ({sys.prefix})"
    yield "system", f"{platform.system()} {platform.release()}, {platform.machine()}, {os.cpu_count()} cores"
    from ptq_exp.reporting.mlflow.store import commit

    yield "ptq_exp", commit().get("git.commit", "not a git checkout")
    found = installed(PACKAGES)
    yield from found.items()
    if missing := [package for package in PACKAGES if package not in found]:
        raise UserError(f"not installed: {', '.join(missing)}. Run: pip install -c requirements.lock -e .")


def extras() -> Section:
    """What is installed beyond the required."""
    found = installed(EXTRAS.values())
    for extra, package in EXTRAS.items():
        version = found.get(package)
        yield extra, f"{package} {version}" if version else f"not installed (pip install -e '.[{extra}]')"


def devices() -> Section:
    """What `device=auto` would take, and every GPU that torch sees."""
    import torch

    yield "CPU threads of torch", str(torch.get_num_threads())
    yield "torch was built for CUDA", str(torch.version.cuda or "no")
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        yield f"cuda:{number}", f"{about.name}, {about.total_memory / 2**30:.0f} GiB"
    yield "device=auto is", "cuda" if torch.cuda.is_available() else "cpu"


def data() -> Section:
    """The data sets that are on disk, and what earlier runs left in the cache."""
    from torchvision import datasets

    config = Config()
    for name, reader in (("CIFAR-10", datasets.CIFAR10), ("CIFAR-100", datasets.CIFAR100)):
        folder = config.data_root / reader.base_folder
        yield name, f"in {folder}" if folder.is_dir() else f"not in {folder}; downloaded there when it is asked for"
    yield "digits", "inside scikit-learn"
    shipped = sorted(path.name for path in (PROJECT_ROOT / "checkpoints").glob("*.safetensors"))
    yield "shipped checkpoints", ", ".join(shipped) or "none"
    yield "cache", f"{config.cache}, {_megabytes(config.cache):.0f} MB"
    for folder in (config.cache, PROJECT_ROOT):
        nearest = next(path for path in (folder, *folder.parents) if path.exists())
        if not os.access(nearest, os.W_OK):
            raise UserError(f"{nearest} cannot be written: set cache_dir and hydra.run.dir to folders that can.")


def _megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def store() -> Section:
    """Whether the MLflow store that runs are logged to answers. A database that is not there yet is not made."""
    from ptq_exp.reporting.mlflow.store import default_uri, open_store

    uri = default_uri()
    yield "tracking.uri", without_password(uri)
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        yield "runs", "none: the database is made by the first run"
        return
    client, experiment = open_store(uri, Config().tracking.experiment)
    found = client.search_runs([experiment], max_results=1000)
    yield (
        "runs",
        f"{len(found)}{' or more' if len(found) == 1000 else ''} in the experiment '{Config().tracking.experiment}'",
    )


if __name__ == "__main__":
    sys.exit(main())
