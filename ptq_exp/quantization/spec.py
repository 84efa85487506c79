"""What to quantize and how: the configuration group `quant`. Imports no torch, so that `--help` is quick."""

from dataclasses import dataclass, field
from typing import Any

from ptq_exp.errors import UserError, check_choice

BITS_RANGE = range(1, 17)


@dataclass
class QuantConfig:
    """One quantization method. The YAML files under `conf/quant/` say what each key does."""

    name: str = "notebook"
    bits: Any = field(default_factory=lambda: [4, 8])  # int or list of ints: OmegaConf has no such union
    sign_bit: str = "extra"
    alpha_rule: str = "first_conv_std"
    alpha_multiplier: float = 3.0
    granularity: str = "model"
    act_bits: int | None = None
    act_alpha: float | None = None
    calibration_images: int = 1024

    def bit_widths(self) -> list[int]:
        """The bit widths of this job, in the order given."""
        return list(self.bits) if isinstance(self.bits, list | tuple) else [self.bits]

    def validate(self) -> None:
        """Raise `UserError` for a value that no method can use."""
        from ptq_exp.quantization.ranges import ALPHA_RULES  # needs torch, which --help must not import

        check_choice("quant.alpha_rule", self.alpha_rule, ALPHA_RULES)
        check_choice("quant.sign_bit", self.sign_bit, ["extra", "included"])
        check_choice("quant.granularity", self.granularity, ["model", "tensor", "channel"])
        widths = self.bit_widths()
        if not widths:
            raise UserError("quant.bits is empty. Give a bit width or a list of them, quant.bits='[4,8]' for example.")
        for bits in widths:
            _check_bits("quant.bits", bits)
            if bits == 1 and self.sign_bit == "included":
                raise UserError(
                    "quant.bits=1 with quant.sign_bit=included leaves no level but zero. "
                    "Use quant.bits=2 (three levels), or quant.sign_bit=extra."
                )
        if len(set(widths)) < len(widths):
            raise UserError(f"quant.bits={widths} names a bit width twice.")
        if self.act_bits is not None:
            _check_bits("quant.act_bits", self.act_bits)
        if self.act_alpha is not None and self.act_alpha <= 0:
            raise UserError(f"quant.act_alpha={self.act_alpha} must be positive, or null to calibrate it.")
        if self.alpha_multiplier <= 0:
            raise UserError(f"quant.alpha_multiplier={self.alpha_multiplier} must be positive.")
        if self.calibration_images < 1:
            raise UserError(f"quant.calibration_images={self.calibration_images} must be at least 1.")


def _check_bits(key: str, bits: object) -> None:
    if isinstance(bits, bool) or not isinstance(bits, int) or bits not in BITS_RANGE:
        raise UserError(
            f"{key}={bits} is not a bit width. Allowed: whole numbers from {BITS_RANGE.start} to "
            f"{BITS_RANGE.stop - 1}, or a list of them, {key}='[4,8]' for example."
        )
