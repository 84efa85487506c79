"""One job, from configuration to metrics: load data and float model, quantize, evaluate, log."""

import dataclasses
import math
import os
import platform
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ptq_exp.base.console import console, is_quiet, log, progress, set_quiet
from ptq_exp.base.errors import UserError, check_choice
from ptq_exp.base.machine import claim, keep_freed_memory
from ptq_exp.config import Config, digest, from_hydra
from ptq_exp.config.method import NAME_LETTERS, shortened, typed_or_changed
from ptq_exp.data import load_dataset
from ptq_exp.data.dataset import Dataset
from ptq_exp.evaluation.accuracy import Evaluation, evaluate
from ptq_exp.evaluation.plausibility import warn_if_implausible
from ptq_exp.networks.store import Watch, load_or_train, weights_digest
from ptq_exp.quantization.allocation import one_layer_at_a_time
from ptq_exp.quantization.context import Calibration
from ptq_exp.quantization.learning import RECONSTRUCTION_VERSION
from ptq_exp.quantization.quantize import Quantized, quantize
from ptq_exp.reporting import mlflow as tracking
from ptq_exp.reporting.html.build import REPORT_FILE
from ptq_exp.reporting.table import ResultTable
from ptq_exp.results import files as jobs
from ptq_exp.results import measurement as results
from ptq_exp.results.series import Row, answers
from ptq_exp.runs import resume
from ptq_exp.runs.background import later
from ptq_exp.runs.float_model import FloatModel
from ptq_exp.runs.record import keep_and_log, make_record


@dataclass
class Prepared:
    """What the jobs of a sweep share: data set, float model and the float model's accuracy."""

    dataset: Dataset
    fingerprint: str
    float_model: FloatModel
    baseline: Evaluation
    network_digest: str  # SHA-256 (hex) of the float weights and the normalization: what a quantizer really sees
    calibrations: dict[tuple[int, int], Calibration] = field(default_factory=dict)  # by number of images and seed


def run(cfg: Any) -> dict[str, float]:
    """Run one job described by `cfg`, a composed Hydra configuration or a `Config`.

    Returns the metrics of its one bit width, or `top1_w<bits>` for each of several and `top1_float`.
    """
    folder, overrides = Path(cfg.output_dir), cfg.overrides
    set_quiet(cfg.quiet is True)
    with jobs.failure_kept(folder, cfg.quant.bits, overrides, cfg.fail_fast is True):
        config = from_hydra(cfg)
        if config.threads:
            torch.set_num_threads(config.threads)
        device = pick_device(config.device)
        key = jobs.job_key(config, device.type)
        ledger = jobs.Ledger.of(config, key)
        rows = resume.finished(config, key, ledger, folder) if config.resume else None
        return results.returned_metrics(run_job(config, device, key, ledger, folder) if rows is None else rows)


def run_job(config: Config, device: torch.device, key: str, ledger: jobs.Ledger, folder: Path) -> list[Row]:
    """Load or train the float model, quantize it at every bit width, evaluate and log: one row a bit width."""
    name = run_name(config, config.data.name)
    here = folder.absolute().is_relative_to(Path.cwd())
    log.info("%s: results go to %s.", name, os.path.relpath(folder) if here else folder)
    old = ledger.read().get("run_id") if config.resume else None
    with tracking.job_run(config.tracking, name, key, old, folder / "run.log") as job:
        ledger.write(folder, job.run_id)
        shared = prepare(config, device, job.system_metrics)
        dataset, float_model = shared.dataset, shared.float_model
        config = dataclasses.replace(config, model=float_model.config.model)  # a file may hold another depth
        name = run_name(config, dataset.name)
        job.rename(name)
        calibration = calibrate(shared, config)
        rows = []
        for bits in config.quant.bit_widths():
            started = time.perf_counter()
            store = reconstruction_store(config, shared, bits, device)
            quantized = quantize(float_model.model, config.quant, bits, calibration, show_progress, store)
            seconds = time.perf_counter() - started
            result = measure(quantized.network, dataset, float_model, f"Evaluating {bits} bits")
            if not math.isfinite(result.loss):
                raise UserError(f"The network quantized to {bits} bits answers with numbers that are not finite.")
            job.work_ended()
            row = results.make_row(
                bits, config.quant, float_model, shared.baseline, result, dataset, quantized.report, seconds
            )
            rows.append(row)
            results.save_artifacts(
                folder / "artifacts", row, config, float_model, dataset, quantized, shared.baseline, result
            )
            log.info("%s", results.headline(row, config.quant.name))
            log.info("%s", row["diagnosis"])
            if config.quant.sensitivity:
                measure_sensitivity(bits, quantized, config, shared, folder / "artifacts")
                job.work_ended()
        record = make_record(
            job, key, name, folder / "artifacts", rows, config, float_model, dataset, tags_of(config, shared, device)
        )
        alone = jobs.SWEEP_VARIABLE not in os.environ  # asked now: the sweep may end before its last job is logged
        later(keep_and_log, folder, record, job, alone)
    if alone:
        show(record, folder, job.how_to_open() or f"Results: {folder}")
    return rows


