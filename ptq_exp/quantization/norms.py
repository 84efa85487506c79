"""Batch norms of derived classes, taken apart: the norm, and what its forward function does afterwards."""

import torch
import torch.nn.functional as F
from torch import fx, nn

from ptq_exp.networks.graph import standard


def separate_norms(model: nn.Module) -> None:
    """Replace every batch norm whose class adds its own modules behind the norm, such as an activation function, by the
    plain norm followed by these modules, in place. The function stays the same, and the norm can be folded.

    A class that does anything else in evaluation mode stays. `model` must be in evaluation mode.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d) and not standard(child, nn.BatchNorm2d):
                behind = _modules_behind(child)
                if behind is not None:
                    setattr(parent, name, nn.Sequential(_plain(child), *behind).train(child.training))


def _modules_behind(norm: nn.BatchNorm2d) -> list[nn.Module] | None:
    """The modules that the forward function calls one after the other behind `F.batch_norm`, or None."""
    try:
        nodes = list(fx.Tracer().trace(norm).nodes)
    except Exception:  # fx raises whatever the forward function raises on symbolic inputs
        return None
    image = next(node for node in nodes if node.op == "placeholder")
    calls = [node for node in nodes if node.target is F.batch_norm]
    if len(calls) != 1 or calls[0].args[:1] != (image,) or norm.running_mean is None:
        return None
    found, here = [], calls[0]
    while True:
        users = list(here.users)
        if len(users) != 1:
            return None
        (here,) = users
        if here.op == "output":
            break
        if here.op != "call_module" or len(here.all_input_nodes) != 1:
            return None
        found.append(norm.get_submodule(str(here.target)))
    return found if _same(norm, nn.Sequential(_plain(norm), *found)) else None


def _plain(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    """A norm of torch's own class with the tensors of `norm`."""
    plain = nn.BatchNorm2d(norm.num_features, norm.eps, norm.momentum, norm.affine, device="meta")
    plain._parameters |= norm._parameters
    plain._buffers |= norm._buffers
    return plain.train(norm.training)


@torch.no_grad()
def _same(norm: nn.Module, separated: nn.Module) -> bool:
    """Whether both compute the same on random images."""
    like = next(value for value in norm.buffers() if value.is_floating_point())
    x = torch.randn(2, len(like), 3, 3, generator=torch.Generator().manual_seed(0)).to(like)
    return torch.equal(norm(x), separated(x))
