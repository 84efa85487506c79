"""Changes to a network around quantization: batch-norm folding, equalization, bias correction, re-estimation."""

from typing import Any

import torch
from torch import Tensor, nn

from ptq_exp.networks.graph import batch_norm_pairs, layer_pairs
from ptq_exp.quantization.layers import quantized_layers
from ptq_exp.quantization.modules import replace_module
from ptq_exp.quantization.progress import Progress, shown

BATCH = 256  # images at a time; only memory depends on it


@torch.no_grad()
def fold_batch_norm(model: nn.Module) -> list[str]:
    """Move every batch norm that follows a convolution into its weights and bias, in place; returns their names.

    The function of the network stays the same (Jacob et al. 2018, section 3.2, equation 14): a batch norm of which the
    graph does not prove that it can be folded stays.
    """
    pairs = batch_norm_pairs(model)
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


@torch.no_grad()
def equalize(model: nn.Module, sweeps: int = 20) -> None:
    """Give both sides of every unbranched pair of layers the same weight range per channel, in place.

    Channel i of the first layer is divided by s_i and of the second multiplied, s_i = sqrt(r1_i r2_i) / r2_i
    (Nagel et al. 2019, "Data-Free Quantization", equation 11). The function of the network stays the same; batch
    norm must be folded.
    """
    pairs: list[Any] = [tuple(map(model.get_submodule, names)) for names in layer_pairs(model)]
    for _ in range(sweeps):
        for first, second in pairs:
            groups = second.groups if isinstance(second, nn.Conv2d) else 1
            if groups != 1 or second.weight.shape[1] != first.weight.shape[0]:
                continue
            rows = first.weight.flatten(1).abs().amax(1)
            columns = second.weight.transpose(0, 1).flatten(1).abs().amax(1)
            factor = torch.sqrt(rows * columns) / columns
            # Not where a channel has no weights, nor where they are too small for the arithmetic.
            usable = (rows > 0) & (columns > 0) & (factor > 0) & torch.isfinite(factor)
            factor = torch.where(usable, factor, torch.ones_like(rows))
            first.weight.div_(factor.view(-1, *[1] * (first.weight.dim() - 1)))
            if first.bias is not None:
                first.bias.div_(factor)
            second.weight.mul_(factor.view(1, -1, *[1] * (second.weight.dim() - 2)))


@torch.no_grad()
def correct_biases(model: nn.Module, reference: nn.Module, images: Tensor, progress: Progress | None = None) -> None:
    """Shift every quantized layer's bias so that its mean output per channel is the float network's, in place.

    Empirical bias correction, layer after layer, so that a layer sees its corrected predecessors (Nagel et al.
    2019, section 4.2). `reference` is the float network with the same layers.
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
    """Mean output per channel (C,) of those of the modules called `names` that run, over `images` and all calls."""
    totals: dict[str, Tensor] = {}
    counts = dict.fromkeys(names, 0)

    def watch(name: str, output: Tensor) -> None:
        # Channels come second in images, and last in what a linear layer gives.
        channels = output.movedim(1 if output.dim() == 4 else -1, 0).flatten(1).double()
        totals[name] = totals[name] + channels.sum(1) if name in totals else channels.sum(1)
        counts[name] += channels.shape[1]

    handles = [
        model.get_submodule(name).register_forward_hook(lambda _, __, output, name=name: watch(name, output))
        for name in names
    ]
    try:
        for batch in images.split(BATCH):
            model(batch)
    finally:
        for handle in handles:
            handle.remove()
    return {name: (total / counts[name]).to(images) for name, total in totals.items()}


@torch.no_grad()
def reestimate_batch_norm(model: nn.Module, images: Tensor) -> None:
    """Replace the running statistics of every batch norm by those of the quantized network on `images`, in place.

    An average over batches of equal size (Sun et al. 2019, "Hybrid 8-bit training"). Few or unaugmented images can
    do harm: on 1,024 of them a float ResNet-20 lost three points.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d) and m.running_mean is not None]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch: a cumulative average
        norm.train()
    for batch in images.tensor_split(-(-len(images) // BATCH)):  # a short last batch would count like a full one
        model(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
