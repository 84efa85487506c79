"""Training, the store of float models and determinism."""

import copy
import json
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FEW, Outcome
from safetensors.torch import load_file
from scipy.stats import binomtest

from ptq_exp.base.errors import UserError
from ptq_exp.config import Config, DataConfig, TrainerConfig
from ptq_exp.data import load_dataset
from ptq_exp.data.dataset import CIFAR10_MEAN, CIFAR10_STD, Dataset, Recipe
from ptq_exp.data.loader import Normalizer, TrainingLoader
from ptq_exp.evaluation.accuracy import Evaluation, drop_interval, evaluate, wilson_interval
from ptq_exp.networks import build_model
from ptq_exp.networks.store import SHIPPED, load_or_train, shipped
from ptq_exp.training.loop import TrainingState, instantiate, resolve_recipe, train, train_epoch
from ptq_exp.training.step import TrainingStep

CPU = torch.device("cpu")


def few_digits(cache: Path, **changes: Any) -> tuple[Config, Dataset]:
    config = Config(
        model=Config().model | {"name": "resnet8", "depth": 8},
        data=DataConfig(name="digits", train_limit=96, test_limit=40, **changes.pop("data", {})),
        trainer=TrainerConfig(epochs=changes.pop("epochs", 2), batch_size=32, select=changes.pop("select", "last")),
        cache_dir=str(cache),
        **changes,
    )
    return config, load_dataset(config, CPU)


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


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


def test_the_store_trains_once_and_finds_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, data = few_digits(tmp_path)
    first = load_or_train(config, data, CPU)
    monkeypatch.setattr("ptq_exp.networks.store.train", lambda *_: pytest.fail("trained again"))
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
        {"trainer": TrainerConfig(epochs=2, batch_size=32)},
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
    assert "Training goes on after epoch" in output
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
    resolved = resolve_recipe(config, data)
    assert resolved.scheduler["milestones"] == [6, 8]  # 12 and 17 of 20
    assert resolved.optimizer["lr"] == data.recipe.lr
    assert resolved.trainer.batch_size == 32
    given = replace(config, optimizer=config.optimizer | {"lr": 0.5}, trainer=TrainerConfig())
    assert resolve_recipe(given, data).optimizer["lr"] == 0.5
    assert resolve_recipe(given, data).scheduler["milestones"] == [12, 17]


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
    for words in ("Training will take about", "checkpoint=", "data=digits", "trainer.epochs="):
        assert words in caplog.text


def test_an_unreadable_training_state_starts_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config, data = few_digits(tmp_path / "good", epochs=1)
    good = load_or_train(config, data, CPU)
    folder = next((tmp_path / "good").glob("float/*/")).name
    broken = tmp_path / "bad" / "float" / folder
    broken.mkdir(parents=True)
    (broken / "training-state.pt").write_bytes(b"half a file")
    again = load_or_train(replace(config, cache_dir=str(tmp_path / "bad")), data, CPU)
    assert same(weights(good.model), weights(again.model))


def test_instantiate_takes_any_torch_class() -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    made = instantiate("optimizer", {"_target_": "torch.optim.RMSprop", "lr": 0.5, "alpha": 0.9}, [parameter])
    assert isinstance(made, torch.optim.RMSprop)
    assert made.param_groups[0]["alpha"] == 0.9


def test_evaluation_counts_exactly() -> None:
    """A network that answers with known logits: top-1, top-5, loss and agreement by hand."""

    class Fixed(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            ranked = torch.arange(10.0).flip(0)  # class 0 first, then 1, 2, ...
            return ranked.expand(len(x), 10)

    images = torch.zeros(150, 3, 4, 4, dtype=torch.uint8)
    labels = torch.tensor([0] * 75 + [4] * 45 + [9] * 30)
    normalize = Normalizer([0.5] * 3, [0.5] * 3, CPU)
    result = evaluate(Fixed(), images, labels, normalize)
    assert (result.top1, result.top5) == (50.0, 80.0)
    log_sum = torch.arange(10.0).logsumexp(0).item()
    assert result.loss == pytest.approx(log_sum - (75 * 9 + 45 * 5 + 30 * 0) / 150, rel=1e-6)
    other = Evaluation(torch.tensor([0] * 100 + [1] * 50), 0, 0, 0.0, 0.0)
    assert result.agreement(other) == pytest.approx(100 * 100 / 150)


def test_wilson_interval() -> None:
    """Newcombe 1998, table I: 81 of 263 gives 0.2553 to 0.3662; none of 20 gives 0 to 0.1611."""
    assert wilson_interval(81, 263) == pytest.approx((25.53, 36.62), abs=0.01)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 16.11), abs=0.01)


def test_the_interval_of_the_drop_is_paired() -> None:
    """Ten images lost and two gained of a hundred: 8 points, standard error sqrt(12 - 64 / 100) / 100."""
    labels = torch.zeros(100, dtype=torch.long)
    before, after = torch.zeros(100, dtype=torch.long), torch.zeros(100, dtype=torch.long)
    before[:2] = 1
    after[10:20] = 1
    low, high = drop_interval(Evaluation(before, 98, 0, 0.0, 0.0), Evaluation(after, 90, 0, 0.0, 0.0), labels)
    # By hand: 10 lost, 2 gained of 100; (10 - 2) / 102, standard error sqrt(14 - 64 / 102) / 102.
    assert (low, high) == pytest.approx((7.84314 - 1.959964 * 3.58528, 7.84314 + 1.959964 * 3.58528), abs=1e-3)


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (1, 0), (4, 0), (5, 0), (6, 0), (7, 1), (8, 1), (9, 1), (30, 12)])
def test_the_drop_s_interval_judges_as_the_exact_test_does(lost: int, gained: int) -> None:
    """McNemar's exact test: of the images on which the networks differ, as many would go either way."""
    labels = torch.zeros(400, dtype=torch.long)
    before, after = labels.clone(), labels.clone()
    after[:lost] = 1
    before[lost : lost + gained] = 1
    low, high = drop_interval(Evaluation(before, 0, 0, 0.0, 0.0), Evaluation(after, 0, 0, 0.0, 0.0), labels)
    assert low < high
    p = binomtest(lost, lost + gained).pvalue if lost + gained else 1.0
    assert (low > 0) == (p < 0.05)


