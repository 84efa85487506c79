"""How the float model is trained: the configuration group `trainer`, and everything else that determines a training.

Imports no torch.
"""

from dataclasses import dataclass
from typing import Any

from ptq_exp.base.options import option


@dataclass
class TrainerOptions:
    """Group `trainer`. The files in `conf/trainer` contain only what they change."""

    epochs: int | None = option(
        None, "epochs of the training; null: the data set's own recipe (CIFAR: 180)", at_least=1
    )
    batch_size: int | None = option(None, "images per step; null: the data set's own recipe (CIFAR: 160)", at_least=1)
    precision: str = option(
        "fp32",
        "precision of the training: fp32, or on CUDA tf32 or bf16, which are faster",
        choices=["fp32", "tf32", "bf16"],
    )
    fused: bool = option(False, "true: train a CIFAR ResNet with this project's own CUDA kernels (docs/performance.md)")
    select: str = option(
        "last",
        "the epoch that is kept: last, best_validation (needs data.validation_images), or best_test, which selects it "
        "on the test set and therefore reports an optimistic accuracy",
        choices=["last", "best_test", "best_validation"],
    )


@dataclass(frozen=True)
class TrainingOptions:
    """Everything that determines a training, apart from the network and the images."""

    trainer: TrainerOptions
    optimizer: dict[str, Any]  # `_target_`, a torch class, and its arguments; null: as in the data set's recipe
    scheduler: dict[str, Any]
    seed: int = 0
