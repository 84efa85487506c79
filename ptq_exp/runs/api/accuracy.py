"""`ptq_exp.evaluate`: the accuracy of a network, and its drop against the float network's."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ptq_exp.base.errors import UserError
from ptq_exp.evaluation import accuracy
from ptq_exp.export.inference import QuantizedNetwork
from ptq_exp.quantization.diagnosis import diagnose
from ptq_exp.results.series import HIGHER, LOWER, NOT_DISTINGUISHABLE
from ptq_exp.runs.api.calling import as_given, as_labels, check_images, device_of, exact, ready_copy
from ptq_exp.runs.api.float_network import FloatNetwork
from ptq_exp.runs.api.quantizing import QuantizedModel

Network = nn.Module | FloatNetwork | QuantizedModel


@dataclass(frozen=True, repr=False)
class Accuracy:
    """Top-1 in percent and its drop in points, each with its 95 % confidence interval.

    The drop and the agreement (percent of images with the float network's prediction) are None if no float network was
    given. The interval of the drop is paired over the images.
    """

    images: int
    top1: float
    top1_ci_low: float
    top1_ci_high: float
    loss: float  # mean cross entropy, nats
    predictions: Tensor = field(compare=False)  # int64 (N,) on the CPU
    top1_drop: float | None = None
    top1_drop_ci_low: float | None = None
    top1_drop_ci_high: float | None = None
    agreement: float | None = None
    diagnosis: str = ""  # the likeliest cause of a loss, if what `quantize` returned was evaluated

    @property
    def verdict(self) -> str:
        """Whether the interval of the drop excludes zero: `lower`, `higher` or `not distinguishable`; empty without."""
        if self.top1_drop_ci_low is None or self.top1_drop_ci_high is None:
            return ""
        if self.top1_drop_ci_low <= 0 <= self.top1_drop_ci_high:
            return NOT_DISTINGUISHABLE
        return LOWER if self.top1_drop_ci_low > 0 else HIGHER

    def __repr__(self) -> str:
        text = f"top-1 {self.top1:.2f} % (95 % CI {self.top1_ci_low:.2f} to {self.top1_ci_high:.2f}, "
        text += f"{self.images} images)"
        if self.top1_drop is None:
            return text
        return (
            f"{text}, drop {self.top1_drop:+.2f} points (95 % CI {self.top1_drop_ci_low:+.2f} to "
            f"{self.top1_drop_ci_high:+.2f}, {self.verdict}), {self.agreement:.2f} % of the predictions unchanged"
        )


def evaluate(
    network: Network, images: Tensor, labels: Tensor | Sequence[int], float_network: Network | None = None
) -> Accuracy:
    """The accuracy of `network` on normalized images. See `ptq_exp.evaluate`."""
    check_images(images)
    truth = as_labels(labels, images)
    result = measured(network, images, truth)
    low, high = result.interval()
    found = Accuracy(result.count, result.top1, low, high, result.loss, result.predictions)
    if float_network is None:
        return found
    baseline = measured(float_network, images, truth)
    drop_low, drop_high = accuracy.drop_interval(baseline, result, truth)
    cause = diagnose(network.report, network.options, drop_low > 0) if isinstance(network, QuantizedModel) else ""
    return Accuracy(
        found.images, found.top1, low, high, found.loss, found.predictions, baseline.top1 - result.top1, drop_low,
        drop_high, result.agreement(baseline), cause,
    )  # fmt: skip


def measured(network: Network, images: Tensor, labels: Tensor) -> accuracy.Evaluation:
    """The evaluation on the network's device. Raises `UserError` if labels or outputs are impossible."""
    module = module_of(network)
    device = device_of(module)
    ready, there = ready_copy(module, images), images.to(device)
    with torch.no_grad():
        classes = ready(as_given(there[:1])).shape[1]
    if classes == 1:
        raise UserError("The network has one output. Two classes need two outputs, one for each class.")
    if labels.min() < 0 or labels.max() >= classes:
        raise UserError(f"The labels must be from 0 to {classes - 1}, since the network has {classes} outputs.")
    with exact():
        result = accuracy.evaluate(ready, there, labels.to(device), as_given)
    if not math.isfinite(result.loss):
        raise UserError("The outputs of the network are not finite.")
    return result


def module_of(network: Network) -> nn.Module:
    """The module that takes normalized images."""
    if isinstance(network, FloatNetwork | QuantizedModel | QuantizedNetwork):
        return network.network
    if not isinstance(network, nn.Module):
        raise UserError(f"Expected a network (torch.nn.Module), not a {type(network).__name__}.")
    return network
