"""What a method is called, wherever it is named: the file it came from, and what was changed in it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import example_records
import pytest
from conftest import TINY, Outcome

from ptq_exp.config import Config, from_hydra
from ptq_exp.config.method import shortened, words_of
from ptq_exp.quantization.options import QuantConfig, ReconstructionConfig
from ptq_exp.results.records import JobRecord
from ptq_exp.results.series import as_series, labels
from ptq_exp.runs.ledger import job_key

Cli = Callable[..., Outcome]
Runs = Callable[[str], dict[str, Any]]


def own(folder: Path, **presets: str) -> str:
    """The override that makes presets of the user's own known."""
    (folder / "own" / "quant").mkdir(parents=True)
    for name, content in presets.items():
        (folder / "own" / "quant" / f"{name}.yaml").write_text(content)
    return f"hydra.searchpath=[file://{folder}/own]"


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("outputs/**/results.json"))]


def test_a_changed_method_says_so_everywhere(cli: Cli, store: str, runs: Runs, tmp_path: Path) -> None:
    changed = ["quant.granularity=channel", "quant.alpha_rule=mse"]
    outcome = cli(*TINY, *changed, "quant.bits=3", f"tracking.uri={store}")
    assert outcome.code == 0, outcome.err
    name = "notebook alpha_rule=mse granularity=channel"
    assert f"{name}, 4 bits per weight (quant.bits=3): top-1" in outcome.out
    assert f"ResNet-8 on digits: {name}" in outcome.out  # the title of the table
    ((run_name, run),) = runs(store).items()
    assert run_name == f"w3 {name} resnet20 digits"
    assert run.data.params["quant.name"] == name
    assert name in run.data.tags["mlflow.note.content"]
    (record,) = records(tmp_path)
    assert record["method"] == name.split()
    (page,) = tmp_path.glob("outputs/*/*/artifacts/report.html")
    assert f": {name} " in page.read_text()
    assert outcome.out.count("notebook") == outcome.out.count(name)


@pytest.mark.slow
def test_a_preset_is_called_by_its_file_and_not_by_what_is_in_it(cli: Cli, tmp_path: Path) -> None:
    place = own(
        tmp_path, mine="alpha_rule: max\n", copied="name: best\nalpha_rule: max\n", **{"a[old]": "layers: all\n"}
    )
    for preset, choice in (("mine", "mine"), ("copied", "copied"), ("a[old]", "'a[old]'")):
        outcome = cli(*TINY, place, f"quant={choice}", "quant.bits=4")
        assert outcome.code == 0, outcome.err
        assert f"\n{preset}, 5 bits per weight (quant.bits=4): top-1" in outcome.out
    outcome = cli(*TINY, place, "quant=mine", "quant.bits=4", "quant.alpha_rule=std")
    assert "\nmine alpha_rule=std, 5 bits per weight" in outcome.out


def test_a_preset_may_build_upon_another(tmp_path: Path) -> None:
    built = "defaults:\n  - best\n\nalpha_rule: max\n"
    own(tmp_path, built=built, first="defaults: [_self_, best]\nalpha_rule: max\n")
    place = (f"file://{tmp_path}/own",)
    best = QuantConfig(
        sign_bit="included", grid="float_zero_point", alpha_rule="lp", granularity="channel", layers="all",
        act_rule="mse", act_zero_point=True, fold_batch_norm=True, calibration_images=4096, rounding="block",
        mixed_candidates=[1.6, 2, 3, 4, 5, 6, 8],
        reconstruction=ReconstructionConfig(steps=2000, distill_steps=2500, distill_lr=0.0025, distill_mixup=0.25),
    )  # fmt: skip
    assert words_of(Config(quant=best, method="best")) == ["best"]
    assert words_of(Config(quant=best, method="built", searchpath=list(place))) == ["built", "alpha_rule=lp"]
    assert words_of(Config(quant=best, method="first", searchpath=list(place))) == ["first"]


@pytest.mark.slow
def test_the_same_override_changes_one_method_and_not_the_next(cli: Cli, store: str, runs: Runs) -> None:
    """`quant.layers=all` is what the preset mse says; it changes the notebook's row, which has to say so."""
    outcome = cli(*TINY, "quant=notebook,mse", "quant.layers=all", "quant.bits=3", f"tracking.uri={store}", "-m")
    assert outcome.code == 0, outcome.err
    assert "│ quant=notebook quant.layers=all │" in outcome.out
    assert "│ quant=mse                       │" in outcome.out
    assert set(runs(store)) == {
        "sweep quant=notebook,mse", "w3 notebook layers=all resnet20 digits", "w3 mse layers=all resnet20 digits"
    }  # fmt: skip


def job(overrides: str, *method: str) -> JobRecord:
    return example_records.job(overrides=overrides, method=method)


def test_labels_name_what_tells_jobs_apart_and_what_changed_their_method() -> None:
    distilled = "quant.reconstruction.distill_steps=100"
    assert labels([
        job(f"quant=notebook {distilled}", "notebook", "reconstruction.distill_steps=100"),
        job(f"quant=best {distilled}", "best", "reconstruction.distill_steps=100"),
    ]) == [f"quant=notebook {distilled}", f"quant=best {distilled}"]  # fmt: skip
    # However a number is written.
    assert labels([
        job("quant=notebook quant.alpha_multiplier=2.0", "notebook", "alpha_multiplier=2"),
        job("quant=mse quant.alpha_multiplier=2.0", "mse", "alpha_multiplier=2"),
    ]) == ["quant=notebook quant.alpha_multiplier=2.0", "quant=mse quant.alpha_multiplier=2.0"]  # fmt: skip
    # One method: what all jobs share stands in the title.
    assert labels([
        job(f"{distilled} seed=0", "notebook", "reconstruction.distill_steps=100"),
        job(f"{distilled} seed=1", "notebook", "reconstruction.distill_steps=100"),
    ]) == ["seed=0", "seed=1"]  # fmt: skip
    # An experiment's file changes a method, too.
    assert labels([job("experiment=a", "notebook"), job("experiment=b", "notebook", "granularity=channel")]) == [
        "experiment=a", "quant.granularity=channel experiment=b",
    ]  # fmt: skip
    assert labels([job("experiment=a", "notebook"), job("experiment=b", "mse", "lp_norm=2.0")]) == [
        "quant=notebook experiment=a", "quant=mse quant.lp_norm=2.0 experiment=b",
    ]  # fmt: skip
    # A typed value is named though the file has it; records of older versions know no method.
    assert labels([job("quant.alpha_multiplier=2", "notebook", "alpha_multiplier=2.0"),
                   job("quant.alpha_multiplier=3", "notebook")]) == [
        "quant.alpha_multiplier=2", "quant.alpha_multiplier=3",
    ]  # fmt: skip
    assert list(as_series([job("seed=1"), job("seed=2")])) == [
        "seed=1", "seed=2",
    ]  # fmt: skip


def test_a_name_decides_nothing() -> None:
    keys = {
        job_key(from_hydra(Config(method=method, searchpath=path)), "cpu")
        for method, path in (("notebook", []), ("mine", []), ("notebook", ["file:///elsewhere"]))
    }
    assert len(keys) == 1
    assert job_key(from_hydra(Config(quant=QuantConfig(granularity="channel"))), "cpu") not in keys


@pytest.mark.parametrize(
    ("letters", "expected"), [(99, "a b=1 c=2"), (6, "a b=1 and 1 more changes"), (2, "a and 2 more changes")]
)
def test_what_is_left_out_of_a_short_name_is_said(letters: int, expected: str) -> None:
    assert shortened(["a", "b=1", "c=2"], letters) == expected
