"""What ends up in a real MLflow store: runs, params, metrics, artifacts, and nothing lost."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FEW, TINY, Outcome
from PIL import Image

from ptq_exp.base.errors import UserError, without_password
from ptq_exp.export.network_file import load_quantized
from ptq_exp.networks import build_model

Cli = Callable[..., Outcome]
Runs = Callable[[str], dict[str, Any]]


def artifacts(run: Any) -> Path:
    return Path(run.info.artifact_uri.removeprefix("file://"))


def series(uri: str, run: Any, key: str) -> dict[int, float]:
    from mlflow import MlflowClient

    return {point.step: point.value for point in MlflowClient(uri).get_metric_history(run.info.run_id, key)}


def test_a_sweep_is_a_parent_with_a_child_for_each_job(cli: Cli, store: str, runs: Runs) -> None:
    outcome = cli(*TINY, "quant.bits=3,6", f"tracking.uri={store}", "-m")
    assert outcome.code == 0, outcome.err
    found = runs(store)
    assert set(found) == {
        "sweep quant.bits=3,6",
        *(f"w{bits} notebook resnet20 digits" for bits in (3, 6)),
    }
    parent = found["sweep quant.bits=3,6"]
    children = {bits: found[f"w{bits} notebook resnet20 digits"] for bits in (3, 6)}
    assert "mlflow.parentRunId" not in parent.data.tags
    for bits, child in children.items():
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert child.info.status == "FINISHED"
        assert child.data.params["quant.bits"] == str(bits)
        assert child.data.params["data.used"] == "digits"
        assert child.data.params["optimizer.lr"] == "0.05"  # the recipe really used, not null
        assert "shortcut=conv" in child.data.params["model.used"]
        metrics = child.data.metrics
        assert metrics["top1_drop"] == pytest.approx(metrics["top1_float"] - metrics["top1"])
        assert metrics["top1_ci_low"] <= metrics["top1"] <= metrics["top1_ci_high"]
        assert metrics["bits_mean"] == bits + 1
        assert {"agreement", "loss", "size_bytes", "quantize_seconds", "evaluate_seconds"} <= set(metrics)
        assert {"digest", "float_digest", "git.commit", "hardware"} <= set(child.data.tags)
        # The job that trained the network also has its training curves, and one that changed predictions, these.
        some = {"training.png", "training.svg", f"confusion_w{bits}.png"}
        assert {path.name for path in artifacts(child).iterdir()} - some == {
            "config.yaml", f"layers_w{bits}.csv", f"layers_w{bits}.json", f"quantized_w{bits}.safetensors",
            "first_conv_density.png", f"levels_w{bits}.png", f"levels_w{bits}.svg", f"weights_w{bits}.png",
            "results.json",
        }  # fmt: skip
    assert children[3].data.tags["float_digest"] == children[6].data.tags["float_digest"]
    assert children[3].data.tags["digest"] != children[6].data.tags["digest"]
    assert parent.info.status == "FINISHED"
    assert "top1" not in parent.data.metrics
    top1 = {bits: child.data.metrics["top1"] for bits, child in children.items()}
    assert series(store, parent, "top1_vs_bits") == pytest.approx(top1)
    assert parent.data.metrics["top1_best"] == round(max(top1.values()), 2)
    assert parent.data.metrics["top1_narrowest"] == round(top1[3], 2)
    assert parent.inputs.dataset_inputs[0].dataset.name == "digits"
    note = parent.data.tags["mlflow.note.content"]
    assert note.startswith("**")  # the answer in a sentence
    assert f"(#/metric?runs=%5B%22{parent.info.run_id}%22%5D&" in note  # the only run with a curve
    assert parent.data.params["data.used"] == "digits"
    for bits in (3, 6):
        assert f"| {bits + 1} | {bits} | {top1[bits]:.2f} |" in note
    assert f"{parent.info.experiment_id}/runs/{parent.info.run_id}" in outcome.out


def test_the_artifacts_hold_what_they_say(cli: Cli, store: str, runs: Runs) -> None:
    assert cli(*FEW, "quant.bits=4", f"tracking.uri={store}").code == 0
    (run,) = runs(store).values()
    folder = artifacts(run)
    layers = json.loads((folder / "layers_w4.json").read_text())
    assert len(layers) == 21
    assert layers[0]["layer"] == "conv1"
    assert all(row["levels_available"] == 31 for row in layers)
    assert len((folder / "layers_w4.csv").read_text().splitlines()) == 22
    model, about = load_quantized(folder / "quantized_w4.safetensors", build_model("resnet", 10, depth=20))
    assert about["quant"]["bits"] == 4
    assert about["top1"] == run.data.metrics["top1"]
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    with Image.open(folder / "first_conv_density.png") as figure:
        assert figure.size == (1050, 675)
        assert len(set(figure.convert("L").getdata())) > 20  # something is drawn


@pytest.mark.slow
def test_a_list_of_bits_is_one_run_with_a_series(cli: Cli, store: str, runs: Runs) -> None:
    assert cli(*TINY, "quant.bits=[2,4,6]", f"tracking.uri={store}").code == 0
    (run,) = runs(store).values()
    assert run.info.run_name == "w2,4,6 notebook resnet20 digits"
    assert set(series(store, run, "top1_vs_bits")) == {2, 4, 6}
    assert "top1" not in run.data.metrics
    assert {"top1_best", "top1_narrowest", "top1_float"} <= set(run.data.metrics)
    assert (artifacts(run) / "accuracy_against_bits.png").exists()


@pytest.mark.slow
def test_other_swept_keys_give_one_curve_each(cli: Cli, store: str, runs: Runs) -> None:
    outcome = cli(*TINY, "quant.bits=3,5", "quant.alpha_multiplier=2,3", f"tracking.uri={store}", "-m")
    assert outcome.code == 0, outcome.err
    found = runs(store)
    for multiplier in (2, 3):
        curve = found[f"quant.alpha_multiplier={multiplier} curve"]
        expected = {
            bits: found[f"w{bits} notebook alpha_multiplier={multiplier} resnet20 digits"].data.metrics["top1"]
            for bits in (3, 5)
        }
        assert series(store, curve, "top1_vs_bits") == pytest.approx(expected)
    parent = found["sweep quant.bits=3,5 quant.alpha_multiplier=2,3"]
    assert "top1_vs_bits" not in parent.data.metrics
    assert len(found) == 7


@pytest.mark.slow
def test_a_sweep_of_lists_draws_every_curve_once(cli: Cli, store: str, runs: Runs) -> None:
    assert cli(*TINY, "quant=notebook,signed", "quant.bits=[3,5]", f"tracking.uri={store}", "-m").code == 0
    found = runs(store)
    with_curve = [name for name, run in found.items() if "top1_vs_bits" in run.data.metrics]
    assert sorted(with_curve) == ["w3,5 notebook resnet20 digits", "w3,5 signed resnet20 digits"]


def test_a_password_in_the_uri_is_not_logged() -> None:
    assert without_password("postgresql://me:secret@host/db") == "postgresql://me:***@host/db"
    text = without_password("http://me:se@cret@host/x@y and https://token@host")
    assert text == "http://me:***@host/x@y and https://***@host"
    assert "secret" not in str(UserError("checkpoint=http://me:secret@host/file is not there"))
    assert without_password("sqlite:///folder/mlflow.db") == "sqlite:///folder/mlflow.db"


def test_a_password_is_in_no_message(cli: Cli) -> None:
    outcome = cli(*TINY, "tracking.uri=http://me:secret@127.0.0.1:9/")
    assert outcome.code == 1
    assert "http://me:***@127.0.0.1:9" in outcome.err
    said = [line for line in (outcome.err + outcome.out).splitlines() if not line.startswith("Error executing job")]
    assert "secret" not in "".join(said)  # Hydra repeats the command line as it was typed


def test_bits_by_layer_pattern_are_logged(cli: Cli, store: str, runs: Runs) -> None:
    assert cli(*TINY, "quant.bits=4", "+quant.layer_bits={layer3.*:3}", f"tracking.uri={store}").code == 0
    ((name, run),) = runs(store).items()
    assert "layer_bits" in name
    assert json.loads(run.data.params["quant.layer_bits"]) == {"layer3.*": 3}
    assert run.info.status == "FINISHED"


def test_activation_bits_are_in_the_name(cli: Cli, store: str, runs: Runs) -> None:
    assert cli(*TINY, "quant.bits=4", "quant.act_bits=5", f"tracking.uri={store}").code == 0
    (name,) = runs(store)
    assert name.startswith("w4a5 notebook resnet20 digits")


def test_tracking_none_leaves_no_store(cli: Cli, tmp_path: Path) -> None:
    outcome = cli(*TINY, "quant.bits=4,8", "tracking=none", "-m")
    assert outcome.code == 0
    assert "mlflow" not in outcome.out.lower()
    assert not list(tmp_path.glob("**/*.db"))
    assert len(list(tmp_path.glob("outputs/*/*/*/results.json"))) == 2


@pytest.mark.slow
def test_the_training_is_logged_by_the_job_that_did_it(cli: Cli, store: str, runs: Runs, tmp_path: Path) -> None:
    few = [*TINY, "trainer.epochs=2", f"cache_dir={tmp_path / 'cache'}", f"tracking.uri={store}"]
    assert cli(*few, "quant.bits=4,8", "-m").code == 0
    found = runs(store)
    assert set(series(store, found["w4 notebook resnet20 digits"], "train_loss")) == {1, 2}
    assert "train_loss" not in found["w8 notebook resnet20 digits"].data.metrics


def test_one_bad_job_leaves_the_others_and_fails_the_sweep(cli: Cli, store: str, runs: Runs) -> None:
    outcome = cli(*TINY, "quant.bits=4,99,8", f"tracking.uri={store}", "-m")
    assert outcome.code == 1
    assert "quant.bits=99" in outcome.err
    assert "Traceback" not in outcome.out + outcome.err
    found = runs(store)
    assert found["sweep quant.bits=4,99,8"].info.status == "FAILED"
    for bits in (4, 8):
        assert found[f"w{bits} notebook resnet20 digits"].info.status == "FINISHED"
    assert re.search(r"│ +9 │ +8 │", outcome.out)  # the table shows what did finish


def test_a_failing_job_is_failed_in_mlflow_with_its_error(cli: Cli, store: str, runs: Runs) -> None:
    outcome = cli(*TINY, "optimizer.lr=-1", "quant.bits=4", f"tracking.uri={store}")
    assert outcome.code == 1
    (run,) = runs(store).values()
    assert run.info.status == "FAILED"
    assert "learning rate" in run.data.tags["error"]


@pytest.mark.slow
def test_two_sweeps_at_once_on_a_fresh_store_lose_nothing(
    process: Callable[..., Any], tmp_path: Path, runs: Runs
) -> None:
    uri = f"sqlite:///{tmp_path / 'fresh' / 'mlflow.db'}"
    sweeps = [
        process(*TINY, f"quant.bits={bits}", f"tracking.uri={uri}", f"cache_dir={tmp_path / 'cache'}", "-m")
        for bits in ("2,3", "5,6")
    ]
    outputs = [sweep.communicate(timeout=240)[0] for sweep in sweeps]
    assert [sweep.returncode for sweep in sweeps] == [0, 0], outputs
    found = runs(uri)
    assert set(found) == {
        "sweep quant.bits=2,3", "sweep quant.bits=5,6",
        *(f"w{bits} notebook resnet20 digits" for bits in (2, 3, 5, 6)),
    }  # fmt: skip
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    for sweep, widths in (("2,3", {2, 3}), ("5,6", {5, 6})):
        parent = found[f"sweep quant.bits={sweep}"]
        assert set(series(uri, parent, "top1_vs_bits")) == widths
        for bits in widths:
            child = found[f"w{bits} notebook resnet20 digits"]
            assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
