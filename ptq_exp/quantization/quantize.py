"""`quantize`: the steps of a method, one after the other, and the report on what they did."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ptq_exp.base.errors import UserError
from ptq_exp.quantization.context import Calibration, Context, Progress
from ptq_exp.quantization.modules import plain_copy
from ptq_exp.quantization.options import QuantConfig
from ptq_exp.quantization.report import Report, make_report
from ptq_exp.quantization.rounding import target_layers
from ptq_exp.quantization.steps import STEPS


@dataclass(frozen=True)
class Quantized:
    """A quantized network and where it comes from."""

    network: nn.Module
    report: Report
    reference: nn.Module  # the float network with the same layers: batch norm folded, equalized; not to be changed
    plan: dict[str, float]  # the bits of every quantized layer


def quantize(
    model: nn.Module,
    options: QuantConfig,
    bits: int,
    calibration: Calibration,
    progress: Progress | None = None,
    store: Path | None = None,
) -> Quantized:
    """Quantize a copy of the float `model` to `bits` bits; `model` is left as it is.

    Quantizations that are given the same `calibration` share what does not depend on the bits. A folder `store` keeps
    every reconstructed unit, so that an interrupted reconstruction goes on there. Raises `UserError` if there is
    nothing to quantize.
    """
    if not target_layers(model, options.layers):
        raise UserError("The network has no convolution, so there is nothing to quantize.")
    reference = calibration.once(("float", model), lambda: plain_copy(model))
    context = Context(options, bits, calibration, reference, progress, store)
    for step in STEPS:
        step.run(context)
    return Quantized(context.network, make_report(context), context.reference, context.plan)