_prepared: dict[str, Prepared] = {}  # at most one entry: it holds a data set, and the jobs of a sweep share it


def prepare(config: Config, device: torch.device, watch: Watch) -> Prepared:
    """Data set, float model and baseline, computed once in a process for the jobs that share them.

    A training runs inside the context manager that `watch` makes.
    """
    relevant = dataclasses.asdict(config)
    for unrelated in ("quant", *jobs.UNRELATED):
        del relevant[unrelated]
    key = digest(relevant, str(device))
    if key not in _prepared:
        dataset = load_dataset(config, device)
        if dataset.note:
            log.warning("%s", dataset.note)
        sizes = f"{len(dataset.train_images)} training and {len(dataset.test_images)} test images"
        log.info("Data: %s, %s, %d classes. Device: %s.", dataset.name, sizes, len(dataset.classes), hardware(device))
        float_model = load_or_train(config, dataset, device, watch)
        log.info("Float model: %s.", float_model.source)
        baseline = measure(float_model.model, dataset, float_model, "Evaluating the float network")
        log.info("Float top-1: %.2f %% (95 %% CI %.2f to %.2f).", baseline.top1, *baseline.interval())
        warn_if_implausible(baseline, dataset, float_model.claim)
        _prepared.clear()
        data = float_model.config.data
        network = digest(weights_digest(float_model.model), data.mean, data.std)
        _prepared[key] = Prepared(dataset, dataset.fingerprint(), float_model, baseline, network)
    return _prepared[key]


def measure(model: torch.nn.Module, dataset: Dataset, float_model: FloatModel, description: str) -> Evaluation:
    """What `model` answers on the test images."""
    with progress(description, len(dataset.test_labels)) as advance:
        return evaluate(model, dataset.test_images, dataset.test_labels, float_model.normalize, advance)


def pick_device(name: str) -> torch.device:
    """The device called `name`; `auto` is CUDA where there is one, and of several one that no other job has.

    Raises `UserError` where it is not there.
    """
    # Float32 means float32: by default cuDNN's convolutions drop 13 bits, which would blur 8-bit comparisons. And
    # the same seed gives the same weights: cuDNN may not choose other algorithms from run to run.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    keep_freed_memory()
    if name == "auto" and torch.cuda.device_count() > 1:
        cards = [str(torch.cuda.get_device_properties(n).uuid) for n in range(torch.cuda.device_count())]
        name = f"cuda:{claim(cards)}"
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(check_device(name))
    if device.index is not None:
        torch.cuda.set_device(device)  # streams and graphs are made on the current device
    return device


def check_device(name: str) -> str:
    """The device's name as torch has it: `gpu` means cuda. Raises `UserError` where there is no such device."""
    kind, colon, number = name.partition(":")
    kind = "cuda" if kind == "gpu" else kind
    check_choice("device", kind, ["auto", "cuda", "cpu"])
    if number and not (kind == "cuda" and number.isdecimal()):
        raise UserError(f"device={name} is not known. Allowed: auto, cuda, cuda:N with a number N, cpu.")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device={name} is not there: torch sees {torch.cuda.device_count()} CUDA devices. Use device=cpu."
        )
    return f"{kind}{colon}{number}"


