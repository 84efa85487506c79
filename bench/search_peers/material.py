"""What every tool gets: the float network, its images, and how its answer is measured."""

import argparse
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bench.peers.networks import calibration_images, load, top1
from ptq_exp.data.loader import Normalizer

SEARCH_IMAGES = 2000
FLOAT_BITS = 32

Network = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Material:
    """The float network with the images that calibrate it, guide a search, and validate the result."""

    model: nn.Module
    calibration: Tensor  # float32 (1024, 3, H, W), normalized
    calibration_labels: Tensor
    search: Tensor  # uint8 (2000, 3, H, W): training images beside those of calibration
    search_labels: Tensor
    test: Tensor  # uint8 (10000, 3, H, W)
    test_labels: Tensor
    normalize: Normalizer
    float_top1: float  # percent of the test images

    def top1(self, network: Network) -> float:
        """Percent of the test images that `network` classifies correctly."""
        return top1(network, self.test, self.test_labels, self.normalize)  # type: ignore[arg-type]

    def search_top1(self, network: Network) -> float:
        """The same of the 2,000 training images."""
        return top1(network, self.search, self.search_labels, self.normalize)  # type: ignore[arg-type]


def material_of(arguments: argparse.Namespace) -> Material:
    """The ResNet-20 and the images of `--checkpoint`, `--jpeg` and `--cache`."""
    found = load("resnet20", arguments, torch.device("cpu"))
    data, model = found.dataset, found.model.eval()
    order = torch.randperm(len(data.train_images), generator=torch.Generator().manual_seed(0))
    calibration = calibration_images(found, 0)
    used, rest = order[: len(calibration)], order[len(calibration) :][:SEARCH_IMAGES]
    return Material(
        model, calibration, data.train_labels[used], data.train_images[rest], data.train_labels[rest],
        data.test_images, data.test_labels, found.normalize,
        top1(model, data.test_images, data.test_labels, found.normalize),
    )  # fmt: skip


def widths(weights: Iterable[tuple[int, int | None]], activations: Iterable[int | None]) -> dict[str, Any]:
    """The mean bits of the weights, given as pairs (count, bits), and how many activation tensors have which bits.

    None is float: 32 bits.
    """
    pairs = [(count, bits or FLOAT_BITS) for count, bits in weights]
    total = sum(count for count, _ in pairs)
    by_bits: Counter[int] = Counter()
    for count, bits in pairs:
        by_bits[bits] += count
    found: dict[str, Any] = {
        "weight_bits": round(sum(bits * count for bits, count in by_bits.items()) / total, 3),
        "weight_bytes": sum(bits * count for bits, count in by_bits.items()) // 8,
        "weights_of_bits": {str(bits): by_bits[bits] for bits in sorted(by_bits)},
    }
    if tensors := Counter(bits or FLOAT_BITS for bits in activations):
        found["act_bits"] = round(sum(bits * count for bits, count in tensors.items()) / tensors.total(), 3)
        found["activation_tensors_of_bits"] = {str(bits): tensors[bits] for bits in sorted(tensors)}
    return found
