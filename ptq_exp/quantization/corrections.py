"""Changes to a network around quantization: batch-norm folding, equalization, bias correction, re-estimation."""

from typing import Any

import torch
from torch import Tensor, nn

from ptq_exp.quantization.chains import batch_norm_pairs, layer_pairs
from ptq_exp.quantization.layers import quantized_layers
from ptq_exp.quantization.progress import Progress, shown

BATCH = 256  # images at a time; only memory depends on it


@torch.no_grad()
def fold_batch_norm(model: nn.Module) -> list[str]:
    """Move every batch norm that follows a convolution into its weights and bias, in place; returns their names.

    The function of the network stays the same (Jacob et al. 2018, section 3.2, equation 14).
    """
    pairs = batch_norm_pairs(model)
    for conv_name, norm_name in pairs:
        conv, norm = model.get_submodule(conv_name), model.get_submodule(norm_name)
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        conv.weight.mul_(factor.view(-1, 1, 1, 1))
        before = conv.bias if conv.bias is not None else torch.zeros_like(norm.bias)
        conv.bias = nn.Parameter((before - norm.running_mean) * factor + norm.bias)
        model.set_submodule(norm_name, nn.Identity())
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
            usable = (rows > 0) & (columns > 0)
            factor = torch.where(usable, torch.sqrt(rows * columns) / columns, torch.ones_like(rows))
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
    with shown(progress, "Correcting biases", len(layers)) as advance:
        for name, layer in layers.items():
            found = output_means(model, [name], images)[name]
            bias = layer.layer.bias
            before = torch.zeros_like(found) if bias is None else bias.data
            layer.layer.bias = nn.Parameter(before + wanted[name] - found, requires_grad=False)
            advance()


@torch.no_grad()
def output_means(model: nn.Module, names: list[str], images: Tensor) -> dict[str, Tensor]:
    """Mean output per channel (C,) of the modules called `names` over `images`."""
    totals: dict[str, Tensor] = {}
    counts = dict.fromkeys(names, 0)

    def watch(name: str, output: Tensor) -> None:
        channels = output.transpose(0, 1).flatten(1).double()
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
    return {name: (totals[name] / counts[name]).to(images) for name in names}


@torch.no_grad()
def reestimate_batch_norm(model: nn.Module, images: Tensor) -> None:
    """Replace the running statistics of every batch norm by those of the quantized network on `images`, in place.

    An average over batches of equal size (Sun et al. 2019, "Hybrid 8-bit training"). Few or unaugmented images can
    do harm: on 1,024 of them a float ResNet-20 lost three points.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
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
