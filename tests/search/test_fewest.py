"""The order of a search: wide to narrow, the cheap way first, and no further along an axis after a failure."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from ptq_exp.base.errors import UserError
from ptq_exp.config.compose import compose
from ptq_exp.quantization.options import QuantConfig
from ptq_exp.results.records import Trial
from ptq_exp.search import fewest
from ptq_exp.search.fewest import Fewest, mixed_obstacle, quant_of
from ptq_exp.search.options import SearchOptions

BEST = compose("quant=best").quant
ROUNDED = compose("quant=mse").quant
Steps = list[tuple[Any, ...]]


@pytest.fixture(autouse=True)
def no_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fewest, "light", lambda result: result)


def trace(quant: QuantConfig, passes: Callable[[Trial], bool], **options: Any) -> tuple[Steps, Trial | None]:
    """The trials in order, as (bits or mean bits, act_bits, how), and the one that was found."""

    def measure(trial: Trial) -> Any:
        drop = 0.0 if passes(trial) else 50.0
        return SimpleNamespace(top1_drop_ci_low=drop - 0.1, top1_drop_ci_high=drop + 0.1)

    found = Fewest(SearchOptions(name="fewest", **options), quant, measure)
    found.run()
    trials = [entry.trial for entry in found.trials]
    steps = [(trial.mean_bits or trial.bits, trial.act_bits, trial.how) for trial in trials]
    return steps, found.best.trial if found.best else None


def test_each_way_begins_where_a_cheaper_one_fails_and_is_not_tried_again_after_its_failure() -> None:
    def passes(trial: Trial) -> bool:
        return (trial.mean_bits or trial.bits) >= {"nearest": 6, "learned briefly": 4}.get(trial.how, 2)

    steps, found = trace(BEST, passes, mixed=False)
    assert steps == [
        (8, None, "nearest"), (6, None, "nearest"), (5, None, "nearest"), (5, None, "learned briefly"),
        (4, None, "learned briefly"), (3, None, "learned briefly"), (3, None, "learned"), (2, None, "learned"),
        (1, None, "learned"),
    ]  # fmt: skip
    assert found is not None
    assert (found.bits, found.how) == (2, "learned")


def test_learning_begins_where_rounding_fails_and_mixed_precision_where_learning_fails() -> None:
    def passes(trial: Trial) -> bool:
        return (trial.mean_bits or trial.bits) >= (5 if trial.how == "nearest" else 2.5)

    steps, found = trace(BEST, passes, brief=0)
    assert steps == [
        (8, None, "nearest"), (6, None, "nearest"), (5, None, "nearest"), (4, None, "nearest"),
        (4, None, "learned"), (3, None, "learned"), (2, None, "learned"),
        (2.75, None, "learned"), (2.5, None, "learned"), (2.25, None, "learned"),
    ]  # fmt: skip
    assert found is not None
    assert found.mean_bits == 2.5


def test_activations_are_calibrated_on_the_learned_weights_before_they_are_learned() -> None:
    def passes(trial: Trial) -> bool:
        if trial.axis == "activations":
            return (trial.act_bits or 32) >= (3 if trial.how == "learned" else 6)
        return trial.mean_bits is None and trial.bits >= (3 if trial.how == "learned" else 6)

    steps, found = trace(BEST, passes, over=["weights", "activations"], brief=0)
    assert steps == [
        (8, None, "nearest"), (6, None, "nearest"), (5, None, "nearest"), (5, None, "learned"), (4, None, "learned"),
        (3, None, "learned"), (2, None, "learned"),
        (3, 8, "weights learned"), (3, 6, "weights learned"), (3, 5, "weights learned"), (3, 5, "learned"),
        (3, 4, "learned"), (3, 3, "learned"), (3, 2, "learned"), (2.75, 3, "learned"),
    ]  # fmt: skip
    assert (found and found.bits, found and found.act_bits) == (3, 3)


def test_a_width_that_rounding_passes_is_never_learned() -> None:
    steps, _ = trace(BEST, lambda trial: trial.bits >= 3)
    passed = [bits for bits, _, how in steps if how == "nearest" and bits >= 3]
    assert passed == [8, 6, 5, 4, 3]
    assert all(bits < 3 for bits, _, how in steps if how == "learned")


def test_without_learning_there_is_one_trial_a_width() -> None:
    steps, found = trace(ROUNDED, lambda trial: trial.bits >= 4 and trial.mean_bits is None)
    assert steps == [(8, None, "nearest"), (6, None, "nearest"), (5, None, "nearest"), (4, None, "nearest"),
                     (3, None, "nearest"), (3.75, None, "nearest")]  # fmt: skip
    assert found is not None


def test_below_the_last_width_mean_widths_become_narrower_in_eighths() -> None:
    steps, found = trace(ROUNDED, lambda trial: (trial.mean_bits or 8) > 5, bits=[8])
    assert [bits for bits, *_ in steps] == [8, 7, 6, 5]
    assert (found and found.mean_bits) == 6


def test_nothing_is_tried_below_a_width_at_which_nothing_passes() -> None:
    steps, found = trace(ROUNDED, lambda trial: False, over=["weights", "activations"])
    assert steps == [(8, None, "nearest")]
    assert found is None


def test_activations_alone_keep_the_weights() -> None:
    quant = replace(BEST, bits=4)
    steps, found = trace(quant, lambda trial: (trial.act_bits or 32) >= 4, over=["activations"])
    assert {bits for bits, *_ in steps} == {4}
    assert (found and found.act_bits) == 4


def test_the_weights_leave_a_part_of_the_margin() -> None:
    options = SearchOptions(name="fewest", over=["weights", "activations"], max_drop=2, reserve=0.25)
    nothing_lost: Any = SimpleNamespace(top1_drop_ci_low=-0.1, top1_drop_ci_high=0.1)
    found = Fewest(options, BEST, lambda _: nothing_lost)
    found.run()
    assert {entry.trial.axis: entry.margin for entry in found.trials} == {"weights": 1.5, "activations": 2, "mixed": 2}


def test_the_method_of_a_trial_can_be_run_by_hand() -> None:
    rounded = quant_of(Trial("weights", 5, None, "nearest"), BEST)
    assert (rounded.bits, rounded.rounding, rounded.reconstruction.distill_steps) == (5, "nearest", 0)
    brief = quant_of(Trial("weights", 5, None, "learned briefly"), BEST, 0.05)
    assert (brief.rounding, brief.reconstruction.steps, brief.reconstruction.distill_steps) == ("block", 100, 0)
    assert brief.reconstruction.lr == pytest.approx(20 * BEST.reconstruction.lr)
    assert brief.calibration_images == 1024
    calibrated = quant_of(Trial("activations", 3, 6, "weights learned"), BEST)
    assert (calibrated.act_bits, calibrated.act_learned, calibrated.rounding) == (6, False, "block")
    mixed = quant_of(Trial("mixed", 3, 6, "learned", mean_bits=2.75), BEST)
    assert (mixed.mixed, mixed.mean_bits, mixed.act_bits) == (True, 2.75, 6)


def test_a_grid_without_one_bit_is_searched_down_to_two() -> None:
    steps, _ = trace(ROUNDED, lambda trial: True)
    assert min(bits for bits, *_ in steps) == 2


def test_one_range_for_all_layers_has_no_mixed_precision() -> None:
    assert "one range per layer" in mixed_obstacle(compose("quant=notebook").quant)
    assert mixed_obstacle(BEST) == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"over": ["weight"]}, "Did you mean 'weights'?"),
        ({"over": []}, "search.over is empty"),
        ({"bits": [2, 4, 8]}, "must descend from wide to narrow"),
        ({"act_bits": [8, 8]}, "must descend"),
    ],
)
def test_options_that_describe_no_search(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match="search") as refused:
        SearchOptions(name="fewest", **options).check()
    assert message in str(refused.value)
