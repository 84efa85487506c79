"""Batches: every image once, crops and flips as torchvision's, normalization to the last bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import Normalize
from torchvision.transforms import functional as tv

from ptq_exp.data.loader import Normalizer, TrainingLoader, crop

CPU = torch.device("cpu")


def constant_images(count: int, size: int = 8) -> tuple[Tensor, Tensor]:
    """Image i has the value i + 1 everywhere, so that every crop of it tells which image it is; its label is i."""
    labels = torch.arange(count)
    return (labels + 1).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, size, size).contiguous(), labels


def coordinate_images(count: int) -> Tensor:
    """32x32 images that tell where they were cropped: red is 1 + the column, green 1 + the row, blue random."""
    images = torch.randint(1, 256, (count, 3, 32, 32), generator=torch.Generator().manual_seed(5), dtype=torch.uint8)
    images[:, 0] = torch.arange(1, 33).view(1, 1, 32)
    images[:, 1] = torch.arange(1, 33).view(1, 32, 1)
    return images


def where_cropped(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Offsets `top` and `left` from 0 to 8 and whether it is mirrored, read off augmented `coordinate_images`."""
    red, green = images[:, 0].long(), images[:, 1].long()
    mirrored = red[:, 16, 15] > red[:, 16, 16]
    column = torch.where(mirrored, red[:, 16, 15], red[:, 16, 16])  # of the crop's column 16, before mirroring
    return green[:, 16, 16] - 13, column - 13, mirrored


def everything(loader: TrainingLoader, epoch: int = 0) -> tuple[Tensor, Tensor]:
    images, labels = zip(*loader.epoch(epoch), strict=True)
    return torch.cat(images), torch.cat(labels)


def padded_by_hand(images: Tensor, padding: int) -> Tensor:
    count, channels, height, width = images.shape
    padded = torch.zeros(count, channels, height + 2 * padding, width + 2 * padding, dtype=torch.uint8)
    padded[:, :, padding : padding + height, padding : padding + width] = images
    return padded


@settings(max_examples=30, deadline=None)
@given(
    picks=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=12),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
)
def test_crop_is_the_slice_of_the_padded_image(picks: list[tuple[int, int, int]], height: int, width: int) -> None:
    images = torch.randint(0, 256, (5, 3, height, width), dtype=torch.uint8)
    loader = TrainingLoader(images, torch.arange(5), batch_size=5, crop_padding=4, flip=False, seed=0)
    padded = padded_by_hand(images, 4)
    cropped = crop(loader.crops, *torch.tensor(picks).T)
    assert cropped.shape == (len(picks), 3, height, width)
    for result, (image, top, left) in zip(cropped, picks, strict=True):
        assert torch.equal(result, padded[image, :, top : top + height, left : left + width])


def test_normalizer_is_the_float32_formula_to_the_last_bit() -> None:
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    images = torch.arange(256, dtype=torch.uint8).repeat(2, 3, 4, 1)
    result = Normalizer(mean, std, CPU)(images)
    assert result.dtype == torch.float32
    for channel in range(3):
        by_formula = (images[:, channel].float() / 255 - torch.tensor(mean[channel])) / torch.tensor(std[channel])
        assert torch.equal(result[:, channel], by_formula)
    assert torch.equal(result, torch.stack([Normalize(mean, std)(image.float().div(255)) for image in images]))


def test_normalizer_leaves_the_images_it_was_given_as_they_were() -> None:
    images = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    before = images.clone()
    normalizer = Normalizer((0.5,) * 3, (0.25,) * 3, CPU)
    first, second = normalizer(images), normalizer(images)
    assert torch.equal(images, before)
    assert torch.equal(first, second)


@pytest.mark.parametrize(("padding", "flip"), [(0, False), (4, False), (4, True), (0, True)])
def test_an_epoch_visits_every_image_once_with_its_own_label(padding: int, flip: bool) -> None:
    images, labels = constant_images(203)
    seen, seen_labels = everything(TrainingLoader(images, labels, 16, padding, flip, seed=3))
    assert seen.dtype == torch.uint8
    assert torch.equal(seen.amax((1, 2, 3)).long(), seen_labels + 1)
    assert torch.equal(seen_labels.sort().values, labels)
    assert not torch.equal(seen_labels, labels)


