"""A quantized network from its file, from MLflow's registry, and what a run says about its data and its machine."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, Outcome

import ptq_exp
from ptq_exp.base.errors import UserError
from ptq_exp.config import Config, validate
from ptq_exp.data.digits import load as load_digits
from ptq_exp.data.options import DataOptions
from ptq_exp.export.inference import QuantizedNetwork
from ptq_exp.reporting.mlflow.options import TrackingOptions

Cli = Callable[..., Outcome]
Runs = Callable[[str], dict[str, Any]]


def artifacts(run: Any) -> Path:
    return Path(run.info.artifact_uri.removeprefix("file://"))


def test_one_line_loads_a_network_that_answers_as_it_did(cli: Cli, tmp_path: Path) -> None:
    assert cli(*TINY, "quant=mse", "quant.bits=4", "quant.fold_batch_norm=true").code == 0
    (file,) = tmp_path.glob("outputs/*/*/artifacts/quantized_w4.safetensors")
    network = ptq_exp.load(file)
    data = load_digits(DataOptions(), Path("unused")).limited(64, 48)
    with torch.no_grad():
        logits = network(data.test_images)
        normalized = (data.test_images / 255 - torch.tensor(network.about["mean"]).view(1, 3, 1, 1)) / torch.tensor(
            network.about["std"]
        ).view(1, 3, 1, 1)
        assert torch.allclose(network(normalized), logits, atol=1e-4)
    assert not network.training
    assert network.classes == list(data.classes)
    top1 = 100 * (logits.argmax(1) == data.test_labels).float().mean().item()
    assert top1 == pytest.approx(network.about["top1"], abs=2.2)  # of 48 images one may fall the other way


@pytest.mark.parametrize("content", [None, b"no safetensors", b""])
def test_a_file_that_is_none_is_said(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match="is not a quantized network"):
        ptq_exp.load(file)


def test_a_network_of_one_channel_takes_grey_images() -> None:
    about = {"mean": [0.25], "std": [0.5], "classes": ["a", "b"]}
    network = QuantizedNetwork(torch.nn.Sequential(torch.nn.Conv2d(1, 2, 4), torch.nn.Flatten()), about)
    images = torch.randint(0, 256, (3, 1, 4, 4), dtype=torch.uint8)
    assert torch.allclose(network(images), network((images / 255 - 0.25) / 0.5), atol=1e-6)
    with pytest.raises(ValueError, match=r"\(N, 1, H, W\), not \(3, 3, 4, 4\)"):
        network(images.expand(-1, 3, -1, -1))


def test_images_of_another_kind_are_not_taken_in_silence(cli: Cli, tmp_path: Path) -> None:
    assert cli(*TINY, "quant.bits=4").code == 0
    (file,) = tmp_path.glob("outputs/*/*/artifacts/quantized_w4.safetensors")
    network = ptq_exp.load(file)
    with pytest.raises(ValueError, match=r"\(N, 3, H, W\), not \(3, 32, 32\)"):
        network(torch.zeros(3, 32, 32))
    with pytest.warns(UserWarning, match="must be normalized"):
        network(torch.rand(2, 3, 32, 32))
    outcome = cli(*TINY, f"checkpoint={file}")  # and it is no float checkpoint
    assert outcome.code == 1
    assert "is a network quantized by ptq_exp" in outcome.err


def test_float_weights_are_no_quantized_network(tmp_path: Path) -> None:
    from ptq_exp.networks import build_model
    from ptq_exp.networks.store import save_weights

    options = {"architecture": "resnet", "depth": 8}
    metadata = {"model": options, "classes": ["a", "b"]}
    save_weights(tmp_path / "f.safetensors", build_model("resnet", 2, depth=8).state_dict(), metadata)
    with pytest.raises(UserError, match="not a quantized network"):
        ptq_exp.load(tmp_path / "f.safetensors")


def test_networks_are_registered_and_loaded_again(cli: Cli, store: str, runs: Runs, tmp_path: Path) -> None:
    from mlflow import MlflowClient, pyfunc, set_registry_uri, set_tracking_uri
    from mlflow import artifacts as mlflow_artifacts

    assert cli(*TINY, "quant.bits=[3,8]", f"tracking.uri={store}", "tracking.register=digits reader").code == 0
    (run,) = runs(store).values()
    versions = MlflowClient(store, store).search_model_versions("name = 'digits reader'")
    assert {version.tags["bits"] for version in versions} == {"3", "8"}
    assert {version.run_id for version in versions} == {run.info.run_id}
    set_tracking_uri(store)
    set_registry_uri(store)
    number = next(version.version for version in versions if version.tags["bits"] == "8")
    model = pyfunc.load_model(f"models:/digits reader/{number}")
    images = load_digits(DataOptions(), Path("unused")).limited(64, 48).test_images
    with torch.no_grad():
        expected = ptq_exp.load(artifacts(run) / "quantized_w8.safetensors")(images).numpy()
    assert model.predict(images.numpy()) == pytest.approx(expected, abs=1e-5)
    folder = Path(mlflow_artifacts.download_artifacts(f"models:/digits reader/{number}", dst_path=str(tmp_path / "m")))
    assert not list(folder.rglob("*.pkl"))
    assert '"[-1, 10]' not in (folder / "MLmodel").read_text()
    # A second upload of the same job adds nothing.
    from ptq_exp.reporting.mlflow.content import upload_folder
    from ptq_exp.reporting.mlflow.place import Place

    (record,) = tmp_path.glob("outputs/*/*/results.json")
    place = Place.read(record.parent)
    assert place is not None
    assert place.logged
    replace(place, logged=False).write(record.parent)
    assert "1 logged" in upload_folder(record.parent)
    assert len(MlflowClient(store, store).search_model_versions("name = 'digits reader'")) == 2


@pytest.mark.parametrize(
    ("settings", "said"),
    [(TrackingOptions(register="a/b"), "no slash"), (TrackingOptions(register=" "), "no slash"),
     (TrackingOptions(enabled=False, register="a"), "tracking=none")],
)  # fmt: skip
def test_a_name_that_cannot_be_registered_is_refused(settings: TrackingOptions, said: str) -> None:
    with pytest.raises(UserError, match=said):
        validate(Config(tracking=settings))


@pytest.mark.slow
def test_the_data_set_is_an_input_of_the_run(cli: Cli, store: str, runs: Runs) -> None:
    assert cli(*TINY, "quant.bits=4", f"tracking.uri={store}").code == 0
    (run,) = runs(store).values()
    (found,) = run.inputs.dataset_inputs
    assert found.dataset.name == "digits"
    assert run.data.tags["data_fingerprint"].startswith(found.dataset.digest)
    assert len(found.dataset.digest) >= 32
    profile = json.loads(found.dataset.profile)
    assert (profile["training images"], profile["test images"], profile["classes"]) == (64, 48, 10)


@pytest.mark.slow
def test_the_machine_is_watched_while_a_network_is_trained(
    cli: Cli, store: str, runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    few = [*TINY, "trainer.epochs=5", f"cache_dir={tmp_path / 'cache'}", f"tracking.uri={store}"]
    assert cli(*few, "quant.bits=4,8", "-m").code == 0
    found = runs(store)
    trained, other = (found[f"w{bits} notebook resnet20 digits"].data.metrics for bits in (4, 8))
    assert trained["system/cpu_utilization_percentage"] >= 0
    assert not [key for key in other if key.startswith("system/")]
    assert "SystemMetricsMonitor" not in {thread.name for thread in threading.enumerate()}


def test_a_store_that_goes_away_does_not_hold_up_a_training(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    from ptq_exp.reporting.mlflow import system

    monkeypatch.setattr(system, "PATIENCE_SECONDS", 0.2)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    with system.sampled("0" * 32, "http://127.0.0.1:9"):
        started = time.monotonic()
    assert time.monotonic() - started < 3
