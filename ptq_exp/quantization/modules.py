"""Tools for special modules: weights that are computed at every call, and modules and tensors with several names."""

import copy
import functools
import types

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm, SpectralNormLoadStateDictPreHook, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm

from ptq_exp.base.errors import UserError
from ptq_exp.quantization.attention import separate_attention
from ptq_exp.quantization.effective_weights import plain_layer
from ptq_exp.quantization.norms import separate_norms
from ptq_exp.quantization.one_dimensional import widen_convolutions


def copy_network(model: nn.Module) -> nn.Module:
    """A deep copy. Weights computed by a hook (pruning masks, weight norm) are results of autograd, which torch does
    not copy, so the copy gets their values.

    Raises `UserError` if the network holds something that cannot be copied, or if a copy would compute with its
    weights.
    """
    values = (value for module in model.modules() for value in vars(module).values())
    computed = {id(x): x.detach().clone() for x in values if isinstance(x, Tensor) and not x.is_leaf}
    held = {id(x) for x in (*model.modules(), *model.parameters(), *model.buffers())}
    for name, module in model.named_modules():
        if _keeps(vars(module).get("forward"), held, set()):
            raise UserError(
                f"The forward function of {name or 'the network'} was replaced by a function that keeps a part of this "
                f"network, so a copy would compute with the same weights. Define it as the method of a class."
            )
    try:
        return copy.deepcopy(model, computed)
    except (TypeError, RuntimeError) as error:
        raise UserError(f"The network cannot be copied, which quantization needs: {error}.") from error


def _keeps(function: object, held: set[int], seen: set[int]) -> bool:
    """Whether a copy of this function would keep one of the objects with these ids. `copy` binds methods to the copy of
    their module, but leaves the variables of plain functions. Functions in `seen` are not looked at again."""
    if isinstance(function, types.MethodType | functools.partial):
        return _keeps(getattr(function, "__func__", None) or getattr(function, "func", None), held, seen)
    if not isinstance(function, types.FunctionType) or id(function) in seen:
        return False
    seen.add(id(function))
    enclosed = [cell.cell_contents for cell in function.__closure__ or () if cell != types.CellType()]
    enclosed += [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    enclosed += [function.__globals__[name] for name in function.__code__.co_names if name in function.__globals__]
    owners = [getattr(value, "__self__", value) for value in enclosed]
    return any(id(value) in held for value in owners) or any(_keeps(value, held, seen) for value in enclosed)


def unwrapped(model: nn.Module) -> nn.Module:
    """The network that `torch.compile` was given, or the model itself."""
    return getattr(model, "_orig_mod", model)


def plain_copy(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode with the function of `model`. Its weights are plain parameters without gradient."""
    network = copy_network(model).eval()
    make_plain(network)
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    return network


def make_plain(model: nn.Module) -> None:
    """Give `model`, which must be in evaluation mode, plain weights and layers that can be quantized, in place.

    The function stays the same. Raises `UserError` as `materialize` does.
    """
    materialize(model)
    separate_attention(model)
    separate_norms(model)
    widen_convolutions(model)


@torch.no_grad()
def materialize(model: nn.Module) -> None:
    """Replace every weight that is computed at each call by a plain parameter with the same value, in place.

    Rounding must apply to the weights that the layer computes with. Parametrizations (weight norm, spectral norm, ...),
    the older norms, which are hooks, pruning masks, and derived classes that standardize their weights are supported.
    `model` must be in evaluation mode, because
    training changes a spectral norm at every call. Raises `UserError` for a convolution or linear layer whose weight is
    computed in another way.
    """
    for name, module in list(model.named_modules()):
        if parametrize.is_parametrized(module):
            _remove_parametrizations(module)
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, WeightNorm):
                remove_weight_norm(module, hook.name)
            elif isinstance(hook, SpectralNorm):
                _remove_spectral_norm(module, hook)
            elif isinstance(hook, prune.BasePruningMethod):
                prune.remove(module, hook._tensor_name)
        if isinstance(module, nn.Conv2d | nn.Linear) and "weight" not in module._parameters:
            raise UserError(
                f"The weight of {name} is computed at every call in an unsupported way, so rounding it would have no "
                f"effect. Make it a plain parameter first."
            )
        if isinstance(module, nn.Conv2d | nn.Linear) and (plain := plain_layer(module)) is not module:
            replace_module(model, name, plain)


def _remove_spectral_norm(module: nn.Module, hook: SpectralNorm) -> None:
    remove_spectral_norm(module, hook.name)
    for key, held in list(module._load_state_dict_pre_hooks.items()):  # torch's function misses this hook
        if isinstance(getattr(held, "hook", held), SpectralNormLoadStateDictPreHook):
            del module._load_state_dict_pre_hooks[key]


def _remove_parametrizations(module: nn.Module) -> None:
    """Remove parametrizations. Torch's function would change the class, which a copy shares with the original."""
    values = {
        tensor: (getattr(module, tensor).detach().clone(), next(sources.parameters(recurse=False), None) is not None)
        for tensor, sources in module.parametrizations.items()  # type: ignore[union-attr, operator]
    }
    del module.parametrizations
    module.__class__ = type(module).__bases__[0]
    for tensor, (value, trained) in values.items():
        if trained:
            module.register_parameter(tensor, nn.Parameter(value, requires_grad=False))
        else:
            module.register_buffer(tensor, value)


def replace_module(model: nn.Module, name: str, new: nn.Module) -> None:
    """Replace the module called `name` by `new`, under every name of this module."""
    old = model.get_submodule(name)
    places = [
        (parent, child) for parent in model.modules() for child, module in parent._modules.items() if module is old
    ]
    for parent, child in places:
        setattr(parent, child, new)


def counters(model: nn.Module) -> set[str]:
    """The names of the counters of training steps, which only batch norms in training use."""
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    every = model.named_modules(remove_duplicate=False)
    return {f"{name}.num_batches_tracked".lstrip(".") for name, module in every if isinstance(module, norms)}


def first_names(model: nn.Module) -> dict[str, str]:
    """Map every key of the state dict to the first key of the same tensor, since a module may have several names."""
    first: dict[int, str] = {}
    return {key: first.setdefault(id(value), key) for key, value in model.state_dict(keep_vars=True).items()}


def unique_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict with every tensor once."""
    state = model.state_dict()
    return {key: state[key] for key, first in first_names(model).items() if key == first}


def load_unique_state(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Load the result of `unique_state`. Raises `RuntimeError` if it is incomplete or of another network."""
    model.load_state_dict(tensors | {k: tensors[first] for k, first in first_names(model).items() if first in tensors})
