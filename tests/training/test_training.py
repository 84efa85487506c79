"""The training loop against a plain one, and recipes, optimizers and schedulers through it."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import Outcome
from trained import CPU, few_digits, same, weights

from ptq_exp.base.errors import UserError
from ptq_exp.config import Config
from ptq_exp.data import load_dataset
from ptq_exp.data.loader import Normalizer, TrainingLoader
from ptq_exp.data.options import DataOptions
from ptq_exp.evaluation.accuracy import evaluate
from ptq_exp.networks import build_model
from ptq_exp.runs.float_model import load_or_train
from ptq_exp.training.loop import TrainingState, instantiate, resolve_recipe, train, train_epoch
from ptq_exp.training.options import TrainerOptions
from ptq_exp.training.step import TrainingStep


def test_same_configuration_and_seed_give_the_same_weights_and_top1(tmp_path: Path) -> None:
    results = []
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        config, data = few_digits(tmp_path / folder, seed=seed)
        trained = load_or_train(config, data, CPU)
        top1 = evaluate(trained.model, data.test_images, data.test_labels, trained.normalize).top1
        results.append((weights(trained.model), top1, trained.digest))
    assert same(results[0][0], results[1][0])
    assert results[0][1:] == results[1][1:]
    assert not same(results[0][0], results[2][0])
    assert results[0][2] != results[2][2]


def test_a_validation_split_decides_where_asked(tmp_path: Path) -> None:
    config, data = few_digits(tmp_path, select="best_validation", data={"validation_images": 30})
    trained = load_or_train(config, data, CPU)
    assert data.validation_images is not None
    assert data.validation_labels is not None
    assert (len(data.train_images), len(data.validation_images)) == (66, 30)
    found = evaluate(trained.model, data.validation_images, data.validation_labels, trained.normalize).top1
    assert found == pytest.approx(max(entry["validation_top1"] for entry in trained.history))
    assert "test_top1" not in trained.history[0]


def test_the_learning_rate_falls_at_the_milestones(tmp_path: Path) -> None:
    config, data = few_digits(
        tmp_path, epochs=4, optimizer=Config().optimizer | {"lr": 0.1},
        scheduler=Config().scheduler | {"milestones": [1, 3]},
    )  # fmt: skip
    rates = [entry["lr"] for entry in load_or_train(config, data, CPU).history]
    assert rates == pytest.approx([0.1, 0.01, 0.01, 0.001])


def test_the_recipe_fills_what_is_open_and_scales_its_milestones(tmp_path: Path) -> None:
    config, data = few_digits(tmp_path, epochs=10)
    resolved = resolve_recipe(config.training, data.recipe)
    assert resolved.scheduler["milestones"] == [6, 8]  # 12 and 17 of 20
    assert resolved.optimizer["lr"] == data.recipe.lr
    assert resolved.trainer.batch_size == 32
    given = replace(config, optimizer=config.optimizer | {"lr": 0.5}, trainer=TrainerOptions())
    assert resolve_recipe(given.training, data.recipe).optimizer["lr"] == 0.5
    assert resolve_recipe(given.training, data.recipe).scheduler["milestones"] == [12, 17]


def test_a_scheduler_that_watches_the_loss(tmp_path: Path) -> None:
    plateau = {"_target_": "torch.optim.lr_scheduler.ReduceLROnPlateau", "factor": 0.5, "patience": 0, "threshold": 1e9}
    config, data = few_digits(tmp_path, epochs=3, scheduler=plateau, optimizer=Config().optimizer | {"lr": 0.1})
    rates = [entry["lr"] for entry in load_or_train(config, data, CPU).history]
    assert rates[0] == 0.1
    assert rates[-1] < 0.1


def test_an_optimizer_that_needs_a_closure_is_refused(tmp_path: Path) -> None:
    config, data = few_digits(tmp_path, optimizer={"_target_": "torch.optim.LBFGS", "lr": 0.1})
    with pytest.raises(UserError, match="closure"):
        load_or_train(config, data, CPU)


def test_divergence_is_said(tmp_path: Path) -> None:
    config, data = few_digits(tmp_path, optimizer=Config().optimizer | {"lr": 1e12})
    with pytest.raises(UserError, match=r"diverged in epoch 1.*optimizer\.lr"):
        load_or_train(config, data, CPU)


def test_the_loop_equals_a_plain_reference_loop() -> None:
    """The same batches through textbook SGD give the same losses and weights; in double precision, since three
    steps of a fresh network magnify the last bit of a float to the third digit."""
    _, data = few_digits(Path("unused"))
    torch.manual_seed(0)
    model = build_model("resnet", 10).double()
    reference = copy.deepcopy(model)
    single = Normalizer(data.mean, data.std, CPU)
    loader = TrainingLoader(data.train_images, data.train_labels, 32, 4, False, seed=5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.005, momentum=0.9)
    step = TrainingStep(model, lambda x: single(x).double(), optimizer, "fp32")
    loss, _ = train_epoch(step, loader, 0, lambda *_, **__: None)
    velocity = [torch.zeros_like(p) for p in reference.parameters()]
    losses = []
    for images, labels in loader.epoch(0):
        mean, std = torch.tensor(data.mean).view(1, 3, 1, 1), torch.tensor(data.std).view(1, 3, 1, 1)
        value = torch.nn.functional.cross_entropy(reference(((images / 255 - mean) / std).double()), labels)
        gradients = torch.autograd.grad(value, list(reference.parameters()))
        with torch.no_grad():
            for p, g, v in zip(reference.parameters(), gradients, velocity, strict=True):
                v.mul_(0.9).add_(g)
                p.sub_(0.005 * v)
        losses.append(value.item() * len(labels))
    assert loss == pytest.approx(sum(losses) / 96, rel=1e-6)
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-9)


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_on_a_cpu_every_precision_is_fp32(precision: str) -> None:
    """What makes a GPU quicker is emulated there: `trainer=fast` would be several times slower than without it."""
    images, labels = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8), torch.arange(16) % 10
    states = []
    for name in ("fp32", precision):
        torch.manual_seed(0)
        model = build_model("resnet", 10, depth=8)
        step = TrainingStep(model, Normalizer((0.5,) * 3, (0.25,) * 3, CPU), torch.optim.SGD(model.parameters()), name)
        step(images, labels)
        states.append(model.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_a_long_training_is_announced_with_the_quicker_ways(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr("ptq_exp.training.loop.LONG_TRAINING_SECONDS", 0.01)
    config, data = few_digits(tmp_path, epochs=1)
    with caplog.at_level("WARNING", logger="ptq_exp"):
        load_or_train(config, data, CPU)
    for words in ("Training will take about", "checkpoint=", "trainer.epochs=", "a GPU"):
        assert words in caplog.text


def test_instantiate_takes_any_torch_class() -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    made = instantiate("optimizer", {"_target_": "torch.optim.RMSprop", "lr": 0.5, "alpha": 0.9}, [parameter])
    assert isinstance(made, torch.optim.RMSprop)
    assert made.param_groups[0]["alpha"] == 0.9


def test_training_reads_no_label_of_the_test_set_when_the_last_epoch_is_taken(tmp_path: Path) -> None:
    """Other test labels, the same weights."""
    config, data = few_digits(tmp_path)
    options = resolve_recipe(config.training, data.recipe)
    results = []
    for labels in (data.test_labels, (data.test_labels + 1) % 10):
        torch.manual_seed(0)
        model = build_model("resnet", 10)
        changed = replace(data, test_labels=labels)
        normalize = Normalizer(data.mean, data.std, CPU)

        def top1(network: torch.nn.Module, labels: torch.Tensor = labels, normalize: Normalizer = normalize) -> float:
            return evaluate(network, data.test_images, labels, normalize).top1

        assert len(list(train(model, changed, normalize, options, top1, TrainingState()))) == options.trainer.epochs
        results.append(weights(model))
    assert same(*results)


@pytest.mark.slow
def test_the_digits_reach_98_percent(tmp_path: Path) -> None:
    config = Config(data=DataOptions(name="digits"), cache_dir=str(tmp_path))
    data = load_dataset(config.data, config.cache, CPU)
    trained = load_or_train(config, data, CPU)
    assert evaluate(trained.model, data.test_images, data.test_labels, trained.normalize).top1 >= 98


@pytest.mark.slow
def test_the_fast_recipe_trains(cli: Callable[..., Outcome]) -> None:
    outcome = cli("trainer=fast", "data=digits", "data.train_limit=64", "data.test_limit=48", "trainer.epochs=2")
    assert outcome.code == 0, outcome.err
