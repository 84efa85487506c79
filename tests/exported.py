"""Quantized networks and images for the tests of exports."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ptq_exp.data.loader import Normalizer
from ptq_exp.export.formats import Subject
from ptq_exp.export.verification import TestSet
from ptq_exp.networks import build_model
from ptq_exp.quantization.context import Calibration
from ptq_exp.quantization.options import QuantConfig
from ptq_exp.quantization.quantize import quantize

PLAIN = QuantConfig(
    fold_batch_norm=True, layers="all", sign_bit="included", granularity="channel", alpha_rule="max", act_rule="mse"
)
EVERYTHING: dict[str, Any] = {"act_bits": 8, "act_coverage": "all", "act_zero_point": True, "integer_biases": True}
MEAN, STD = [0.5, 0.4, 0.3], [0.25, 0.2, 0.3]


def small_resnet(seed: int = 0, batches: int = 20, images: int = 16) -> nn.Module:
    """A ResNet-8 whose batch norms have statistics, so that its activations have a usual scale."""
    torch.manual_seed(seed)
    model = build_model("resnet", 10, depth=8)
    with torch.no_grad():
        for _ in range(batches):
            model(torch.randn(images, 3, 32, 32))
    return model.eval()


def subject_of(model: nn.Module, bits: int, size: int = 32, **changes: Any) -> Subject:
    """`model` quantized to `bits` bits, as a subject of an export."""
    options = replace(PLAIN, **changes)
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(16, 3, size, size, generator=generator)
    network = quantize(model, options, bits, Calibration(images)).network
    about = {"quant": {"act_coverage": options.act_coverage}, "classes": list("0123456789"), "mean": MEAN, "std": STD,
             "model": {"architecture": "resnet", "depth": 8}}  # fmt: skip
    return Subject.of(network, images[0], about)


def random_tests(subject: Subject, count: int = 48) -> TestSet:
    """Random images with the simulation's predictions as predictions and labels."""
    generator = torch.Generator().manual_seed(2)
    size = subject.image.shape[-1]
    images = torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
    normalize = Normalizer(MEAN, STD, torch.device("cpu"))
    predictions = predicted(subject, normalize(images))
    return TestSet(images, predictions, predictions, normalize)


@torch.no_grad()
def predicted(subject: Subject, images: Tensor) -> Tensor:
    """The classes that the simulation predicts."""
    predictions: Tensor = subject.network(images).argmax(1)
    return predictions
