"""A consistency check of a float network: do the inputs of every batch norm match its running statistics?

A batch norm stores the mean and the variance of its inputs in training. With the right images, normalization and
layers, its inputs have the same statistics again. No label is needed.
"""

from torch import nn

from ptq_exp.base.console import log
from ptq_exp.data.dataset import Dataset
from ptq_exp.data.normalization import Constants, candidates
from ptq_exp.evaluation.batch_norm_fit import FIRST, LITTLE, BatchNormCheck, Fit

# Constants given by the user or the file count as wrong if others fit the first batch norm better by this much. The
# right ones stay below 0.005 there. The closest wrong pair, CIFAR-10's and CIFAR-100's statistics, differs by 0.003.
CLEARLY_WORSE, TIMES_WORSE = 0.005, 3.0
TIED = 0.002
# Another size or channel order is named if it at least halves the divergence, by more than sampling noise.
HALF, NOISE = 0.5, 0.0003
OR_OTHER_IMAGES = (
    " Images of another kind than in training, such as JPEG files instead of lossless ones, can look the same."
)
SIDES = (32, 64, 96, 224)  # usual image sizes, tried if the given one does not fit


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
        "Normalization: the network's batch norms fit %s best. The divergence is %.4f nats per channel in the first "
        "and %.4f on average; next best is %s, with %.4f in the first.",
        best.constants, whole.first, whole.mean, others[0].constants.name, others[0].first,
    )  # fmt: skip
    _tell_ties(check, best, [fit for fit in others if fit.first - best.first < TIED])
    _warn_of_misfit(check, whole)
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
    _warn_of_misfit(check, whole)


def _tell_ties(check: BatchNormCheck, best: Fit, tied: list[Fit]) -> None:
    for other in tied:
        same = check.predictions(best.constants) == check.predictions(other.constants)
        log.info(
            "These images cannot distinguish %s from %s. It makes little difference: %.1f %% of the predictions on %d "
            "training images are the same with both.",
            best.constants.name, other.constants.name, 100 * same.float().mean().item(), len(same),
        )  # fmt: skip


def _warn_of_misfit(check: BatchNormCheck, fit: Fit) -> None:
    if _warn_of_blue_first(check, fit) or (found := fit.misfit()) is None:
        return
    name, abrupt = found
    divergence = fit.layers[name]
    if name == next(iter(fit.layers)):
        log.warning(
            "No known normalization fits this network on these images: at %s, its first batch norm, they differ from "
            "the statistics stored in training by %.3f nats per channel. %s",
            name, divergence, _size_advice(check, fit),
        )  # fmt: skip
    elif abrupt:
        log.warning(
            "The network does not match its own batch norms from %s on: the inputs of this norm differ from the "
            "statistics stored in training by %.3f nats per channel. Its layers are probably connected differently "
            "than in training, or some weights are in the wrong place. Compare the code before this norm (shortcut, "
            "stride, padding, order) with the code that trained the network.%s", name, divergence,
            OR_OTHER_IMAGES if divergence < LITTLE else "",
        )  # fmt: skip
    else:
        log.warning(
            "The network fits its own batch norms worse from layer to layer: at %s, the inputs differ from the "
            "statistics stored in training by %.3f nats per channel. Either these images are of another kind than in "
            "training (source, size, cropping), or all layers work slightly differently (padding). Compare both with "
            "the training.", name, divergence,
        )  # fmt: skip


def _warn_of_blue_first(check: BatchNormCheck, fit: Fit) -> bool:
    first_layer = check.colour_layer()
    if first_layer is None:
        return False
    blue = check.blue_first(fit)
    better = any(
        ours - theirs > NOISE and theirs < HALF * ours
        for ours, theirs in ((fit.first, blue.first), (fit.mean, blue.mean))
    )
    if not better or blue.misfit():
        return False
    log.warning(
        "The network fits better with the channels in the order blue, green, red: the divergence from its batch norms "
        "is then %.4f instead of %.4f nats per channel on average. It was probably trained on BGR images, as OpenCV "
        "reads them. Flip the weights of its first layer in the file: state['%s.weight'] = "
        "state['%s.weight'].flip(1).", blue.mean, fit.mean, first_layer, first_layer,
    )  # fmt: skip
    return True


def _size_advice(check: BatchNormCheck, fit: Fit) -> str:
    """What to do about images that do not fit: another size if that fits, else other images or constants."""
    limit, best = min(FIRST, HALF * fit.first), None
    for side in sorted({*SIDES} - {check.images.shape[-1]}):
        found = check.at_size(side, fit.augmented)
        if found and (best is None or found.first < best.first):
            best = found
        if best and best.first < HALF * limit:  # beyond doubt, and the larger sizes take longest
            break
    if best is not None and best.first < limit:
        size = best.presentation.side
        return (
            f"Images of {size} pixels, normalized by {best.constants.name}, fit better (the divergence is "
            f"{best.first:.3f}). Set data.resize={size}."
        )
    return (
        "The network was trained on other images or with other constants. Use images like those of its training, or "
        "set data.mean and data.std."
    )
