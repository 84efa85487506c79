"""Warnings about a float network whose accuracy is not what it should be: everything below it would be in vain."""

import torch
from torch import Tensor

from ptq_exp.base.console import log
from ptq_exp.data.dataset import Dataset
from ptq_exp.evaluation.accuracy import Evaluation

FAR_BELOW = 3.0  # points below the claim, beyond the 95 % interval: fewer can be another resizing or JPEG decoder
PERMUTED_GAIN, PERMUTED_TOP1 = 20.0, 50.0  # points that another order of the classes gains; percent that it reaches


def warn_if_implausible(baseline: Evaluation, dataset: Dataset, claim: tuple[str, float] | None) -> None:
    """Warn where the float network is far below the accuracy that its file claims, or right but for the class order."""
    if claim is not None and claim[1] - baseline.interval()[1] > FAR_BELOW:
        log.warning(
            "The file claims %s = %.2f %%, and these test images give %.2f %%. They differ from the images behind that "
            "claim, or are normalized or resized differently, or the classes are in another order.",
            claim[0], claim[1], baseline.top1,
        )  # fmt: skip
    if baseline.top1 > 100 - PERMUTED_GAIN:
        return
    order = best_order(baseline.predictions, dataset.test_labels.cpu(), len(dataset.classes))
    share = 100 * (order[baseline.predictions] == dataset.test_labels.cpu()).float().mean().item()
    if share - baseline.top1 > PERMUTED_GAIN and share > PERMUTED_TOP1:
        names = [dataset.classes[label] for label in order.tolist()]
        log.warning(
            "The network's outputs seem to be in another order than the classes of the data: top-1 is %.2f %%, and "
            "would be %.2f %% with data.classes='[%s]'.", baseline.top1, share, ",".join(names),
        )  # fmt: skip


def best_order(predictions: Tensor, labels: Tensor, classes: int) -> Tensor:
    """The class (C,) that each output stands for if as many predictions (N,) as possible are right (Kuhn 1955)."""
    from scipy.optimize import linear_sum_assignment  # takes a third of a second, for the few who need it

    counts = torch.bincount(predictions * classes + labels, minlength=classes * classes).view(classes, classes)
    return torch.from_numpy(linear_sum_assignment(counts.numpy(), maximize=True)[1])