def hardware(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"


def run_name(config: Config, dataset_name: str) -> str:
    """The telling part first, since MLflow shows about 18 characters: `w4 notebook resnet20 cifar10`."""
    widths = ",".join(map(str, config.quant.bit_widths()))
    activations = f"a{config.quant.act_bits}" if config.quant.act_bits else ""
    seed = [word for word in config.overrides.split() if word.startswith("seed=")]
    method = shortened(typed_or_changed(config), NAME_LETTERS)
    return " ".join([f"w{widths}{activations}", method, str(config.model["name"]), dataset_name, *seed])


def calibrate(shared: Prepared, config: Config) -> Calibration:
    """Normalized training images (N, 3, H, W), drawn by the calibration seed, their labels not looked at. Jobs with the
    same images share it."""
    count, seed = config.quant.calibration_images, config.calibration_seed
    if (count, seed) not in shared.calibrations:
        images = shared.dataset.train_images
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        shared.calibrations.clear()  # one draw at a time: it can be large
        chosen = shared.float_model.normalize(images[order[:count].to(images.device)])
        shared.calibrations[count, seed] = Calibration(chosen, seed)
    return shared.calibrations[count, seed]


def show_progress(description: str, steps: int) -> Any:
    """A progress bar in a terminal, a line elsewhere."""
    if not console.is_terminal:
        log.info("%s", description)
    return progress(description, steps)


def reconstruction_store(config: Config, shared: Prepared, bits: int, device: torch.device) -> Path | None:
    """Where the units of a learned rounding are kept, so that an interrupted one goes on; None without one."""
    if config.quant.rounding == "nearest":
        return None
    unrelated = {"name": "", "sensitivity": False, "calibration_seed": None}
    method = dataclasses.asdict(config.quant) | unrelated | {"bits": bits}
    key = digest(
        RECONSTRUCTION_VERSION, shared.network_digest, shared.fingerprint, method, config.calibration_seed, device.type
    )
    return config.cache / "reconstruction" / key[:16]


def measure_sensitivity(bits: int, quantized: Quantized, config: Config, shared: Prepared, folder: Path) -> None:
    """Accuracy with one layer's weights rounded at a time, to the bits it has in `quantized`: a table and a figure."""
    dataset, float_model = shared.dataset, shared.float_model
    plan = quantized.plan
    sqnr = {layer.layer: layer.sqnr_db for layer in quantized.report.layers}
    rows = []
    with show_progress("Measuring sensitivities", len(plan)) as advance:
        for name, network in one_layer_at_a_time(quantized.reference, config.quant, plan):
            result = evaluate(network, dataset.test_images, dataset.test_labels, float_model.normalize)
            drop = shared.baseline.top1 - result.top1
            row = {"layer": name, "bits": plan[name], "top1": result.top1, "top1_drop": drop, "loss": result.loss}
            rows.append(row | {"sqnr_db": sqnr[name]})
            advance()
    results.save_sensitivity(folder, bits, rows, shared.baseline)


def tags_of(config: Config, shared: Prepared, device: torch.device) -> dict[str, str]:
    """What tells apart the runs of different networks, data and machines."""
    network, fingerprint = shared.network_digest, shared.fingerprint
    quant = dataclasses.replace(config.quant, name="")
    return {
        "digest": digest(shared.float_model.digest, network, fingerprint, quant, config.seed),
        "float_digest": shared.float_model.digest,
        "data_fingerprint": fingerprint,
        "hardware": f"{hardware(device)}, torch {torch.__version__}",
    }


def show(record: dict[str, Any], folder: Path, where: str) -> None:
    """The table of a single job, what it says, and where its results are."""
    console.print(ResultTable({"": record["rows"]}, record["title"]))
    if not is_quiet():
        console.print(*answers({"": record["rows"]}), f"Report: {folder / 'artifacts' / REPORT_FILE}", where, sep="\n")
