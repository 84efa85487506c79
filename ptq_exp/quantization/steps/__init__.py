"""The steps of a quantization method, in one file each. They run in the order of `STEPS`."""

from ptq_exp.base.options import check_options
from ptq_exp.quantization.options import QuantConfig
from ptq_exp.quantization.steps.balance_channels import BalanceChannels
from ptq_exp.quantization.steps.calibrate_activations import CalibrateActivations, CalibrateAfterLearning
from ptq_exp.quantization.steps.correct_biases import CorrectBiases
from ptq_exp.quantization.steps.distill import Distill
from ptq_exp.quantization.steps.equalize import Equalize
from ptq_exp.quantization.steps.expose_operations import ExposeOperations
from ptq_exp.quantization.steps.fold_batch_norm import FoldBatchNorm
from ptq_exp.quantization.steps.move_zero_points import MoveZeroPoints
from ptq_exp.quantization.steps.reconstruct import Reconstruct
from ptq_exp.quantization.steps.reestimate_batch_norm import ReestimateBatchNorm
from ptq_exp.quantization.steps.round_biases import RoundBiases
from ptq_exp.quantization.steps.round_weights import RoundWeights
from ptq_exp.quantization.steps.separate_ties import SeparateTies
from ptq_exp.quantization.steps.step import Step

STEPS: tuple[Step, ...] = (
    FoldBatchNorm(),
    Equalize(),
    BalanceChannels(),
    ExposeOperations(),
    RoundWeights(),
    CalibrateActivations(),
    Reconstruct(),
    Distill(),
    CalibrateAfterLearning(),
    SeparateTies(),
    CorrectBiases(),
    ReestimateBatchNorm(),
    MoveZeroPoints(),
    RoundBiases(),
)


def check_method(options: QuantConfig) -> None:
    """Raise `UserError` for a value that its field does not allow, or that a step does not support."""
    check_options(options, "quant.")
    for step in STEPS:
        step.check(options)
