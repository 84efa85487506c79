"""Top-1, top-5, loss and agreement by hand; intervals against published and exact ones."""

import pytest
import torch
from scipy.stats import binomtest
from trained import CPU

from ptq_exp.data.loader import Normalizer
from ptq_exp.evaluation.accuracy import Evaluation, drop_interval, evaluate, wilson_interval
from ptq_exp.networks import build_model


def test_evaluation_counts_exactly() -> None:
    """A network that answers with known logits: top-1, top-5, loss and agreement by hand."""

    class Fixed(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            ranked = torch.arange(10.0).flip(0)  # class 0 first, then 1, 2, ...
            return ranked.expand(len(x), 10)

    images = torch.zeros(150, 3, 4, 4, dtype=torch.uint8)
    labels = torch.tensor([0] * 75 + [4] * 45 + [9] * 30)
    normalize = Normalizer([0.5] * 3, [0.5] * 3, CPU)
    result = evaluate(Fixed(), images, labels, normalize)
    assert (result.top1, result.top5) == (50.0, 80.0)
    log_sum = torch.arange(10.0).logsumexp(0).item()
    assert result.loss == pytest.approx(log_sum - (75 * 9 + 45 * 5 + 30 * 0) / 150, rel=1e-6)
    other = Evaluation(torch.tensor([0] * 100 + [1] * 50), 0, 0, 0.0, 0.0)
    assert result.agreement(other) == pytest.approx(100 * 100 / 150)


def test_wilson_interval() -> None:
    """Newcombe 1998, table I: 81 of 263 gives 0.2553 to 0.3662; none of 20 gives 0 to 0.1611."""
    assert wilson_interval(81, 263) == pytest.approx((25.53, 36.62), abs=0.01)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 16.11), abs=0.01)


def test_the_interval_of_the_drop_is_paired() -> None:
    """Ten images lost and two gained of a hundred: 8 points, standard error sqrt(12 - 64 / 100) / 100."""
    labels = torch.zeros(100, dtype=torch.long)
    before, after = torch.zeros(100, dtype=torch.long), torch.zeros(100, dtype=torch.long)
    before[:2] = 1
    after[10:20] = 1
    low, high = drop_interval(Evaluation(before, 98, 0, 0.0, 0.0), Evaluation(after, 90, 0, 0.0, 0.0), labels)
    # By hand: 10 lost, 2 gained of 100; (10 - 2) / 102, standard error sqrt(14 - 64 / 102) / 102.
    assert (low, high) == pytest.approx((7.84314 - 1.959964 * 3.58528, 7.84314 + 1.959964 * 3.58528), abs=1e-3)


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (1, 0), (4, 0), (5, 0), (6, 0), (7, 1), (8, 1), (9, 1), (30, 12)])
def test_the_drop_s_interval_judges_as_the_exact_test_does(lost: int, gained: int) -> None:
    """McNemar's exact test: of the images on which the networks differ, as many would go either way."""
    labels = torch.zeros(400, dtype=torch.long)
    before, after = labels.clone(), labels.clone()
    after[:lost] = 1
    before[lost : lost + gained] = 1
    low, high = drop_interval(Evaluation(before, 0, 0, 0.0, 0.0), Evaluation(after, 0, 0, 0.0, 0.0), labels)
    assert low < high
    p = binomtest(lost, lost + gained).pvalue if lost + gained else 1.0
    assert (low > 0) == (p < 0.05)


def test_evaluation_restores_the_mode_of_the_model() -> None:
    model = build_model("resnet", 10).train()
    data = torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.zeros(2, dtype=torch.long)
    evaluate(model, *data, Normalizer([0.5] * 3, [0.5] * 3, CPU))
    assert model.training
