"""The digits: exact pixels in a fixed split; limits and the validation split of every data set."""

from pathlib import Path

import numpy as np
import pytest
import torch
from loading import DIGITS_FINGERPRINT, load, rows

from ptq_exp.base.errors import UserError


def test_digits_are_1797_images_in_a_fixed_split(tmp_path: Path) -> None:
    digits = load(tmp_path, "digits")
    assert digits.train_images.shape == (1433, 3, 32, 32)
    assert digits.test_images.shape == (364, 3, 32, 32)
    assert digits.train_images.dtype == digits.test_images.dtype == torch.uint8
    assert digits.classes == tuple("0123456789")
    assert digits.fingerprint() == DIGITS_FINGERPRINT
    assert not (tmp_path / "root").exists()


def test_digits_split_is_disjoint_complete_and_balanced(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    digits, source = load(tmp_path, "digits"), load_digits()
    weights = np.zeros((32, 8))  # of a fourfold bilinear upsampling, the border repeated
    for row in range(32):
        position = min(max((row + 0.5) / 4 - 0.5, 0), 7)
        low = min(int(position), 6)
        weights[row, low], weights[row, low + 1] = 1 - (position - low), position - low
    expected = np.rint(weights @ source.images @ weights.T * 255 / 16).astype(np.uint8)[:, None].repeat(3, 1)
    both = rows(digits.train_images, digits.train_labels) + rows(digits.test_images, digits.test_labels)
    assert sorted(both) == rows(torch.from_numpy(expected), torch.from_numpy(source.target))
    assert set(rows(digits.train_images, digits.train_labels)).isdisjoint(rows(digits.test_images, digits.test_labels))
    for digit in range(10):
        count = int((source.target == digit).sum())
        assert int((digits.test_labels == digit).sum()) == -(-count // 5)


def test_digits_are_the_same_for_every_seed(tmp_path: Path) -> None:
    assert load(tmp_path, "digits", seed=12).fingerprint() == DIGITS_FINGERPRINT


def test_an_unknown_data_set_is_answered_with_the_nearest_spelling(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.name=digit .*Did you mean 'digits'\?.*cifar10.*image_folder"):
        load(tmp_path, "digit")


def test_limits_take_the_first_images_of_one_fixed_shuffle(tmp_path: Path) -> None:
    full = load(tmp_path, "digits")
    small = load(tmp_path, "digits", train_limit=100, test_limit=30)
    smaller = load(tmp_path, "digits", train_limit=40, test_limit=30, seed=5)
    assert len(small.train_images) == len(small.train_labels) == 100
    assert len(small.test_images) == len(small.test_labels) == 30
    assert torch.equal(small.train_images[:40], smaller.train_images)
    assert torch.equal(small.test_images, smaller.test_images)
    assert set(rows(small.train_images, small.train_labels)) <= set(rows(full.train_images, full.train_labels))
    assert small.train_labels.unique().tolist() == list(range(10))
    assert small.fingerprint() != full.fingerprint()


def test_a_limit_beyond_the_data_changes_nothing(tmp_path: Path) -> None:
    assert load(tmp_path, "digits", train_limit=5000, test_limit=364).fingerprint() == DIGITS_FINGERPRINT


def test_the_validation_split_is_disjoint_complete_and_the_same_for_every_seed(tmp_path: Path) -> None:
    full = load(tmp_path, "digits")
    split, again = (load(tmp_path, "digits", validation_images=200, seed=seed) for seed in (0, 9))
    assert split.validation_images is not None
    assert split.validation_labels is not None
    assert split.validation_images.shape == (200, 3, 32, 32)
    assert split.train_images.shape == (1233, 3, 32, 32)
    parts = [rows(split.train_images, split.train_labels), rows(split.validation_images, split.validation_labels)]
    assert sorted(parts[0] + parts[1]) == rows(full.train_images, full.train_labels)
    assert torch.equal(split.test_images, full.test_images)
    assert split.validation_labels.unique().tolist() == list(range(10))
    assert split.fingerprint() == again.fingerprint() != full.fingerprint()


def test_no_validation_images_are_held_out_unless_asked_for(tmp_path: Path) -> None:
    assert load(tmp_path, "digits").validation_images is None


@pytest.mark.parametrize("limit", [None, 50])
def test_a_validation_split_that_leaves_nothing_to_train_on_is_refused(tmp_path: Path, limit: int | None) -> None:
    available = limit or 1433
    with pytest.raises(UserError, match=rf"data\.validation_images={available} .*{available} training images"):
        load(tmp_path, "digits", validation_images=available, train_limit=limit)
