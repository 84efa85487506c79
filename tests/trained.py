"""A small network trained on a few digits, and how its weights are compared."""

from pathlib import Path
from typing import Any

import torch

from ptq_exp.config import Config
from ptq_exp.data import load_dataset
from ptq_exp.data.dataset import Dataset
from ptq_exp.data.options import DataOptions
from ptq_exp.training.options import TrainerOptions

CPU = torch.device("cpu")


def few_digits(cache: Path, **changes: Any) -> tuple[Config, Dataset]:
    config = Config(
        model=Config().model | {"name": "resnet8", "depth": 8},
        data=DataOptions(name="digits", train_limit=96, test_limit=40, **changes.pop("data", {})),
        trainer=TrainerOptions(epochs=changes.pop("epochs", 2), batch_size=32, select=changes.pop("select", "last")),
        cache_dir=str(cache),
        **changes,
    )
    return config, load_dataset(config.data, config.cache, CPU)


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
