"""The store of float models: trained once, found again, taken up again after any interruption."""

import json
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import FEW, Outcome
from safetensors.torch import load_file
from trained import CPU, few_digits, same, weights

from ptq_exp.config import Config
from ptq_exp.evaluation.accuracy import evaluate
from ptq_exp.runs.float_model import load_or_train
from ptq_exp.training.loop import TrainingState
from ptq_exp.training.options import TrainerOptions


def test_the_store_trains_once_and_finds_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, data = few_digits(tmp_path)
    first = load_or_train(config, data, CPU)
    monkeypatch.setattr("ptq_exp.runs.float_model.train", lambda *_: pytest.fail("trained again"))
    second = load_or_train(config, data, CPU)
    assert same(weights(first.model), weights(second.model))
    assert (len(first.history), second.history) == (2, [])


def test_a_changed_recipe_is_another_model_and_a_changed_quantizer_is_not(tmp_path: Path) -> None:
    config, data = few_digits(tmp_path, epochs=1)
    first = load_or_train(config, data, CPU).digest
    quant = replace(config.quant, bits=3, alpha_multiplier=2.0)
    assert load_or_train(replace(config, quant=quant), data, CPU).digest == first
    for change in (
        {"optimizer": config.optimizer | {"lr": 0.01}},
        {"trainer": TrainerOptions(epochs=2, batch_size=32)},
        {"model": config.model | {"shortcut": "pad"}},
        {"data": replace(config.data, mean=[0.5, 0.5, 0.5])},
    ):
        assert load_or_train(replace(config, **change), data, CPU).digest != first, change


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete"])
def test_a_damaged_entry_is_trained_again(tmp_path: Path, damage: str) -> None:
    config, data = few_digits(tmp_path, epochs=1)
    first = load_or_train(config, data, CPU)
    (file,) = tmp_path.glob("float/*/last.safetensors")
    content = bytearray(file.read_bytes())
    if damage == "truncate":
        file.write_bytes(content[:-100])
    elif damage == "flip":
        content[-1000] ^= 1
        file.write_bytes(content)
    else:
        file.unlink()
    again = load_or_train(config, data, CPU)
    assert len(again.history) == 1
    assert same(weights(first.model), weights(again.model))


def test_checkpoint_train_trains_afresh(tmp_path: Path) -> None:
    config, data = few_digits(tmp_path, epochs=1)
    load_or_train(config, data, CPU)
    assert len(load_or_train(replace(config, checkpoint="train"), data, CPU).history) == 1


class Stop(Exception):
    """Stands for whatever ends a process between two epochs."""


def test_an_interrupted_training_ends_bit_identical(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted after every single epoch."""
    config, data = few_digits(tmp_path / "whole", epochs=4, scheduler=Config().scheduler | {"milestones": [2]})
    whole = load_or_train(config, data, CPU)
    config = replace(config, cache_dir=str(tmp_path / "parts"))
    from ptq_exp.networks.store import StoreEntry

    original = StoreEntry.save_state

    def save_and_stop(self: StoreEntry, state: TrainingState) -> None:
        original(self, state)
        raise Stop

    monkeypatch.setattr(StoreEntry, "save_state", save_and_stop)
    for _ in range(4):
        with pytest.raises(Stop):
            load_or_train(config, data, CPU)
    monkeypatch.undo()
    parts = load_or_train(config, data, CPU)
    assert same(weights(whole.model), weights(parts.model))
    assert parts.history == whole.history


@pytest.mark.slow
def test_a_killed_training_process_is_taken_up_again(process: Callable[..., Any], tmp_path: Path) -> None:
    """SIGKILL in the middle; the second run goes on, and ends with the weights of an undisturbed one."""
    few = ["data.train_limit=192", "data.test_limit=40", "trainer.epochs=5"]
    arguments = ["data=digits", "model.depth=8", *few, "tracking=none"]
    killed = process(*arguments, f"cache_dir={tmp_path / 'killed'}")
    deadline = time.monotonic() + 120
    while not list((tmp_path / "killed").glob("float/*/training-state.pt")):
        assert time.monotonic() < deadline
        assert killed.poll() is None, killed.communicate()[0]
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    resumed = process(*arguments, f"cache_dir={tmp_path / 'killed'}")
    output, _ = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, output
    assert "Continuing the training after epoch" in output
    whole = process(*arguments, f"cache_dir={tmp_path / 'whole'}")
    assert whole.wait(timeout=120) == 0
    files = [next((tmp_path / name).glob("float/*/last.safetensors")) for name in ("killed", "whole")]
    assert same(load_file(files[0]), load_file(files[1]))


@pytest.mark.slow
def test_two_processes_train_the_same_model_once(process: Callable[..., Any], tmp_path: Path) -> None:
    arguments = ["data=digits", "data.train_limit=200", "data.test_limit=40", "trainer.epochs=3", "tracking=none"]
    jobs = [process(*arguments, f"cache_dir={tmp_path / 'cache'}") for _ in range(2)]
    outputs = [job.communicate(timeout=180)[0] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], outputs
    assert sum("trained in the store" in output for output in outputs) == 1
    assert sum("found in the store" in output for output in outputs) == 1


def test_last_and_best_epoch(tmp_path: Path) -> None:
    config, data = few_digits(tmp_path, epochs=4, select="best_test")
    best = load_or_train(config, data, CPU)
    top1 = [entry["test_top1"] for entry in best.history]
    measured = evaluate(best.model, data.test_images, data.test_labels, best.normalize).top1
    assert measured == pytest.approx(max(top1))
    last = load_or_train(replace(config, trainer=replace(config.trainer, select="last")), data, CPU)
    measured = evaluate(last.model, data.test_images, data.test_labels, last.normalize).top1
    assert measured == pytest.approx(top1[-1])
    assert last.history == []  # the same training gave both
    assert last.digest != best.digest


def test_an_unreadable_training_state_starts_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config, data = few_digits(tmp_path / "good", epochs=1)
    good = load_or_train(config, data, CPU)
    folder = next((tmp_path / "good").glob("float/*/")).name
    broken = tmp_path / "bad" / "float" / folder
    broken.mkdir(parents=True)
    (broken / "training-state.pt").write_bytes(b"half a file")
    again = load_or_train(replace(config, cache_dir=str(tmp_path / "bad")), data, CPU)
    assert same(weights(good.model), weights(again.model))


@pytest.mark.slow
def test_the_stored_checkpoint_can_be_given_as_a_file(cli: Callable[..., Outcome], cache: Path) -> None:
    """Its normalization and its architecture travel with it."""
    assert cli(*FEW).code == 0
    for file in cache.glob("float/*/last.safetensors"):
        metadata = json.loads((file.parent / "metadata.json").read_text())
        identity = metadata["identity"]
        own = identity["normalization"][0] == [0.3054] * 3  # other tests train under other constants
        if own and identity["trainer"] == [1, 32, "fp32"] and metadata.get("depth") == 20:
            break
    else:
        pytest.fail("the network that was just trained is not in the store")
    outcome = cli(*FEW, f"checkpoint={file}", "data.test_limit=48")
    assert outcome.code == 0, outcome.err
    assert "Normalization stored in the file: the file's own constants (mean 0.3054 0.3054 0.3054" in outcome.out
    wrong = cli(*FEW, f"checkpoint={file}", "model=resnet56")
    assert wrong.code == 1
    assert "holds a ResNet-20" in wrong.err
    assert "model=resnet20" in wrong.err
    assert "Traceback" not in wrong.err
