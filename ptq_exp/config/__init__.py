"""The configuration of a job, composed of the packages' options, with checks beyond types.

The dataclasses are plain Python, so building a `Config` by hand needs neither Hydra nor OmegaConf.
"""

import dataclasses
import os
import re
from typing import Any

from ptq_exp.base.errors import UserError, unknown_key
from ptq_exp.base.options import check_options
from ptq_exp.config.method import words_of
from ptq_exp.config.schema import Config
from ptq_exp.export import check_formats

__all__ = ["SWEPT_VARIABLE", "Config", "before_the_job", "from_hydra", "network_name", "swept_keys", "validate"]

# The keys with several values, set by a sweep for its jobs in any process.
SWEPT_VARIABLE = "PTQ_EXP_SWEPT_KEYS"


def swept_keys() -> list[str]:
    """The keys that differ between the jobs of this job's sweep. Empty outside a sweep."""
    return os.environ.get(SWEPT_VARIABLE, "").split()


def before_the_job(cfg: Any) -> Config:
    """The `Config` of a composed node before its job runs, without the values that only a running job has."""
    from omegaconf import OmegaConf

    known = {str(key): cfg[key] for key in cfg if key != "hydra" and not OmegaConf.is_interpolation(cfg, key)}
    values: dict[str, Any] = {k: OmegaConf.to_object(v) if OmegaConf.is_config(v) else v for k, v in known.items()}
    config = Config()
    vars(config).update(values, command=list(cfg.hydra.overrides.task))
    _refuse_unknown(config)
    return config


def from_hydra(cfg: Any) -> Config:
    """The typed and validated `Config` of a composed OmegaConf node, or of a `Config`."""
    if not isinstance(cfg, Config):
        from omegaconf import OmegaConf

        cfg = OmegaConf.to_object(cfg)
        _refuse_unknown(cfg)
    validate(cfg)
    if cfg.model.get("name") is None:
        cfg.model["name"] = network_name(cfg.model)
    cfg.quant.name = " ".join(words_of(cfg))
    return cfg


def network_name(model: dict[str, Any]) -> str:
    """The name of a network without a `model.name`: its class, or the name that its constructor is given."""
    target = str(model.get("target") or model.get("architecture"))
    args = model.get("args") or {}
    return str(args.get("model_name") or re.split(r"[.:/]", target)[-1])


def _refuse_unknown(node: Any, prefix: str = "") -> None:
    """Reject unknown keys, as Hydra does without a plus sign. `+quant.bitss=4` would add a key that nothing reads."""
    known = [field.name for field in dataclasses.fields(node)]
    for key, value in vars(node).items():
        if key not in known:
            raise unknown_key(f"{prefix}{key}", [f"{prefix}{name}" for name in sorted(known)])
        if dataclasses.is_dataclass(value):
            _refuse_unknown(value, f"{prefix}{key}.")


def validate(config: Config) -> None:
    """Raise `UserError` for the first invalid value, before anything is computed."""
    from ptq_exp.quantization.steps import check_method  # needs torch, which --help must not import

    check_options(config)
    if not isinstance(config.export, str | list | tuple | None):
        raise UserError(f"export={config.export} is no format. Give one, or a list: export='[onnx,packed]'.")
    check_formats(config.formats)
    check_method(config.quant)
    config.data.check()
    config.tracking.check()
    _check_search(config)
    if config.trainer.select == "best_validation" and config.data.validation_images == 0:
        raise UserError("trainer.select=best_validation needs validation images. Set data.validation_images=1000.")
    if config.trainer.select == "best_test" and config.data.validation_images > 0:
        raise UserError("With data.validation_images, use trainer.select=best_validation instead of best_test.")


def _check_search(config: Config) -> None:
    """Reject a search whose widths are given twice, and keys of a search without one."""
    search, typed = config.search, config.typed
    if search.name is None:
        if unused := sorted(key for key in typed if key.startswith("search.")):
            raise UserError(f"{unused[0]} has no effect without search=fewest.")
        return
    search.check()
    for key, axis, widths in (
        ("quant.bits", "weights", "search.bits"), ("quant.act_bits", "activations", "search.act_bits"),
        ("quant.mean_bits", "weights", "search.bits"), ("quant.size_budget", "weights", "search.bits"),
    ):  # fmt: skip
        if axis in search.over and key in typed:
            raise UserError(f"search={search.name} chooses {key}. {widths} holds the widths that it tries.")
    if "weights" not in search.over and len(config.quant.bit_widths()) > 1:
        raise UserError(
            "search.over=[activations] needs one width of the weights: quant.bits=4. To search both: "
            "search.over='[weights,activations]'."
        )
