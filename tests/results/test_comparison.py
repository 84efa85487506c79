"""Methods against each other: paired on the same test images, at the same stored bits, best first."""

from dataclasses import replace

import pytest
from example_records import result

from ptq_exp.evaluation.paired import Correct
from ptq_exp.results.comparison import against_best, sentences, side_by_side, significantly_best
from ptq_exp.results.records import BitWidthResult
from ptq_exp.results.series import Series, rows_of

IMAGES = 200


def on_images(right: set[int], bits: int = 4, digest: str = "same", **changes: float) -> BitWidthResult:
    """A result with the given images classified correctly."""
    correct = Correct.of((number in right for number in range(IMAGES)), digest)
    return replace(result(bits, 100 * len(right) / IMAGES), correct=correct, **changes)  # type: ignore[arg-type]


def first(count: int) -> set[int]:
    return set(range(count))


def test_the_best_method_is_tested_against_each_other_one() -> None:
    series: Series = {
        "quant=a": [on_images(first(150)), on_images(first(180), 8)],
        "quant=b": [on_images(first(190)), on_images(first(181), 8)],
        "quant=c": [on_images(first(170)), on_images(first(100), 2)],
    }
    found = against_best(rows_of(series))
    assert [(str(each.width), each.first, each.second, each.points, each.verdict) for each in found] == [
        ("4", "quant=b", "quant=c", 10.0, "better"), ("4", "quant=b", "quant=a", 20.0, "better"),
        ("8", "quant=b", "quant=a", 0.5, "not distinguishable"),
    ]  # fmt: skip
    # 20 images that only b has, of 200: (20 - 0) / 202, standard error sqrt(22 - 400 / 202) / 202.
    assert found[0].tested is not None
    assert (found[0].tested.ci_low, found[0].tested.ci_high) == pytest.approx((5.5595, 14.2425), abs=1e-3)
    assert [(label, row.mean.bits) for label, row in significantly_best(rows_of(series))] == [("quant=b", 4)]
    assert sentences(found) == [
        "4 bits per weight: quant=b is significantly better than every other method; the nearest is quant=c "
        "(+10.00 points, 95 % CI +5.56 – +14.24).",
        "8 bits per weight: quant=b is not distinguishable from quant=a (+0.50 points, 95 % CI -1.18 – +2.17).",
    ]


def test_methods_on_a_network_that_guesses_are_not_compared() -> None:
    guessing = {"top1_float_ci_low": 9.0}
    series: Series = {"quant=a": [on_images(first(20), **guessing)], "quant=b": [on_images(first(60), **guessing)]}
    assert against_best(rows_of(series)) == []
    assert significantly_best(rows_of(series)) == []


def test_the_images_decide_and_not_the_accuracies() -> None:
    """The same accuracies: with the same images right, one of 200 is a difference; with others, it tells nothing."""
    alike = {"a": [on_images(first(180))], "b": [on_images(first(170))]}
    apart = {"a": [on_images(first(180))], "b": [on_images(set(range(30, 200)))]}
    assert [against_best(rows_of(series))[0].points for series in (alike, apart)] == [5.0, 5.0]
    assert [against_best(rows_of(series))[0].verdict for series in (alike, apart)] == ["better", "not distinguishable"]


def test_methods_are_compared_at_the_bits_that_they_store() -> None:
    signed = on_images(first(150), 3, bits_mean=4.0)
    mixed = on_images(first(190), 4, bits_mean=3.97)
    activations = replace(on_images(first(199)), act_bits=4)
    found = against_best(rows_of({"signed": [signed], "mixed": [mixed], "activations": [activations]}))
    assert [(each.first, each.second) for each in found] == [("mixed", "signed")]
    assert found[0].width.words() == "4 bits per weight"


@pytest.mark.parametrize("other", [on_images(first(10), digest="others"), replace(on_images(first(10)), correct=None)])
def test_other_images_and_older_records_are_not_tested(other: BitWidthResult) -> None:
    rows = rows_of({"a": [on_images(first(190))], "b": [other]})
    (found,) = against_best(rows)
    assert (found.points, found.tested, found.verdict) == (90.0, None, "not tested")
    assert significantly_best(rows) == []
    assert sentences([found]) == []


def test_seeds_are_paired_with_their_own() -> None:
    """Every seed has its own float network, and other images are right. All combinations say less than the pairs."""
    series: Series = {}
    for seed in (0, 1):
        own = set(range(100 * seed, 100 * seed + 100))
        series[f"quant=a seed={seed}"] = [on_images(own - set(range(100 * seed, 100 * seed + 20)))]
        series[f"quant=b seed={seed}"] = [on_images(own)]
    (found,) = against_best(rows_of(series))
    assert (found.first, found.second, found.points, found.verdict) == ("quant=b", "quant=a", 10.0, "better")
    del series["quant=a seed=1"]
    (combined,) = against_best(rows_of(series))
    assert found.tested is not None
    assert combined.tested is not None
    assert combined.points == 10.0
    assert combined.tested.ci_low < found.tested.ci_low - 4


def test_two_sweeps_are_compared_where_they_have_the_same_bits() -> None:
    ours: Series = {"quant=a": [on_images(first(150)), on_images(first(150), 2)], "quant=b": [on_images(first(190), 8)]}
    theirs: Series = {
        "quant=a": [on_images(first(190))], "quant=c": [on_images(first(199)), on_images(first(10), 8)],
        "quant=d": [on_images(first(20), 8)],
    }  # fmt: skip
    found = side_by_side(rows_of(ours), rows_of(theirs))
    assert [(str(each.width), each.first, each.second, each.verdict) for each in found] == [
        ("4", "quant=a", "quant=a", "worse"),  # the same method, though c is better
        ("8", "quant=b", "quant=d", "better"),  # no method in both: the best of each
    ]
