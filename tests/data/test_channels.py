"""One channel for a network that takes one, three for one that takes three, and the constants that belong to them."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from loading import CPU, load
from PIL import Image
from torch import Tensor, nn

from ptq_exp.base.errors import UserError
from ptq_exp.data.dataset import Dataset
from ptq_exp.data.loader import Normalizer, TrainingLoader
from ptq_exp.data.normalization import KNOWN_GREY, Constants, candidates, named, own_constants
from ptq_exp.data.options import DataOptions
from ptq_exp.evaluation.batch_norm_check import check_constants, choose_constants


def dataset(channels: int, count: int = 40) -> Dataset:
    generator = torch.Generator().manual_seed(channels)
    images = torch.randint(0, 256, (count, channels, 16, 16), dtype=torch.uint8, generator=generator)
    images = (images * torch.linspace(0.3, 1, channels).view(-1, 1, 1)).to(torch.uint8)
    labels = torch.arange(count) % 5
    mean, std = ((0.2,), (0.3,)) if channels == 1 else ((0.4, 0.5, 0.6), (0.2, 0.2, 0.2))
    return Dataset("noise", tuple("abcde"), images, labels, images[:7], labels[:7], mean, std)


def test_colours_become_the_grey_of_pillow() -> None:
    colours = torch.stack(torch.meshgrid(*[torch.arange(0, 256, 5)] * 3, indexing="ij")).to(torch.uint8)
    images = colours.reshape(1, 3, 52, 52 * 52)
    labels = torch.zeros(1, dtype=torch.int64)
    grey = Dataset("colours", ("a",), images, labels, images, labels).with_channels(1)
    expected = np.asarray(Image.fromarray(np.ascontiguousarray(images[0].permute(1, 2, 0).numpy())).convert("L"))
    assert np.array_equal(grey.train_images[0, 0].numpy(), expected)
    assert torch.equal(grey.test_images, grey.train_images)


def test_the_constants_of_grey_images_are_the_statistics_of_the_training_images() -> None:
    data = dataset(3).with_validation(8)
    grey = data.with_channels(1)
    assert grey.validation_images is not None
    assert grey.validation_images.shape == (8, 1, 16, 16)
    pixels = grey.train_images.numpy() / 255
    assert grey.mean == pytest.approx((pixels.mean(),), abs=1e-4)
    assert grey.std == pytest.approx((pixels.std(),), abs=1e-4)
    assert torch.equal(grey.train_labels, data.train_labels)
    assert grey.fingerprint() != data.fingerprint()


def test_the_digits_keep_their_own_constants_as_grey_images(tmp_path: Path) -> None:
    digits = load(tmp_path, "digits")
    grey = digits.with_channels(1)
    assert torch.equal(grey.train_images, digits.train_images[:, :1])
    assert (grey.mean, grey.std) == (digits.mean[:1], digits.std[:1])


def test_grey_images_are_repeated_for_three_channels() -> None:
    data = dataset(1)
    colour = data.with_channels(3)
    assert torch.equal(colour.train_images, data.train_images.repeat(1, 3, 1, 1))
    assert (colour.mean, colour.std) == ((0.2,) * 3, (0.3,) * 3)
    assert torch.equal(colour.with_channels(1).test_images, data.test_images)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_channels_that_they_have_change_nothing(channels: int) -> None:
    data = dataset(channels)
    assert data.with_channels(channels) is data


@pytest.mark.parametrize(("channels", "wanted"), [(3, 4), (1, 2), (3, 6)])
def test_other_numbers_of_channels_are_refused(channels: int, wanted: int) -> None:
    with pytest.raises(UserError, match=rf"Images of {channels} channels?.* takes {wanted} channels"):
        dataset(channels).with_channels(wanted)


@pytest.mark.parametrize(("constants", "channels"), [(((0.1307,), (0.3081,)), 1), (((0.5,), (0.25,)), 3)])
def test_a_normalizer_takes_a_number_for_each_channel_or_one_for_all(
    constants: tuple[tuple[float, ...], tuple[float, ...]], channels: int
) -> None:
    images = torch.arange(256, dtype=torch.uint8).repeat(2, channels, 4, 1)
    expected = (images.float() / 255 - constants[0][0]) / torch.tensor(constants[1][0])
    assert torch.equal(Normalizer(*constants, CPU)(images), expected)


def test_grey_images_are_cropped_as_colours_are() -> None:
    data = dataset(1)
    grey, colour = (
        list(TrainingLoader(images, data.train_labels, 16, 2, True, seed=3).epoch(1))
        for images in (data.train_images, data.with_channels(3).train_images)
    )
    for (one, labels), (three, same) in zip(grey, colour, strict=True):
        assert torch.equal(one.expand(-1, 3, -1, -1), three)
        assert torch.equal(labels, same)


# Normalization ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mean": [0.5, 0.5]}, r"data\.mean=\[0\.5, 0\.5\] needs three numbers .* or one"),
        ({"mean": [0.5], "std": [0.2, 0.2, 0.2]}, "need the same count of numbers"),
    ],
)
def test_constants_of_other_counts_are_refused(options: dict[str, list[float]], words: str) -> None:
    with pytest.raises(UserError, match=words):
        DataOptions(**options).check()  # type: ignore[arg-type]


def test_one_number_counts_for_every_channel_and_three_do_not_fit_one() -> None:
    one = DataOptions(mean=[0.5], std=[0.25]).for_channels(3)
    assert (one.mean, one.std) == ([0.5] * 3, [0.25] * 3)
    assert DataOptions().for_channels(1) == DataOptions()
    with pytest.raises(UserError, match=r"data\.std=.* has 3 numbers, but the network takes images of 1 channel\."):
        DataOptions(std=[0.2, 0.2, 0.2]).for_channels(1)


def test_the_known_constants_of_grey_images_have_their_names() -> None:
    assert named((0.131,), (0.308,), "given").name == "MNIST's statistics"
    assert named((0.286,), (0.353,), "given").name == "Fashion-MNIST's statistics"
    assert named((0.9,), (0.1,), "given").name == "given"
    assert not Constants("", (0.5,), (0.5,)).same_as(Constants("", (0.5,) * 3, (0.5,) * 3))
    data = dataset(1)
    assert candidates(data) == [*KNOWN_GREY, own_constants(data)]


class GreyNetwork(nn.Module):
    """One convolution of one channel, whose batch norm holds the statistics of images normalized by `constants`."""

    def __init__(self, data: Dataset, constants: Constants):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.linear = (
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8, momentum=None),
            nn.Linear(8, 5),
        )
        with torch.no_grad():
            self(Normalizer(constants.mean, constants.std, CPU)(data.train_images))
        self.norm.num_batches_tracked.fill_(10_000)  # type: ignore[union-attr]
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(self.conv(x)).relu().mean((2, 3)))


@pytest.mark.parametrize("constants", KNOWN_GREY)
def test_the_constants_of_a_grey_network_are_found(constants: Constants) -> None:
    data = dataset(1)
    assert choose_constants(GreyNetwork(data, constants), data) == constants


def test_wrong_constants_of_a_grey_network_are_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    data = dataset(1)
    network = GreyNetwork(data, KNOWN_GREY[0])
    with caplog.at_level(logging.WARNING, logger="ptq_exp"):
        check_constants(network, data, named((0.5,), (0.5,), "given"), "given by data.mean and data.std")
    assert "data.mean='[0.1307]' data.std='[0.3081]'" in caplog.text
