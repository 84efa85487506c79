"""Folding of batch norms into the preceding convolutions."""

import torch
from torch import nn

from ptq_exp.networks.graph import batch_norm_pairs
from ptq_exp.quantization.context import Context
from ptq_exp.quantization.layers import ActivationQuantizer, QuantizedOperation
from ptq_exp.quantization.modules import replace_module
from ptq_exp.quantization.steps.step import Step


class FoldBatchNorm(Step):
    """Fold the batch norms of the float network."""

    name = "fold batch norm"
    reads = ("fold_batch_norm",)

    def run(self, context: Context) -> None:
        if context.options.fold_batch_norm:
            context.change_reference(fold_batch_norm)


@torch.no_grad()
def fold_batch_norm(model: nn.Module) -> list[str]:
    """Fold every batch norm that follows a convolution into its weights and bias, in place. Returns the norms' names.

    The function of the network stays the same (Jacob et al. 2018, section 3.2, equation 14). A batch norm stays if the
    graph does not prove that it can be folded.
    """
    # Quantized layers are traced into: for a fast evaluation, their convolutions are folded, too.
    pairs = batch_norm_pairs(model, (ActivationQuantizer, QuantizedOperation))
    for conv_name, norm_name in pairs:
        conv, norm = model.get_submodule(conv_name), model.get_submodule(norm_name)
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        deviation = torch.sqrt(norm.running_var + norm.eps)
        factor = 1 / deviation if norm.weight is None else norm.weight / deviation
        conv.weight.mul_(factor.view(-1, 1, 1, 1))
        before = conv.bias if conv.bias is not None else torch.zeros_like(norm.running_mean)
        after = (before - norm.running_mean) * factor
        conv.bias = nn.Parameter(after if norm.bias is None else after + norm.bias)
        replace_module(model, norm_name, nn.Identity())
    return [norm_name for _, norm_name in pairs]
