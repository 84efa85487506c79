"""Bias correction: the mean output of every layer is restored to that of the float network."""

import torch
from torch import Tensor, nn

from ptq_exp.quantization.context import Context, Progress, shown
from ptq_exp.quantization.hooks import BATCH, Inputs, watching
from ptq_exp.quantization.layers import quantized_layers
from ptq_exp.quantization.steps.step import Step


class CorrectBiases(Step):
    """Correct the biases of the quantized layers."""

    name = "correct biases"
    reads = ("bias_correction",)

    def run(self, context: Context) -> None:
        if context.options.bias_correction:
            correct_biases(context.network, context.reference, context.images, context.progress)


@torch.no_grad()
def correct_biases(model: nn.Module, reference: nn.Module, images: Tensor, progress: Progress | None = None) -> None:
    """Shift every quantized layer's bias so that its mean output per channel equals the float network's, in place.

    This is empirical bias correction, one layer after the other, so that the predecessors of a layer are already
    corrected (Nagel et al. 2019, section 4.2). `reference` is the float network with the same layers.
    """
    layers = quantized_layers(model)
    wanted = output_means(reference, list(layers), images)
    with shown(progress, "Correcting biases", len(wanted)) as advance:
        for name in wanted:
            layer = layers[name]
            found = output_means(model, [name], images)[name]
            bias = layer.layer.bias
            before = torch.zeros_like(found) if bias is None else bias.data
            layer.layer.bias = nn.Parameter(before + wanted[name] - found, requires_grad=False)
            advance()


@torch.no_grad()
def output_means(model: nn.Module, names: list[str], images: Tensor) -> dict[str, Tensor]:
    """Mean output per channel (C,) of the modules called `names`, over `images` and all calls.

    Modules that do not run are left out.
    """
    totals: dict[str, Tensor] = {}
    counts = dict.fromkeys(names, 0)

    def add(name: str, _: Inputs, output: Tensor) -> None:
        module = model.get_submodule(name)
        linear = isinstance(getattr(module, "layer", module), nn.Linear)  # its output may have four dimensions, too
        channels = output.movedim(-1 if linear else -3, 0).flatten(1).double()
        totals[name] = totals[name] + channels.sum(1) if name in totals else channels.sum(1)
        counts[name] += channels.shape[1]

    with watching(model, names, outputs=add) as forward:
        for batch in images.split(BATCH):
            forward(batch)
    return {name: (total / counts[name]).to(images) for name, total in totals.items()}
