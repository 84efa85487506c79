"""Triton kernels for CUDA: a CIFAR ResNet's training pass."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ptq_exp.base.machine import triton_works
from ptq_exp.networks.resnet import BasicBlock, PadShortcut, ResNet, all_channels


def usable(device: torch.device) -> bool:
    """Whether the kernels run on `device`."""
    return triton_works(device, _try_kernel)


def _try_kernel(device: torch.device) -> None:
    from ptq_exp.training.fused.weights import add_up_weights  # needs Triton, which not every machine has

    table = torch.tensor([0, 1, 1, 0, 0], dtype=torch.int32, device=device)
    partial, total = torch.ones(1, device=device), torch.zeros(1, device=device)
    add_up_weights[(1,)](partial, total, table, BLOCK=16, CHUNK=1)


def fuse(model: nn.Module, precision: str, images: torch.Size | None = None) -> Callable[[Tensor], Tensor] | None:
    """The model's training pass, normalized images (N, 3, H, W) to logits, or None where there are no kernels for it.

    `images` is the batches' shape, of which height and width count. Everything stays the module's own: parameters get
    their `grad`, batch norms move their running statistics. `precision` is fp32, tf32 or bf16.
    """
    if precision not in ("fp32", "tf32", "bf16") or not _known(model) or not usable(next(model.parameters()).device):
        return None
    height, width = (32, 32) if images is None else images[-2:]
    if height % 4 or width % 4:  # the maps are halved twice
        return None
    from ptq_exp.training.fused.network import FusedResNet

    assert isinstance(model, ResNet)
    return FusedResNet(model, precision, height, width)


def _known(model: nn.Module) -> bool:
    """Whether `model` is the plain ResNet the kernels were written for."""
    if type(model) is not ResNet or any(
        module._forward_hooks or module._forward_pre_hooks for module in model.modules()
    ):
        return False
    blocks: list[Any] = [block for stage in (model.layer1, model.layer2, model.layer3) for block in stage]
    if (
        type(model.linear) is not nn.Linear
        or model.linear.bias is None
        or any(type(b) is not BasicBlock for b in blocks)
    ):
        return False
    pairs: list[Any] = [(model.conv1, model.bn1, 3)]
    for block in blocks:
        pairs += [(block.conv1, block.bn1, 3), (block.conv2, block.bn2, 3)]
        if isinstance(block.shortcut, nn.Sequential):
            pairs.append((block.shortcut[0], block.shortcut[1], 1))
        elif type(block.shortcut) not in (nn.Identity, PadShortcut):
            return False
    if [conv.out_channels for conv, _, size in pairs if size == 3] != all_channels(None, 2 * len(blocks) + 2):
        return False
    if any(p.dtype != torch.float32 or not p.requires_grad for p in model.parameters()):
        return False
    return all(_known_pair(conv, norm, size) for conv, norm, size in pairs)


def _known_pair(conv: nn.Module, norm: nn.Module, size: int) -> bool:
    """Whether these are a `size` x `size` convolution without bias and an ordinary batch norm."""
    return (
        type(conv) is nn.Conv2d
        and type(norm) is nn.BatchNorm2d
        and conv.kernel_size == (size, size)
        and conv.stride in ((1, 1), (2, 2))
        and conv.padding == (size // 2, size // 2)
        and conv.dilation == (1, 1)
        and conv.groups == 1
        and conv.bias is None
        and conv.in_channels in (3, 16, 32, 64)
        and conv.out_channels in (16, 32, 64)
        and conv.weight.stride(2) == size * conv.weight.stride(3)
        and norm.affine
        and norm.track_running_stats
        and norm.momentum is not None
    )
