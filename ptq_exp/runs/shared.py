"""The data that jobs of a sweep share: data set, float network and its accuracy, calibration images."""

import dataclasses
import functools
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ptq_exp.base.console import log, progress
from ptq_exp.base.errors import UserError
from ptq_exp.base.files import digest
from ptq_exp.config import Config
from ptq_exp.data.dataset import Dataset
from ptq_exp.evaluation.accuracy import Evaluation, evaluate
from ptq_exp.evaluation.plausibility import warn_if_implausible
from ptq_exp.networks import custom
from ptq_exp.networks.store import weights_digest
from ptq_exp.quantization.context import Calibration
from ptq_exp.runs.device import hardware
from ptq_exp.runs.fitting import FloatModel
from ptq_exp.runs.float_model import load_or_train
from ptq_exp.runs.images import load_images
from ptq_exp.runs.ledger import UNRELATED


@dataclass
class Shared:
    """Data set, float network and the float network's accuracy."""

    dataset: Dataset
    fingerprint: str
    float_model: FloatModel
    baseline: Evaluation
    network_digest: str  # SHA-256 (hex) of the float weights and the normalization, the input of a quantizer
    calibrations: dict[tuple[int, int], Calibration] = field(default_factory=dict)  # by number of images and seed

    @functools.cached_property
    def test_fingerprint(self) -> str:
        """SHA-256 (hex) of the test images and their labels."""
        return self.dataset.test_fingerprint()

    def measure(self, network: nn.Module, description: str) -> Evaluation:
        """Evaluate `network` on the test images."""
        return _measure(network, self.dataset, self.float_model, description)

    def calibration(self, config: Config) -> Calibration:
        """Training images without labels, drawn by the calibration seed. Jobs with the same images share them."""
        count, seed = config.quant.calibration_images, config.calibration_seed
        if (count, seed) not in self.calibrations:
            self.calibrations.clear()  # keep one set at a time, since it can be large
            chosen = self.float_model.normalize(drawn(self.dataset.train_images, count, seed))
            self.calibrations[count, seed] = Calibration(chosen, seed)
        return self.calibrations[count, seed]


def drawn(images: Tensor, count: int, seed: int) -> Tensor:
    """`count` of the images, or all if there are fewer, in an order that depends only on their number and the seed."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return images[order[:count].to(images.device)]


_shared: dict[str, Shared] = {}  # at most one entry, since it holds a data set; the jobs of a sweep share it


def prepare(config: Config, device: torch.device, training: Callable[[], AbstractContextManager[Any]]) -> Shared:
    """Data set, float network and baseline, computed once per process for the jobs that share them.

    A training runs inside the context manager that `training` returns.
    """
    relevant = dataclasses.asdict(config)
    for unrelated in ("quant", *UNRELATED):
        del relevant[unrelated]
    relevant["model"] = custom.identity(relevant["model"])
    key = digest(relevant, str(device))
    if key not in _shared:
        dataset = load_images(config, device)
        if dataset.note:
            log.warning("%s", dataset.note)
        sizes = f"{len(dataset.train_images)} training and {len(dataset.test_images)} test images"
        log.info("Data: %s, %s, %d classes. Device: %s.", dataset.name, sizes, len(dataset.classes), hardware(device))
        float_model = load_or_train(config, dataset, device, training)
        log.info("Float model: %s.", float_model.source)
        dataset = float_model.dataset
        baseline = _measure(float_model.model, dataset, float_model, "Evaluating the float network")
        if not math.isfinite(baseline.loss):
            raise UserError("The outputs of the float network are not finite, so its weights are of no use.")
        log.info("Float top-1: %.2f %% (95 %% CI %.2f to %.2f).", baseline.top1, *baseline.interval())
        warn_if_implausible(baseline, dataset, float_model.claim)
        _shared.clear()
        data = float_model.config.data
        network = digest(weights_digest(float_model.model), data.mean, data.std)
        _shared[key] = Shared(dataset, dataset.fingerprint(), float_model, baseline, network)
    return _shared[key]


def _measure(network: nn.Module, dataset: Dataset, float_model: FloatModel, description: str) -> Evaluation:
    with progress(description, len(dataset.test_labels)) as advance:
        return evaluate(network, dataset.test_images, dataset.test_labels, float_model.normalize, advance)
