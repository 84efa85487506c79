"""Distillation of the whole quantized network."""

from ptq_exp.base.errors import UserError
from ptq_exp.quantization.context import Context, shown
from ptq_exp.quantization.distillation import distill
from ptq_exp.quantization.learning import learn_once, reconstruction_share, worth_learning
from ptq_exp.quantization.options import QuantConfig
from ptq_exp.quantization.steps.step import Step

DRAW = 999  # number of this random draw, above those of the units, which are numbered from 0


class Distill(Step):
    """Distill the float network into the quantized one."""

    name = "distill"
    reads = ("rounding", "reconstruction", "act_bits", "act_learned", "grid")

    def check(self, options: QuantConfig) -> None:
        how = options.reconstruction
        if how.distill_steps and options.grid == "apot":
            raise UserError("quant.reconstruction.distill_steps needs a uniform grid, not quant.grid=apot.")
        if how.distill_steps and options.grid == "power_of_two":
            raise UserError("quant.reconstruction.distill_steps learns scales, which quant.grid=power_of_two fixes.")

    def run(self, context: Context) -> None:
        how = context.options.reconstruction

        def learn() -> None:
            span = (reconstruction_share(context.options), 1.0)
            with shown(context.progress, "Distilling the network", how.distill_steps, span) as advance:
                distill(context.network, context.reference, context.images, how, advance)

        if how.distill_steps and worth_learning(context):
            learn_once(context, context.network, "distilled", DRAW, learn)
