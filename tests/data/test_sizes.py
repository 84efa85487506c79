"""Images of the size that the network takes, from every data set: to the pixel as Pillow and torchvision scale them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loading import DIGITS_FINGERPRINT, load
from PIL import Image
from torchvision import transforms

from ptq_exp.base.errors import UserError
from ptq_exp.data.dataset import Dataset
from ptq_exp.data.options import DataOptions

RANDOM = np.random.default_rng(6)


def photo_folder(root: Path, sizes: list[tuple[int, int]]) -> list[Image.Image]:
    """Training photos of the given sizes (height, width) in two classes, and one test image of each class."""
    photos = [Image.fromarray(RANDOM.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]
    for split, chosen in (("train", photos), ("test", photos[:2])):
        for number, photo in enumerate(chosen):
            folder = root / split / "ab"[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            photo.save(folder / f"{number}.png")
    return photos[::2] + photos[1::2]  # as they are sorted by class


@pytest.mark.parametrize("side", [8, 32, 64, 224])
def test_a_data_set_in_memory_is_scaled_as_pillow_does(tmp_path: Path, side: int) -> None:
    plain = load(tmp_path, "digits", train_limit=12, test_limit=5)
    scaled = load(tmp_path, "digits", train_limit=12, test_limit=5, resize=side)
    assert scaled.train_images.shape == (12, 3, side, side)
    assert scaled.test_images.shape == (5, 3, side, side)
    assert torch.equal(scaled.train_labels, plain.train_labels)
    for before, after in zip(plain.test_images, scaled.test_images, strict=True):
        image = Image.fromarray(np.ascontiguousarray(before.permute(1, 2, 0).numpy()))
        expected = np.asarray(image.resize((side, side), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
        assert np.array_equal(after.numpy(), expected)


def test_the_size_that_they_have_changes_nothing(tmp_path: Path) -> None:
    assert load(tmp_path, "digits", resize=32).fingerprint() == DIGITS_FINGERPRINT


def test_one_channel_and_the_validation_images_are_scaled_too() -> None:
    images = torch.randint(0, 256, (6, 1, 28, 28), dtype=torch.uint8)
    labels = torch.arange(6)
    data = Dataset("grey", tuple("abcdef"), images, labels, images, labels, (0.5,), (0.5,)).with_validation(2)
    scaled = data.resized(20)
    assert scaled.validation_images is not None
    assert [len(scaled.train_images), len(scaled.validation_images)] == [4, 2]
    assert scaled.validation_images.shape[1:] == (1, 20, 20)
    expected = np.asarray(Image.fromarray(images[3, 0].numpy()).resize((20, 20), Image.Resampling.BILINEAR))
    assert np.array_equal(scaled.test_images[3, 0].numpy(), expected)


@pytest.mark.parametrize(("side", "crop"), [(16, 12), (15, 12), (7, 7), (40, 33)])
def test_a_crop_is_torchvisions_resize_and_center_crop(tmp_path: Path, side: int, crop: int) -> None:
    photos = photo_folder(tmp_path / "root", [(20, 31), (31, 20), (9, 40), (24, 24), (15, 16)])
    loaded = load(tmp_path, "image_folder", resize=side, crop=crop)
    assert loaded.train_images.shape == (5, 3, crop, crop)
    transform = transforms.Compose([transforms.Resize(side), transforms.CenterCrop(crop), transforms.PILToTensor()])
    for photo, image in zip(photos, loaded.train_images, strict=True):
        assert torch.equal(image, transform(photo))


def test_a_crop_is_not_answered_from_the_cache_of_the_squeezed_images(tmp_path: Path) -> None:
    photo_folder(tmp_path / "root", [(20, 31), (31, 20)])
    squeezed = load(tmp_path, "image_folder", resize=12)
    cropped = load(tmp_path, "image_folder", resize=12, crop=12)
    assert squeezed.train_images.shape == cropped.train_images.shape
    assert squeezed.fingerprint() != cropped.fingerprint()


def test_a_strip_that_would_fill_the_memory_is_named(tmp_path: Path) -> None:
    photo_folder(tmp_path / "root", [(20, 31), (31, 20)])
    Image.new("1", (60_000, 1)).save(tmp_path / "root" / "train" / "a" / "strip.png")
    with pytest.raises(UserError, match=r"train/a/strip\.png cannot be read as an image \(scaled to 13440000x224"):
        load(tmp_path, "image_folder", resize=224, crop=224)


@pytest.mark.parametrize("options", [{"crop": 20}, {"crop": 20, "resize": 16}])
def test_a_crop_larger_than_the_image_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"data\.crop=20 .* data\.resize must be at least 20"):
        DataOptions(**options).check()


def test_the_keys_are_known_on_the_command_line(cli: Callable[..., Any]) -> None:
    outcome = cli("data=digits", "data.resize=16", "data.crop=24")
    assert outcome.code == 1
    assert "data.crop=24 is cut out of images whose shorter side is data.resize=16" in outcome.err
