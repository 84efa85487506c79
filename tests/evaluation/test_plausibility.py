"""A float network that is not what it should be is told so before it is quantized."""

import logging

import pytest
import torch
from torch import Tensor

from ptq_exp.data.dataset import Dataset
from ptq_exp.evaluation.accuracy import Evaluation
from ptq_exp.evaluation.plausibility import best_order, warn_if_implausible

CLASSES = ("ship", "cat", "dog", "frog")


def answers(predictions: Tensor, labels: Tensor) -> tuple[Evaluation, Dataset]:
    images = torch.zeros(len(labels), 3, 2, 2, dtype=torch.uint8)
    correct = int((predictions == labels).sum())
    return Evaluation(predictions, correct, correct, 0.1, 1.0), Dataset("few", CLASSES, images, labels, images, labels)


def noisy(labels: Tensor, share: float) -> Tensor:
    """The labels, a share of them replaced by the next class."""
    count = round(share * len(labels))
    return torch.cat([(labels[:count] + 1) % len(CLASSES), labels[count:]])


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


LABELS = torch.arange(400) % 4


@pytest.mark.parametrize(
    ("share", "claim", "warned"),
    [(0.1, 95.0, False), (0.1, 97.0, True), (0.1, None, False), (0.0, 99.0, False), (0.3, 91.73, True)],
)
def test_far_below_the_claim_is_a_warning(
    caplog: pytest.LogCaptureFixture, share: float, claim: float | None, warned: bool
) -> None:
    baseline, data = answers(noisy(LABELS, share), LABELS)
    warn_if_implausible(baseline, data, ("best_prec1", claim) if claim else None)
    found = warnings(caplog)
    assert bool(found) == warned
    if warned:
        assert f"states best_prec1 = {claim:.2f} %" in found[0]
        assert f"{100 * (1 - share):.2f} %" in found[0]


def test_classes_in_another_order_are_told_with_the_order(caplog: pytest.LogCaptureFixture) -> None:
    order = torch.tensor([2, 0, 3, 1])  # output 0 stands for dog, output 1 for ship ...
    outputs = order.argsort()[noisy(LABELS, 0.1)]
    baseline, data = answers(outputs, LABELS)
    assert baseline.top1 < 10
    assert torch.equal(best_order(outputs, LABELS, 4), order)
    warn_if_implausible(baseline, data, None)
    (warning,) = warnings(caplog)
    assert "data.classes='[dog,ship,frog,cat]'" in warning
    assert "90.00 %" in warning


def test_a_network_that_guesses_is_not_called_permuted(caplog: pytest.LogCaptureFixture) -> None:
    guesses = torch.randint(0, 4, (400,), generator=torch.Generator().manual_seed(0))
    warn_if_implausible(*answers(guesses, LABELS), None)
    assert warnings(caplog) == []
