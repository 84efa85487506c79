"""What to quantize and how: the configuration group `quant`. Imports no torch, so that `--help` is fast."""

from dataclasses import dataclass
from typing import Any

from ptq_exp.base.options import option

BITS_RANGE = range(1, 17)
TERNARY = 1.6  # bits per weight with three levels: five weights share a byte, 3^5 = 243


@dataclass
class ReconstructionConfig:
    """How rounding is learned if `quant.rounding` is adaround or block."""

    up_to_bits: int = option(
        6, "learn the rounding only if some weights have at most this many bits; with more there is nothing to gain"
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
    penalty: float = option(0.001, "weight of the penalty that makes every weight round either up or down", at_least=0)
    drop: float = option(
        0.5, "share of activations left unquantized at random while learning (QDrop)", at_least=0, below=1
    )
    memory_gib: float = option(
        4.0,
        "GiB for the inputs and targets of the layer or block that is learned; where those of all calibration images "
        "need more, they are computed in portions",
        above=0,
    )
    distill_steps: int = option(
        0,
        "distillation steps on the whole network after reconstruction, towards the float predictions; 0: none",
        at_least=0,
    )
    distill_batch_size: int = option(64, "images per distillation step", above=0)
    distill_lr: float = option(
        0.005,
        "learning rate of the weights in units of their scale, of the biases, and of the logarithm of the scales",
        above=0,
    )
    distill_mixup: float = option(0.0, "share of the images that are blended with another image", at_least=0, at_most=1)
    distill_cutmix: float = option(
        0.0, "share of the images in which a rectangle is replaced with that of another image", at_least=0, at_most=1
    )
    distill_temperature: float = option(
        1.0, "both networks' logits are divided by it: above 1, unlikely classes count more", above=0
    )
    distill_mirrored: bool = option(
        False,
        "true: distill the mean of the float network's predictions for each image and its mirror image; only for "
        "images whose mirror image has the same class, unlike digits",
    )


@dataclass
class QuantConfig:
    """One quantization method. The YAML files in `conf/quant/` contain only what they change."""

    name: str = "notebook"
    bits: Any = option(  # OmegaConf has no union of int and list
        [4, 8], "a bit width from 1 to 16, or a list of them", kind="int or list[int]"
    )
    sign_bit: str = option(
        "extra",
        "extra: b bits of magnitude plus a sign, b+1 stored, 2(2^b-1)+1 levels (the notebook); "
        "included: b bits in total, 2(2^(b-1)-1)+1 levels",
        choices=["extra", "included"],
    )
    grid: str = option(
        "symmetric",
        "symmetric, asymmetric (2^b levels, integer zero-point), float_zero_point (zero need not be a level), "
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
        "weights that share an alpha: those of the model, of a tensor, or of an output channel",
        choices=["model", "tensor", "channel"],
    )
    layers: str = option(
        "conv", "layers to quantize: conv, or all (including the linear layer)", choices=["conv", "all"]
    )
    first_and_last: str = option(
        "same",
        "bits of the first and the last layer: same as the others, eight, or float",
        choices=["same", "eight", "float"],
    )
    layer_bits: dict[str, Any] = option(
        {},
        'bits by name pattern, {"layer3.*": 3, linear: 8}; on the command line '
        "'+quant.layer_bits={layer3.*:3,linear:8}'",
        kind="dict[str, int or 1.6]",
    )
    mixed: bool = option(False, "true: choose the bits of each layer so that they are quant.bits on average")
    mixed_candidates: list[Any] = option(
        [1, 2, 3, 4, 5, 6, 8],
        "bits to choose from; 1.6: three levels, five weights per byte (grids with a zero-point)",
        kind="list[int or 1.6]",
    )
    mean_bits: float | None = option(
        None, "mixed: budget instead of quant.bits: mean stored bits per weight (including sign)", above=0
    )
    size_budget: int | None = option(
        None, "mixed: budget instead of quant.bits: size of the whole network in bytes", above=0
    )
    act_bits: int | None = option(None, "bits of the inputs of quantized layers; null: activations stay float")
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
    act_coverage: str = option(
        "layers",
        "tensors whose activations are quantized: layers (the inputs of quantized layers), or all (also the image and "
        "the operands of additions, products, pooling, concatenation, norms and curved activation functions)",
        choices=["layers", "all"],
    )
    act_zero_point: bool = option(
        False, "true: tensors with negative values get a zero-point instead of a signed symmetric range"
    )
    reduce_range: bool = option(
        False,
        "true: at most 7 bits, sign included, for weights of layers whose input has negative values. Sums of two "
        "products then fit the 16 bits of processors without VNNI (needs act_bits, and grid=symmetric or power_of_two)",
    )
    act_learned: bool = option(
        True,
        "with learned rounding, true: weights are learned with quantized activations, whose clipping values are "
        "learned, too; false: activations are quantized afterwards, with calibrated clipping values",
    )
    act_input_image: bool = option(False, "true: also quantize the image that enters the first layer")
    act_residual: bool = option(False, "true: also quantize the two operands of every residual addition")
    scales: str = option(
        "real",
        "scales of activations: real, or power_of_two, which needs grid=power_of_two for the weights: integer runtimes "
        "then shift instead of multiplying, and with integer_biases they compute exactly what is simulated",
        choices=["real", "power_of_two"],
    )
    integer_biases: bool = option(
        False, "true: round biases to what the int32 accumulator of an integer runtime can hold (needs act_bits)"
    )
    calibration_images: int = option(
        1024,
        "number of calibration images, drawn from the training images by the seed; their labels are not used",
        at_least=1,
    )
    calibration_seed: int | None = option(
        None, "seed of the draw of calibration images and of learned rounding; null: seed", at_least=0, below=2**32
    )
    fold_batch_norm: bool = option(False, "true: fold batch norms into the convolutions before quantization")
    equalize: bool = option(False, "true: cross-layer equalization of weight ranges (needs fold_batch_norm)")
    bias_correction: bool = option(
        False, "true: correct the biases so that the mean output of every channel matches the float network's"
    )
    batch_norm_reestimation: bool = option(
        False, "true: re-estimate running statistics on calibration images; can reduce accuracy"
    )
    rounding: str = option(
        "nearest",
        "how weights are rounded: nearest, adaround (learned per layer), block (learned per residual block)",
        choices=["nearest", "adaround", "block"],
    )
    reconstruction: ReconstructionConfig = option(ReconstructionConfig, "how rounding is learned")
    sensitivity: bool = option(False, "true: also evaluate the network with one layer quantized at a time")

    @property
    def learned_act_bits(self) -> int | None:
        """The bits of the activations while weights are learned; None if activations stay float until then."""
        return self.act_bits if self.act_learned else None

    @property
    def learns(self) -> bool:
        """Whether weights are learned where it is worthwhile, not only rounded to nearest."""
        return self.rounding != "nearest" or self.reconstruction.distill_steps > 0

    @property
    def quantizes_image(self) -> bool:
        """Whether the image that enters the first layer is quantized, if activations are."""
        return self.act_input_image or self.act_coverage == "all"

    def bit_widths(self) -> list[int]:
        """The bit widths of this job, in the given order; a single one if mixed precision has its own budget."""
        if self.mean_bits is not None:
            return [max(1, round(self.mean_bits))]
        if self.size_budget is not None and isinstance(self.bits, list | tuple):
            return list(self.bits[:1])
        return list(self.bits) if isinstance(self.bits, list | tuple) else [self.bits]
