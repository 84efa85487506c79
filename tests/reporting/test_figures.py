"""The figures: that what they are drawn from is right, that each is a PNG of its size with something on it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, Outcome, prepare, quantize
from example_records import job, layer, result
from PIL import Image

from ptq_exp.data.dataset import Dataset
from ptq_exp.evaluation.accuracy import Evaluation
from ptq_exp.networks import build_model
from ptq_exp.quantization.effective_weights import target_layers
from ptq_exp.quantization.layers import quantized_layers
from ptq_exp.quantization.options import QuantConfig
from ptq_exp.reporting import plots
from ptq_exp.reporting.plots import figures, panels
from ptq_exp.results.layers import layer_tables
from ptq_exp.results.records import BitWidthResult, SweepRecord
from ptq_exp.results.series import answers, as_series, seed_groups, verdict


def row(bits: int, top1: float, drop: tuple[float, float] = (1.0, 2.0), **changes: Any) -> BitWidthResult:
    return result(bits, top1, top1_drop_ci_low=drop[0], top1_drop_ci_high=drop[1], **changes)


def drawn(path: Path) -> Any:
    """The picture as an array, after checking that it is one."""
    with Image.open(path) as figure:
        assert figure.format == "PNG"
        assert figure.info["dpi"] == pytest.approx((150, 150), abs=0.1)
        assert figure.width == 1050
        picture = figure.convert("RGB")
    assert picture.getcolors(maxcolors=10) is None  # it has more than ten: something was drawn
    return np.asarray(picture)


def has(pixels: Any, colour: str) -> bool:
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return bool((pixels == wanted).all(-1).any())


BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"


def test_seeds_become_one_line_with_a_band(tmp_path: Path) -> None:
    jobs = [
        job(row(bits, 50.0 + 10 * bits + seed), overrides=f"quant={method} seed={seed}")
        for method in ("mse", "notebook") for seed in (0, 1, 2) for bits in (2, 3)
    ]  # fmt: skip
    groups = seed_groups(as_series(jobs))
    assert {label: len(rows) for label, rows in groups.items()} == {"quant=mse": 6, "quant=notebook": 6}
    plots.accuracy_against_bits(groups, tmp_path / "a.png")
    pixels = drawn(tmp_path / "a.png")
    assert has(pixels, BLUE)
    assert has(pixels, ORANGE)
    assert not has(pixels, GREEN)  # a third series would be green


def test_a_long_legend_makes_the_figure_taller(tmp_path: Path) -> None:
    few = {f"quant.alpha_multiplier={n}": [row(4, 80.0), row(8, 85.0)] for n in range(3)}
    many = {f"quant.alpha_multiplier={n}": [row(4, 80.0), row(8, 85.0)] for n in range(12)}
    for name, series in (("few", few), ("many", many)):
        plots.accuracy_against_bits(series, tmp_path / f"{name}.png")
        plots.accuracy_against_size(series, tmp_path / f"{name}-size.png")
        drawn(tmp_path / f"{name}-size.png")
    assert drawn(tmp_path / "many.png").shape[0] > drawn(tmp_path / "few.png").shape[0]


def test_widths_that_lose_much_do_not_hide_the_others(tmp_path: Path) -> None:
    plots.accuracy_against_bits({"": [row(2, 10.0), row(4, 89.0), row(8, 90.0)]}, tmp_path / "wide.png")
    plots.accuracy_against_bits({"": [row(4, 89.0), row(8, 90.0)]}, tmp_path / "close.png")
    assert drawn(tmp_path / "wide.png").shape[0] > drawn(tmp_path / "close.png").shape[0]


def test_methods_are_drawn_at_the_bits_that_they_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures_: list[Any] = []
    monkeypatch.setattr("ptq_exp.reporting.plots.accuracy.save", lambda figure, _: figures_.append(figure))
    signed = [row(bits, 80.0 + bits, bits_mean=bits + 1.0) for bits in (2, 4)]
    series = {"quant=notebook": signed, "quant=best": [row(3, 84.0), row(5, 85.0)]}
    plots.accuracy_against_bits(series, tmp_path / "bits.png")
    plots.accuracy_against_size(series, tmp_path / "size.png")
    bits, size = (figure.axes[0] for figure in figures_)
    assert bits.get_xlabel() == "bits per weight (including sign)"
    assert [text.get_text() for text in bits.get_xticklabels()] == ["3", "5"]  # both methods, at equal stored bits
    names = [text.get_text() for text in bits.get_legend().get_texts()]
    assert any(name.startswith("quant=notebook (quant.bits=2,4)") for name in names)
    assert any(name.startswith("quant=best, 95 % CI") for name in names)
    assert {"3 bits", "5 bits"} >= {text.get_text() for text in size.texts} > set()


def test_the_pareto_front_holds_what_nothing_beats() -> None:
    points = [(100.0, 50.0), (200.0, 80.0), (150.0, 90.0), (300.0, 90.0), (150.0, 20.0)]
    assert plots.pareto_front(points) == [(100.0, 50.0), (150.0, 90.0)]


def test_the_verdict_is_what_the_interval_says() -> None:
    series = {"": [row(2, 50.0), row(4, 89.0, (-0.5, 2.5)), row(8, 90.0, (-1.0, 1.0))]}
    assert [verdict(r) for r in series[""]] == ["lower", "not distinguishable", "not distinguishable"]
    assert verdict(row(8, 95.0, (-6.0, -4.0))) == "higher"
    assert answers(series) == [
        "Fewest bits per weight without a significant loss, of those tried (2, 4, 8): 4 "
        "(the 95 % CI of the drop reaches 2.50 points)."
    ]
    assert answers({"": [row(2, 50.0)]}) == ["The only bit width tried (2) loses accuracy significantly."]
    better = row(8, 91.0, (-2.0, -0.1))
    assert (
        "of those tried (4, 8): 8 (the 95 % CI of the drop reaches 0.00 points)"
        in answers({"": [row(4, 50.0), better]})[0]
    )
    seeds = {"seed=0": [row(4, 89.0, (-1, 1))], "seed=1": [row(4, 80.0, (9, 11)), row(8, 90.0, (-1, 1))]}
    assert "of those tried (4, 8): 8 (" in answers(seeds)[0]  # 4 bits not in every seed


def test_methods_are_compared_by_what_they_store() -> None:
    """The notebook's 2 bits are three with the sign: a method that needs three stored bits takes no more than it."""
    signed = [row(bits, 89.0, (-1.0, 1.0), bits_mean=bits + 1.0) for bits in (2, 4)]
    plain = [row(2, 50.0), row(3, 89.5, (-1.0, 1.0))]
    said = answers({"quant=notebook": signed, "quant=best": plain})
    assert said[0] == (
        "quant=notebook: Fewest bits per weight without a significant loss, of those tried (3, 5; quant.bits=2,4): 3 "
        "(the 95 % CI of the drop reaches 1.00 points)."
    )
    assert (
        said[2]
        == "Fewest bits per weight without a significant loss, of all settings: 3, with quant=notebook, quant=best."
    )
    signed[0] = replace(signed[0], top1_drop_ci_low=0.5)
    assert (
        answers({"quant=notebook": signed, "quant=best": plain})[2]
        == "Fewest bits per weight without a significant loss, of all settings: 3, with quant=best."
    )


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model("resnet", 10, depth=8).eval()


