"""Re-estimation of the running statistics of batch norms in the quantized network."""

import torch
from torch import Tensor, nn

from ptq_exp.base.errors import UserError
from ptq_exp.quantization.context import Context
from ptq_exp.quantization.hooks import BATCH
from ptq_exp.quantization.options import QuantConfig
from ptq_exp.quantization.steps.step import Step


class ReestimateBatchNorm(Step):
    """Re-estimate the batch norms of the quantized network."""

    name = "re-estimate batch norm"
    reads = ("batch_norm_reestimation", "fold_batch_norm")

    def check(self, options: QuantConfig) -> None:
        if options.batch_norm_reestimation and options.fold_batch_norm:
            raise UserError("quant.batch_norm_reestimation=true needs quant.fold_batch_norm=false: no norm remains.")

    def run(self, context: Context) -> None:
        if context.options.batch_norm_reestimation:
            reestimate_batch_norm(context.network, context.images)


@torch.no_grad()
def reestimate_batch_norm(model: nn.Module, images: Tensor) -> None:
    """Replace the running statistics of every batch norm by those of the quantized network on `images`, in place.

    They are averages over batches of equal size (Sun et al. 2019, "Hybrid 8-bit training"). Few or unaugmented images
    can reduce the accuracy: with 1,024 of them, a float ResNet-20 lost three points.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d) and m.running_mean is not None]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # in torch, a cumulative average
        norm.train()
    for batch in images.tensor_split(-(-len(images) // BATCH)):  # a short last batch would count as much as a full one
        model(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
