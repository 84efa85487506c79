"""Networks as other projects store them: weights like trained ones, and reading a file back."""

from pathlib import Path

import torch
from torch import Tensor, nn

from ptq_exp.networks import build_model
from ptq_exp.networks.reading import Checkpoint, load_weights, read_checkpoint

Weights = dict[str, Tensor]


def trained_like(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model with weights and batch-norm statistics that differ from a fresh one's everywhere."""
    generator = torch.Generator().manual_seed(seed)
    for key, value in model.state_dict().items():
        if key.endswith("num_batches_tracked"):
            value.fill_(1234)
        elif key.endswith("running_var") or (value.dim() == 1 and key.endswith("weight")):
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
        else:
            fan_in = value[0].numel() if value.dim() > 1 else 16
            value.copy_(torch.randn(value.shape, generator=generator) * 0.5 / fan_in**0.5)
    return model.eval()


def prefixed(weights: Weights, prefix: str) -> Weights:
    return {prefix + key: value for key, value in weights.items()}


def resnet(depth: int = 20, shortcut: str = "conv", classes: int = 10) -> nn.Module:
    return trained_like(build_model("resnet", classes, depth=depth, shortcut=shortcut))


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        result = model.eval()(torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(8)))
    assert 0.001 < result.std() < 1000, "logits that tell nothing about the weights"
    return result


def read(path: Path) -> Checkpoint:
    return read_checkpoint(str(path), path.parent / "cache", timeout=5)


def read_and_load(path: Path) -> nn.Module:
    checkpoint = read(path)
    model = build_model(checkpoint.architecture, checkpoint.classes, **checkpoint.options)
    load_weights(model, checkpoint)
    return model
