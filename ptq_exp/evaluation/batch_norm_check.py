"""A consistency check of a float network: do the inputs of every batch norm match its running statistics?

A batch norm stores the mean and the variance of its inputs in training. With the right images, normalization and
layers, its inputs have the same statistics again. No label is needed.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ptq_exp.base.console import log
from ptq_exp.data.dataset import Dataset, fixed_shuffle
from ptq_exp.data.loader import Normalizer, TrainingLoader
from ptq_exp.data.normalization import Constants, candidates
from ptq_exp.quantization.hooks import BATCH, Inputs, StopForward, watching

IMAGES = 512  # of the training images: sampling noise is then 0.001 nats per channel
FEWEST_BATCHES = 100  # training batches that running statistics need to describe the inputs
# A divergence that the images alone can cause: JPEG files for a network trained on lossless ones stay below 0.03 (0.01
# in the first layer), permuted layers or a missing shortcut give 0.05 to 3.
MISFIT, JUMP = 0.03, 5.0
# Constants given by the user or the file count as wrong if others fit the first batch norm better by this much. The
# right ones stay below 0.002 there. The closest wrong pair, CIFAR-10's and CIFAR-100's statistics, differs by 0.003.
CLEARLY_WORSE, TIMES_WORSE = 0.005, 3.0
TIED = 0.002

Divergences = dict[str, float]  # batch norm -> nats per channel, in the order of execution


@dataclass(frozen=True)
class Fit:
    """The agreement of a network's batch norms with images normalized by some constants."""

    constants: Constants
    augmented: bool  # whether the images were cropped and flipped as in training, or left unchanged
    layers: Divergences

    @property
    def first(self) -> float:
        """The divergence at the first batch norm, which depends only on the images and their normalization."""
        return next(iter(self.layers.values()))

    @property
    def mean(self) -> float:
        """The mean divergence over all batch norms."""
        return sum(self.layers.values()) / len(self.layers)

    def misfit(self) -> str | None:
        """The first batch norm whose divergence clearly exceeds those before it, or None.

        Different images affect all layers, the first slightly less than the last. Wrong wiring or misplaced weights
        cause a jump at one layer.
        """
        highest = 0.0
        for name, divergence in self.layers.items():
            if divergence > max(MISFIT, JUMP * highest):
                return name
            highest = max(highest, divergence)
        return None


class BatchNormCheck:
    """Measures a network on one sample of a data set's training images, on their common device.

    The images are used twice: cropped and flipped as in the data set's recipe, and unchanged, because the training of
    the network is unknown.
    """

    def __init__(self, model: nn.Module, dataset: Dataset):
        self.model = model
        self.norms = {name: m for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d) and _trained(m)}
        chosen = fixed_shuffle(len(dataset.train_images))[:IMAGES].to(dataset.train_images.device)
        plain, recipe = dataset.train_images[chosen], dataset.recipe
        loader = TrainingLoader(plain, chosen, len(plain), recipe.crop_padding, recipe.flip, seed=0)
        self.images = {True: next(loader.epoch(0))[0], False: plain}

    def ranking(self, constants: list[Constants]) -> list[Fit]:
        """The fit of each set of constants at the first batch norm (the better use of the images), best first."""
        fits = [
            Fit(each, augmented, self._divergences(augmented, each, first_layer_only=True))
            for each in constants for augmented in self.images
        ]  # fmt: skip
        best = [min((fit for fit in fits if fit.constants is each), key=lambda fit: fit.first) for each in constants]
        return sorted(best, key=lambda fit: fit.first)

    def whole(self, fit: Fit) -> Fit:
        """The same fit at every batch norm."""
        return Fit(fit.constants, fit.augmented, self._divergences(fit.augmented, fit.constants, False))

    @torch.no_grad()
    def predictions(self, constants: Constants) -> Tensor:
        """The predicted classes (N,) of the unaugmented images, normalized by `constants`."""
        images = self.images[False]
        normalize = Normalizer(constants.mean, constants.std, images.device)
        return torch.cat([self.model(normalize(batch)).argmax(1) for batch in images.split(BATCH)])

    @torch.no_grad()
    def _divergences(self, augmented: bool, constants: Constants, first_layer_only: bool) -> Divergences:
        """KL divergence between Gaussians of the observed and of the stored statistics, (observed || stored)."""
        images = self.images[augmented]
        normalize = Normalizer(constants.mean, constants.std, images.device)
        sums: dict[str, Tensor] = {}

        def add(name: str, inputs: Inputs) -> None:
            channels = inputs[0].transpose(0, 1).flatten(1).double()
            count = torch.full_like(channels[:, 0], channels.shape[1])
            moments = torch.stack([count, channels.sum(1), channels.square().sum(1)])
            sums[name] = sums[name] + moments if name in sums else moments
            if first_layer_only:
                raise StopForward

        training = self.model.training
        try:
            self.model.eval()
            with watching(self.model, self.norms, inputs=add) as forward:
                for batch in images.split(BATCH):
                    forward(normalize(batch))
        finally:
            self.model.train(training)
        return {name: _divergence(self.norms[name], *moments) for name, moments in sums.items()}


