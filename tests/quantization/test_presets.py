"""Quantization from the command line: presets, sweeps, and what is refused."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY, Outcome, mostly_slow

from ptq_exp.networks import build_model

# From the command line -------------------------------------------------------------------------------------------

PRESETS = sorted(path.stem for path in (ROOT / "conf" / "quant").glob("*.yaml"))
SHORT = ["quant.reconstruction.steps=2", "quant.calibration_images=32", "model.depth=8"]


@pytest.mark.parametrize("preset", mostly_slow(sorted(PRESETS, key="mixed".__eq__), len(PRESETS) - 1))
def test_every_preset_runs(cli: Callable[..., Outcome], preset: str, tmp_path: Path) -> None:
    distills = preset in ("best", "integer", "patient")
    distilled = ["quant.reconstruction.distill_steps=2"] if distills else []
    outcome = cli(f"quant={preset}", "quant.bits=3", *distilled, *TINY, *SHORT)
    assert outcome.code == 0, outcome.err
    changed = " calibration_images=32 reconstruction.steps=2" + " reconstruction.distill_steps=2" * distills
    stored = 3 + (preset == "notebook")  # with the sign
    assert f"{preset}{changed}, {stored} bits per weight" in outcome.out
    assert outcome.out.count(": top-1 ") == 1
    said = ("What costs the most accuracy", "Likeliest to cost accuracy", "Nothing to explain")
    (record,) = tmp_path.glob("outputs/*/*/results.json")  # the terminal explains significant losses only
    assert any(words in record.read_text() for words in said)


@pytest.mark.slow
def test_ranges_and_activations_can_be_swept(cli: Callable[..., Outcome]) -> None:
    rules = "quant.alpha_rule=std,max,mse,percentile"
    outcome = cli("quant=mse", rules, "quant.bits=4", "quant.act_bits=4", *TINY, *SHORT, "-m")
    assert outcome.code == 0, outcome.err
    assert len([line for line in outcome.out.splitlines() if line.startswith("│") and "w4 a4" in line]) == 4
    for rule in ("std", "max", "mse", "percentile"):  # a long label is broken before its value
        assert re.search(rf"^│ (quant\.alpha_rule=)?{rule} ", outcome.out, re.MULTILINE)


@pytest.mark.slow
def test_a_budget_of_its_own_is_one_plan(cli: Callable[..., Outcome]) -> None:
    outcome = cli("quant=mixed", "quant.mean_bits=2.6", *TINY, *SHORT)
    assert outcome.code == 0, outcome.err
    assert outcome.out.count(": top-1 ") == 1
    assert re.search(r"mixed mean_bits=2\.6 .*, 2\.[56]\d* bits per weight \(quant\.bits=3\): top-1 ", outcome.out)


@pytest.mark.slow
def test_units_learned_under_another_normalization_are_not_reused(
    cli: Callable[..., Outcome], tmp_path: Path, cache: Path
) -> None:
    torch.save(build_model("resnet", 10, depth=8).state_dict(), tmp_path / "model.pt")
    same = ["quant=brecq", "quant.bits=3", f"checkpoint={tmp_path / 'model.pt'}", *TINY, *SHORT]
    stores = []
    for mean in ("0.1", "0.1", "0.4"):
        before = set((cache / "reconstruction").glob("*"))
        assert cli(*same, f"data.mean=[{mean},{mean},{mean}]", "data.std=[1,1,1]").code == 0
        stores.append(len(set((cache / "reconstruction").glob("*")) - before))
    assert stores == [1, 0, 1]


def test_one_layer_at_a_time_is_a_table_and_a_figure(cli: Callable[..., Outcome], tmp_path: Path) -> None:
    outcome = cli(
        "quant.bits=3", "quant.sensitivity=true", "+quant.layer_bits={linear:8}", "quant.layers=all", *TINY, *SHORT
    )
    assert outcome.code == 0, outcome.err
    (table,) = tmp_path.glob("outputs/*/*/artifacts/one_layer_w3.csv")
    lines = table.read_text().splitlines()
    assert lines[0] == "layer,bits,top1,top1_drop,loss,sqnr_db"
    assert lines[-1].startswith("linear,8,")
    assert len(lines) == 1 + 10
    assert table.with_suffix(".png").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["quant.equalize=true"], "quant.fold_batch_norm=true"),
        (["quant=best", "quant.batch_norm_reestimation=true"], "fold_batch_norm=false"),
        (["quant=best", "quant.grid=apot"], "uniform grid"),
        (["quant.mean_bits=3"], "quant.mixed=true"),
        (["quant.mixed=true"], "quant.granularity=channel"),
        (["quant=mixed", "quant.mean_bits=3", "quant.size_budget=1000"], "Give only one of them"),
        (["quant.rounding=adaruond"], "Did you mean 'adaround'?"),
        (["quant.reconstruction.drop=1"], "below 1"),
        (["quant.alpha_rule=mse", "quant.first_and_last=eight"], "quant.granularity=channel"),
        (["quant.act_bits=1", "quant.act_input_image=true", *TINY, *SHORT], "Use 2 bits"),
        (["quant.bits=1", "quant.sign_bit=included"], "float_zero_point"),
        (["quant.act_rule=mean"], "percentile"),
        (["+quant.layer_bits={layer9.*:3}", *TINY, *SHORT], "matches no layer"),
    ],
)
def test_a_combination_that_cannot_work_is_refused(
    cli: Callable[..., Outcome], arguments: list[str], words: str
) -> None:
    outcome = cli(*arguments)
    assert outcome.code == 1
    assert words in outcome.err
    assert "Traceback" not in outcome.err
