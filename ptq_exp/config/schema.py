"""The configuration of one job: the options of every group, and the keys that belong to no group."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ptq_exp.base.options import option
from ptq_exp.base.paths import PROJECT_ROOT
from ptq_exp.config.presets import default_option
from ptq_exp.data.options import DataOptions
from ptq_exp.quantization.options import QuantConfig
from ptq_exp.reporting.mlflow.options import TrackingOptions
from ptq_exp.search.options import SearchOptions
from ptq_exp.training.options import TrainerOptions, TrainingOptions


@dataclass
class Config:
    """The configuration of one job. `model`, `optimizer` and `scheduler` take any key; their values are in YAML."""

    model: dict[str, Any] = field(default_factory=lambda: default_option("model"))
    data: DataOptions = field(default_factory=DataOptions)
    optimizer: dict[str, Any] = field(default_factory=lambda: default_option("optimizer"))
    scheduler: dict[str, Any] = field(default_factory=lambda: default_option("scheduler"))
    trainer: TrainerOptions = field(default_factory=TrainerOptions)
    quant: QuantConfig = field(default_factory=QuantConfig)
    search: SearchOptions = field(default_factory=SearchOptions)
    tracking: TrackingOptions = field(default_factory=TrackingOptions)
    checkpoint: str = option(
        "auto",
        "auto: the stored model of this training configuration, else train and store it; train: train again; "
        "pretrained: keep the weights with which the network is built; or the path or URL of a checkpoint file",
    )
    device: str = option("auto", "auto: an unclaimed CUDA GPU if there is one, else the CPU; cuda, cuda:N, cpu")
    threads: int | None = option(
        None, "torch threads per job; null: all available cores, or the job's share of them", at_least=1
    )
    seed: int = option(
        0,
        "seed of initial weights, batches, augmentation and, unless quant.calibration_seed is given, calibration",
        at_least=0,
        below=2**32,
    )
    export: Any = option(
        None,
        "formats to which each quantized network is exported and in which it is verified: onnx, packed, program, "
        "header; null: only the packed file that every job keeps",
        kind="list[str]",
    )
    resume: bool = option(False, "true: skip the jobs that finished with this configuration")
    fail_fast: bool = option(False, "true: a sweep stops at the first job that fails")
    quiet: bool = option(
        False, "true: show only a line per stage, warnings, errors and the final table; the log file has everything"
    )
    cache_dir: str | None = option(
        None, "folder of decoded images and trained float models; null: <project root>/cache"
    )
    output_dir: str = option(
        "outputs/run", "folder of this run's files, which contain everything that is logged to MLflow"
    )
    method: str = option(
        "notebook", "file in conf/quant that `quant` came from; together with the changes to it, the name of the method"
    )
    searchpath: list[str] = option([], "further folders with configuration files, searched like conf/")
    overrides: str = option("", "command line without quant.bits; names the run and its series")
    command: list[str] = option([], "whole command line as typed; the report shows it to repeat a run")

    @property
    def calibration_seed(self) -> int:
        """The seed of the draw of the calibration images and of learned rounding."""
        return self.seed if self.quant.calibration_seed is None else self.quant.calibration_seed

    @property
    def typed(self) -> dict[str, str]:
        """The keys and groups on the command line with their values."""
        return {key.lstrip("+"): value for key, _, value in (word.partition("=") for word in self.command)}

    @property
    def formats(self) -> list[str]:
        """The formats of `export`; a single one may be given without a list."""
        return [self.export] if isinstance(self.export, str) else list(self.export or [])

    @property
    def cache(self) -> Path:
        """Where decoded images and trained float models are kept between runs."""
        return Path(self.cache_dir) if self.cache_dir else PROJECT_ROOT / "cache"

    @property
    def training(self) -> TrainingOptions:
        """Everything that determines the training of the float model, apart from the network and the images."""
        return TrainingOptions(self.trainer, self.optimizer, self.scheduler, self.seed)
