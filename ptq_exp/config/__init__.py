"""The schema of every configuration group, and the checks that types alone cannot make.

The dataclasses are plain Python: neither Hydra nor OmegaConf is needed to build a `Config` by hand.
`conf/` holds the values and says, key by key, what they do.
"""

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ptq_exp.base.errors import UserError, check_choice, did_you_mean
from ptq_exp.base.paths import CONF, PROJECT_ROOT
from ptq_exp.base.text import read_text
from ptq_exp.config.method import words_of
from ptq_exp.quantization.options import QuantConfig
from ptq_exp.reporting.mlflow.options import TrackingOptions

# Set by a sweep for its jobs, whichever process they run in: the keys that take several values.
SWEPT_VARIABLE = "PTQ_EXP_SWEPT_KEYS"


@dataclass
class DataConfig:
    """Group `data`: which images, and how they reach the network."""

    name: str = "auto"
    root: str | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    resize: int | None = None
    skip_broken: bool = False
    classes: list[str] | None = None
    download: bool = True
    timeout: float = 15.0
    validation_images: int = 0
    train_limit: int | None = None
    test_limit: int | None = None


@dataclass
class TrainerConfig:
    """Group `trainer`: how long the float model is trained, and which epoch is kept."""

    epochs: int | None = None
    batch_size: int | None = None
    precision: str = "fp32"
    fused: bool = False
    select: str = "last"


@dataclass
class Config:
    """The whole configuration of one job, with the defaults of `conf/config.yaml`."""

    model: dict[str, Any] = field(
        default_factory=lambda: {"name": "resnet20", "architecture": "resnet", "depth": 20, "shortcut": "auto"}
    )
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: dict[str, Any] = field(
        default_factory=lambda: {"_target_": "torch.optim.SGD", "lr": None, "momentum": 0.9, "weight_decay": None}
    )
    scheduler: dict[str, Any] = field(
        default_factory=lambda: {"_target_": "torch.optim.lr_scheduler.MultiStepLR", "milestones": None, "gamma": 0.1}
    )
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    quant: QuantConfig = field(default_factory=QuantConfig)
    tracking: TrackingOptions = field(default_factory=TrackingOptions)
    checkpoint: str = "auto"
    device: str = "auto"
    threads: int | None = None
    seed: int = 0
    resume: bool = False
    fail_fast: bool = False
    quiet: bool = False
    cache_dir: str | None = None
    output_dir: str = "outputs/run"
    method: str = "notebook"
    searchpath: list[str] = field(default_factory=list)
    overrides: str = ""
    command: list[str] = field(default_factory=list)

    @property
    def calibration_seed(self) -> int:
        """What decides the draw of the calibration images and of learned rounding."""
        return self.seed if self.quant.calibration_seed is None else self.quant.calibration_seed

    @property
    def cache(self) -> Path:
        """Where decoded images and trained float models are kept between runs."""
        return Path(self.cache_dir) if self.cache_dir else PROJECT_ROOT / "cache"

    @property
    def data_root(self) -> Path:
        """Where CIFAR-10 and CIFAR-100 are looked for and downloaded to, unless `data.root` says otherwise."""
        return Path(self.data.root).expanduser() if self.data.root else PROJECT_ROOT / "datasets"


def swept_keys() -> list[str]:
    """The keys that differ between the jobs of the sweep that this job belongs to; none outside of a sweep."""
    return os.environ.get(SWEPT_VARIABLE, "").split()


def before_the_job(cfg: Any) -> Config:
    """What is known of a composed node before its job runs: without the values that only a running job has."""
    from omegaconf import OmegaConf

    known = {str(key): cfg[key] for key in cfg if key != "hydra" and not OmegaConf.is_interpolation(cfg, key)}
    values: dict[str, Any] = {k: OmegaConf.to_object(v) if OmegaConf.is_config(v) else v for k, v in known.items()}
    config = Config()
    vars(config).update(values, command=list(cfg.hydra.overrides.task))
    _refuse_unknown(config)
    return config


