"""What to quantize and how: the configuration group `quant`. Imports no torch, so that `--help` is quick."""

from dataclasses import dataclass
from typing import Any

from ptq_exp.base.errors import UserError, check_choice
from ptq_exp.base.options import check_options, option

BITS_RANGE = range(1, 17)
TERNARY = 1.6  # bits of a weight with three levels: five of them share a byte, 3^5 = 243


@dataclass
class ReconstructionConfig:
    """How rounding is learned where `quant.rounding` asks for it."""

    up_to_bits: int = option(
        6, "learn the rounding only if some weights have at most this many bits: with more, nothing is left to gain"
    )
    act_up_to_bits: int = option(8, "or if activations are quantized to at most this many bits")
    steps: int = option(1000, "optimizer steps per layer or block", above=0)
    batch_size: int = option(32, "images per step", above=0)
    lr: float = option(0.01, "learning rate of the rounding variables", above=0)
    act_lr: float = option(
        0.01,
        "learning rate of the logarithm of the activations' clipping values; 0 keeps the calibrated ones",
        at_least=0,
    )
    penalty: float = option(0.001, "weight of the term that makes every weight decide between up and down", at_least=0)
    drop: float = option(
        0.5, "share of activations left unquantized at random while learning (QDrop)", at_least=0, below=1
    )
    distill_steps: int = option(
        0,
        "distillation steps on the whole network after reconstruction, towards the float predictions; 0: none",
        at_least=0,
    )
    distill_batch_size: int = option(64, "images per step of the distillation", above=0)
    distill_lr: float = option(
        0.005,
        "learning rate of the weights in units of their scale, of biases, and of the logarithm of scales",
        above=0,
    )
    distill_mixup: float = option(0.0, "share of the images that are blended with another one", at_least=0, at_most=1)


@dataclass
class QuantConfig:
    """One quantization method. The YAML files under `conf/quant/` name only what they change."""

    name: str = "notebook"
    bits: Any = option(  # OmegaConf has no union of int and list
        [4, 8], "a bit width from 1 to 16, or a list of them", kind="int or list[int]"
    )
    sign_bit: str = option(
        "extra",
        "extra: b bits of magnitude plus a sign, b+1 stored, 2(2^b-1)+1 levels (the notebook); "
        "included: b bits in all, 2(2^(b-1)-1)+1 levels",
        choices=["extra", "included"],
    )
    grid: str = option(
        "symmetric",
        "symmetric, asymmetric (2^b levels, a zero-point), float_zero_point (zero need not be a level), "
        "power_of_two (scales), apot (levels)",
        choices=["symmetric", "asymmetric", "float_zero_point", "power_of_two", "apot"],
    )
    alpha_rule: str = option(
        "first_conv_std",
        "rule for the clipping value alpha (ptq_exp/quantization/rules)",
        kind="str: first_conv_std, std, max, percentile, mse, lp",
    )
    alpha_multiplier: float = option(3.0, "first_conv_std and std: alpha in standard deviations", above=0)
    percentile: float = option(99.9, "alpha_rule=percentile: percent of the weights within alpha", above=0, at_most=100)
    lp_norm: float = option(2.4, "alpha_rule=lp: the norm of the rounding error that is minimized", above=0)
    granularity: str = option(
        "model",
        "weights that share an alpha: those of the model, a tensor, or an output channel",
        choices=["model", "tensor", "channel"],
    )
    layers: str = option("conv", "layers to quantize: conv, or all (with the linear layer)", choices=["conv", "all"])
    first_and_last: str = option(
        "same",
        "bits of the first and the last layer: same as the others, eight, or float",
        choices=["same", "eight", "float"],
    )
    layer_bits: dict[str, Any] = option(
        {},
        "bits by name pattern, {\"layer3.*\": 3, linear: 8}; typed: '+quant.layer_bits={layer3.*:3,linear:8}'",
        kind="dict[str, int or 1.6]",
    )
    mixed: bool = option(False, "true: choose every layer's bits so that they are quant.bits on average")
    mixed_candidates: list[Any] = option(
        [1, 2, 3, 4, 5, 6, 8],
        "bits to choose from; 1.6: three levels, five weights in a byte (grids with a zero-point)",
        kind="list[int or 1.6]",
    )
    mean_bits: float | None = option(
        None, "mixed: average to meet instead of quant.bits (stored bits, including the sign)", above=0
    )
    size_budget: int | None = option(None, "mixed: size of the whole network to meet instead, in bytes", above=0)
    act_bits: int | None = option(None, "bits of the input of every quantized layer; null: activations stay float")
    act_alpha: float | None = option(
        None, "clipping value of the activations; null: calibrated for each layer", above=0
    )
    act_rule: str = option(
        "max",
        "rule for the activations' clipping values (percentile and mse use a histogram)",
        kind="str: max, percentile, mse",
    )
    act_percentile: float = option(
        99.99, "act_rule=percentile: percent of the values within the clipping value", above=0, at_most=100
    )
    act_input_image: bool = option(False, "true: quantize the image that enters the first layer, too")
    act_residual: bool = option(False, "true: quantize the two operands of every residual addition, too")
    calibration_images: int = option(
        1024, "calibration images, drawn from the training images by the seed; their labels are not used", at_least=1
    )
    calibration_seed: int | None = option(None, "seed of that draw and of learned rounding; null: seed")
    fold_batch_norm: bool = option(False, "true: fold batch norms into the convolutions before quantization")
    equalize: bool = option(False, "true: cross-layer equalization of weight ranges (needs fold_batch_norm)")
    bias_correction: bool = option(False, "true: restore the float network's mean output of every channel")
    batch_norm_reestimation: bool = option(
        False, "true: re-estimate running statistics on calibration images; can do harm"
    )
    rounding: str = option(
        "nearest",
        "how weights are rounded: nearest, adaround (learned for each layer), block (learned for each residual block)",
        choices=["nearest", "adaround", "block"],
    )
    reconstruction: ReconstructionConfig = option(ReconstructionConfig, "how rounding is learned")
    sensitivity: bool = option(False, "true: also evaluate the network with one layer quantized at a time")

    def bit_widths(self) -> list[int]:
        """The bit widths of this job, in the order given; one plan where mixed precision has a budget of its own."""
        if self.mean_bits is not None:
            return [max(1, round(self.mean_bits))]
        if self.size_budget is not None and isinstance(self.bits, list | tuple):
            return list(self.bits[:1])
        return list(self.bits) if isinstance(self.bits, list | tuple) else [self.bits]

    def validate(self) -> None:
        """Raise `UserError` for a value or a combination that no method can use."""
        # Rules are functions, which may be added, and need torch, which --help must not import.
        from ptq_exp.quantization.activations import OBSERVERS
        from ptq_exp.quantization.ranges import ALPHA_RULES

        check_options(self, "quant.")
        check_choice("quant.alpha_rule", self.alpha_rule, ALPHA_RULES)
        check_choice("quant.act_rule", self.act_rule, OBSERVERS)
        self._validate_bits()
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
