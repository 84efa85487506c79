"""The shipped network, and when it stands in for a training."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from trained import CPU, few_digits

from ptq_exp.config import Config
from ptq_exp.data.dataset import CIFAR10_MEAN, CIFAR10_STD, Recipe
from ptq_exp.runs.float_model import load_or_train
from ptq_exp.runs.shipped import SHIPPED, shipped
from ptq_exp.training.loop import resolve_recipe
from ptq_exp.training.options import TrainerOptions


@pytest.mark.slow
def test_the_default_recipe_on_cifar10_finds_the_shipped_checkpoint(tmp_path: Path) -> None:
    """Ten images under CIFAR-10's name stand in for it; any other recipe, seed or part of the data is not shipped."""
    _, digits = few_digits(tmp_path)
    data = replace(digits, name="cifar10", recipe=Recipe(), mean=CIFAR10_MEAN, std=CIFAR10_STD)
    plain = Config(cache_dir=str(tmp_path))
    options = {"architecture": "resnet", "depth": 20, "shortcut": "conv"}
    found = load_or_train(plain, data, torch.device("cpu"))
    assert "shipped with ptq_exp" in found.source
    recipe = resolve_recipe(plain.training, data.recipe)
    resolved = replace(
        plain, trainer=recipe.trainer, optimizer=recipe.optimizer, scheduler=recipe.scheduler,
        data=replace(plain.data, mean=list(data.mean), std=list(data.std)),
    )  # fmt: skip
    assert shipped(resolved, options, data) is not None
    assert shipped(replace(resolved, seed=1), options, data) is None
    folder = replace(resolved, data=replace(resolved.data, name="image_folder"))
    assert shipped(folder, options, data) is None  # a folder of that name
    assert shipped(replace(resolved, optimizer=resolved.optimizer | {"lr": 0.1}), options, data) is None
    assert shipped(replace(resolved, data=replace(resolved.data, train_limit=5)), options, data) is None
    assert shipped(replace(resolved, data=replace(resolved.data, resize=64)), options, data) is None
    assert shipped(resolved, options | {"depth": 32}, data) is None
    assert shipped(resolved, options, replace(data, name="cifar100")) is None


@pytest.mark.slow
def test_in_a_sweep_over_seeds_no_seed_takes_the_shipped_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Seed 0's shipped network would be compared with networks of another training."""
    caplog.set_level("INFO", logger="ptq_exp")
    _, digits = few_digits(tmp_path)
    data = replace(digits, name="cifar10", recipe=Recipe(epochs=1), mean=CIFAR10_MEAN, std=CIFAR10_STD)
    monkeypatch.setattr("ptq_exp.runs.shipped.shipped", lambda *_: SHIPPED / "resnet20-cifar10.safetensors")
    config = Config(cache_dir=str(tmp_path))
    assert "shipped" in load_or_train(config, data, CPU).source
    monkeypatch.setenv("PTQ_EXP_SWEPT_KEYS", "quant.bits seed")
    assert "trained in the store" in load_or_train(config, data, CPU).source
    assert "quant.calibration_seed" in caplog.text
    monkeypatch.setenv("PTQ_EXP_SWEPT_KEYS", "quant.bits quant.calibration_seed")
    assert "shipped" in load_or_train(config, data, CPU).source


@pytest.mark.slow
def test_without_a_gpu_the_notebooks_experiment_takes_the_shipped_network_and_says_what_differs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, digits = few_digits(tmp_path)
    data = replace(digits, name="cifar10", recipe=Recipe(), mean=CIFAR10_MEAN, std=CIFAR10_STD)
    plain = Config(cache_dir=str(tmp_path), trainer=TrainerOptions(select="best_test"))
    found = load_or_train(plain, data, CPU)
    assert "shipped with ptq_exp" in found.source
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert any("Without a GPU" in line and "last epoch" in line and "checkpoint=train" in line for line in warnings)
    few = replace(plain, trainer=TrainerOptions(select="best_test", epochs=1), checkpoint="train")
    assert "trained in the store" in load_or_train(few, replace(data, recipe=Recipe(epochs=1)), CPU).source
