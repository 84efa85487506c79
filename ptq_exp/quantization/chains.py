"""Which layers follow which, read off the network's graph (torch.fx)."""

import operator

import torch
import torch.nn.functional as F
from torch import fx, nn

from ptq_exp.errors import UserError
from ptq_exp.quantization.layers import ActivationQuantizer

# Between two layers these leave a positive factor per channel where it is: f(s x) = s f(x).
_HOMOGENEOUS_MODULES = (nn.ReLU, nn.MaxPool2d, nn.AvgPool2d, nn.Identity, nn.Flatten, nn.Dropout)
_HOMOGENEOUS_FUNCTIONS = {F.relu, torch.relu, operator.getitem}


class _Tracer(fx.Tracer):
    """Does not look into a quantizer, which asks its input for more than a symbol can answer."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, ActivationQuantizer) or super().is_leaf_module(m, module_qualified_name)


def _graph(model: nn.Module) -> tuple[fx.Graph, dict[str, nn.Module]]:
    try:
        return _Tracer().trace(model), dict(model.named_modules())
    except Exception as error:  # fx raises whatever the forward function raises on symbolic inputs
        raise UserError(
            f"The network cannot be traced ({error}), which batch-norm folding and equalization need. Set "
            f"quant.fold_batch_norm=false and quant.equalize=false."
        ) from error


def batch_norm_pairs(model: nn.Module) -> list[tuple[str, str]]:
    """(convolution, batch norm) for every batch norm that is all that follows its convolution."""
    graph, modules = _graph(model)
    pairs = []
    for node in graph.nodes:
        if node.op == "call_module" and isinstance(modules[node.target], nn.BatchNorm2d):
            source = node.args[0]
            follows = source.op == "call_module" and isinstance(modules[source.target], nn.Conv2d)
            if follows and len(source.users) == 1:
                pairs.append((str(source.target), str(node.target)))
    return pairs


def layer_pairs(model: nn.Module) -> list[tuple[str, str]]:
    """(layer, next layer) where nothing but ReLU, pooling and the like stands between, and no branch."""
    graph, modules = _graph(model)
    pairs = []
    for node in graph.nodes:
        if node.op != "call_module" or not isinstance(modules[node.target], nn.Conv2d | nn.Linear):
            continue
        here = node
        while len(here.users) == 1:
            here = next(iter(here.users))
            if here.op == "call_module" and isinstance(modules[here.target], nn.Conv2d | nn.Linear):
                pairs.append((str(node.target), str(here.target)))
                break
            passes = here.op == "call_module" and isinstance(modules[here.target], _HOMOGENEOUS_MODULES)
            if not passes and not (here.op == "call_function" and here.target in _HOMOGENEOUS_FUNCTIONS):
                break
    return pairs
