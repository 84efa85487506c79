"""Warnings about a float network with an implausible accuracy, since all later results would be useless."""

import torch
from torch import Tensor

from ptq_exp.base.console import log
from ptq_exp.data.dataset import Dataset
from ptq_exp.evaluation.accuracy import Evaluation

FAR_BELOW = 3.0  # points below the claim, beyond the 95 % CI; less can be due to resizing or the JPEG decoder
PERMUTED_GAIN, PERMUTED_TOP1 = 20.0, 50.0  # minimum gain (points) and top-1 (percent) with another class order


def warn_if_implausible(baseline: Evaluation, dataset: Dataset, claim: tuple[str, float] | None) -> None:
    """Warn if the float network is far below the accuracy stated in its file, or only its class order seems wrong."""
    if claim is not None and claim[1] - baseline.interval()[1] > FAR_BELOW:
        log.warning(
            "The file states %s = %.2f %%, but these test images give %.2f %%. Either the images are not those of the "
            "stated accuracy, or they are normalized or resized differently, or the classes are in another order.",
            claim[0], claim[1], baseline.top1,
        )  # fmt: skip
    if baseline.top1 > 100 - PERMUTED_GAIN:
        return
    order = best_order(baseline.predictions, dataset.test_labels.cpu(), len(dataset.classes))
    share = 100 * (order[baseline.predictions] == dataset.test_labels.cpu()).float().mean().item()
    if share - baseline.top1 > PERMUTED_GAIN and share > PERMUTED_TOP1:
        names = [dataset.classes[label] for label in order.tolist()]
        log.warning(
            "The network's outputs seem to be in another order than the classes of the data: top-1 is %.2f %%, but it "
            "would be %.2f %% with data.classes='[%s]'.", baseline.top1, share, ",".join(names),
        )  # fmt: skip


def best_order(predictions: Tensor, labels: Tensor, classes: int) -> Tensor:
    """The class (C,) of each output that makes as many predictions (N,) as possible correct (Kuhn 1955)."""
    from scipy.optimize import linear_sum_assignment  # imported here, since it takes 0.3 s and is rarely needed

    counts = torch.bincount(predictions * classes + labels, minlength=classes * classes).view(classes, classes)
    return torch.from_numpy(linear_sum_assignment(counts.numpy(), maximize=True)[1])
