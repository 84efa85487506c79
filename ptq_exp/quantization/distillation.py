"""Distillation: the quantized network as a whole is trained to reproduce the float network's outputs."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptq_exp.quantization.augmentation import mix_pairs, paste_pairs, random_crop_and_flip
from ptq_exp.quantization.hooks import BATCH
from ptq_exp.quantization.layers import ActivationQuantizer, QuantizedLayer
from ptq_exp.quantization.learned_weights import LearnedWeights
from ptq_exp.quantization.learning import freeze_alphas, learn_alphas, minimize
from ptq_exp.quantization.options import ReconstructionConfig
from ptq_exp.quantization.units import pixels_first

AHEAD = 50  # batches for which the float network's outputs are computed at once


def distill(
    model: nn.Module,
    reference: nn.Module,
    images: Tensor,
    how: ReconstructionConfig,
    advance: Callable[[], None] = lambda: None,
) -> None:
    """Train the quantized network to match the float one: weights, scales, biases and clipping values, in place.

    The loss is the Kullback-Leibler divergence of the logits, divided by the temperature (Hinton et al. 2015), on
    augmented calibration images; labels are not used. With `distill_mirrored`, the target is the mean of the float
    network's predictions for the image and its mirror image, as in Radosavovic et al. 2018, "Data Distillation". The
    learning rate decays to zero along half a cosine. It is in levels for weights, and relative for scales and clipping
    values, which are learned as logarithms.
    """
    steps, batch_size, lr = how.distill_steps, how.distill_batch_size, how.distill_lr
    temperature = how.distill_temperature
    learned = LearnedWeights([m for m in model.modules() if isinstance(m, QuantizedLayer)])
    quantizers = [m for m in model.modules() if isinstance(m, ActivationQuantizer)]
    logs = learn_alphas(quantizers, lr)
    biases = [layer.layer.bias for layer in learned.layers if layer.layer.bias is not None]
    for bias in biases:
        bias.requires_grad_(True)
    rate = torch.tensor(lr, device=images.device)
    pixels = pixels_first(images[:1]).expand(batch_size, -1, -1, -1)
    # Augmentation takes several times the memory of the batches.
    ahead = min(steps, AHEAD, max(1, int(how.memory_gib * 2**30 / 8 / pixels.numel() / pixels.element_size())))
    batches = pixels.repeat(ahead, 1, 1, 1, 1)
    with torch.no_grad():
        wanted = reference(images[:1])[None].repeat(len(batches), batch_size, 1)
    turn = torch.zeros(1, dtype=torch.long, device=images.device)

    @torch.no_grad()
    def draw_batches() -> None:
        chosen = torch.randint(len(images), (len(batches) * batch_size,), device=images.device)
        augmented = paste_pairs(random_crop_and_flip(images[chosen]), how.distill_cutmix)
        augmented = mix_pairs(augmented, how.distill_mixup)
        batches.copy_(augmented.permute(0, 2, 3, 1).view_as(batches))
        wanted.copy_(torch.cat([answer(part) for part in augmented.split(BATCH)]).view_as(wanted))

    def answer(part: Tensor) -> Tensor:
        views = [part, part.flip(3)] if how.distill_mirrored else [part]
        answers = torch.stack([(reference(view) / temperature).log_softmax(1) for view in views])
        return answers.logsumexp(0) - math.log(len(views))

    def loss() -> Tensor:
        for quantizer, log_alpha in zip(quantizers, logs, strict=False):
            quantizer.alpha = log_alpha.exp()
        learned()
        logits = model(batches.index_select(0, turn)[0].permute(0, 3, 1, 2)) / temperature
        target = wanted.index_select(0, turn)[0]
        return temperature**2 * F.kl_div(logits.log_softmax(1), target, log_target=True, reduction="batchmean")

    def schedule(number: int) -> None:
        if number % len(batches) == 0:
            draw_batches()
        turn.fill_(number % len(batches))
        rate.fill_(0.5 * lr * (1 + math.cos(math.pi * number / steps)))

    parameters = [*learned.parameters(), *biases, *logs]
    minimize(loss, [{"params": parameters, "lr": rate}], steps, schedule, advance)
    freeze_alphas(quantizers, logs)
    for bias in biases:
        bias.requires_grad_(False)
    learned.finish()
