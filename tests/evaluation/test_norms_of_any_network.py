"""The batch-norm check on networks that this project did not build: unusual norms, and the mistakes of their users."""

import copy
import importlib.util
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import mostly_slow, shared
from test_batch_norm_check import CIFAR10, CPU, HALF, dataset, photographs, trained_on
from torch import Tensor, nn

from bench.foreign import INVERTED_RESIDUALS
from ptq_exp.data import load_dataset
from ptq_exp.data.dataset import Dataset
from ptq_exp.data.loader import Normalizer, TrainingLoader
from ptq_exp.data.options import DataOptions
from ptq_exp.evaluation.batch_norm_check import check_constants, choose_constants
from ptq_exp.evaluation.batch_norm_fit import SCREENED, BatchNormCheck

Lines = Callable[[int], list[str]]


@pytest.fixture(autouse=True)
def quiet(one_thread: None) -> None:
    """One thread for small tensors."""


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Lines:
    caplog.set_level(logging.INFO, logger="ptq_exp")
    return lambda level: [record.getMessage() for record in caplog.records if record.levelno == level]


class Unusual(nn.Module):
    """Norms of every kind, registered in another order than they run; one runs twice and one never."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.BatchNorm1d(24, affine=False)
        self.never = nn.BatchNorm2d(3)
        self.twice = nn.BatchNorm2d(12, momentum=None)
        self.first = nn.SyncBatchNorm(12)
        self.conv1, self.conv2 = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1)
        self.linear, self.classifier = nn.Linear(12, 24), nn.Linear(24, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.first(self.conv1(x)))
        x = self.twice(x) + 2 * self.twice(self.conv2(x) + 1.0)
        features = self.last(self.linear(F.relu(x).mean((2, 3))))
        return self.classifier(F.relu(features)), features


def with_statistics(model: nn.Module, data: Dataset, batches: int = 60) -> nn.Module:
    """The network with the running averages of a training on `data`; its weights do not change."""
    loader = TrainingLoader(data.train_images, data.train_labels, 64, 4, True, seed=5)
    normalize = Normalizer(CIFAR10.mean, CIFAR10.std, CPU)
    sync = [module for module in model.modules() if isinstance(module, nn.SyncBatchNorm)]
    for module in sync:  # in training mode it needs a GPU, an ordinary norm does the same here
        module.__class__ = nn.BatchNorm2d  # type: ignore[assignment]
    with torch.no_grad():
        for epoch in range(batches):
            for images, _ in loader.epoch(epoch):
                model(normalize(images))
    for module in sync:
        module.__class__ = nn.SyncBatchNorm
    return model.eval()


def test_norms_of_every_kind_are_checked_in_the_order_in_which_they_run(lines: Lines) -> None:
    torch.manual_seed(0)
    data = dataset()
    model = with_statistics(Unusual(), data)
    assert choose_constants(model, data) == CIFAR10
    assert lines(logging.WARNING) == []
    assert list(BatchNormCheck(model, data).norms) == ["first", "twice", "last"]
    model.get_submodule("linear").bias.data += 1.0  # type: ignore[operator,union-attr]
    choose_constants(model, data)
    (warning,) = lines(logging.WARNING)
    assert "from last on" in warning


def test_a_network_whose_norms_never_run_is_not_judged(lines: Lines) -> None:
    class Unused(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Flatten(), nn.Linear(3072, 10))
            self.__dict__["spare"] = None
            self.norm = nn.BatchNorm2d(3)
            self.norm.running_mean.fill_(0.5)  # type: ignore[union-attr]

        def forward(self, x: Tensor) -> Tensor:
            return self[1](self[0](x))

    assert choose_constants(Unused(), dataset()) is None
    check_constants(Unused(), dataset(), HALF, "given by data.mean and data.std")
    assert lines(logging.WARNING) == []


def test_a_file_without_the_number_of_batches_is_checked_but_fresh_norms_are_not() -> None:
    data = dataset()
    model = trained_on(data, CIFAR10)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.num_batches_tracked.zero_()  # type: ignore[union-attr]
    assert choose_constants(model, data) == CIFAR10
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
    assert choose_constants(model, data) is None


def test_the_check_leaves_the_network_as_it_was() -> None:
    data = dataset()
    model = trained_on(data, CIFAR10)
    model.train()
    model.get_submodule("bn1").eval()  # a frozen norm
    before = copy.deepcopy(model.state_dict())
    choose_constants(model, data)
    assert model.training
    assert not model.get_submodule("bn1").training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def coloured(side: int = 32) -> Dataset:
    """Images with a red that varies more than the blue, as sunsets have."""
    images = photographs().float()
    images[:, 0] = (images[:, 0] * 1.3 - 20).clamp(0, 255)
    images[:, 2] = images[:, 2] * 0.6 + 40
    shrunk = F.interpolate(images, size=(side, side), mode="bilinear", antialias=True)
    return dataset(shrunk.to(torch.uint8))


def test_a_network_trained_on_bgr_images_is_told_from_one_trained_on_rgb(lines: Lines) -> None:
    data = coloured()
    model = trained_on(data, CIFAR10)
    choose_constants(model, data)
    assert lines(logging.WARNING) == []
    first = model.get_submodule("conv1")
    first.weight.data = first.weight.data.flip(1)  # type: ignore[union-attr,operator]
    check_constants(model, data, CIFAR10, "given by data.mean and data.std")
    (warning,) = lines(logging.WARNING)
    assert "blue, green, red" in warning
    assert "state['conv1.weight'].flip(1)" in warning
    first.weight.data = first.weight.data.flip(1)  # type: ignore[union-attr,operator]
    check_constants(model, data, CIFAR10, "given by data.mean and data.std")
    assert len(lines(logging.WARNING)) == 1, "the advice was right"


@pytest.mark.slow
def test_the_size_of_the_training_is_named_without_trying_larger_ones(
    lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried, seen, at_size, batches = [], [], BatchNormCheck.at_size, BatchNormCheck._batches
    monkeypatch.setattr(BatchNormCheck, "at_size", lambda c, side, a: tried.append(side) or at_size(c, side, a))
    monkeypatch.setattr(BatchNormCheck, "_batches", lambda c, how, n: seen.append((how.side, n)) or batches(c, how, n))
    noise = 120 * torch.rand(128, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    smooth = F.interpolate(photographs().float(), size=(64, 64), mode="bilinear") * 0.5
    large = dataset((smooth + noise).to(torch.uint8))
    choose_constants(trained_on(large.resized(32), CIFAR10), large)
    (warning,) = lines(logging.WARNING)
    assert "at bn1, its first batch norm" in warning
    assert "Set data.resize=32." in warning
    assert tried == [32]
    assert seen[-10] == (None, SCREENED)  # both looks at all layers, before the eight known constants at 32 pixels


def test_strides_in_the_other_convolution_name_the_block(lines: Lines) -> None:
    data = dataset()
    model = trained_on(data, CIFAR10, depth=20)
    block = model.get_submodule("layer2.0")
    block.conv1.stride, block.conv2.stride = (1, 1), (2, 2)  # type: ignore[union-attr]
    check_constants(model, data, CIFAR10, "given by data.mean and data.std")
    (warning,) = lines(logging.WARNING)
    assert "from layer2.0.bn" in warning
    assert "stride" in warning


def foreign(name: str) -> nn.Module:
    """A network in shared/checkpoints/foreign, as its README.md says."""
    folder = shared("checkpoints/foreign")
    if name == "wrn16_2":
        spec = importlib.util.spec_from_file_location("wide_resnet", folder / "wide_resnet.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        model: nn.Module = module.WideResNet()
    else:
        torchvision = pytest.importorskip("torchvision")
        model = torchvision.models.mobilenet_v2(
            num_classes=10, width_mult=0.5, inverted_residual_setting=INVERTED_RESIDUALS
        )
    model.load_state_dict(torch.load(folder / f"{name}.pt", weights_only=True))
    return model.eval()


def no_shortcut(model: nn.Module) -> None:
    model.get_submodule("features.5").use_res_connect = False  # type: ignore[assignment]


def swapped(model: nn.Module) -> None:
    block = model.get_submodule("blocks.1")
    block.conv1, block.conv2 = block.conv2, block.conv1


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("name", "mistake", "where"),
    mostly_slow([("mobilenet_v2", no_shortcut, "features.6"), ("wrn16_2", swapped, "blocks.1.bn2")]),
)
def test_foreign_networks_are_silent_until_a_mistake_is_made(
    name: str, mistake: Callable[[nn.Module], None], where: str, cache: Path, lines: Lines
) -> None:
    # These images are lossless, the networks were trained on JPEG files of the same photographs.
    options = DataOptions(name="image_folder", root=str(shared("data/cifar10-lossless-6k.zip")))
    data, model = load_dataset(options, cache, CPU), foreign(name)
    choose_constants(model, data)
    assert lines(logging.WARNING) == []
    mistake(model)
    choose_constants(model, data)
    (warning,) = lines(logging.WARNING)
    assert f"from {where}" in warning
