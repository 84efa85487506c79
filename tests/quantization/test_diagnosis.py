"""The diagnosis: what it reads, what it claims, and that it advises nothing that is there already."""

import dataclasses
from typing import Any

import pytest
import torch
from conftest import quantize

from ptq_exp.networks import build_model
from ptq_exp.quantization.diagnosis import (
    ACTIVATIONS,
    CLIPPING,
    FEW_LEVELS,
    ONE_RANGE,
    WIDE_RANGE,
    diagnose,
    diagnose_in_short,
    find,
    has_one_range,
)
from ptq_exp.quantization.options import QuantConfig, ReconstructionConfig
from ptq_exp.quantization.report import LayerReport, Report

LAYER = LayerReport(
    layer="layer1", shape="16x16x3x3", weights=2304, stored_bits=5.0, alpha=1.0, weight_std=0.1, weight_max=1.0,
    clipped_percent=0.0, sparsity_float_percent=0.0, sparsity_percent=0.0, levels_used=30, levels_available=31,
    sqnr_db=25.0, output_sqnr_db=24.0, act_bits=None, act_alpha=None,
)  # fmt: skip


def report(*changes: dict[str, Any]) -> Report:
    """Two layers and more: the changes are those of the first ones."""
    rows = [dataclasses.replace(LAYER, **change) for change in changes]
    return Report([*rows, dataclasses.replace(LAYER, layer="last", alpha=0.5)], 5.0, None, {}, 100.0, {}, [], 1000)


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    model = build_model("resnet", 10, depth=8).eval()
    model.conv1.weight.data *= 4  # its spread sets the notebook's alpha
    return model


def test_the_notebooks_one_alpha_is_named_with_what_it_leaves_the_others() -> None:
    config = QuantConfig()
    _, found = quantize(network(), config, 3, torch.randn(16, 3, 32, 32))
    assert has_one_range(found)
    assert find(found, config).cause == ONE_RANGE
    said = diagnose(found, config)
    assert said.startswith(f"Likeliest cause: one alpha ({found.layers[0].alpha:.3g}) for all layers")
    assert "set by the first convolution's spread" in said


def test_after_a_distillation_there_is_no_one_alpha() -> None:
    """It moves every layer's range. The configuration still says `granularity=model`."""
    config = QuantConfig(reconstruction=ReconstructionConfig(distill_steps=5, distill_lr=0.05))
    _, found = quantize(network(), config, 3, torch.randn(64, 3, 32, 32))
    assert config.granularity == "model"
    assert len({row.alpha for row in found.layers}) > 1
    assert not has_one_range(found)
    assert find(found, config).cause != ONE_RANGE
    assert "one alpha" not in diagnose(found, config)


@pytest.mark.parametrize(
    ("change", "config", "cause"),
    [
        ({"clipped_percent": 4.0, "sqnr_db": 9.0}, QuantConfig(granularity="tensor", alpha_rule="std"), CLIPPING),
        ({"levels_used": 9, "sqnr_db": 9.0}, QuantConfig(granularity="tensor", alpha_rule="std"), WIDE_RANGE),
        ({"sqnr_db": 9.0}, QuantConfig(granularity="tensor", alpha_rule="std"), FEW_LEVELS),
        # A channel of nine weights cannot use 255 levels: its range is not to blame.
        ({"shape": "256x1x3x3", "levels_used": 8, "levels_available": 255, "levels_usable": 9, "sqnr_db": 9.0},
         QuantConfig(granularity="channel", alpha_rule="max"), FEW_LEVELS),
        # Eight bits for the weights, noise in the output: it comes from the activations.
        ({"sqnr_db": 45.0, "output_sqnr_db": 8.0, "act_bits": 3, "levels_used": 20, "levels_available": 255},
         QuantConfig(granularity="tensor", alpha_rule="max", act_bits=3), ACTIVATIONS),
    ],
)  # fmt: skip
def test_a_cause_is_what_the_layers_show(change: dict[str, Any], config: QuantConfig, cause: str) -> None:
    rows = report(change, {"act_bits": change.get("act_bits"), "sqnr_db": change["sqnr_db"] + 1})
    assert find(rows, config).cause == cause


@pytest.mark.parametrize("rule", ["mse", "lp"])
def test_a_range_with_the_smallest_error_is_not_to_blame_for_clipping(rule: str) -> None:
    """A wider one would cost more: the levels are too few."""
    rows = report({"clipped_percent": 4.0, "sqnr_db": 9.0, "levels_available": 7})
    found = find(rows, QuantConfig(granularity="channel", alpha_rule=rule))
    assert found.short == ("7 levels are few for layer1: the range with the smallest error clips 4.0 % of the weights")
    assert found.text.startswith(found.short)
    for other in ("std", "percentile"):
        found = find(rows, QuantConfig(granularity="channel", alpha_rule=other))
        assert found.short == "4.0 % of the weights of layer1 are clipped"