def choose_constants(model: nn.Module, dataset: Dataset) -> Constants | None:
    """The known constants that fit `model` best on the images of `dataset`, or None without trained batch norms.

    The quality of the fit is logged, with a warning if nothing fits.
    """
    check = BatchNormCheck(model, dataset)
    if not check.norms:
        return None
    best, *others = check.ranking(candidates(dataset))
    whole = check.whole(best)
    log.info(
        "Normalization: %s fits the network's batch norms best. The divergence is %.4f nats per channel in the first "
        "and %.4f on average; next best is %s, with %.4f in the first.",
        best.constants, whole.first, whole.mean, others[0].constants.name, others[0].first,
    )  # fmt: skip
    _tell_ties(check, best, [fit for fit in others if fit.first - best.first < TIED])
    _warn_of_misfit(whole)
    return best.constants


def check_constants(model: nn.Module, dataset: Dataset, given: Constants, whose: str) -> None:
    """Warn if the `given` constants (of the origin `whose`) fit `model` clearly worse than others, or nothing fits."""
    check = BatchNormCheck(model, dataset)
    if not check.norms:
        log.info("Normalization %s: %s.", whose, given)
        return
    (own,) = check.ranking([given])
    best = check.ranking([known for known in candidates(dataset) if not known.same_as(given)])[0]
    if own.first - best.first > CLEARLY_WORSE and own.first > TIMES_WORSE * best.first:
        first = next(iter(own.layers))
        log.warning(
            "The normalization %s, %s, does not fit this network: at %s, its first batch norm, the images differ from "
            "the statistics stored in training by %.4f nats per channel. %s would fit with %.4f. Set %s.",
            whose, given.values(), first, own.first, best.constants.name, best.first, best.constants.as_override(),
        )  # fmt: skip
        return
    whole = check.whole(own)
    log.info(
        "Normalization %s: %s. Its divergence from the network's batch norms is %.4f nats per channel in the first and "
        "%.4f on average.", whose, given, whole.first, whole.mean,
    )  # fmt: skip
    _warn_of_misfit(whole)


def _tell_ties(check: BatchNormCheck, best: Fit, tied: list[Fit]) -> None:
    for other in tied:
        same = check.predictions(best.constants) == check.predictions(other.constants)
        log.info(
            "These images cannot distinguish %s from %s. It makes little difference: %.1f %% of the predictions on %d "
            "training images are the same with both.",
            best.constants.name, other.constants.name, 100 * same.float().mean().item(), len(same),
        )  # fmt: skip


def _warn_of_misfit(fit: Fit) -> None:
    name = fit.misfit()
    if name is None:
        return
    if name == next(iter(fit.layers)):
        log.warning(
            "No known normalization fits this network on these images: at %s, its first batch norm, they differ from "
            "the statistics stored in training by %.3f nats per channel. The network was trained on other images or "
            "with other constants. Set data.mean and data.std.", name, fit.first,
        )  # fmt: skip
        return
    log.warning(
        "The network does not match its own batch norms from %s on: the inputs of this norm differ from the statistics "
        "stored in training by %.3f nats per channel. Its layers are probably connected differently than in training "
        "(shortcut, stride, padding, order), or some weights are in the wrong place.", name, fit.layers[name],
    )  # fmt: skip


def _trained(norm: nn.BatchNorm2d) -> bool:
    """Whether the running statistics are meaningful. A file may lack the number of batches, which is then 0."""
    seen = norm.num_batches_tracked
    return norm.running_mean is not None and (seen is None or not 0 < int(seen) < FEWEST_BATCHES)


def _divergence(norm: nn.BatchNorm2d, count: Tensor, total: Tensor, squares: Tensor) -> float:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean = total / count
    variance = (squares / count - mean.square()).clamp(min=0)
    stored = norm.running_var.double()
    floor = norm.eps + 1e-3 * stored.mean()  # a channel that is never active has no variance to compare
    ratio = (variance + floor) / (stored + floor)
    shift = (mean - norm.running_mean.double()).square() / (stored + floor)
    return 0.5 * float((ratio + shift - 1 - ratio.log()).mean())
