"""A search: jobs one after the other, each chosen by the results of the ones before. Its report is that of a sweep."""

import dataclasses
import shutil
import time
from pathlib import Path
from typing import Any

import torch

from ptq_exp.base.console import log
from ptq_exp.base.errors import UserError, without_password
from ptq_exp.base.options import as_typed, flatten
from ptq_exp.base.outlook import outlook
from ptq_exp.config import Config
from ptq_exp.config.method import words_of
from ptq_exp.quantization.obstacles import obstacle
from ptq_exp.quantization.options import QuantConfig
from ptq_exp.reporting import Reports, SweepStart
from ptq_exp.results.files import write_search
from ptq_exp.results.records import BitWidthResult, JobRecord, SearchRecord, Trial
from ptq_exp.results.search import trial_in_words
from ptq_exp.runs import job
from ptq_exp.runs.device import hardware
from ptq_exp.runs.export import export_folder
from ptq_exp.runs.record import title_of
from ptq_exp.runs.shared import Shared, prepare
from ptq_exp.runs.sweep import Sweep
from ptq_exp.search.fewest import Fewest, mixed_obstacle, quant_of
from ptq_exp.search.options import ACTIVATIONS, WEIGHTS, SearchOptions
from ptq_exp.search.statistics import images_advisable, images_required


def run(cfg: Any) -> dict[str, float]:
    """Run the job that `cfg` describes or, with `search=fewest`, the jobs of its search. Returns metrics."""
    if cfg.search.name is None:
        return job.run(cfg)
    with job.ready(cfg) as (config, device):
        return Searching(config, device).run().metrics()


