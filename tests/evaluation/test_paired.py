"""Which images are right, as one bit each, and what two such records say about each other."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptq_exp.evaluation.paired import Correct, difference
from ptq_exp.results.files import from_json, to_json

PAIRS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=70)


@given(PAIRS)
def test_counts_are_exact_for_any_number_of_images(pairs: list[tuple[bool, bool]]) -> None:
    ours, theirs = (Correct.of([pair[side] for pair in pairs], "d") for side in (0, 1))
    assert [bool(ours.mask >> number & 1) for number in range(len(pairs))] == [pair[0] for pair in pairs]
    found, back = difference(ours, theirs), difference(theirs, ours)
    assert found is not None
    assert back is not None
    assert found.points == pytest.approx(100 * sum(a - b for a, b in pairs) / len(pairs))
    assert (back.points, back.ci_low, back.ci_high) == pytest.approx((-found.points, -found.ci_high, -found.ci_low))


def test_a_record_keeps_it_in_little_space() -> None:
    correct = Correct.of((number % 3 == 0 for number in range(10_000)), "d")
    assert from_json(Correct, to_json(correct)) == correct
    assert len(correct.bits) == 4 * math.ceil(1250 / 3)


def test_other_images_give_no_difference() -> None:
    one = Correct.of([True, False], "d")
    assert difference(one, Correct.of([True, False], "e")) is None
    assert difference(one, Correct.of([True], "d")) is None
    assert difference(one, None) is None