def test_evaluation_restores_the_mode_of_the_model() -> None:
    model = build_model("resnet", 10).train()
    data = torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.zeros(2, dtype=torch.long)
    evaluate(model, *data, Normalizer([0.5] * 3, [0.5] * 3, CPU))
    assert model.training


def test_the_stored_checkpoint_can_be_given_as_a_file(cli: Callable[..., Outcome], cache: Path) -> None:
    """Its normalization and its architecture travel with it."""
    assert cli(*FEW).code == 0
    for file in cache.glob("float/*/last.safetensors"):
        metadata = json.loads((file.parent / "metadata.json").read_text())
        if metadata["identity"]["trainer"] == [1, 32, "fp32"] and metadata.get("depth") == 20:
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


def test_training_reads_no_label_of_the_test_set_when_the_last_epoch_is_taken(tmp_path: Path) -> None:
    """Other test labels, the same weights."""
    config, data = few_digits(tmp_path)
    config = resolve_recipe(config, data)
    results = []
    for labels in (data.test_labels, (data.test_labels + 1) % 10):
        torch.manual_seed(0)
        model = build_model("resnet", 10)
        changed = replace(data, test_labels=labels)
        train(model, changed, Normalizer(data.mean, data.std, CPU), config, None, lambda _: None)
        results.append(weights(model))
    assert same(*results)


@pytest.mark.slow
def test_the_digits_reach_98_percent(tmp_path: Path) -> None:
    config = Config(data=DataConfig(name="digits"), cache_dir=str(tmp_path))
    data = load_dataset(config, CPU)
    trained = load_or_train(config, data, CPU)
    assert evaluate(trained.model, data.test_images, data.test_labels, trained.normalize).top1 >= 98


def test_the_default_recipe_on_cifar10_finds_the_shipped_checkpoint(tmp_path: Path) -> None:
    """Ten images under CIFAR-10's name stand in for it; any other recipe, seed or part of the data is not shipped."""
    _, digits = few_digits(tmp_path)
    data = replace(digits, name="cifar10", recipe=Recipe(), mean=CIFAR10_MEAN, std=CIFAR10_STD)
    plain = Config(cache_dir=str(tmp_path))
    options = {"architecture": "resnet", "depth": 20, "shortcut": "conv"}
    found = load_or_train(plain, data, torch.device("cpu"))
    assert "shipped with ptq_exp" in found.source
    resolved = replace(resolve_recipe(plain, data), data=replace(plain.data, mean=list(data.mean), std=list(data.std)))
    assert shipped(resolved, options, data) is not None
    assert shipped(replace(resolved, seed=1), options, data) is None
    folder = replace(resolved, data=replace(resolved.data, name="image_folder"))
    assert shipped(folder, options, data) is None  # a folder of that name
    assert shipped(replace(resolved, optimizer=resolved.optimizer | {"lr": 0.1}), options, data) is None
    assert shipped(replace(resolved, data=replace(resolved.data, train_limit=5)), options, data) is None
    assert shipped(resolved, options | {"depth": 32}, data) is None
    assert shipped(resolved, options, replace(data, name="cifar100")) is None


def test_the_fast_recipe_trains(cli: Callable[..., Outcome]) -> None:
    outcome = cli("trainer=fast", "data=digits", "data.train_limit=64", "data.test_limit=48", "trainer.epochs=2")
    assert outcome.code == 0, outcome.err


def test_in_a_sweep_over_seeds_no_seed_takes_the_shipped_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Seed 0's shipped network would be compared with networks of another training."""
    caplog.set_level("INFO", logger="ptq_exp")
    _, digits = few_digits(tmp_path)
    data = replace(digits, name="cifar10", recipe=Recipe(epochs=1), mean=CIFAR10_MEAN, std=CIFAR10_STD)
    monkeypatch.setattr("ptq_exp.networks.store.shipped", lambda *_: SHIPPED / "resnet20-cifar10.safetensors")
    config = Config(cache_dir=str(tmp_path))
    assert "shipped" in load_or_train(config, data, CPU).source
    monkeypatch.setenv("PTQ_EXP_SWEPT_KEYS", "quant.bits seed")
    assert "trained in the store" in load_or_train(config, data, CPU).source
    assert "quant.calibration_seed" in caplog.text
    monkeypatch.setenv("PTQ_EXP_SWEPT_KEYS", "quant.bits quant.calibration_seed")
    assert "shipped" in load_or_train(config, data, CPU).source


def test_without_a_gpu_the_notebooks_experiment_takes_the_shipped_network_and_says_what_differs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, digits = few_digits(tmp_path)
    data = replace(digits, name="cifar10", recipe=Recipe(), mean=CIFAR10_MEAN, std=CIFAR10_STD)
    plain = Config(cache_dir=str(tmp_path), trainer=TrainerConfig(select="best_test"))
    found = load_or_train(plain, data, CPU)
    assert "shipped with ptq_exp" in found.source
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert any("Without a GPU" in line and "last epoch" in line and "checkpoint=train" in line for line in warnings)
    few = replace(plain, trainer=TrainerConfig(select="best_test", epochs=1), checkpoint="train")
    assert "trained in the store" in load_or_train(few, replace(data, recipe=Recipe(epochs=1)), CPU).source
