"""The records of one bit width, a job, a failed job, a search and a sweep."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ptq_exp.evaluation.integer_check import IntegerCheck
from ptq_exp.evaluation.paired import Correct
from ptq_exp.quantization.layer_report import LayerReport
from ptq_exp.results.exports import ExportResult

# Fields of a bit width's result that are settings or text.
NOT_METRICS = {
    "bits", "act_bits", "chance", "diagnosis", "layers", "float_tensors", "limits", "exports", "integers",
    "correct",
}  # fmt: skip


@dataclass(frozen=True)
class BitWidthResult:
    """Everything measured at one bit width. Accuracies and their 95 % intervals are in percent, drops in points.

    The names of the numeric fields are those of the logged metrics.
    """

    bits: int  # quant.bits as given; a sign bit may add to it
    act_bits: int | None
    top1: float
    top1_ci_low: float
    top1_ci_high: float
    chance: float  # top-1 accuracy of guessing
    top1_float: float
    top1_float_ci_low: float
    top1_float_ci_high: float
    top1_drop: float
    top1_drop_ci_low: float
    top1_drop_ci_high: float
    top5: float
    agreement: float  # share of test images with the same prediction as the float network
    loss: float  # mean cross entropy, nats
    loss_float: float
    bits_mean: float  # stored bits per quantized weight, sign included
    size_bytes: int
    size_bytes_float: int
    quantize_seconds: float
    evaluate_seconds: float
    diagnosis: str
    layers: tuple[LayerReport, ...] = ()
    quantized_percent: float | None = None  # of the weights; None in records of earlier versions
    float_tensors: dict[str, str] = field(default_factory=dict)  # the weights that stay float, with their reasons
    limits: tuple[str, ...] = ()  # what is not available for this network, one sentence each
    exports: tuple[ExportResult, ...] = ()  # the files of `export=[...]`
    integers: IntegerCheck | None = None  # with an export, if all activations are quantized
    correct: Correct | None = None  # by test image, for paired comparisons; None in records of earlier versions

    def metrics(self) -> dict[str, float]:
        """The measured numbers, by name."""
        names = [entry.name for entry in dataclasses.fields(self) if entry.name not in NOT_METRICS]
        found = {name: float(getattr(self, name)) for name in names if getattr(self, name) is not None}
        for export in self.exports:
            found |= export.metrics()
        return found | (self.integers.metrics() if self.integers else {})


@dataclass(frozen=True)
class DatasetSummary:
    """The images that a job used."""

    name: str
    fingerprint: str  # SHA-256 (hex) of class names, images and labels
    source: str
    profile: dict[str, Any]  # counts of images and classes, and the shape of an image


@dataclass(frozen=True)
class JobRecord:
    """A finished job: everything that is reported, apart from its artifact files."""

    title: str
    name: str  # of its run; the most informative part comes first
    method: tuple[str, ...]  # the name of its file, then `key=value` for each change
    overrides: str  # the command line without quant.bits
    command: tuple[str, ...]  # the complete command line
    key: str  # SHA-256 (hex) of everything that determines the result: a repetition of this job has the same key
    started: int  # ms since 1970; drawing and logging are not included
    ended: int
    results: tuple[BitWidthResult, ...]
    params: dict[str, Any]  # the resolved configuration, by dotted keys
    defaults: dict[str, Any]  # the default of every param that differs from it
    tags: dict[str, str]
    history: tuple[dict[str, float], ...]  # one entry per epoch, if this job trained the float network
    dataset: DatasetSummary | None
    versions: dict[str, str]
    register: str | None = None  # the name in a model registry
    folder: Path = field(default=Path(), metadata={"stored": False})  # where its files are on this machine

    @property
    def artifacts(self) -> Path:
        """The folder of tables, figures and quantized networks."""
        return self.folder / "artifacts"

    def returned(self) -> dict[str, float]:
        """The job's return value: the metrics of a single bit width, or the top-1 of each and of the float network."""
        if len(self.results) == 1:
            return self.results[0].metrics()
        return {f"top1_w{result.bits}": result.top1 for result in self.results} | {
            "top1_float": self.results[0].top1_float
        }


