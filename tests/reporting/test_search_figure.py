"""The figure of a search: its labels are readable, however close the trials are."""

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from example_records import result

from ptq_exp.reporting.plots import search_trials
from ptq_exp.results.records import BRIEF, CALIBRATED, LEARNED, NEAREST, SearchRecord, Trial, TrialResult
from ptq_exp.results.series import stored_width

Width = tuple[str, float, str, float]  # axis, mean bits, how, drop in points
WEIGHTS: list[Width] = [
    ("weights", 8, NEAREST, 0.05), ("weights", 6, NEAREST, 0.3), ("weights", 5, NEAREST, 1.1),
    ("weights", 5, BRIEF, 0.1), ("weights", 4, BRIEF, 0.35), ("weights", 3, BRIEF, 1.3), ("weights", 3, LEARNED, 0.6),
]  # fmt: skip
MIXED: list[Width] = [
    ("mixed", bits, LEARNED, drop) for bits, drop in ((2.75, 0.7), (2.5, 0.75), (2.25, 0.85), (2, 1.4))
]
CLOSE: list[Width] = [("mixed", 3 - n / 16, LEARNED, 0.6 + 0.01 * n) for n in range(1, 11)]
EQUAL: list[Width] = [("mixed", 3 - n / 100, LEARNED, 0.6) for n in range(1, 11)]


def search(widths: list[Width], chosen: int, activations: bool = False) -> SearchRecord:
    """A search of ResNet-20 whose trials are those given, and whose answer is one of them."""
    trials = [_trial(*width, act_bits=None) for width in widths]
    if activations:
        ways = [(CALIBRATED, 8), (CALIBRATED, 6), (LEARNED, 4), (LEARNED, 3)]
        trials += [
            _trial("activations", widths[-1][1], how, 0.2 + 0.3 * n, act_bits) for n, (how, act_bits) in enumerate(ways)
        ]
    return SearchRecord(
        "ResNet-20 on CIFAR-10: best", "ResNet-20", "", 1.0, 95.0, 98.3, ("weights",), 36, 10_000, "CPU", tuple(trials),
        chosen,
    )  # fmt: skip


def _trial(axis: str, bits: float, how: str, drop: float, act_bits: int | None) -> TrialResult:
    found = result(
        int(bits), 81.03 - drop, top1_float=81.03, top1_drop=drop, top1_drop_ci_low=drop - 0.5,
        top1_drop_ci_high=drop + 0.5, bits_mean=bits, size_bytes=int(33_600 * bits + 8_000), act_bits=act_bits,
    )  # fmt: skip
    trial = Trial(axis, int(bits), act_bits, how, bits if axis == "mixed" else None)
    return TrialResult(trial, 1.0, drop + 0.4, found)


SEARCHES = {
    "mixed": search([*WEIGHTS, *MIXED], 9),
    "crowded": search([*WEIGHTS, *CLOSE], 14),
    "nearly equal": search([*WEIGHTS, *EQUAL], 12),
    "activations": search([*WEIGHTS, *MIXED[:2]], 11, activations=True),
    "few": search(WEIGHTS[:2], 1),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_labels_cover_neither_labels_nor_points_and_the_answer_has_one(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr("ptq_exp.reporting.plots.search.save", lambda figure, _: drawn.append(figure))
    record = SEARCHES[name]
    search_trials(record, tmp_path / "search.png")
    figure = drawn[0]
    figure.canvas.draw()
    axes = figure.axes[0]
    labels = [text for text in axes.texts if text.get_text().startswith("W")]
    boxes = [text.get_window_extent() for text in labels]
    for first, second in combinations(boxes, 2):
        assert not first.overlaps(second)
    sizes = [found for found in record.trials if found.trial.axis != "activations" or found is record.best]
    for found in sizes:
        x, y = axes.transData.transform((found.result.size_bytes / 1000, found.result.top1))
        assert not any(box.contains(x, y) for box in boxes)
    for box in boxes:
        assert axes.bbox.x0 <= box.x0
        assert box.x1 <= axes.bbox.x1
    best = record.best
    assert best is not None
    answer = f"W{stored_width(best.result)}" + (f"A{best.result.act_bits}" if best.result.act_bits else "")
    ((x, _),) = [text.xy for text in labels if text.get_text() == answer and text.xy[1] == best.result.top1]
    assert x == best.result.size_bytes / 1000
    assert len(labels) >= min(len(sizes), 7)  # labels are omitted only where there is no place
