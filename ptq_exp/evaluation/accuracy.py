"""Accuracy of a network on images on its device."""

import contextlib
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptq_exp.base.errors import UserError
from ptq_exp.data.loader import Normalize
from ptq_exp.evaluation.paired import paired_interval
from ptq_exp.networks.graph.calling import channels_last, needs_contiguous_images
from ptq_exp.quantization.modules import copy_network
from ptq_exp.quantization.steps.fold_batch_norm import fold_batch_norm

CPU_BATCH = 16  # images, whose activations fit in the caches of one core
# Pixels per batch: 5,000 images of 32 x 32, of which one activation of ResNet-20 takes 0.3 GiB. With 2,000, an H100
# takes 15 % longer.
CUDA_PIXELS = 5000 * 32 * 32


@dataclass(frozen=True)
class Evaluation:
    """The evaluation of a network on a test set; `predictions` is int64 (N,) on the CPU."""

    predictions: Tensor
    correct: int
    correct_top5: int
    loss: float  # mean cross entropy, nats
    seconds: float

    @property
    def count(self) -> int:
        """Number of images."""
        return len(self.predictions)

    @property
    def top1(self) -> float:
        """Percent of images whose label has the largest logit."""
        return 100 * self.correct / self.count

    @property
    def top5(self) -> float:
        """Percent of images whose label is among the five largest logits."""
        return 100 * self.correct_top5 / self.count

    def interval(self) -> tuple[float, float]:
        """95 % Wilson score interval of `top1` in percent (Wilson 1927)."""
        return wilson_interval(self.correct, self.count)

    def agreement(self, other: "Evaluation") -> float:
        """Percent of images on which both networks predict the same class."""
        return 100 * (self.predictions == other.predictions).float().mean().item()


def drop_interval(baseline: Evaluation, result: Evaluation, labels: Tensor) -> tuple[float, float]:
    """95 % interval of the top-1 drop in points, from both networks' predictions on the same images.

    See `paired_interval`.
    """
    labels = labels.cpu()
    before, after = baseline.predictions == labels, result.predictions == labels
    return paired_interval(int((before & ~after).sum()), int((after & ~before).sum()), len(labels))


def wilson_interval(successes: int, count: int, z: float = 1.959964) -> tuple[float, float]:
    """The Wilson score interval of a proportion, in percent; `z` is the normal quantile (95 % by default)."""
    share, spread = successes / count, z * z / count
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    return 100 * max(0.0, centre - half), 100 * min(1.0, centre + half)


def for_inference(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode with the same function and fewer passes over memory: batch norm is folded into the
    preceding convolution."""
    network = copy_network(model).eval()
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    if any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
        with contextlib.suppress(UserError):  # a network that cannot be traced is evaluated unchanged
            fold_batch_norm(network)
    return network


def evaluate(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    normalize: Normalize,
    advance: Callable[[int], None] = lambda _: None,
) -> Evaluation:
    """Run `model` in evaluation mode on `images` (N, C, H, W) with `labels` (N,), all on one device. `normalize` turns
    the images into the model's input.

    On CUDA, counts stay on the device and are read once at the end. On a CPU, every core processes its own images,
    because the layers of small networks are too short to be shared by several cores. The model stays unchanged.
    `advance` is called from several threads with the number of finished images.
    """
    started, stop = time.perf_counter(), threading.Event()
    # cuDNN's float32 convolutions are faster with channels first: 54 ms against 147 ms for 10,000 images on an H200.
    network = for_inference(model)
    if not needs_contiguous_images(network):
        if images.is_cuda:
            network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        else:
            channels_last(network)
    if images.is_cuda:
        batch = max(1, CUDA_PIXELS // (images.shape[-2] * images.shape[-1]))
        parts = [_count(network, images, labels, normalize, batch, advance, stop)]
    else:
        cores = torch.get_num_threads()
        try:
            with ThreadPoolExecutor(cores, initializer=lambda: torch.set_num_threads(1)) as pool:
                chunks = zip(images.chunk(cores), labels.chunk(cores), strict=True)
                tasks = [pool.submit(_count, network, *chunk, normalize, CPU_BATCH, advance, stop) for chunk in chunks]
                try:
                    parts = [task.result() for task in tasks]
                except BaseException:
                    stop.set()  # on Ctrl-C, leaving the pool waits for its threads
                    raise
        finally:
            torch.set_num_threads(cores)  # the workers' setting becomes the default of new threads
    totals = torch.stack([total for _, total in parts]).sum(0)
    correct, correct_top5, loss_sum = totals.tolist()
    return Evaluation(
        predictions=torch.cat([predictions for predictions, _ in parts]).cpu(),
        correct=int(correct),
        correct_top5=int(correct_top5),
        loss=loss_sum / len(labels),
        seconds=time.perf_counter() - started,
    )


@torch.inference_mode()
def _count(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    normalize: Normalize,
    batch: int,
    advance: Callable[[int], None],
    stop: threading.Event,
) -> tuple[Tensor, Tensor]:
    """Predictions (N,), and the sums (3,) of correct predictions, of labels in the top five, and of losses."""
    predictions, totals = [], torch.zeros(3, dtype=torch.float64, device=images.device)
    for chunk, target in zip(images.split(batch), labels.split(batch), strict=True):
        if stop.is_set():
            break
        x = normalize(chunk)
        logits = network(x.contiguous() if x.is_cuda else x)
        predicted = logits.argmax(1)  # the order of equal logits in `topk` is another one
        predictions.append(predicted)
        best = logits.topk(min(5, logits.shape[1])).indices
        loss = F.cross_entropy(logits, target, reduction="sum")
        totals += torch.stack([(predicted == target).sum(), (best == target[:, None]).sum(), loss]).double()
        advance(len(chunk))
    return torch.cat(predictions), totals