def test_nothing_is_explained_where_nothing_was_lost() -> None:
    config = QuantConfig(granularity="channel", alpha_rule="max")
    assert diagnose(report({"sqnr_db": 24.0}), config, significant=False) == (
        "No significant loss. The layer with the lowest SQNR is layer1 (24.0 dB)."
    )
    assert diagnose(report({"sqnr_db": 9.0}), config, significant=False).startswith(
        "No significant loss. Likeliest to cost accuracy: rounding to 31 levels, most in layer1"
    )


@pytest.mark.parametrize(
    ("config", "advice"),
    [
        (QuantConfig(), ("quant.granularity=channel", "quant.alpha_rule=lp")),
        (QuantConfig(granularity="channel", alpha_rule="mse"), ("quant.alpha_rule=lp",)),
        (QuantConfig(granularity="tensor", alpha_rule="lp"), ("quant.granularity=channel",)),
        # At as many stored bits: five with the sign on top of four.
        (QuantConfig(granularity="channel", alpha_rule="lp"), ("quant=best", "quant.bits=5")),
        (QuantConfig(granularity="channel", alpha_rule="lp", sign_bit="included"), ("quant=best",)),
        (QuantConfig(granularity="channel", alpha_rule="lp", grid="asymmetric", rounding="adaround"), ("quant=best",)),
        # Everything that helped was done: nothing is invented.
        (QuantConfig(granularity="channel", alpha_rule="lp", rounding="block",
                     reconstruction=ReconstructionConfig(distill_steps=9)), ()),
    ],
)  # fmt: skip
def test_what_is_advised_is_not_there_yet(config: QuantConfig, advice: tuple[str, ...]) -> None:
    for change in ({"sqnr_db": 9.0, "clipped_percent": 5.0}, {"sqnr_db": 9.0, "levels_used": 9}):
        found = report(change)
        assert find(found, config).advice == advice
        assert diagnose(found, config).endswith(f". Try {' '.join(advice)}." if advice else ".")
        assert ("Try" in diagnose(found, config)) == bool(advice)


@pytest.mark.parametrize(
    ("config", "advice"),
    [
        (QuantConfig(granularity="channel", alpha_rule="max"), ("quant.grid=asymmetric", "quant.bits=5")),
        (QuantConfig(granularity="channel", alpha_rule="max", sign_bit="included"), ("quant.grid=asymmetric",)),
        (QuantConfig(granularity="channel", alpha_rule="max", grid="asymmetric"), ("quant=best",)),
        (QuantConfig(granularity="channel", alpha_rule="max", grid="asymmetric",
                     reconstruction=ReconstructionConfig(distill_steps=9)), ()),
    ],
)  # fmt: skip
def test_too_few_levels_want_a_grid_without_a_waste_and_then_learning(
    config: QuantConfig, advice: tuple[str, ...]
) -> None:
    found = report({"sqnr_db": 9.0})
    assert find(found, config).cause == FEW_LEVELS
    assert find(found, config).advice == advice


def test_coarse_activations_are_calibrated_better_before_anything_is_learned() -> None:
    noisy = report({"sqnr_db": 45.0, "output_sqnr_db": 8.0, "act_bits": 3}, {"sqnr_db": 46.0})
    config = QuantConfig(granularity="channel", alpha_rule="max", sign_bit="included", act_bits=3)
    assert find(noisy, config).advice == ("quant.act_rule=mse",)
    assert find(noisy, dataclasses.replace(config, act_rule="mse")).advice == ("quant=best",)


def test_the_terminal_gets_one_short_sentence_and_the_advice_once() -> None:
    config, told = QuantConfig(), set[str]()
    _, three = quantize(network(), config, 3, torch.randn(16, 3, 32, 32))
    _, four = quantize(network(), config, 4, torch.randn(16, 3, 32, 32))
    first = diagnose_in_short(three, config, told)
    assert first.startswith("Likeliest cause: one alpha for all layers leaves layer")
    assert first.endswith(" levels. Try quant.granularity=channel quant.alpha_rule=lp.")
    assert len(first) <= 2 * 80
    second = diagnose_in_short(four, config, told)
    assert second.startswith("Likeliest cause: one alpha")
    assert "Try" not in second


@pytest.mark.parametrize(
    "change",
    [
        {"sqnr_db": 9.0, "clipped_percent": 5.0}, {"sqnr_db": 9.0, "levels_used": 9}, {"sqnr_db": 9.0},
        {"sqnr_db": 45.0, "output_sqnr_db": 8.0, "act_bits": 3},
    ],
)  # fmt: skip
def test_every_cause_fits_two_lines_of_80_columns(change: dict[str, Any]) -> None:
    config = QuantConfig(granularity="tensor", alpha_rule="max", act_bits=change.get("act_bits"))
    found = report({"layer": "features.3.block.1.0.downsample.conv"} | change, {"sqnr_db": change["sqnr_db"] + 1})
    assert len(diagnose_in_short(found, config, set())) <= 2 * 80
