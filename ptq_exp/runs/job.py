"""One job, from configuration to metrics: load the data and the float network, quantize, evaluate, report."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ptq_exp.base.background import later
from ptq_exp.base.console import console, is_quiet, log, set_quiet
from ptq_exp.base.errors import UserError
from ptq_exp.base.outlook import outlook
from ptq_exp.base.paths import from_here
from ptq_exp.config import Config, from_hydra
from ptq_exp.config.idle import without_effect
from ptq_exp.config.method import NAME_LETTERS, shortened, typed_or_changed
from ptq_exp.quantization.learning import learns
from ptq_exp.reporting import JobStart, Reports
from ptq_exp.results.files import read_job, write_job
from ptq_exp.results.records import JobRecord
from ptq_exp.runs.device import pick_device
from ptq_exp.runs.ledger import SWEEP_VARIABLE, Ledger, failure_kept, job_key
from ptq_exp.runs.measure import measure_bit_width
from ptq_exp.runs.record import make_record
from ptq_exp.runs.resume import finished
from ptq_exp.runs.shared import prepare

_warned: set[str] = set()  # what this process has warned of
_finished: dict[Path, JobRecord] = {}  # of this process, by folder, so that its sweep need not read them from disk


def run(cfg: Any) -> dict[str, float]:
    """Run one job described by `cfg`, a composed Hydra configuration or a `Config`.

    Returns the metrics of a single bit width, or `top1_w<bits>` for each of several and `top1_float`.
    """
    with ready(cfg) as (config, device):
        return finish_job(config, device).returned()


@contextlib.contextmanager
def ready(cfg: Any) -> Iterator[tuple[Config, torch.device]]:
    """The checked configuration and the device. An error in the `with` block is kept in the job's folder."""
    set_quiet(cfg.quiet is True)
    with failure_kept(Path(cfg.output_dir), cfg.quant.bits, cfg.overrides, cfg.fail_fast is True):
        config = from_hydra(cfg)
        for sentence in [sentence for sentence in without_effect(config) if sentence not in _warned]:
            _warned.add(sentence)
            log.warning("%s", sentence)
        if config.threads:
            torch.set_num_threads(config.threads)
        yield config, pick_device(config.device)


def finish_job(config: Config, device: torch.device) -> JobRecord:
    """The record of a job: with `resume=true` that of an earlier one with the same configuration, else its own."""
    folder = Path(config.output_dir)
    start, reports = start_of(config, device, folder), Reports(config.tracking)
    record = finished(config, start, reports) if config.resume else None
    if record is not None:
        outlook.job_skipped()
    else:
        record = run_job(config, device, start, reports)
    _finished[folder.absolute()] = record
    return record


def run_job(config: Config, device: torch.device, start: JobStart, reports: Reports) -> JobRecord:
    """Load or train the float network, quantize it at every bit width, evaluate and report."""
    log.info("%s: writing results to %s.", start.name, from_here(start.folder))
    with reports.following(start):
        ledger = Ledger.of(config, start.key)
        if not (there := ledger.read()) or read_job(there) is None:  # a repetition may not end
            ledger.write(start.folder)
        shared = prepare(config, device, reports.training)
        config = dataclasses.replace(config, model=shared.float_model.config.model)  # a file may have another depth
        name = run_name(config, shared.dataset.name)
        artifacts = start.folder / "artifacts"
        outlook.job_begins(sum(learns(config.quant, bits) for bits in config.quant.bit_widths()))
        results = [measure_bit_width(bits, config, shared, device, artifacts) for bits in config.quant.bit_widths()]
        record = make_record(dataclasses.replace(start, name=name), config, shared, device, tuple(results))
        outlook.job_ends()
        write_job(record)  # before its figures are drawn, which an interruption may prevent
        ledger.write(start.folder)
        later(reports.job, record)
    if failed := [f"{export.place}: {export.note}" for result in results for export in result.exports
                  if export.failed]:  # fmt: skip
        raise UserError(f"The results are kept, but not every export does what was simulated. {'; '.join(failed)}.")
    if start.alone and not is_quiet():
        console.print(*(reports.where() or [f"Results: {from_here(start.folder)}"]), sep="\n")
    return record


def start_of(config: Config, device: torch.device, folder: Path) -> JobStart:
    """The facts about a job that are known before it runs."""
    key = job_key(config, device.type)
    name = run_name(config, config.data.name)
    earlier = Ledger.of(config, key).read() if config.resume else None
    return JobStart(name, key, folder, SWEEP_VARIABLE not in os.environ, int(1000 * time.time()), earlier)


def run_name(config: Config, dataset_name: str) -> str:
    """`w4 notebook resnet20 cifar10`: the most informative part first, since MLflow shows about 18 characters."""
    widths = ",".join(map(str, config.quant.bit_widths()))
    activations = f"a{config.quant.act_bits}" if config.quant.act_bits else ""
    seed = [word for word in config.overrides.split() if word.startswith("seed=")]
    method = shortened(typed_or_changed(config), NAME_LETTERS)
    return " ".join([f"w{widths}{activations}", method, str(config.model["name"]), dataset_name, *seed])


def finished_here() -> dict[Path, JobRecord]:
    """The records of the jobs that finished in this process, by folder."""
    return dict(_finished)
