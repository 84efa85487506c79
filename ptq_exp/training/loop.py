"""Training of the float model: plain supervised SGD on batches on the device."""

import copy
import importlib
import inspect
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptq_exp.base.console import duration, log, progress
from ptq_exp.base.errors import UserError, did_you_mean
from ptq_exp.data.dataset import Dataset, Recipe
from ptq_exp.data.loader import Normalizer, TrainingLoader
from ptq_exp.training.options import TrainingOptions
from ptq_exp.training.step import TrainingStep

LONG_TRAINING_SECONDS = 600
DIVERGED = 10  # as a multiple of the loss of guessing
# Optimizers that torch also offers as one kernel for all parameters. One kernel per parameter takes longer to launch
# than to compute.
FUSED_OPTIMIZERS = ("torch.optim.SGD", "torch.optim.Adam", "torch.optim.AdamW")

Weights = dict[str, Tensor]


@dataclass
class TrainingState:
    """Everything needed to continue after an epoch. Batches and augmentation follow from seed and epoch."""

    epoch: int = 0  # number of finished epochs
    model: Weights = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    scheduler: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)  # one entry per epoch
    best: Weights = field(default_factory=dict)
    best_epoch: int = 0
    best_top1: float = -1.0

    def networks(self) -> dict[str, tuple[Weights, dict[str, float]]]:
        """The weights of the last and the best epoch, with the epoch's number and top-1."""

        def about(epoch: int) -> dict[str, float]:
            measured = {key: value for key, value in self.history[epoch - 1].items() if key.endswith("_top1")}
            return {"epoch": epoch, **measured}

        return {"last": (self.model, about(self.epoch)), "best": (self.best, about(self.best_epoch))}


def resolve_recipe(options: TrainingOptions, recipe: Recipe) -> TrainingOptions:
    """The options, with null values of optimizer, scheduler and trainer filled in from the data set's recipe.

    If only the number of epochs was changed, milestones keep their relative positions.
    """
    epochs = options.trainer.epochs or recipe.epochs
    milestones = [max(1, round(m * epochs / recipe.epochs)) for m in recipe.milestones]
    defaults = {
        "lr": recipe.lr, "weight_decay": recipe.weight_decay, "milestones": milestones, "T_max": epochs,
        "total_steps": epochs, "max_lr": 20 * recipe.lr,
    }  # fmt: skip

    def fill(group: dict[str, Any]) -> dict[str, Any]:
        return {key: defaults.get(key) if value is None else value for key, value in group.items()}

    trainer = replace(options.trainer, epochs=epochs, batch_size=options.trainer.batch_size or recipe.batch_size)
    return replace(options, trainer=trainer, optimizer=fill(options.optimizer), scheduler=fill(options.scheduler))


def instantiate(group: str, node: dict[str, Any], first: Any) -> Any:
    """The object named by `_target_`, created from `first` and the other keys. Raises `UserError` if that fails."""
    target, arguments = target_of(group, node)
    try:
        return target(first, **arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f"{group}: {node['_target_']} does not accept {arguments}: {error}.") from error