@dataclass(frozen=True)
class Failure:
    """A job that failed."""

    bits: str
    overrides: str
    error: str
    log: str  # the path of its log file

    @property
    def folder(self) -> Path:
        """The job's folder."""
        return Path(self.log).parent

    def __str__(self) -> str:
        """The failed job, the reason, and the path of its log."""
        job = " ".join(filter(None, [f"quant.bits={self.bits}", self.overrides]))
        return f"FAILED {job}: {self.error} (log: {self.log})"


# How the network of a trial is made: rounded to nearest; learned with a fraction of the steps; weights learned and
# activations calibrated afterwards; or both learned together.
NEAREST, BRIEF, CALIBRATED, LEARNED = "nearest", "learned briefly", "weights learned", "learned"


@dataclass(frozen=True)
class Trial:
    """A network to try."""

    axis: str  # weights, activations or mixed: what becomes narrower
    bits: int  # quant.bits
    act_bits: int | None  # quant.act_bits
    how: str = NEAREST  # one of the four above
    mean_bits: float | None = None  # with mixed precision: quant.mean_bits


@dataclass(frozen=True)
class TrialResult:
    """A trial and what it showed. `result` has no layers."""

    trial: Trial
    margin: float  # points; the weights leave a part of search.max_drop to the activations
    limit: float  # points: one-sided upper confidence limit of the drop
    result: BitWidthResult
    seconds: float = 0.0  # quantization, evaluation and reporting

    @property
    def passed(self) -> bool:
        """Whether the drop is within the margin with the confidence of the search."""
        return self.limit < self.margin


@dataclass(frozen=True)
class SearchRecord:
    """A finished search. `label` is what distinguishes it in a sweep of searches, as typed."""

    title: str  # ResNet-20 on CIFAR-10: best
    network: str
    label: str
    max_drop: float
    confidence: float  # percent, for the whole search
    level: float  # percent, of each test
    over: tuple[str, ...]
    combinations: int  # of all widths
    images: int  # test images
    hardware: str
    trials: tuple[TrialResult, ...]
    chosen: int | None  # index of the trial
    obstacles: tuple[str, ...] = ()  # why nothing narrower passed, or nothing at all
    exports: tuple[ExportResult, ...] = ()  # of the network that was found, with `export=[...]`
    seconds: float = 0.0
    folder: Path = field(default=Path(), metadata={"stored": False})

    @property
    def best(self) -> TrialResult | None:
        """The network that was found."""
        return None if self.chosen is None else self.trials[self.chosen]

    def metrics(self) -> dict[str, float]:
        """The answer as metrics, empty if there is none."""
        if self.best is None:
            return {}
        result = self.best.result
        found = {
            "fewest_bits": result.bits_mean, "fewest_bytes": float(result.size_bytes),
            "fewest_drop_limit": self.best.limit, "fewest_top1": result.top1,
        }  # fmt: skip
        for export in self.exports:
            found |= export.metrics()
        return found if result.act_bits is None else found | {"fewest_act_bits": float(result.act_bits)}


@dataclass(frozen=True)
class SweepRecord:
    """A finished sweep: its jobs in order, and the failures."""

    name: str
    folder: Path
    command: tuple[str, ...]  # the overrides as typed
    jobs: tuple[JobRecord, ...]
    failures: tuple[Failure, ...]
    problems: tuple[str, ...] = ()  # errors outside of the jobs, for example while their results were reported
    search: SearchRecord | None = None  # of which the jobs are the trials
    searches: tuple[SearchRecord, ...] = ()  # if the jobs of the sweep are searches

    @property
    def figures(self) -> Path:
        """The folder of the report and of the figures over all jobs."""
        return self.folder / "sweep"
