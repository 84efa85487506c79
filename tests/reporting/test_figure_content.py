"""What the figures say: scales, labels, legends and intervals, read from the figures instead of the pictures."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import quantize
from example_records import layer, result

from ptq_exp.data.dataset import Dataset
from ptq_exp.evaluation.accuracy import Evaluation
from ptq_exp.networks import build_model
from ptq_exp.quantization.options import QuantConfig
from ptq_exp.reporting import plots
from ptq_exp.reporting.plots import figures
from ptq_exp.results.series import number


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are drawn, instead of files."""
    found: list[Any] = []
    for module in ("accuracy", "layers", "distributions"):
        monkeypatch.setattr(f"ptq_exp.reporting.plots.{module}.save", lambda figure, *_, **__: found.append(figure))
    return found


def words(figure: Any) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(lambda part: hasattr(part, "get_text")))


def test_results_far_below_do_not_squeeze_accuracy_against_size(kept: list[Any]) -> None:
    plots.accuracy_against_size({"": [result(2, 10.0), result(4, 89.0), result(8, 90.0)]}, Path("a.png"), "t")
    plots.accuracy_against_size({"": [result(4, 90.0), result(8, 89.0)]}, Path("b.png"), "t")
    assert kept[0].axes[0].get_ylim()[0] > 80
    assert "1 network is not shown: " in words(kept[0])
    assert {"4 bits", "8 bits", "Pareto front"} <= set(words(kept[0]).split("\n"))
    assert "Not shown" not in words(kept[1])
    assert "Pareto front" not in words(kept[1])  # a single point is no line


def test_level_usage_counts_what_a_channel_can_use(kept: list[Any]) -> None:
    full = layer(levels_used=27, levels_available=255, levels_usable=27)
    plots.levels_used([full, layer(layer="conv2", levels_used=27, levels_available=255)], "t", Path("l.png"))
    assert [bar.get_width() for bar in kept[0].axes[0].patches] == pytest.approx([100, 100 * 27 / 255])
    assert "27 of 27, 20.0 dB" in words(kept[0])
    assert {"at least half of the levels", "less than half"} <= set(words(kept[0]).split("\n"))
    _, report = quantize(
        build_model("resnet", 10, depth=8).eval(),
        QuantConfig(granularity="channel", alpha_rule="max"),
        8,
        torch.randn(8, 3, 32, 32),
    )
    first = report.layers[0]
    assert (first.shape, first.levels_available, first.most_levels) == ("16x3x3x3", 511, 27)


def test_sensitivities_have_intervals_and_count_few_images(kept: list[Any]) -> None:
    drops = {"a": (1.0, 0.5, 1.5), "b": (-1.0, -2.0, -0.5), "c": (0.5, -0.5, 1.5)}
    plots.sensitivity_bars(drops, 200, "t", Path("s.png"))
    plots.sensitivity_bars(drops, 10_000, "t", Path("s.png"))
    few, many = kept
    assert [bar.get_width() for bar in few.axes[0].patches] == [2.0, -2.0, 1.0]
    assert few.axes[0].get_xlabel() == "top-1 drop (images)"
    assert many.axes[0].get_xlabel() == "top-1 drop (points)"
    assert {"loss", "gain", "no significant change"} <= set(words(few).split("\n"))
    (line,) = few.axes[0].collections
    assert [[x for x, _ in segment] for segment in line.get_segments()] == [[1.0, 3.0], [-4.0, -1.0], [-1.0, 3.0]]


def test_the_density_shows_one_range_or_those_of_the_channels(kept: list[Any]) -> None:
    weights = np.linspace(-1, 1, 27)
    for lows, highs in (([-0.8], [0.8]), ([-0.5, -0.9], [0.5, 0.9]), ([-0.5], [0.9]), ([], [])):
        plots.weight_density(weights, lows, highs, "t", Path("d.png"))
    assert "alpha = 0.8000" in words(kept[0])
    assert "alpha of 2 channels: 0.5000 to 0.9000" in words(kept[1])
    assert "range: -0.5000, 0.9000" in words(kept[2])
    assert "alpha" not in words(kept[3])


def test_a_confusion_figure_needs_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels, image = torch.tensor([0, 0, 1]), torch.zeros(3, 3, 32, 32, dtype=torch.uint8)
    data = Dataset("cifar10", tuple("abcdefghij"), image, labels, image, labels)
    names: list[str] = []
    monkeypatch.setattr(figures, "draw", lambda *arguments: names.append(arguments[-1].name))
    quantized = SimpleNamespace(report=SimpleNamespace(sensitivity=None))
    before = Evaluation(torch.tensor([0, 1, 1]), 2, 3, 0.0, 0.0)
    for after in (before, replace(before, predictions=torch.tensor([0, 0, 1]))):
        answers_ = (data, quantized, before, after)
        figures.BitWidthFigures(result(4), QuantConfig(bits=[2, 4]), "ResNet-20", *answers_).draw(tmp_path)
    assert names == ["confusion_w4.png"]


def test_no_number_is_minus_zero() -> None:
    assert [number(value) for value in (-0.001, -0.01, 4.0)] == ["0", "-0.01", "4"]
