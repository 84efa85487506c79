"""`ptq_exp.quantize`: a network of the user's, quantized."""

import dataclasses
import operator
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ptq_exp.base.console import progress
from ptq_exp.base.errors import UserError
from ptq_exp.base.options import flatten
from ptq_exp.config.keywords import method_options
from ptq_exp.evaluation.norm_statistics import count_calls, divergences, trained_norms
from ptq_exp.export.network_file import save_quantized
from ptq_exp.networks.graph.calling import needs_contiguous_images
from ptq_exp.networks.store import weights_digest
from ptq_exp.quantization import quantize as quantization
from ptq_exp.quantization.context import Calibration
from ptq_exp.quantization.idle import idle
from ptq_exp.quantization.layer_report import LayerReport
from ptq_exp.quantization.layers import quantized_layers
from ptq_exp.quantization.modules import counters
from ptq_exp.quantization.options import QuantConfig
from ptq_exp.quantization.report import FLOAT_BYTES, Report
from ptq_exp.quantization.steps import check_method
from ptq_exp.runs.api.calling import as_given, check_images, device_of, exact, ready_copy
from ptq_exp.runs.api.float_network import FloatNetwork
from ptq_exp.runs.shared import drawn

UNUSED = ("name", "sensitivity")  # keys of `quant` that only a job reads
# Images that are normalized as in training stay far below this at the first batch norm, even a few of one class.
NOT_NORMALIZED = 0.3  # nats per channel
SAMPLE = 256  # images for this check


@dataclass(frozen=True, repr=False)
class QuantizedModel:
    """A quantized network, and what is known about it.

    `network` takes normalized images (N, C, H, W) and returns logits (N, classes). The files of the network contain
    `about`, to which `classes`, `mean` and `std` may be added.
    """

    network: nn.Module
    report: Report
    options: QuantConfig  # the method with all keys
    about: dict[str, Any]
    float_network: nn.Module  # the network as it was before quantization
    image: Tensor  # one calibration image (C, H, W)

    @property
    def layers(self) -> list[LayerReport]:
        """One entry per quantized layer: bits, range, clipped weights, levels in use, SQNR."""
        return self.report.layers

    @property
    def bits_mean(self) -> float:
        """Mean number of stored bits per quantized weight, including the sign."""
        return self.report.bits_mean

    @property
    def size_bytes(self) -> int:
        """Packed codes, and everything else in float32."""
        return self.report.size_bytes

    @property
    def size_bytes_float(self) -> int:
        """The size of the float network in float32."""
        state, skipped = self.float_network.state_dict(), counters(self.float_network)
        return FLOAT_BYTES * sum(x.numel() for name, x in state.items() if name not in skipped)

    def table(self) -> str:
        """The quantized layers as a table for the terminal."""
        rows = [("layer", "shape", "bits", "alpha", "clipped %", "SQNR dB", "output SQNR dB")]
        rows += [
            (x.layer, x.shape, f"{x.stored_bits:g}", f"{x.alpha:.4f}", f"{x.clipped_percent:.2f}", f"{x.sqnr_db:.1f}",
             f"{x.output_sqnr_db:.1f}") for x in self.layers
        ]  # fmt: skip
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [[cell.rjust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
        return "\n".join("  ".join([row[0].ljust(widths[0]), *line[1:]]) for row, line in zip(rows, lines, strict=True))

    def save(self, path: str | Path) -> Path:
        """Write the packed file, which `ptq_exp.load` reads. Returns its path."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_quantized(self.network, path, self.about)
        return path

    def __repr__(self) -> str:
        activations = f", {self.options.act_bits}-bit activations" if self.options.act_bits else ""
        return (
            f"{self.options.name}: {self.bits_mean:.4g} bits per weight{activations}, {len(self.layers)} layers, "
            f"{self.report.quantized_percent:.1f} % of the weights, {self.size_bytes / 1000:.1f} kB "
            f"(float {self.size_bytes_float / 1000:.1f} kB)"
        )


def quantize(
    model: nn.Module | FloatNetwork, images: Tensor, bits: int, method: str, changes: Mapping[str, Any]
) -> QuantizedModel:
    """A quantized copy of `model`. See `ptq_exp.quantize`."""
    options = options_of(bits, method, changes)
    check_images(images)
    given = model.network if isinstance(model, FloatNetwork | QuantizedModel) else model
    if quantized_layers(given):
        raise UserError("The network is quantized already. Give the float network.")
    network = ready_copy(given, images)
    seed = options.calibration_seed or 0
    chosen = as_given(drawn(images, options.calibration_images, seed).to(device_of(network)))
    warn_unless_normalized(network, chosen)
    device = device_of(network)
    own_numbers = torch.random.fork_rng([device] if device.type == "cuda" else [])
    with torch.inference_mode(False), exact(), torch.enable_grad(), own_numbers:
        chosen = chosen.clone() if chosen.is_inference() else chosen.detach()
        result = quantization.quantize(network, options, options.bit_widths()[0], Calibration(chosen, seed), progress)
    about = {"quant": dataclasses.asdict(options), "contiguous": needs_contiguous_images(network)}
    about |= model.about if isinstance(model, FloatNetwork) else described(given, network, chosen)
    return QuantizedModel(result.network, result.report, options, about, network, chosen[0])


def options_of(bits: int, method: str, changes: Mapping[str, Any]) -> QuantConfig:
    """The checked options. Raises `UserError` for a key or a value that is not allowed."""
    for key in UNUSED:
        if key in changes:
            raise UserError(f"{key} has no effect in ptq_exp.quantize.")
    try:
        bits = operator.index(bits)
    except TypeError:
        raise UserError(f"bits={bits!r} is not a bit width. Call ptq_exp.quantize once for each bit width.") from None
    options = method_options(method, changes)
    options.bits = bits
    check_method(options)
    given = [key for name, value in changes.items() for key in flatten({name: value})]
    for sentence in idle(options, given):
        warnings.warn(sentence, stacklevel=4)
    return options


def described(given: nn.Module, network: nn.Module, images: Tensor) -> dict[str, Any]:
    """What a file says about a network whose constructor is not known."""
    kind = type(given)
    return {
        "model": {"architecture": "custom", "target": f"{kind.__module__}.{kind.__qualname__}", "instance": True},
        "classes": [str(number) for number in range(network(images[:1]).shape[1])],
        "float_digest": weights_digest(network),
    }


def warn_unless_normalized(network: nn.Module, images: Tensor) -> None:
    """Warn if the images are obviously not normalized as in the training of the network."""
    norms, sample = trained_norms(network), images[:SAMPLE]
    calls = count_calls(network, norms, sample[:1])
    if not calls:
        if images.min() >= 0:
            warnings.warn("Images must be normalized, but these have no negative values.", stacklevel=4)
        return
    first = next(iter(calls))
    (found,) = divergences(network, {first: norms[first]}, [], [sample], first_only=True).values()
    if found > NOT_NORMALIZED:
        warnings.warn(
            f"The images do not fit the network: at {first}, its first batch norm, they differ from the statistics "
            f"stored in training by {found:.2f} nats per channel. Normalize them as in training.",
            stacklevel=4,
        )