def target_of(group: str, node: dict[str, Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
    """What `_target_` names, and its arguments. Raises `UserError` for arguments that it does not have, and for words
    where it expects numbers."""
    path = str(node.get("_target_"))
    arguments = {key: value for key, value in node.items() if key != "_target_"}
    module, _, name = path.rpartition(".")
    try:
        target: Callable[..., Any] = getattr(importlib.import_module(module), name)
        parameters = inspect.signature(target).parameters
    except (ImportError, AttributeError, ValueError, TypeError):
        raise UserError(
            f"{group}._target_={path} cannot be imported. Expected: a class, for example torch.optim.SGD."
        ) from None
    allowed = list(parameters)[1:]
    for key, value in arguments.items():
        if key not in allowed:
            raise UserError(
                f"{group}.{key} is not an argument of {path}.{did_you_mean(key, allowed)} "
                f"Allowed: {', '.join(allowed)}."
            )
        if isinstance(value, str) and isinstance(default := parameters[key].default, int | float):
            wanted = "true or false" if isinstance(default, bool) else "a number"
            raise UserError(f"{group}.{key}={value} is not {wanted}.")
    return target, arguments


def build_optimizer(node: dict[str, Any], parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of a configuration. On CUDA it uses the fused kernel unless `node` specifies one."""
    if node.get("_target_") in FUSED_OPTIMIZERS and parameters[0].is_cuda and not node.keys() & {"fused", "foreach"}:
        node = node | {"fused": True}
    optimizer: torch.optim.Optimizer = instantiate("optimizer", node, parameters)
    return optimizer


def train(
    model: nn.Module,
    dataset: Dataset,
    normalize: Normalizer,
    options: TrainingOptions,
    accuracy: Callable[[nn.Module], float],
    state: TrainingState,
) -> Iterator[TrainingState]:
    """Train `model` in place from `state`, which is updated and yielded after every epoch.

    The options must be resolved (`resolve_recipe`). `accuracy` returns the top-1 (percent) on the split that selects
    the best epoch (`Dataset.monitored`). Raises `UserError` if the training diverges.
    """
    if len(dataset.classes) < 2:
        raise UserError(f"{dataset.name} has only one class, {dataset.classes[0]}. Training needs at least two.")
    trainer, recipe = options.trainer, dataset.recipe
    epochs = trainer.epochs or 0
    loader = TrainingLoader(
        dataset.train_images, dataset.train_labels, trainer.batch_size or 0, recipe.crop_padding, recipe.flip,
        options.seed,
    )  # fmt: skip
    optimizer = build_optimizer(options.optimizer, list(model.parameters()))
    if inspect.signature(optimizer.step).parameters["closure"].default is inspect.Parameter.empty:
        raise UserError(f"optimizer._target_={options.optimizer['_target_']} needs a closure, which is not supported.")
    scheduler = instantiate("scheduler", options.scheduler, optimizer)
    if trainer.precision != "fp32" and not loader.labels.is_cuda:
        log.info("trainer.precision=%s needs CUDA. Training in fp32 on this CPU.", trainer.precision)
    if state.epoch:
        model.load_state_dict(state.model)
        optimizer.load_state_dict(state.optimizer)
        scheduler.load_state_dict(state.scheduler)
        log.info("Continuing the training after epoch %d of %d.", state.epoch, epochs)
    elif loader.labels.device.type == "cpu":
        _warn_if_long(model, loader, normalize, epochs)

    monitor = dataset.monitored()[0]
    step = TrainingStep(model, normalize, optimizer, trainer.precision, trainer.fused)
    text = {"loss": "loss  -  ", "accuracy": f"{monitor}  -  "}
    with progress(f"Training {epochs} epoch{'s' * (epochs > 1)}", epochs * len(loader), None, **text) as advance:
        advance(state.epoch * len(loader))
        for epoch in range(state.epoch, epochs):
            rate = optimizer.param_groups[0]["lr"]
            loss, train_top1 = train_epoch(step, loader, epoch, advance)
            # Only this scheduler depends on the progress of the training. It gets the training loss.
            plateau = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
            scheduler.step(loss) if plateau else scheduler.step()
            top1 = accuracy(model)
            # The loss of guessing is log(classes). A mean loss far above it counts as diverged, and so does NaN.
            if not loss < DIVERGED * math.log(len(dataset.classes)):
                raise UserError(
                    f"Training diverged in epoch {epoch + 1}: the loss is {loss:.4g}. "
                    f"Try a smaller optimizer.lr (it was {rate:.4g})."
                )
            state.epoch = epoch + 1
            state.history.append({"lr": rate, "train_loss": loss, "train_top1": train_top1, f"{monitor}_top1": top1})
            state.model, state.optimizer, state.scheduler = (
                _cpu_copy(model.state_dict()),
                optimizer.state_dict(),
                scheduler.state_dict(),
            )
            if top1 > state.best_top1:
                state.best_top1, state.best_epoch, state.best = top1, state.epoch, state.model
            yield state
            advance(0, accuracy=f"{monitor} {top1:.2f} % (best {state.best_top1:.2f})")
            _log_epoch(state, epochs, monitor)


def train_epoch(
    step: TrainingStep, loader: TrainingLoader, epoch: int, advance: Callable[..., None]
) -> tuple[float, float]:
    """One pass over the training images. Returns their mean loss and top-1 (percent), measured during training."""
    step.model.train()
    step.totals.zero_()
    shown, seen = time.monotonic(), 0
    for images, labels in loader.epoch(epoch):
        step(images, labels)
        advance()
        seen += len(labels)
        # An epoch takes a minute on a CPU but less than a second on CUDA, where reading the loss would stall it.
        if step.device.type == "cpu" and time.monotonic() - shown > 1:
            shown = time.monotonic()
            advance(0, loss=f"loss {step.totals[0].item() / seen:.3f}")
    loss_sum, correct = step.totals.tolist()
    return loss_sum / len(loader.labels), 100 * correct / len(loader.labels)


def _cpu_copy(weights: Weights) -> Weights:
    return {key: value.detach().to("cpu", copy=True) for key, value in weights.items()}


def _log_epoch(state: TrainingState, epochs: int, monitor: str) -> None:
    if state.epoch % max(1, epochs // 6) == 0 or state.epoch == epochs:
        last = state.history[-1]
        log.info(
            "epoch %3d/%d  loss %.3f  train top-1 %.2f %%  %s top-1 %.2f %% (best %.2f %%, epoch %d)",
            state.epoch, epochs, last["train_loss"], last["train_top1"],
            monitor, last[f"{monitor}_top1"], state.best_top1, state.best_epoch,
        )  # fmt: skip


def _warn_if_long(model: nn.Module, loader: TrainingLoader, normalize: Normalizer, epochs: int) -> None:
    """Time a few steps on a copy of the model and, if the training would be long, log faster alternatives."""
    trial = copy.deepcopy(model)
    optimizer = torch.optim.SGD(trial.parameters(), lr=1e-3)
    quickest = math.inf
    for _, (images, labels) in zip(range(5), loader.epoch(0), strict=False):
        started = time.perf_counter()
        F.cross_entropy(trial(normalize(images)), labels).backward()
        optimizer.step()
        quickest = min(quickest, time.perf_counter() - started)
        seconds = quickest * len(loader) * epochs
        if seconds <= LONG_TRAINING_SECONDS:  # this is an upper bound, so a short training needs no more timing
            return
    log.warning(
        "Training will take about %s on this CPU (%d epochs of %d images). Faster alternatives: "
        "checkpoint=<path or URL of a trained network>, fewer epochs (trainer.epochs=%d), or a GPU. "
        "If it is interrupted, the same command continues it.",
        duration(seconds), epochs, len(loader.labels),
        max(1, int(epochs * LONG_TRAINING_SECONDS / seconds)),
    )  # fmt: skip
