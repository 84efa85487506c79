"""`quantize`: run the steps of a method in order, and report on the result."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ptq_exp.base.errors import UserError
from ptq_exp.quantization.context import Calibration, Context, Progress
from ptq_exp.quantization.effective_weights import target_layers
from ptq_exp.quantization.modules import plain_copy
from ptq_exp.quantization.options import QuantConfig
from ptq_exp.quantization.report import Report, make_report
from ptq_exp.quantization.steps import STEPS


@dataclass(frozen=True)
class Quantized:
    """A quantized network with its report, its float reference and its plan."""

    network: nn.Module
    report: Report
    reference: nn.Module  # the float network with the same layers (batch norm folded, equalized); must not be changed
    plan: dict[str, float]  # the bits of every quantized layer


def quantize(
    model: nn.Module,
    options: QuantConfig,
    bits: int,
    calibration: Calibration,
    progress: Progress | None = None,
    store: Path | None = None,
) -> Quantized:
    """Quantize a copy of the float `model` to `bits` bits; `model` stays unchanged.

    Quantizations with the same `calibration` share values that do not depend on the bits. The folder `store` keeps
    every reconstructed unit, so that an interrupted reconstruction can continue. Raises `UserError` if there is nothing
    to quantize.
    """
    reference = calibration.once(("float", model), lambda: plain_copy(model))
    if not target_layers(reference, options.layers):
        raise UserError("The network has no convolution, so there is nothing to quantize.")
    context = Context(options, bits, calibration, reference, progress, store)
    for step in STEPS:
        step.run(context)
    return Quantized(context.network, make_report(context), context.reference, context.plan)
