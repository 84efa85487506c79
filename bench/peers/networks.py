"""The networks of the comparison, and the images on which every tool calibrates and is evaluated."""

import argparse

import torch
from torch import Tensor, nn

from bench import foreign
from bench.harness import on_images
from ptq_exp.data import load_dataset
from ptq_exp.data.loader import Normalizer
from ptq_exp.runs.fitting import FloatModel
from ptq_exp.runs.float_model import load_or_train

NETWORKS = (*foreign.NETWORKS, "resnet20")
WIDTHS = foreign.WIDTHS
CALIBRATION_IMAGES = 1024
TEST_BATCH = 100


def load(name: str, arguments: argparse.Namespace, device: torch.device) -> FloatModel:
    """The float network `name`: one of bench.foreign, or the ResNet-20 of `--checkpoint`."""
    if name == "resnet20":
        config = on_images(arguments.jpeg, arguments.cache, arguments.checkpoint)
    else:
        config = foreign.config_of(name, arguments)
    return load_or_train(config, load_dataset(config.data, config.cache, device), device)


def calibration_images(found: FloatModel, seed: int) -> Tensor:
    """The first 1,024 of the images that bench.foreign draws with this seed: float32 (1024, 3, H, W), normalized."""
    images = found.dataset.train_images
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return found.normalize(images[order[:CALIBRATION_IMAGES].to(images.device)])


@torch.no_grad()
def top1(network: nn.Module, images: Tensor, labels: Tensor, normalize: Normalizer) -> float:
    """Percent of the uint8 `images` (N, 3, H, W) that `network` classifies correctly. The network runs as it is.

    `evaluate` of ptq_exp would fold batch norms into weights that another tool has already quantized.
    """
    correct = sum(
        int((network(normalize(batch)).argmax(1) == target).sum())
        for batch, target in zip(images.split(TEST_BATCH), labels.split(TEST_BATCH), strict=True)
    )
    return 100 * correct / len(labels)