@pytest.mark.parametrize(
    "options",
    [{}, {"granularity": "channel", "alpha_rule": "mse"}, {"grid": "asymmetric", "granularity": "channel"},
     {"grid": "apot"}, {"fold_batch_norm": True, "layers": "all"}],
)  # fmt: skip
def test_weight_panels_hold_every_weight_once(options: dict[str, Any], tmp_path: Path) -> None:
    model, config = network(), QuantConfig(alpha_multiplier=4.0, **options)
    for bits in (2,) if options else (2, 8):
        quantized, report = quantize(model, config, bits, torch.randn(8, 3, 32, 32))
        reference = target_layers(prepare(model, config), config.layers)
        shown = panels.weight_panels(reference, quantized, report)
        assert [panel.layer for panel in shown] == list(quantized_layers(quantized))
        for panel in shown:
            edges = np.array(panel.edges)
            inside = float((np.array(panel.density) * np.diff(edges)).sum())
            assert inside == pytest.approx(1.0, abs=0.02)  # but for what lies further out than is drawn
            assert max(map(abs, panel.levels)) <= 1.0001
            assert len(panel.levels) <= panels.MOST_STEMS or "asymmetric" in str(options)
        if bits == 2 and not options:
            first = quantized_layers(quantized)["conv1"].layer.weight / report.layers[0].alpha
            assert shown[0].levels == pytest.approx(sorted(set(np.round(first.flatten().tolist(), 4))), abs=1e-3)
            # Seven levels a third of alpha apart: a density times a third is a share.
            assert sum(shown[0].level_density) / 3 == pytest.approx(1.0, abs=0.01)
        plots.weight_densities(shown, "weights", tmp_path / f"{bits}.png")
        pixels = drawn(tmp_path / f"{bits}.png")
        assert has(pixels, RED)