def from_hydra(cfg: Any) -> Config:
    """The typed, validated `Config` of a composed OmegaConf node (a `Config` passes through)."""
    if not isinstance(cfg, Config):
        from omegaconf import OmegaConf

        cfg = OmegaConf.to_object(cfg)
        _refuse_unknown(cfg)
    validate(cfg)
    cfg.quant.name = " ".join(words_of(cfg))
    return cfg


def _refuse_unknown(node: Any, prefix: str = "") -> None:
    """`+quant.bitss=4` adds what Hydra would refuse without the plus sign: nothing would ever read it."""
    known = [field.name for field in dataclasses.fields(node)]
    for key, value in vars(node).items():
        if key not in known:
            names = [f"{prefix}{name}" for name in sorted(known)]
            near = did_you_mean(prefix + key, names)
            raise UserError(f"There is no key '{prefix}{key}'.{near} Allowed: {', '.join(names)}.")
        if dataclasses.is_dataclass(value):
            _refuse_unknown(value, f"{prefix}{key}.")


def validate(config: Config) -> None:
    """Raise `UserError` for the first impossible value; nothing has been computed by then."""
    config.quant.validate()
    check_choice("trainer.precision", config.trainer.precision, ["fp32", "tf32", "bf16"])
    check_choice("trainer.select", config.trainer.select, ["last", "best_test", "best_validation"])
    if config.trainer.select == "best_validation" and config.data.validation_images == 0:
        raise UserError("trainer.select=best_validation needs images to choose on: set data.validation_images=1000.")
    if config.trainer.select == "best_test" and config.data.validation_images > 0:
        raise UserError("trainer.select=best_test with data.validation_images set: use trainer.select=best_validation.")
    for key in ("epochs", "batch_size"):
        value = getattr(config.trainer, key)
        if value is not None and value < 1:
            raise UserError(f"trainer.{key}={value} must be at least 1, or null for the data set's own.")
    if config.threads is not None and config.threads < 1:
        raise UserError(f"threads={config.threads} must be at least 1, or null for as many as there are cores.")
    for key in ("train_limit", "test_limit", "resize"):
        value = getattr(config.data, key)
        if value is not None and value < 1:
            raise UserError(f"data.{key}={value} must be at least 1, or null.")
    if config.data.validation_images < 0 or config.data.timeout <= 0:
        raise UserError("data.validation_images must not be negative and data.timeout must be positive.")
    for key in ("mean", "std"):
        values = getattr(config.data, key)
        if values is not None and len(values) != 3:
            raise UserError(f"data.{key}={values} needs three numbers: red, green, blue.")
    if config.data.std is not None and min(config.data.std) <= 0:
        raise UserError(f"data.std={config.data.std} must be positive in every channel.")
    if config.tracking.register is not None:
        if not config.tracking.enabled:
            raise UserError("tracking.register needs an MLflow store: leave tracking=none out.")
        if not config.tracking.register.strip() or set(config.tracking.register) & set("/:"):
            raise UserError(
                f"tracking.register={config.tracking.register!r}: a model's name has no slash and no colon."
            )


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """`{"quant": {"bits": 4}}` or a dataclass as `{"quant.bits": 4}`: keys as typed on the command line."""
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        node = dataclasses.asdict(node)
    if not isinstance(node, dict) or not node:
        return {prefix.rstrip("."): node}
    flat: dict[str, Any] = {}
    for key, value in node.items():
        flat |= flatten(value, f"{prefix}{key}.")
    return flat


def digest(*parts: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of `parts`: equal for equal configurations, on every machine."""
    plain = [dataclasses.asdict(p) if dataclasses.is_dataclass(p) and not isinstance(p, type) else p for p in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def default_settings() -> dict[str, Any]:
    """What every key is where the command line says nothing."""
    found = flatten(Config())
    for entry in yaml.safe_load(read_text(CONF / "config.yaml"))["defaults"]:
        group, option = next(iter(entry.items())) if isinstance(entry, dict) else ("", None)
        if option and not group.startswith("override"):
            found |= flatten(yaml.safe_load(read_text(CONF / group / f"{option}.yaml")), f"{group}.")
    return found
