"""The weights that layers compute with: their parameter, or others, as weight standardization does."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ptq_exp.networks.graph import standard

Layer = nn.Conv2d | nn.Linear


def uses_parameter(layer: Layer) -> bool:
    """Whether the layer computes with its parameter `weight`, so that rounding the parameter has its effect."""
    found = _calls_of(layer)
    return found is None or any(weight is layer.weight for weight in found.weights)


def plain_layer(layer: Layer) -> Layer:
    """A plain layer with the function of `layer` in evaluation mode, or `layer` itself.

    The plain layer has the weights that the forward function computes. `layer` stays if it computes with its parameter,
    or if its forward function does more than one convolution or product.
    """
    found = _calls_of(layer)
    if found is None or not found.whole or found.weights[0] is layer.weight:
        return layer
    return _plain(layer, found.weights[0], found.given)


def target_layers(model: nn.Module, kinds: str = "conv") -> dict[str, Layer]:
    """The layers whose weights can be quantized, by name, in network order; `kinds` is conv or all.

    Layers whose forward function computes other weights than their parameter are left out.
    """
    wanted = nn.Conv2d if kinds == "conv" else nn.Conv2d | nn.Linear
    found = {name: module for name, module in model.named_modules() if isinstance(module, wanted)}
    return {name: module for name, module in found.items() if uses_parameter(module)}


class _Calls(TorchFunctionMode):
    """Records the calls of `function`: the weights of each, and the arguments and the result of the last."""

    def __init__(self, function: Any):
        super().__init__()
        self.function = function
        self.weights: list[Any] = []
        self.given: dict[str, Any] = {}
        self.result: Any = None
        self.whole = False  # whether a single call is all that a forward function does

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is self.function:
            names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
            self.given = dict(zip(names, args, strict=False)) | (kwargs or {})
            self.weights.append(self.given.get("weight"))
            self.result = result
        return result


@torch.no_grad()
def _calls_of(layer: Layer) -> _Calls | None:
    """The calls inside the forward function of a derived class on random input, or None for a standard layer."""
    base = nn.Conv2d if isinstance(layer, nn.Conv2d) else nn.Linear
    if standard(layer, base):
        return None
    calls = _Calls(F.conv2d if base is nn.Conv2d else F.linear)
    x = _input_of(layer)
    try:
        with calls:
            output = layer(x)
    except Exception:  # whatever the forward function raises, for example because it needs other arguments
        return calls
    calls.whole = len(calls.weights) == 1 and calls.given.get("input") is x and calls.result is output
    return calls


def _input_of(layer: Layer) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    if isinstance(layer, nn.Linear):
        shape = [2, layer.in_features]
    else:
        sizes = zip(layer.kernel_size, layer.dilation, strict=True)
        shape = [2, layer.in_channels, *(dilation * (size - 1) + 2 for size, dilation in sizes)]
    return torch.randn(shape, generator=generator).to(layer.weight)


def _plain(layer: Layer, weight: Tensor, given: dict[str, Any]) -> Layer:
    bias = given.get("bias")
    new: Layer
    if isinstance(layer, nn.Linear):
        new = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    else:
        groups = given.get("groups", 1)
        geometry = {name: given[name] for name in ("stride", "padding", "dilation") if name in given}
        channels = (weight.shape[1] * groups, weight.shape[0])
        size = (weight.shape[2], weight.shape[3])
        new = nn.Conv2d(*channels, size, **geometry, groups=groups, bias=bias is not None, device="meta")
    new.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    if bias is not None:
        new.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return new.train(layer.training)
