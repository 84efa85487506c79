"""The float network checked against its own batch norms: normalization, images and wiring."""

import copy
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import mostly_slow, shared
from torch import Tensor, nn

from ptq_exp.config import Config
from ptq_exp.data.dataset import Dataset
from ptq_exp.data.loader import Normalizer, TrainingLoader
from ptq_exp.data.normalization import KNOWN, Constants, candidates, named, own_constants
from ptq_exp.data.options import DataOptions
from ptq_exp.evaluation.batch_norm_check import check_constants, choose_constants
from ptq_exp.evaluation.batch_norm_fit import BatchNormCheck
from ptq_exp.networks import build_model
from ptq_exp.networks.resnet import PadShortcut
from ptq_exp.runs.checkpoint_file import from_file

CPU = torch.device("cpu")
HALF = next(known for known in KNOWN if known.mean == (0.5, 0.5, 0.5))
CIFAR10, IMAGENET, CIFAR100 = KNOWN[0], KNOWN[1], KNOWN[3]


def photographs(count: int = 128, seed: int = 0, brightness: float = 0.47) -> Tensor:
    """Smooth random colours, with about the spread of photographs: uint8 (N, 3, 32, 32)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 4, 4, generator=generator) + torch.randn(count, 1, 1, 1, generator=generator)
    smooth = F.interpolate(coarse, size=(32, 32), mode="bilinear") * 0.2 + brightness
    return (smooth * 255).clamp(0, 255).to(torch.uint8)


def dataset(images: Tensor | None = None) -> Dataset:
    images = photographs() if images is None else images
    labels = torch.arange(len(images)) % 10
    return Dataset("photographs", tuple("abcdefghij"), images, labels, images[:32], labels[:32])


def trained_on(data: Dataset, constants: Constants, augmented: bool = True, depth: int = 8) -> nn.Module:
    """A ResNet whose batch norms hold the statistics of `data`, augmented and normalized by `constants`."""
    torch.manual_seed(0)
    model = build_model("resnet", 10, depth=depth, shortcut="pad")
    padding, flip = (4, True) if augmented else (0, False)
    loader = TrainingLoader(data.train_images, data.train_labels, 64, padding, flip, seed=5)
    normalize = Normalizer(constants.mean, constants.std, CPU)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.momentum = None  # a cumulative average over all batches
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(0, 0.3)
        for epoch in range(3):
            for images, _ in loader.epoch(epoch):
                model(normalize(images))
    for norm in norms:
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.fill_(20_000)
    return model.eval()


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[int], list[str]]:
    caplog.set_level(logging.INFO, logger="ptq_exp")
    return lambda level: [record.getMessage() for record in caplog.records if record.levelno == level]


@pytest.mark.parametrize(
    ("constants", "augmented"), mostly_slow([(IMAGENET, False), *((known, True) for known in KNOWN)], 4)
)
def test_the_constants_of_the_training_are_found(
    constants: Constants, augmented: bool, lines: Callable[[int], list[str]]
) -> None:
    data = dataset()
    assert choose_constants(trained_on(data, constants, augmented), data) == constants
    assert lines(logging.WARNING) == []
    assert f"{constants.name} (mean" in lines(logging.INFO)[0]
    assert "nats per channel" in lines(logging.INFO)[0]


def test_a_data_sets_own_statistics_are_a_candidate() -> None:
    data = dataset(photographs(brightness=0.25))
    own = own_constants(data)
    scaled = data.train_images.double() / 255
    assert own.mean == pytest.approx(scaled.mean((0, 2, 3)).tolist(), abs=1e-4)
    assert own.std == pytest.approx(scaled.transpose(0, 1).flatten(1).std(1, correction=0).tolist(), abs=1e-4)
    assert own in candidates(data)
    assert choose_constants(trained_on(data, own), data) == own


def test_constants_that_cannot_be_told_apart_are_named(lines: Callable[[int], list[str]]) -> None:
    between = Constants("between", (0.4992, 0.4843, 0.4437), (0.2570, 0.2498, 0.2688))
    data = dataset()
    model = trained_on(data, between)
    chosen = choose_constants(model, data)
    assert chosen in (CIFAR10, CIFAR100)
    (tied,) = [line for line in lines(logging.INFO) if "cannot distinguish" in line]
    assert CIFAR10.name in tied
    assert CIFAR100.name in tied
    same = torch.equal(*(BatchNormCheck(model, data).predictions(each) for each in (CIFAR10, CIFAR100)))
    assert ("100.0 % of the predictions" in tied) == same


def test_constants_that_do_not_fit_are_a_warning_with_those_that_do(lines: Callable[[int], list[str]]) -> None:
    data = dataset()
    model = trained_on(data, HALF)
    check_constants(model, data, IMAGENET, "given by data.mean and data.std")
    (warning,) = lines(logging.WARNING)
    assert "mean 0.485 0.456 0.406" in warning
    assert "at bn1, its first batch norm" in warning
    assert "data.mean='[0.5,0.5,0.5]' data.std='[0.5,0.5,0.5]'" in warning


def test_the_right_constants_get_no_warning_even_if_rounded(lines: Callable[[int], list[str]]) -> None:
    data = dataset()
    rounded = named((0.491, 0.482, 0.447), (0.247, 0.243, 0.262), "the given constants")
    assert rounded.name == CIFAR10.name
    check_constants(trained_on(data, CIFAR10), data, rounded, "given by data.mean and data.std")
    assert lines(logging.WARNING) == []


@pytest.mark.slow
def test_other_images_are_a_warning(lines: Callable[[int], list[str]]) -> None:
    model = trained_on(dataset(), CIFAR10)
    noise = torch.randint(0, 256, (256, 3, 32, 32), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    choose_constants(model, dataset(noise))
    (warning,) = lines(logging.WARNING)
    assert "No known normalization fits" in warning
    assert "other images" in warning


class PadAtOneEnd(nn.Module):
    """He's option A with all new channels behind the old ones."""

    def __init__(self, original: PadShortcut):
        super().__init__()
        self.channels = 2 * original.padding

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.channels))


