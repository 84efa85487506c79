"""Quantized networks as versions of a model in MLflow's registry: pyfunc models without pickles."""

import logging
import tempfile
import warnings
from pathlib import Path

from ptq_exp.base.paths import PROJECT_ROOT
from ptq_exp.export.packed_file import read_packed
from ptq_exp.reporting.mlflow.run import Run
from ptq_exp.results.records import BitWidthResult

BITS_TAG = "bits"


def register(run: Run, name: str, artifacts: Path, results: tuple[BitWidthResult, ...]) -> None:
    """Register every quantized network of a job as a version of the model `name`. Existing versions stay.

    `mlflow.pyfunc.load_model("models:/<name>/<version>").predict(images)` takes uint8 images (N, C, H, W) and returns
    logits, float32 (N, classes). The weights remain a safetensors file, which `ptq_exp.load` reads.
    """
    if run.client is None:
        return
    from mlflow.exceptions import MlflowException

    try:
        run.client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    known = run.client.search_model_versions(f"name = '{name}' and run_id = '{run.run_id}'")
    done = {version.tags.get(BITS_TAG) for version in known}
    for result in results:
        bits = str(result.bits)
        if bits in done:
            continue
        folder = f"model_w{bits}"
        with tempfile.TemporaryDirectory() as scratch:
            save_model(Path(scratch) / folder, artifacts / f"quantized_w{bits}.safetensors")
            run.client.log_artifacts(run.run_id, scratch)
        tags = {BITS_TAG: bits, "top1": f"{result.top1:.2f}", "top1_float": f"{result.top1_float:.2f}"}
        run.client.create_model_version(name, f"runs:/{run.run_id}/{folder}", run.run_id, tags)


def save_model(folder: Path, weights: Path) -> None:
    """Write an MLflow model that loads `weights` through `ptq_exp.export.inference`."""
    import numpy as np
    from mlflow import pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    about = read_packed(weights)[1]
    images = TensorSpec(np.dtype("uint8"), (-1, len(about["mean"]), -1, -1), "images")
    logits = TensorSpec(np.dtype("float32"), (-1, len(about["classes"])))
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    with warnings.catch_warnings(action="ignore"):  # MLflow asks for an example image; the signature is enough
        pyfunc.save_model(
            str(folder), loader_module="ptq_exp.export.inference", data_path=str(weights),
            pip_requirements=requirements(), signature=ModelSignature(Schema([images]), Schema([logits])),
        )  # fmt: skip


def requirements() -> list[str]:
    """The packages needed for loading. ptq_exp is not in a package index, so it is the working tree that logged it."""
    from importlib.metadata import version

    return [
        *(f"{name}=={version(name).split('+')[0]}" for name in ("torch", "safetensors", "numpy")),
        str(PROJECT_ROOT),
    ]
