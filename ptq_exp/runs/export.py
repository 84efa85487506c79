"""`python -m ptq_exp.export RUN_OR_FOLDER --format onnx`: export the networks of a finished job."""

import argparse
import tempfile
from fnmatch import fnmatch
from pathlib import Path

from ptq_exp.base.arguments import ArgumentParser
from ptq_exp.base.errors import UserError
from ptq_exp.config.mistakes import exit_code
from ptq_exp.export import FORMATS
from ptq_exp.reporting.mlflow.store import default_uri
from ptq_exp.results.exports import ExportResult

PATTERN, CONFIG = "quantized_w*.safetensors", "config.yaml"


def main() -> int:
    """Export the networks of one job."""
    parser = ArgumentParser(prog="python -m ptq_exp.export", description=__doc__)
    parser.add_argument("job", metavar="RUN_OR_FOLDER", help="id of a job's MLflow run, or the folder of a job")
    parser.add_argument("--format", action="append", required=True, choices=list(FORMATS), help="may be repeated")
    parser.add_argument("--uri", default=default_uri(), help="the MLflow store (default: the store of run.py)")
    parser.add_argument(
        "--output", type=Path, help="folder of the files (default: the job's own, or exported/ for a run)"
    )
    arguments = parser.parse_args()
    return exit_code(lambda: _export(arguments))


def _export(arguments: argparse.Namespace) -> str:
    """Export, and return the message to print."""
    folder = Path(arguments.job)
    if folder.is_dir():
        return _told(_artifacts(folder), arguments.output or _artifacts(folder), arguments.format)
    with tempfile.TemporaryDirectory() as scratch:
        from ptq_exp.reporting.mlflow.reading import artifact, artifact_names, existing_run

        client = existing_run(arguments.uri, arguments.job)[0].client
        assert client is not None
        for name in artifact_names(client, arguments.job):
            if name == CONFIG or fnmatch(name, PATTERN):
                artifact(client, arguments.job, name, Path(scratch))
        return _told(_artifacts(Path(scratch)), arguments.output or Path("exported"), arguments.format)


def _told(artifacts: Path, output: Path, formats: list[str]) -> str:
    if any(export.failed for export in export_folder(artifacts, output, formats)):
        raise UserError("Not every file does what was simulated. See the table.")
    return f"Written: {output}"


def _artifacts(folder: Path) -> Path:
    return folder / "artifacts" if (folder / "artifacts").is_dir() else folder


def export_folder(artifacts: Path, output: Path, formats: list[str]) -> list[ExportResult]:
    """Export every quantized network of a folder, verify the files on the test images, and print a table.

    Raises `UserError` if the folder holds no network.
    """
    import torch

    from ptq_exp.base.console import console
    from ptq_exp.config.compose import from_file
    from ptq_exp.data.loader import Normalizer
    from ptq_exp.evaluation.accuracy import evaluate
    from ptq_exp.export.formats import Subject
    from ptq_exp.export.inference import load
    from ptq_exp.export.verification import TestSet
    from ptq_exp.reporting.exports import ExportTable
    from ptq_exp.runs.exporting import exports_of
    from ptq_exp.runs.images import load_images

    files = sorted(artifacts.glob(PATTERN))
    if not files:
        raise UserError(
            f"{artifacts} holds no quantized network ({PATTERN}). Give the folder or the run of a finished job."
        )
    output.mkdir(parents=True, exist_ok=True)
    config = from_file(artifacts / CONFIG)
    dataset = load_images(config, torch.device("cpu"))
    normalize = Normalizer(config.data.mean or dataset.mean, config.data.std or dataset.std, torch.device("cpu"))
    written: list[ExportResult] = []
    for file in files:
        loaded = load(file)
        simulated = evaluate(loaded.network, dataset.test_images, dataset.test_labels, normalize)
        tests = TestSet(dataset.test_images, dataset.test_labels, simulated.predictions, normalize)
        subject = Subject.of(loaded.network, normalize(tests.images[:1])[0], loaded.about)
        exports, integers = exports_of(subject, formats, output / file.stem, tests)
        written += exports
        console.print(ExportTable({file.stem: list(exports)}))
        if integers:
            console.print(integers.sentence())
    return written
