"""What a quantization covers: operands, the tensors that stay float with their reasons, and what is unavailable."""

import torch.nn.functional as F
from torch import Tensor, nn

from ptq_exp.networks.graph import Wrapper, operands, unsteady
from ptq_exp.quantization.effective_weights import uses_parameter
from ptq_exp.quantization.layers import QuantizedLayer
from ptq_exp.quantization.options import QuantConfig
from ptq_exp.quantization.traced import Traced

Reasons = dict[str, str]


def covers_operations(options: QuantConfig) -> bool:
    """Whether operands of operations are quantized, not only the inputs of layers."""
    return options.act_bits is not None and (options.act_residual or options.act_coverage == "all")


def quantized_operands(reference: Traced, options: QuantConfig) -> dict[str, int]:
    """The modules whose operands are quantized, with their number of operands. Empty for layers alone, and for a
    network that cannot be traced."""
    if not covers_operations(options) or reference.graph is None:
        return {}
    return operands(reference.graph, options.act_coverage != "all")


def limits(reference: Traced, options: QuantConfig) -> list[str]:
    """One sentence for each part of the method that is not available, because the network cannot be traced, and one if
    its outputs vary."""
    found = _untraced(reference, options)
    graph = reference.graph if options.act_bits is not None and options.act_coverage == "all" else None
    if graph and graph.computes(F.scaled_dot_product_attention):
        found.append("The scores and weights inside scaled_dot_product_attention stay float: it is one operation.")
    if varies := unsteady(reference.network):
        found.append(f"The outputs of the network {varies}.")
    return found


def _untraced(reference: Traced, options: QuantConfig) -> list[str]:
    wanted = {
        "batch norms are not folded": options.fold_batch_norm,
        "weight ranges are not equalized": options.equalize,
        "rounding is learned layer by layer instead of block by block": options.rounding == "block",
        "only the inputs of layers are quantized": covers_operations(options),
    }
    affected = [words for words, on in wanted.items() if on]
    if not affected:
        return []
    if reference.graph is None:
        return [f"{reference.failure.removesuffix('.')}. Therefore {', '.join(affected)}."]
    return [
        f"{name} cannot be traced: {reason}. Inside it, {', '.join(affected)}."
        for name, reason in reference.graph.untraced.items()
        if covers_operations(options) or _has_layers(reference.network.get_submodule(name))
    ]


def _has_layers(module: nn.Module) -> bool:
    return any(isinstance(inner, nn.Conv2d | nn.Linear | nn.BatchNorm2d) for inner in module.modules())


def float_tensors(network: nn.Module, options: QuantConfig) -> tuple[float, Reasons]:
    """The percentage of weights that are quantized, and why each other parameter with two or more dimensions is not.

    The percentage is over all parameters with two or more dimensions.
    """
    quantized = {id(m.layer.weight) for m in network.modules() if isinstance(m, QuantizedLayer)}
    total = done = 0
    reasons: Reasons = {}
    for name, parameter in network.named_parameters():
        if parameter.dim() < 2:
            continue
        total += parameter.numel()
        if id(parameter) in quantized:
            done += parameter.numel()
        else:
            reasons[_own_name(network, name)] = _reason(network, name, parameter, options)
    return 100 * done / total if total else 0.0, reasons


def _own_name(network: nn.Module, name: str) -> str:
    """The parameter's name in the network before its operations and layers were wrapped."""
    for wrapper, inner in ((Wrapper, ".operation."), (QuantizedLayer, ".layer.")):
        place, _, last = name.rpartition(inner)
        if place and isinstance(network.get_submodule(place), wrapper):
            return f"{place}.{last}"
    return name


def _reason(network: nn.Module, name: str, parameter: Tensor, options: QuantConfig) -> str:
    module = network.get_submodule(name.rpartition(".")[0])
    if isinstance(module, nn.Conv2d | nn.Linear) and name.endswith("weight"):
        if not uses_parameter(module):
            return "its forward function computes other weights"
        if isinstance(module, nn.Linear) and options.layers == "conv":
            return "layers=conv"
        return "first_and_last=float"
    if type(module).__module__.startswith("torch.nn.") and type(module) is not nn.Module:
        return f"{type(module).__name__} is not supported"
    return "no layer of its own"