def padded_at_one_end(model: nn.Module) -> str:
    for name, module in list(model.named_modules()):
        if isinstance(module, PadShortcut):
            model.set_submodule(name, PadAtOneEnd(module))
    return "layer2.1.bn1"


def swapped_convolutions(model: nn.Module) -> str:
    block = model.get_submodule("layer1.1")
    block.conv1, block.conv2 = block.conv2, block.conv1
    return "layer1.1.bn1"


def swapped_blocks(model: nn.Module) -> str:
    stage = model.get_submodule("layer2")
    stage[1], stage[2] = stage[2], stage[1]  # type: ignore[index,operator]
    return "layer2.1.bn1"


class FirstOperand(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a


def missing_shortcut(model: nn.Module) -> str:
    model.set_submodule("layer2.1.add", FirstOperand())
    return "layer2.2.bn1"


@pytest.mark.parametrize(
    "mistake", mostly_slow([padded_at_one_end, swapped_convolutions, swapped_blocks, missing_shortcut], 2)
)
def test_wrong_wiring_names_the_layer_where_it_begins(
    mistake: Callable[[nn.Module], str], lines: Callable[[int], list[str]]
) -> None:
    data = dataset()
    model = trained_on(data, CIFAR10, depth=20)
    choose_constants(copy.deepcopy(model), data)
    assert lines(logging.WARNING) == []
    first = mistake(model)
    assert choose_constants(model, data) == CIFAR10, "the first batch norm still tells the constants"
    (warning,) = lines(logging.WARNING)
    assert f"from {first} on" in warning


def test_a_network_without_trained_batch_norms_is_not_judged() -> None:
    data = dataset()
    fresh = build_model("resnet", 10, depth=8)
    assert choose_constants(nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)), data) is None
    for module in fresh.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.num_batches_tracked.fill_(12)  # type: ignore[union-attr,operator]
    assert choose_constants(fresh, data) is None
    assert not BatchNormCheck(fresh, data).norms


@pytest.mark.shared_data
@pytest.mark.parametrize(
    "archive", ["cifar10-lossless-6k.zip", pytest.param("cifar10-jpeg.tar.gz", marks=pytest.mark.slow)]
)
def test_a_published_network_is_read_with_its_own_constants(
    archive: str, cache: Path, lines: Callable[[int], list[str]]
) -> None:
    from ptq_exp.data import load_dataset

    config = Config(
        data=DataOptions(name="image_folder", root=str(shared(f"data/{archive}")), resize=32),
        checkpoint=str(shared("checkpoints/resnet20-12fca82f.th")), cache_dir=str(cache),
    )  # fmt: skip
    found = from_file(config, load_dataset(config.data, config.cache, CPU), CPU)
    assert (found.config.data.mean, found.config.data.std) == (list(IMAGENET.mean), list(IMAGENET.std))
    warnings = lines(logging.WARNING)
    # JPEG compression changes the images, and with them the inputs of later norms.
    assert len(warnings) == (archive == "cifar10-jpeg.tar.gz")
    assert all("such as JPEG files instead of lossless ones" in warning for warning in warnings)