class Searching:
    """One search in progress."""

    def __init__(self, config: Config, device: torch.device):
        self.config, self.device, self.folder = config, device, Path(config.output_dir)
        self.jobs: list[JobRecord] = []
        self.started = time.monotonic()
        self.fewest = Fewest(config.search, config.quant, self._measure)

    def run(self) -> SearchRecord:
        """Run the trials, then report them. With `resume=true`, finished trials are not run again."""
        words = list(map(without_password, self.config.command))
        name = " ".join([f"search {self.config.search.name}", self._label()])
        sweep = Sweep(self.config.tracking, SweepStart(name, words, self.folder, self.config.cache, self.config.resume))
        sweep.begin()
        outlook.sweep_begins(1)  # the number of trials is not known
        try:
            shared = prepare(self._base(), self.device, Reports(self.config.tracking).training)
            self._announce(shared)
            self.fewest.run()
            record = self._record(shared)
        except BaseException as error:
            sweep.reports.close("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            sweep.leave()
            raise
        for place in (self.folder, self.folder / "sweep"):
            place.mkdir(exist_ok=True)
            write_search(record, place)
        sweep.finish()
        return record

    def _announce(self, shared: Shared) -> None:
        """Say before the first trial whether the test set is large enough for the margin.

        Raises `UserError` if no network at all could pass.
        """
        options, images, level = self.config.search, len(shared.dataset.test_labels), self.fewest.level
        margin = f"search.max_drop={options.max_drop:g}"
        if images < (least := images_required(options.max_drop, level)):
            raise UserError(
                f"{images} test images cannot confirm {margin} with {options.confidence:g} % confidence, even for a "
                f"network without a single changed prediction: that takes {least}. Use more test images or a wider "
                f"margin."
            )
        if images < (enough := images_advisable(options.max_drop, level)):
            log.warning(
                "%d test images are few for %s: a network that loses nothing, but changes whether 5 %% of the images "
                "are classified correctly, passes with a probability of 80 %% if there are %d images.",
                images, margin, enough,
            )  # fmt: skip
        if WEIGHTS in options.over and options.mixed and (reason := mixed_obstacle(self.config.quant)):
            log.warning("Mixed precision is not searched. %s", reason)

    def _base(self) -> Config:
        """The configuration of the trials before their methods differ."""
        return dataclasses.replace(self.config, search=SearchOptions(), export=None)

    def _measure(self, trial: Trial) -> BitWidthResult:
        """Run the job of a trial, in a folder of its own."""
        number = len(self.jobs)
        quant = quant_of(trial, self.config.quant, self.config.search.brief)
        changes = changed_words(quant, self.config.quant)
        own = [word for word in self.config.command if not is_of_search(word)]
        config = dataclasses.replace(
            self._base(),
            quant=quant,
            output_dir=str(self.folder / str(number)),
            overrides=" ".join([*self._label().split(), *changes]).strip(),
            command=[*own, f"quant.bits={trial.bits}", *changes],
        )
        quant.name = " ".join(words_of(config))
        log.info("Trial %d: %s.", number + 1, trial_in_words(trial))
        self.jobs.append(job.finish_job(config, self.device))
        return self.jobs[-1].results[0]

    def _label(self) -> str:
        """The overrides of the search without those that say what to search for, as typed."""
        return " ".join(word for word in self.config.overrides.split() if not is_of_search(word))

    def _record(self, shared: Shared) -> SearchRecord:
        options, fewest = self.config.search, self.fewest
        network, dataset = shared.float_model.config.model["name"], shared.dataset
        record = SearchRecord(
            title=title_of(dataclasses.replace(self.config, model=shared.float_model.config.model), dataset),
            network=str(network),
            label=self._label(),
            max_drop=options.max_drop,
            confidence=options.confidence,
            level=100 * fewest.level,
            over=tuple(options.over),
            combinations=len(options.widths if WEIGHTS in options.over else [0])
            * len(options.act_bits if ACTIVATIONS in options.over else [0]),
            images=len(dataset.test_labels),
            hardware=hardware(self.device),
            trials=tuple(fewest.trials),
            chosen=fewest.chosen,
            obstacles=self._obstacles(shared),
            seconds=time.monotonic() - self.started,
            folder=self.folder,
        )
        return dataclasses.replace(record, exports=self._keep(record))

    def _obstacles(self, shared: Shared) -> tuple[str, ...]:
        """For every axis, what stopped the search: the narrowest network that failed, and the likeliest reason."""
        fewest, found = self.fewest, {}
        for tried, record in zip(fewest.trials, self.jobs, strict=True):
            if not tried.passed:
                found[tried.trial.axis] = (
                    f"{trial_in_words(tried.trial)}: the drop may reach {tried.limit:.2f} points (margin "
                    f"{tried.margin:g}). {record.results[0].diagnosis}"
                )
        if fewest.chosen is None:
            trial = fewest.trials[-1].trial
            quant = quant_of(trial, self.config.quant, self.config.search.brief)
            calibration = shared.calibration(self.config)
            found["tensor"] = obstacle(shared.float_model.model, quant, trial.bits, calibration)
        return tuple(found.values())

    def _keep(self, record: SearchRecord) -> tuple[Any, ...]:
        """Copy the network that was found, and its configuration, beside the report, and export it if requested."""
        if record.chosen is None:
            return ()
        artifacts, target = self.jobs[record.chosen].artifacts, self.folder / "sweep"
        target.mkdir(exist_ok=True)
        for path in [*artifacts.glob("quantized_w*.safetensors"), artifacts / "config.yaml"]:
            shutil.copy2(path, target / path.name)
        return tuple(export_folder(target, target, self.config.formats)) if self.config.formats else ()


def is_of_search(word: str) -> bool:
    """Whether an override says what to search for, or what to do with the result."""
    return word.lstrip("+~").startswith(("search=", "search.", "export=", "export."))


def changed_words(quant: QuantConfig, base: QuantConfig) -> list[str]:
    """The overrides that turn one method into another, apart from `quant.bits`."""
    before, after = flatten(base), flatten(quant)
    return [
        f"quant.{key}={as_typed(value)}"
        for key, value in after.items()
        if key not in ("bits", "name") and value != before.get(key)
    ]