@pytest.mark.parametrize("count", [2, 432])
def test_the_density_estimate_is_the_one_that_scipy_makes(count: int) -> None:
    from scipy.stats import gaussian_kde

    from ptq_exp.reporting.plots.distributions import density_estimate

    values, places = np.random.default_rng(count).laplace(size=count), np.linspace(-4, 4, 9)
    assert np.allclose(density_estimate(values, places), gaussian_kde(values)(places), rtol=1e-9, atol=0)


def test_activation_panels_come_from_the_calibration(tmp_path: Path) -> None:
    config = QuantConfig(act_bits=4, act_rule="mse", act_residual=True)
    _, report = quantize(network(), config, 4, torch.randn(16, 3, 32, 32))
    shown = panels.activation_panels(report)
    assert {panel.layer for panel in shown} == {r.layer for r in report.layers if r.act_bits is not None}
    for panel in shown:
        assert sum(panel.shares) == pytest.approx(1.0)
        assert 0 < panel.alpha <= panel.limit
    plots.activation_histograms(shown, "activations", tmp_path / "a.png")
    assert has(drawn(tmp_path / "a.png"), RED)


def test_confusion_counts_every_image(tmp_path: Path) -> None:
    labels = torch.tensor([0, 0, 1, 2])
    image = torch.zeros(4, 3, 2, 2, dtype=torch.uint8)
    data = Dataset("d", ("a", "b", "c"), image, labels, image, labels)
    answer = Evaluation(torch.tensor([0, 1, 1, 0]), 2, 4, 0.0, 0.0)
    assert figures.confusion(data, answer) == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]


@pytest.mark.parametrize("count", [3, 10, 100])
def test_few_classes_are_a_matrix_and_many_are_bars(count: int, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    before = (10 * torch.eye(count)).int().tolist()
    after = torch.randint(0, 3, (count, count), generator=generator).tolist()
    plots.confusion_change([f"class number {n}" for n in range(count)], before, after, "t", tmp_path / "c.png")
    pixels = drawn(tmp_path / "c.png")
    assert pixels.shape[0] < 1200
    assert has(pixels, RED if count > 20 else BLUE)


def test_heat_maps_and_bars(tmp_path: Path) -> None:
    table = [layer(layer=f"conv{n}", levels_used=n + 1, sqnr_db=float("inf") if n == 2 else 4.0 * n) for n in range(4)]
    plots.layer_heat_map({2: table, 8: table[:3]}, "t", tmp_path / "h.png")
    plots.levels_used(table, "t", tmp_path / "l.png")
    plots.sensitivity_bars({"a": (1.0, 0.5, 1.5), "b": (-0.5, -1.5, 0.5)}, 10_000, "t", tmp_path / "s.png")
    history = [{"lr": 0.1, "train_loss": 2.0 / n, "train_top1": 10.0 * n, "test_top1": 9.0 * n} for n in range(1, 5)]
    plots.training_curves(history, "t", tmp_path / "t.png")
    for name in "hlst":
        drawn(tmp_path / f"{name}.png")


def test_of_several_seeds_the_layers_are_averaged() -> None:
    jobs = [
        job(row(4, 80.0, layers=(layer(sqnr_db=10.0 + seed, levels_available=7),)), overrides=f"seed={seed}")
        for seed in (0, 1)
    ]
    sweep = SweepRecord("sweep", Path("nowhere"), (), tuple(jobs), ())
    assert layer_tables(sweep.jobs)[""][4][0].sqnr_db == 10.5


def test_a_job_leaves_the_figures_of_what_it_did(cli: Callable[..., Outcome], tmp_path: Path) -> None:
    few = [*TINY, "trainer.epochs=2", f"cache_dir={tmp_path / 'cache'}", "quant.act_bits=4", "quant.layers=all"]
    assert cli(*few, "quant.bits=[3,5]", "quant.calibration_images=32").code == 0
    (folder,) = tmp_path.glob("outputs/*/*/artifacts")
    assert {path.name for path in folder.glob("*.png")} == {
        "accuracy_against_bits.png", "accuracy_against_size.png", "layers.png", "training.png", "weights_w3.png",
        "activations_w3.png", "confusion_w3.png", "confusion_w5.png", "first_conv_density.png",
    }  # fmt: skip
    for path in folder.glob("*.png"):
        drawn(path)


@pytest.mark.slow
def test_a_sweep_over_bits_has_its_heat_map_on_the_parent(cli: Callable[..., Outcome], tmp_path: Path) -> None:
    assert cli(*TINY, "quant.bits=3,5", "quant.alpha_multiplier=2,3", "-m").code == 0
    (folder,) = tmp_path.glob("outputs/*/*/sweep")
    assert {path.name for path in folder.glob("*.png")} == {
        "accuracy_against_bits.png", "accuracy_against_size.png", "layers_1.png", "layers_2.png",
    }  # fmt: skip
