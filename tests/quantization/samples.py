"""A good method, images and a measure of error that the tests of quantization share."""

from typing import Any

import torch
from torch import nn

from ptq_exp.quantization.options import ReconstructionConfig

LEARNED: dict[str, Any] = {
    "sign_bit": "included", "grid": "asymmetric", "alpha_rule": "lp", "granularity": "channel", "layers": "all",
    "fold_batch_norm": True, "act_rule": "mse",
}  # fmt: skip
QUICK = ReconstructionConfig(steps=60, batch_size=16)


def images(count: int = 48, size: int = 16) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def error(model: nn.Module, reference: nn.Module, x: torch.Tensor) -> float:
    with torch.no_grad():
        return float((model(x) - reference(x)).square().mean() / reference(x).square().mean())
