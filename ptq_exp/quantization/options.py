"""What to quantize and how: the configuration group `quant`. Imports no torch, so that `--help` is quick."""

from dataclasses import dataclass, field
from typing import Any

BITS_RANGE = range(1, 17)
TERNARY = 1.6  # bits of a weight with three levels: five of them share a byte, 3^5 = 243


@dataclass
class ReconstructionConfig:
    """How rounding is learned where `quant.rounding` asks for it."""

    up_to_bits: int = 6
    act_up_to_bits: int = 8
    steps: int = 1000
    batch_size: int = 32
    lr: float = 0.01
    act_lr: float = 0.01
    penalty: float = 0.001
    drop: float = 0.5
    distill_steps: int = 0
    distill_batch_size: int = 64
    distill_lr: float = 0.005
    distill_mixup: float = 0.0


@dataclass
class QuantConfig:
    """One quantization method. The YAML files under `conf/quant/` say what each key does."""

    name: str = "notebook"
    bits: Any = field(default_factory=lambda: [4, 8])  # int or list of ints: OmegaConf has no such union
    sign_bit: str = "extra"
    grid: str = "symmetric"
    alpha_rule: str = "first_conv_std"
    alpha_multiplier: float = 3.0
    percentile: float = 99.9
    lp_norm: float = 2.4
    granularity: str = "model"
    layers: str = "conv"
    first_and_last: str = "same"
    layer_bits: dict[str, Any] = field(default_factory=dict)  # int, or TERNARY
    mixed: bool = False
    mixed_candidates: list[Any] = field(default_factory=lambda: [1, 2, 3, 4, 5, 6, 8])  # int, or TERNARY
    mean_bits: float | None = None
    size_budget: int | None = None
    act_bits: int | None = None
    act_alpha: float | None = None
    act_rule: str = "max"
    act_percentile: float = 99.99
    act_input_image: bool = False
    act_residual: bool = False
    calibration_images: int = 1024
    calibration_seed: int | None = None
    fold_batch_norm: bool = False
    equalize: bool = False
    bias_correction: bool = False
    batch_norm_reestimation: bool = False
    rounding: str = "nearest"
    reconstruction: ReconstructionConfig = field(default_factory=ReconstructionConfig)
    sensitivity: bool = False

    def bit_widths(self) -> list[int]:
        """The bit widths of this job, in the order given; one plan where mixed precision has a budget of its own."""
        if self.mean_bits is not None:
            return [max(1, round(self.mean_bits))]
        if self.size_budget is not None and isinstance(self.bits, list | tuple):
            return list(self.bits[:1])
        return list(self.bits) if isinstance(self.bits, list | tuple) else [self.bits]

    def validate(self) -> None:
        """Raise `UserError` for a value or a combination that a step of the method cannot do."""
        from ptq_exp.quantization.steps import STEPS  # needs torch, which --help must not import

        for step in STEPS:
            step.check(self)
