"""What to quantize and how: the configuration group `quant`. Imports no torch, so that `--help` is quick."""

from dataclasses import dataclass, field
from typing import Any

from ptq_exp.base.errors import UserError, check_choice

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
        """Raise `UserError` for a value or a combination that no method can use."""
        # These need torch, which --help must not import.
        from ptq_exp.quantization.activations import OBSERVERS
        from ptq_exp.quantization.grids import GRIDS
        from ptq_exp.quantization.ranges import ALPHA_RULES

        check_choice("quant.alpha_rule", self.alpha_rule, ALPHA_RULES)
        check_choice("quant.act_rule", self.act_rule, OBSERVERS)
        check_choice("quant.grid", self.grid, GRIDS)
        check_choice("quant.sign_bit", self.sign_bit, ["extra", "included"])
        check_choice("quant.granularity", self.granularity, ["model", "tensor", "channel"])
        check_choice("quant.layers", self.layers, ["conv", "all"])
        check_choice("quant.first_and_last", self.first_and_last, ["same", "eight", "float"])
        check_choice("quant.rounding", self.rounding, ["nearest", "adaround", "block"])
        self._validate_bits()
        self._validate_numbers()
        self._validate_combinations()

    def _validate_bits(self) -> None:
        from ptq_exp.quantization.grids import TWO_SIDED

        widths, two_sided = self.bit_widths(), self.grid in TWO_SIDED
        if not widths:
            raise UserError("quant.bits is empty. Give a bit width or a list of them, quant.bits='[4,8]' for example.")
        for key, bits in (
            [("quant.bits", b) for b in widths]
            + [(f"quant.layer_bits.{name}", b) for name, b in self.layer_bits.items()]
            + [("quant.mixed_candidates", b) for b in self.mixed_candidates if self.mixed]
        ):
            if bits == TERNARY and two_sided and key != "quant.bits":
                continue
            _check_bits(key, bits)
            if bits == 1 and self.sign_bit == "included" and not two_sided:
                raise UserError(
                    f"{key}=1 with quant.sign_bit=included leaves no level but zero. Use 2 bits (three levels), "
                    f"quant.sign_bit=extra, or quant.grid=float_zero_point."
                )
        if len(set(widths)) < len(widths):
            raise UserError(f"quant.bits={widths} names a bit width twice.")
        if self.act_bits is not None:
            _check_bits("quant.act_bits", self.act_bits)

    def _validate_numbers(self) -> None:
        positive = {
            "alpha_multiplier": self.alpha_multiplier, "lp_norm": self.lp_norm, "act_alpha": self.act_alpha,
            "mean_bits": self.mean_bits, "size_budget": self.size_budget,
            "reconstruction.steps": self.reconstruction.steps,
            "reconstruction.batch_size": self.reconstruction.batch_size,
            "reconstruction.lr": self.reconstruction.lr,
            "reconstruction.distill_batch_size": self.reconstruction.distill_batch_size,
            "reconstruction.distill_lr": self.reconstruction.distill_lr,
        }  # fmt: skip
        for key, value in positive.items():
            if value is not None and value <= 0:
                raise UserError(f"quant.{key}={value} must be positive.")
        for key in ("act_lr", "penalty", "distill_steps"):
            if getattr(self.reconstruction, key) < 0:
                raise UserError(f"quant.reconstruction.{key} must not be negative.")
        for key in ("percentile", "act_percentile"):
            if not 0 < getattr(self, key) <= 100:
                raise UserError(f"quant.{key}={getattr(self, key)} must lie above 0 and at most at 100.")
        if not 0 <= self.reconstruction.distill_mixup <= 1:
            mixup = self.reconstruction.distill_mixup
            raise UserError(f"quant.reconstruction.distill_mixup={mixup} must lie between 0 and 1.")
        if not 0 <= self.reconstruction.drop < 1:
            raise UserError(f"quant.reconstruction.drop={self.reconstruction.drop} must be at least 0 and below 1.")
        if self.calibration_images < 1:
            raise UserError(f"quant.calibration_images={self.calibration_images} must be at least 1.")

    def _validate_combinations(self) -> None:
        if self.equalize and not self.fold_batch_norm:
            raise UserError("quant.equalize=true needs quant.fold_batch_norm=true: it moves scale between layers.")
        if self.batch_norm_reestimation and self.fold_batch_norm:
            raise UserError("quant.batch_norm_reestimation=true needs quant.fold_batch_norm=false: no norm is left.")
        if self.rounding != "nearest" and self.grid == "apot":
            raise UserError(f"quant.rounding={self.rounding} needs a uniform grid. Allowed with apot: nearest.")
        if self.reconstruction.distill_steps and self.grid == "apot":
            raise UserError("quant.reconstruction.distill_steps needs a uniform grid, not quant.grid=apot.")
        if self.grid == "power_of_two" and self.reconstruction.distill_steps:
            raise UserError("quant.reconstruction.distill_steps learns scales, which quant.grid=power_of_two fixes.")
        if self.mean_bits is not None and self.size_budget is not None:
            raise UserError("quant.mean_bits and quant.size_budget are two names of one limit. Give one of them.")
        if (self.mean_bits or self.size_budget) and not self.mixed:
            raise UserError("quant.mean_bits and quant.size_budget have no effect without quant.mixed=true.")
        if self.mixed and (self.layer_bits or self.first_and_last != "same"):
            raise UserError("quant.mixed=true chooses every layer's bits: leave layer_bits and first_and_last alone.")
        several = bool(self.layer_bits) or self.first_and_last == "eight"
        if several and self.granularity == "model" and self.alpha_rule in ("mse", "lp"):
            raise UserError(
                f"quant.alpha_rule={self.alpha_rule} finds the best range for one bit width: layers of several widths "
                f"cannot share it. Set quant.granularity=channel or tensor."
            )
        if self.mixed and self.granularity == "model":
            raise UserError("Mixed precision needs a range for each layer. Set quant.granularity=channel or tensor.")


def _check_bits(key: str, bits: object) -> None:
    if isinstance(bits, bool) or not isinstance(bits, int) or bits not in BITS_RANGE:
        raise UserError(
            f"{key}={bits} is not a bit width. Allowed: whole numbers from {BITS_RANGE.start} to "
            f"{BITS_RANGE.stop - 1}, or a list of them, {key}='[4,8]' for example."
        )
