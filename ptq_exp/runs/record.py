"""What is kept of a finished job, all that is logged besides its artifacts, and how it gets into the store."""

import dataclasses
import json
import platform
from pathlib import Path
from typing import Any

import yaml

from ptq_exp.base.console import log
from ptq_exp.base.errors import UserError, without_password
from ptq_exp.base.machine import installed
from ptq_exp.base.text import read_text, write_text
from ptq_exp.config import Config, flatten
from ptq_exp.config.method import words_of
from ptq_exp.data.dataset import Dataset
from ptq_exp.reporting import figures
from ptq_exp.reporting.html.build import write_job
from ptq_exp.reporting.mlflow import Run, address
from ptq_exp.reporting.mlflow.store import commit
from ptq_exp.reporting.mlflow.upload import upload
from ptq_exp.reporting.table import markdown_table
from ptq_exp.results.files import write_record
from ptq_exp.results.measurement import metrics
from ptq_exp.results.series import Row, width
from ptq_exp.runs.float_model import FloatModel

PACKAGES = ("ptq_exp", "torch", "torchvision", "numpy", "hydra-core", "mlflow")
# What a sweep draws of its jobs' layers.
LAYER_KEYS = ("layer", "stored_bits", "weights", "sqnr_db", "levels_used", "levels_available")


def make_record(
    job: Run,
    key: str,
    name: str,
    artifacts: Path,
    rows: list[Row],
    config: Config,
    float_model: FloatModel,
    dataset: Dataset,
    tags: dict[str, str],
) -> dict[str, Any]:
    """All that is logged of a finished job besides its artifacts. Several bit widths become series."""
    shown = dataclasses.replace(config.tracking, uri=config.tracking.uri and without_password(config.tracking.uri))
    resolved = dataclasses.replace(
        float_model.config, quant=config.quant, tracking=shown, output_dir=config.output_dir,
        method=config.method, searchpath=config.searchpath,
        overrides=without_password(config.overrides), command=list(map(without_password, config.command)),
        resume=config.resume, fail_fast=config.fail_fast, quiet=config.quiet,
        checkpoint=without_password(float_model.config.checkpoint),
    )  # fmt: skip
    write_text(artifacts / "config.yaml", yaml.safe_dump(dataclasses.asdict(resolved), sort_keys=False))
    # Where and by which words a job was started would be the first that MLflow's compare page shows of two jobs.
    started = ("output_dir", "command", "overrides", "method", "searchpath")  # the method is `quant.name`
    plain = dataclasses.replace(resolved, quant=dataclasses.replace(config.quant, layer_bits={}))
    params = {key: value for key, value in flatten(plain).items() if key not in started} | {
        "quant.layer_bits": json.dumps(config.quant.layer_bits),  # its keys are patterns, which name no param
        "data.used": dataset.name,
        "model.used": " ".join(f"{key}={value}" for key, value in float_model.options.items()),
    }
    layers = {row["bits"]: json.loads(read_text(artifacts / f"layers_w{row['bits']}.json")) for row in rows}
    title = f"{config.model['name']} on {dataset.name}: {config.quant.name}"
    if len(rows) == 1:
        points = [(0, metrics(rows[0]))]
    else:
        points = [(row["bits"], {f"{key}_vs_bits": value for key, value in metrics(row).items()}) for row in rows]
        points.append((0, {"top1_float": rows[0]["top1_float"]}))
    # The job that trained the float model logs the training, once.
    history, float_model.history = float_model.history, []
    points += list(enumerate(history, start=1))
    figures.draw_job(artifacts, rows, layers, history, title, config.quant.name)
    sentences = "\n\n".join(f"{width(row)}. {row['diagnosis']}" for row in rows)
    note = f"{markdown_table({'': rows}, title)}\n\n{sentences}"
    return {
        "title": title,
        "method": words_of(config),
        "overrides": resolved.overrides,
        "command": resolved.command,
        "job": key,
        "run_id": job.run_id,
        "started": job.started,
        "ended": job.ended,
        "run": address(config.tracking, name),
        "uploaded": False,
        "rows": rows,
        "params": params,
        "tags": tags | {"mlflow.note.content": note},
        "points": points,
        # Text for keys, as JSON has them: the record's checksum is made before it is written, and again after.
        "layers": {str(bits): [{k: line[k] for k in LAYER_KEYS} for line in table] for bits, table in layers.items()},
        "dataset": describe(dataset, config, tags["data_fingerprint"]),
        "versions": versions(),
        "register": config.tracking.register,
    }


def describe(dataset: Dataset, config: Config, fingerprint: str) -> dict[str, Any]:
    """The data set as MLflow lists it among a run's inputs."""
    counts = {"training images": len(dataset.train_images), "test images": len(dataset.test_images)}
    if dataset.validation_images is not None:
        counts["validation images"] = len(dataset.validation_images)
    source = "scikit-learn" if dataset.name == "digits" else str(config.data_root)
    shape = "x".join(map(str, dataset.test_images.shape[1:]))
    profile = counts | {"classes": len(dataset.classes), "image": f"{shape} uint8"}
    return {"name": dataset.name, "fingerprint": fingerprint, "source": source, "profile": profile}


def versions() -> dict[str, str]:
    """Of everything that a result may depend on."""
    system = f"{platform.system()} {platform.release()}, {platform.machine()}"
    others = {"system": system, "commit": commit().get("git.commit", "")}
    return {"Python": platform.python_version()} | installed(PACKAGES) | others


def keep_and_log(folder: Path, record: dict[str, Any], job: Run, alone: bool) -> None:
    """Leave the record in the job's folder, then log it. Where that fails, a sweep tries again at its end; a job that
    is `alone` also gets a report."""
    write_record(folder, record)
    if alone:
        write_job(folder)
    try:
        upload(folder, job)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        message = f"{record['overrides'] or 'The job'}: not logged yet, kept in {folder}: {without_password(reason)}"
        if alone:
            raise UserError(
                f"{message}. To log it later: python -m ptq_exp.reporting.mlflow upload {folder}"
            ) from error
        log.warning("%s", message)
