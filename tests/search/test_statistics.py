"""The guarantee of a search: its limits, the images that they take, and what a simulation says of both errors."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ptq_exp.evaluation.paired import paired_interval
from ptq_exp.quantization.options import QuantConfig
from ptq_exp.results.records import BRIEF, LEARNED, NEAREST, Trial
from ptq_exp.search import fewest
from ptq_exp.search.fewest import Fewest
from ptq_exp.search.options import SearchOptions
from ptq_exp.search.statistics import drop_limit, images_advisable, images_required, level_of

LEARNING = QuantConfig(
    bits=4, sign_bit="included", grid="float_zero_point", granularity="channel", alpha_rule="mse", rounding="block"
)


def test_the_limit_is_that_of_the_same_interval_at_another_confidence() -> None:
    low, high = paired_interval(60, 40, 10_000)
    assert drop_limit(low, high, 0.975) == pytest.approx(high, abs=1e-6)  # one-sided 97.5 % is two-sided 95 %
    # 20 of 10,002 images, and 1.645 standard errors of sqrt(102 - 400 / 10,002) images
    assert drop_limit(low, high, 0.95) == pytest.approx(100 * (20 + 1.644854 * 102**0.5) / 10_002, abs=1e-3)


def test_sequences_share_the_error() -> None:
    assert level_of(95, 1) == pytest.approx(0.95)
    assert level_of(95, 5) == pytest.approx(0.99)


@pytest.mark.parametrize("margin", [0.5, 1.0, 5.0])
def test_fewer_images_than_required_never_pass(margin: float) -> None:
    least = images_required(margin, 0.99)
    assert drop_limit(*paired_interval(0, 0, least), 0.99) < margin
    assert drop_limit(*paired_interval(0, 0, least - 1), 0.99) >= margin


def test_with_the_advised_images_a_network_without_loss_passes_four_times_in_five() -> None:
    margin, level = 1.0, 0.98
    count = images_advisable(margin, level, change=0.06)
    random = np.random.default_rng(0)
    lost, gained, _ = random.multinomial(count, [0.03, 0.03, 0.94], size=4000).T
    intervals = [paired_interval(int(a), int(b), count) for a, b in zip(lost, gained, strict=True)]
    passed = [drop_limit(*interval, level) < margin for interval in intervals]
    assert np.mean(passed) == pytest.approx(0.8, abs=0.03)


Truth = Callable[[Trial], tuple[float, float]]  # the drop in points, and the share of images that change


def simulated(truth: Truth, count: int, seed: int) -> Callable[[Trial], Any]:
    """A measurement of networks whose true drop is known. Every trial draws images of its own, so that the errors of
    sequences add up as much as they can."""
    random = np.random.default_rng(seed)

    def measure(trial: Trial) -> Any:
        drop, changed = truth(trial)
        drop /= 100
        share = max(changed, drop)
        lost, gained, _ = random.multinomial(count, [(share + drop) / 2, (share - drop) / 2, 1 - share])
        low, high = paired_interval(int(lost), int(gained), count)
        return SimpleNamespace(top1_drop_ci_low=low, top1_drop_ci_high=high)

    return measure


def at_the_margin(trial: Trial) -> tuple[float, float]:
    """The worst case: in every sequence one width loses exactly the margin, which is too much, and wider ones lose
    nothing."""
    weights = trial.bits <= {NEAREST: 5, BRIEF: 4}.get(trial.how, 2)
    activations = (trial.act_bits or 32) <= (3 if trial.how == LEARNED else 6)
    return (1.0 if weights or activations or trial.mean_bits is not None else 0.0), 0.08


def like_a_resnet(trial: Trial) -> tuple[float, float]:
    """About what rounding and learning cost a ResNet-20 on 10,000 images, in points, and the images that change."""
    rounded = {8: (0.0, 0.005), 6: (0.1, 0.02), 5: (0.6, 0.04), 4: (2.0, 0.06)}
    brief = {5: (0.0, 0.01), 4: (0.0, 0.02), 3: (0.2, 0.05), 2: (1.0, 0.09)}
    learned = {5: (0.0, 0.01), 4: (0.0, 0.02), 3: (0.0, 0.04), 2: (0.1, 0.07)}
    drop, changed = {NEAREST: rounded, BRIEF: brief}.get(trial.how, learned).get(trial.bits, (9.0, 0.1))
    if trial.act_bits is not None:
        calibrated, with_weights = {8: 0.0, 6: 0.05, 5: 0.6, 4: 2.0}, {8: 0.0, 6: 0.0, 5: 0.0, 4: 0.0, 3: 0.1}
        drop += (with_weights if trial.how == LEARNED else calibrated).get(trial.act_bits, 3.0)
        changed += 0.01
    return drop + (0.9 if trial.mean_bits is not None else 0.0), changed


def searched(options: SearchOptions, truth: Truth, seed: int, count: int = 10_000) -> Trial | None:
    found = Fewest(options, LEARNING, simulated(truth, count, seed))
    found.run()
    return found.best.trial if found.best else None


def wrong(options: SearchOptions, searches: int) -> float:
    """The share of searches that end with a network whose true drop is not below the margin."""
    answers = [searched(options, at_the_margin, seed) for seed in range(searches)]
    return float(np.mean([answer is not None and at_the_margin(answer)[0] >= 1.0 for answer in answers]))


@pytest.fixture(autouse=True)
def no_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """A simulated result has no parts to leave out."""
    monkeypatch.setattr(fewest, "light", lambda result: result)


@pytest.mark.parametrize("over", [["weights"], ["weights", "activations"]])
def test_a_wrong_answer_is_as_rare_as_promised(over: list[str]) -> None:
    found = wrong(SearchOptions(name="fewest", over=over, reserve=0.0), 600)
    assert 0.01 < found < 0.05 + 2 * (0.05 * 0.95 / 600) ** 0.5


def test_if_sequences_did_not_share_the_error_it_would_exceed_the_promise() -> None:
    each = SearchOptions(name="fewest", over=["weights", "activations"], reserve=0.0, confidence=70.0)  # 95 % each
    assert wrong(each, 300) > 0.09


def test_the_narrowest_network_is_found_where_the_images_suffice_for_the_margin() -> None:
    """The power with 10,000 images, for drops like those of ResNet-20, of which the narrowest fits at 2 and 3 bits."""
    found = {}
    for margin in (1.0, 2.0):
        options = SearchOptions(name="fewest", over=["weights", "activations"], max_drop=margin)
        answers = [searched(options, like_a_resnet, seed) for seed in range(100)]
        found[margin] = [(answer.bits, answer.act_bits or 32) for answer in answers if answer is not None]
    assert np.mean([widths == (2, 3) for widths in found[2.0]]) > 0.9
    assert np.mean([bits <= 3 and act_bits <= 4 for bits, act_bits in found[1.0]]) > 0.55
