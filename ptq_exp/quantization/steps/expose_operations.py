"""Functional operations as modules, so that their operands can be quantized."""

from torch import nn

from ptq_exp.base.errors import UserError
from ptq_exp.networks.graph import expose
from ptq_exp.quantization.context import Context
from ptq_exp.quantization.coverage import covers_operations
from ptq_exp.quantization.layers import OPAQUE
from ptq_exp.quantization.options import QuantConfig
from ptq_exp.quantization.steps.step import Step


class ExposeOperations(Step):
    """Give the operations whose operands will be quantized a module of their own in the float network."""

    name = "expose operations"
    reads = ("act_bits", "act_residual", "act_coverage", "layers", "first_and_last")

    def check(self, options: QuantConfig) -> None:
        partly = options.layers != "all" or options.first_and_last == "float"
        if options.act_coverage == "all" and partly:
            raise UserError(
                "quant.act_coverage=all describes an execution in integers, so every layer must be quantized. Set "
                "quant.layers=all, and not quant.first_and_last=float."
            )

    def run(self, context: Context) -> None:
        if covers_operations(context.options):
            context.change_reference(_with_all if context.options.act_coverage == "all" else _with_additions)


def _with_additions(network: nn.Module) -> nn.Module:
    return expose(network, additions_only=True, opaque=OPAQUE)


def _with_all(network: nn.Module) -> nn.Module:
    return expose(network, additions_only=False, opaque=OPAQUE)