def test_without_augmentation_the_pixels_are_untouched() -> None:
    images = torch.randint(0, 256, (40, 3, 6, 7), dtype=torch.uint8)
    seen, order = everything(TrainingLoader(images, torch.arange(40), 9, crop_padding=0, flip=False, seed=0))
    assert torch.equal(seen, images[order])


@pytest.mark.parametrize(("count", "sizes"), [(10, [4, 4, 2]), (8, [4, 4]), (3, [3]), (1, [1])])
def test_the_last_batch_holds_what_is_left(count: int, sizes: list[int]) -> None:
    images, labels = constant_images(count)
    loader = TrainingLoader(images, labels, 4, 4, True, seed=0)
    assert [len(batch) for batch, _ in loader.epoch(0)] == sizes
    assert [len(batch_labels) for _, batch_labels in loader.epoch(0)] == sizes
    assert len(loader) == len(sizes)


def test_epochs_differ_in_order_and_in_augmentation() -> None:
    loader = TrainingLoader(coordinate_images(100), torch.arange(100), 32, 4, True, seed=0)
    (first_images, first), (second_images, second) = everything(loader, 0), everything(loader, 1)
    assert not torch.equal(first, second)
    assert not torch.equal(first_images[first.argsort()], second_images[second.argsort()])


def test_a_resumed_training_sees_the_batches_it_would_have_seen() -> None:
    images, labels = coordinate_images(50), torch.arange(50)
    uninterrupted = TrainingLoader(images, labels, 16, 4, True, seed=7)
    epochs = [everything(uninterrupted, number) for number in range(4)]
    torch.manual_seed(99)  # the global generator has no part in it
    resumed = everything(TrainingLoader(images, labels, 16, 4, True, seed=7), 3)
    assert torch.equal(resumed[0], epochs[3][0])
    assert torch.equal(resumed[1], epochs[3][1])


def test_the_batch_size_does_not_change_what_is_drawn() -> None:
    images, labels = coordinate_images(50), torch.arange(50)
    small, large = (everything(TrainingLoader(images, labels, size, 4, True, seed=1)) for size in (7, 50))
    assert torch.equal(small[0], large[0])
    assert torch.equal(small[1], large[1])


def test_another_seed_gives_another_order_and_other_crops() -> None:
    images, labels = coordinate_images(100), torch.arange(100)
    (zero_images, zero), (one_images, one) = (
        everything(TrainingLoader(images, labels, 32, 4, True, seed=seed)) for seed in (0, 1)
    )
    assert not torch.equal(zero, one)
    assert not torch.equal(zero_images[zero.argsort()], one_images[one.argsort()])


def test_every_augmented_image_is_one_that_torchvision_could_give() -> None:
    images = coordinate_images(200)
    seen, order = everything(TrainingLoader(images, torch.arange(200), 64, 4, True, seed=2))
    for result, source, top, left, mirrored in zip(seen, images[order], *where_cropped(seen), strict=True):
        expected = tv.crop(tv.pad(source, [4]), int(top), int(left), 32, 32)
        assert torch.equal(result, tv.hflip(expected) if mirrored else expected)


def test_offsets_are_uniform_and_half_of_the_images_are_mirrored() -> None:
    loader = TrainingLoader(coordinate_images(2025), torch.arange(2025), 405, 4, True, seed=4)
    cells = torch.zeros(2, 9, 9)
    for epoch in range(4):
        for images, _ in loader.epoch(epoch):
            top, left, mirrored = where_cropped(images)
            cells.index_put_((mirrored.long(), top, left), torch.ones(len(images)), accumulate=True)
    drawn, expected = cells.sum((1, 2)), 8100 / 81
    assert cells.sum() == 8100
    assert abs(drawn[1] / 8100 - 0.5) < 4 * (0.25 / 8100) ** 0.5
    # Chi-square with 80 and 161 degrees of freedom: mean 80 and 161, standard deviation 12.6 and 17.9.
    assert 40 < ((cells.sum(0) - expected) ** 2 / expected).sum() < 135
    assert 90 < ((cells - expected / 2) ** 2 / (expected / 2)).sum() < 240


def test_flip_false_never_mirrors() -> None:
    loader = TrainingLoader(coordinate_images(500), torch.arange(500), 100, 4, False, seed=4)
    for images, _ in loader.epoch(0):
        assert not where_cropped(images)[2].any()
