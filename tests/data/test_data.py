"""Data sets: exact pixels from every source, downloads all or nothing, a cache that heals, errors that help."""

import hashlib
import io
import os
import pickle
import shutil
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loopback import Loopback
from PIL import Image
from torch import Tensor
from torchvision import datasets

from ptq_exp.base.errors import UserError
from ptq_exp.config import Config, DataConfig
from ptq_exp.data import load_dataset
from ptq_exp.data.cifar10 import DataUnavailable
from ptq_exp.data.dataset import Dataset

DIGITS_FINGERPRINT = "e0d2f8df67c16313a95788fc1192ed197a644a4cf2a0cceb177fa429d663541c"
CPU = torch.device("cpu")


@pytest.fixture
def server() -> Iterator[Loopback]:
    loopback = Loopback("archive.tar.gz")
    yield loopback
    loopback.stop()


@pytest.fixture(autouse=True)
def no_internet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A download that no test provides for ends at a closed port of this machine."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for reader in (datasets.CIFAR10, datasets.CIFAR100):
        monkeypatch.setattr(reader, "url", "http://127.0.0.1:9/nothing-here")


def http_answer(body: bytes, sent: int | None = None) -> bytes:
    """A complete answer, or one that breaks off after `sent` bytes of the body it announces."""
    return b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body[:sent]


def configuration(tmp_path: Path, name: str, **options: Any) -> Config:
    options.setdefault("root", str(tmp_path / "root"))
    seed = options.pop("seed", 0)
    return Config(data=DataConfig(name=name, **options), cache_dir=str(tmp_path / "cache"), seed=seed)


def load(tmp_path: Path, name: str, **options: Any) -> Dataset:
    return load_dataset(configuration(tmp_path, name, **options), CPU)


def rows(images: Tensor, labels: Tensor) -> list[bytes]:
    """Each image with its label as bytes, sorted: equal for equal sets of labelled images."""
    return sorted(image.numpy().tobytes() + bytes([int(label)]) for image, label in zip(images, labels, strict=True))


# ---------------------------------------------------------------------------------------------------------- digits


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


# ---------------------------------------------------------------------------------------- limits and validation


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


# ---------------------------------------------------------------------------------------------------- image_folder


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_tree(root: Path, size: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """A lossless tree of 3 classes with 4 training images and 2 test images each; pixels (18, 3, H, W), labels."""
    pixels = np.random.default_rng(3).integers(0, 256, (18, size, size + 1, 3), dtype=np.uint8)
    labels = []
    images = iter(pixels)
    for split, count in (("train", 4), ("test", 2)):
        for label, name in enumerate(("cat", "dog", "elk")):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                (root / split / name / f"{number}.png").write_bytes(png(next(images)))
                labels.append(label)
    (root / "README.txt").write_text("no image")
    return pixels.transpose(0, 3, 1, 2), np.array(labels)


def pack(tree: Path, kind: str) -> Path:
    """The tree as a folder, .zip, .tar or .tar.gz; an archive has the tree in a folder, as archives mostly do."""
    if kind == "folder":
        return tree
    target = tree.parent / f"packed.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(target, "w") as archive:
            for path in sorted(tree.rglob("*"), reverse=True):
                archive.write(path, f"images/{path.relative_to(tree)}")
            for junk in ("__MACOSX/images/train/cat/0.png", "images/test/dog/._1.png"):  # what a Mac adds
                archive.writestr(junk, b"no image")
    else:
        with tarfile.open(target, "w:gz" if kind == "tar.gz" else "w") as archive:
            archive.add(tree, "images")
    return target


def no_decoding(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("an image was decoded again")


def left_in_cache(tmp_path: Path) -> list[str]:
    """What the image cache holds besides its lock files."""
    return sorted(path.name for path in (tmp_path / "cache" / "images").glob("*") if path.suffix != ".lock")


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "tar.gz"])
def test_every_container_gives_the_pixels_written_and_the_same_fingerprint(tmp_path: Path, kind: str) -> None:
    pixels, labels = write_tree(tmp_path / "tree")
    loaded = load(tmp_path, "image_folder", root=str(pack(tmp_path / "tree", kind)))
    assert loaded.classes == ("cat", "dog", "elk")
    assert loaded.train_images.dtype == torch.uint8
    assert np.array_equal(loaded.train_images.numpy(), pixels[:12])
    assert np.array_equal(loaded.test_images.numpy(), pixels[12:])
    assert loaded.train_labels.tolist() == labels[:12].tolist()
    assert loaded.test_labels.tolist() == labels[12:].tolist()
    by_hand = Dataset(
        "", ("cat", "dog", "elk"), *map(torch.from_numpy, (pixels[:12], labels[:12], pixels[12:], labels[12:]))
    )
    assert loaded.fingerprint() == by_hand.fingerprint()


@pytest.mark.parametrize("kind", ["folder", "tar.gz"])
def test_the_second_load_comes_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    write_tree(tmp_path / "tree")
    root = str(pack(tmp_path / "tree", kind))
    first = load(tmp_path, "image_folder", root=root).fingerprint()
    monkeypatch.setattr(Image, "open", no_decoding)
    assert load(tmp_path, "image_folder", root=root).fingerprint() == first


def test_a_changed_image_is_decoded_afresh(tmp_path: Path) -> None:
    pixels, _ = write_tree(tmp_path / "tree")
    load(tmp_path, "image_folder", root=str(tmp_path / "tree"))
    changed = tmp_path / "tree" / "train" / "dog" / "1.png"
    changed.write_bytes(png(255 - pixels[5].transpose(1, 2, 0)))
    loaded = load(tmp_path, "image_folder", root=str(tmp_path / "tree"))
    assert np.array_equal(loaded.train_images[5].numpy(), 255 - pixels[5])


def test_a_changed_archive_is_decoded_afresh_by_the_same_process(tmp_path: Path) -> None:
    pixels, _ = write_tree(tmp_path / "tree")
    root = pack(tmp_path / "tree", "zip")
    load(tmp_path, "image_folder", root=str(root))
    before = root.stat()
    (tmp_path / "tree" / "train" / "dog" / "1.png").write_bytes(png(255 - pixels[5].transpose(1, 2, 0)))
    pack(tmp_path / "tree", "zip")
    os.utime(root, ns=(before.st_atime_ns, before.st_mtime_ns + 1))  # the clock of a file system may be coarse
    loaded = load(tmp_path, "image_folder", root=str(root))
    assert np.array_equal(loaded.train_images[5].numpy(), 255 - pixels[5])


def flip_pixel(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-20] ^= 0xFF
    path.write_bytes(content)


def flip_header(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"descr", b"desc\xff"))


def flip_magic(path: Path) -> None:
    path.write_bytes(b"\x00" + path.read_bytes()[1:])


def change_type(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"'|u1'", b"'|S1'"))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("damage", [flip_pixel, flip_header, flip_magic, change_type, empty, cut, Path.unlink])
def test_a_damaged_array_in_the_cache_is_decoded_again(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    pixels, _ = write_tree(tmp_path / "tree")
    first = load(tmp_path, "image_folder", root=str(tmp_path / "tree")).fingerprint()
    (array,) = (tmp_path / "cache").rglob("train_images.npy")
    damage(array)
    loaded = load(tmp_path, "image_folder", root=str(tmp_path / "tree"))
    assert np.array_equal(loaded.train_images.numpy(), pixels[:12])
    assert loaded.fingerprint() == first


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff\xfe", b'{"classes": ["a"], "fingerprint": "0"}'])
def test_damaged_metadata_in_the_cache_is_written_again(tmp_path: Path, content: bytes) -> None:
    write_tree(tmp_path / "tree")
    first = load(tmp_path, "image_folder", root=str(tmp_path / "tree"))
    (metadata,) = (tmp_path / "cache").rglob("metadata.json")
    metadata.write_bytes(content)
    again = load(tmp_path, "image_folder", root=str(tmp_path / "tree"))
    assert again.classes == first.classes
    assert again.fingerprint() == first.fingerprint()


def test_resize_makes_every_image_square_and_keeps_those_that_fit(tmp_path: Path) -> None:
    pixels, _ = write_tree(tmp_path / "tree")
    fitting = np.random.default_rng(8).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    (tmp_path / "tree" / "train" / "cat" / "0.png").write_bytes(png(fitting))
    (tmp_path / "tree" / "train" / "cat" / "1.png").write_bytes(png(np.full((50, 20, 3), (9, 99, 199), np.uint8)))
    loaded = load(tmp_path, "image_folder", root=str(tmp_path / "tree"), resize=4)
    assert loaded.train_images.shape == (12, 3, 4, 4)
    assert loaded.test_images.shape == (6, 3, 4, 4)
    assert np.array_equal(loaded.train_images[0].numpy(), fitting.transpose(2, 0, 1))
    assert [channel.unique().tolist() for channel in loaded.train_images[1]] == [[9], [99], [199]]
    source = Image.fromarray(np.ascontiguousarray(pixels[2].transpose(1, 2, 0)))
    expected = np.asarray(source.resize((4, 4), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert np.array_equal(loaded.train_images[2].numpy(), expected)


def test_another_resize_is_not_answered_from_the_cache_of_the_first(tmp_path: Path) -> None:
    write_tree(tmp_path / "tree")
    shapes = [
        load(tmp_path, "image_folder", root=str(tmp_path / "tree"), resize=size).train_images.shape[-2:]
        for size in (4, 5, None)
    ]
    assert shapes == [(4, 4), (5, 5), (6, 7)]


def test_grey_and_transparent_images_become_rgb(tmp_path: Path) -> None:
    write_tree(tmp_path / "tree")
    grey = np.arange(42, dtype=np.uint8).reshape(6, 7)
    clear = np.random.default_rng(1).integers(0, 256, (6, 7, 4), dtype=np.uint8)
    (tmp_path / "tree" / "train" / "cat" / "0.png").write_bytes(png(grey))
    (tmp_path / "tree" / "train" / "cat" / "1.png").write_bytes(png(clear))
    loaded = load(tmp_path, "image_folder", root=str(tmp_path / "tree"))
    assert np.array_equal(loaded.train_images[0].numpy(), np.stack([grey] * 3))
    colours, alpha = np.split(clear.astype(float), [3], axis=2)
    shown = np.rint(colours * alpha / 255 + (255 - alpha)).astype(np.uint8)  # on white
    assert np.array_equal(loaded.train_images[1].numpy(), shown.transpose(2, 0, 1))


def test_mixed_sizes_without_resize_name_the_odd_file(tmp_path: Path) -> None:
    write_tree(tmp_path / "tree")
    (tmp_path / "tree" / "train" / "elk" / "odd.png").write_bytes(png(np.zeros((9, 9, 3), np.uint8)))
    with pytest.raises(UserError, match=r"train/elk/odd\.png.*data\.resize"):
        load(tmp_path, "image_folder", root=str(tmp_path / "tree"))
    assert left_in_cache(tmp_path) == []


def test_test_images_of_another_size_than_the_training_images_are_refused(tmp_path: Path) -> None:
    write_tree(tmp_path / "tree")
    for path in (tmp_path / "tree" / "test").rglob("*.png"):
        path.write_bytes(png(np.zeros((9, 9, 3), np.uint8)))
    with pytest.raises(UserError, match=r"test/.*\.png.*data\.resize"):
        load(tmp_path, "image_folder", root=str(tmp_path / "tree"))


@pytest.mark.parametrize("kind", ["folder", "zip", "tar.gz"])
@pytest.mark.parametrize("broken", [b"", b"GIF89a, so it says", "truncated"])
def test_a_broken_image_is_named_and_leaves_nothing_in_the_cache(
    tmp_path: Path, kind: str, broken: bytes | str
) -> None:
    write_tree(tmp_path / "tree")
    image = tmp_path / "tree" / "test" / "dog" / "1.png"
    whole = image.read_bytes()
    image.write_bytes(whole[: len(whole) // 2] if isinstance(broken, str) else broken)
    with pytest.raises(UserError, match=r"test/dog/1\.png is not an image"):
        load(tmp_path, "image_folder", root=str(pack(tmp_path / "tree", kind)))
    assert left_in_cache(tmp_path) == []
    image.write_bytes(whole)
    assert len(load(tmp_path, "image_folder", root=str(pack(tmp_path / "tree", kind))).test_images) == 6


def test_a_zip_with_a_damaged_member_names_it(tmp_path: Path) -> None:
    write_tree(tmp_path / "tree")
    damaged = (tmp_path / "tree" / "train" / "elk" / "2.png").read_bytes()
    archive = pack(tmp_path / "tree", "zip")
    content = bytearray(archive.read_bytes())
    content[content.index(damaged) + len(damaged) // 2] ^= 0xFF
    archive.write_bytes(content)
    with pytest.raises(UserError, match=r"train/elk/2\.png"):
        load(tmp_path, "image_folder", root=str(archive))
    assert left_in_cache(tmp_path) == []


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_an_archive_that_breaks_off_is_a_users_mistake(tmp_path: Path, kind: str) -> None:
    write_tree(tmp_path / "tree", size=24)
    archive = pack(tmp_path / "tree", kind)
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size * 2 // 3])
    with pytest.raises(UserError, match=archive.name):
        load(tmp_path, "image_folder", root=str(archive))
    assert left_in_cache(tmp_path) == []


def test_a_root_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.root=.*nowhere does not exist"):
        load(tmp_path, "image_folder", root=str(tmp_path / "nowhere"))


def test_a_root_is_asked_for() -> None:
    with pytest.raises(UserError, match=r"data\.root is needed with data=image_folder"):
        load_dataset(Config(data=DataConfig(name="image_folder")), CPU)


@pytest.mark.parametrize("missing", ["train", "test", "both"])
def test_a_tree_without_classes_is_answered_with_the_layout_expected(tmp_path: Path, missing: str) -> None:
    write_tree(tmp_path / "tree")
    for split in ("train", "test"):
        if missing in (split, "both"):
            shutil.rmtree(tmp_path / "tree" / split)
    with pytest.raises(UserError, match=r"data\.root=.*no classes.*<class>/<name>.*train and test"):
        load(tmp_path, "image_folder", root=str(tmp_path / "tree"))
    assert left_in_cache(tmp_path) == []


def test_a_test_class_that_train_does_not_have_is_named(tmp_path: Path) -> None:
    write_tree(tmp_path / "tree")
    (tmp_path / "tree" / "test" / "dog").rename(tmp_path / "tree" / "test" / "yak")
    with pytest.raises(UserError, match=r"test has the classes \['yak'\], which train does not have"):
        load(tmp_path, "image_folder", root=str(tmp_path / "tree"))


def test_a_class_without_test_images_is_said(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for split, label in (("train", "cat"), ("train", "dog"), ("test", "cat")):
        (tree / split / label).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tree / split / label / "0.png")
    data = load(tmp_path, "image_folder", root=str(tree))
    assert data.note == "No test image is of the classes ['dog']."


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images.zip").write_text("not a zip at all")
    with pytest.raises(UserError, match=r"images\.zip is neither a folder nor a zip or tar archive"):
        load(tmp_path, "image_folder", root=str(tmp_path / "images.zip"))


def test_a_dangling_link_in_the_tree_harms_nothing(tmp_path: Path) -> None:
    pixels, _ = write_tree(tmp_path / "tree")
    (tmp_path / "tree" / "old-version").symlink_to(tmp_path / "gone")
    loaded = load(tmp_path, "image_folder", root=str(tmp_path / "tree"))
    assert np.array_equal(loaded.train_images.numpy(), pixels[:12])


# ------------------------------------------------------------------------------------------------------------ CIFAR


class Archive:
    """A small data set in CIFAR's own format: 20 training images and 8 test images in pickled batches."""

    def __init__(self, reader: type[datasets.CIFAR10], monkeypatch: pytest.MonkeyPatch):
        self.reader, self.name = reader, "cifar10" if reader is datasets.CIFAR10 else "cifar100"
        fine = self.name == "cifar100"
        random = np.random.default_rng(17)
        batches = ["train"] if fine else [f"data_batch_{number}" for number in range(1, 6)]
        self.classes = tuple(f"class {number}" for number in range(100 if fine else 10))
        self.files: dict[str, bytes] = {}
        self.images, self.labels = {"train": [], "test": []}, {"train": [], "test": []}  # type: ignore[var-annotated]
        for file in [*batches, "test" if fine else "test_batch"]:
            split, count = ("test", 8) if file.startswith("test") else ("train", 20 // len(batches))
            pixels = random.integers(0, 256, (count, 3072), dtype=np.uint8)
            labels = random.integers(0, len(self.classes), count).tolist()
            entry = {"data": pixels, "fine_labels": labels, "coarse_labels": [0] * count} if fine else None
            self.files[file] = pickle.dumps(entry or {"data": pixels, "labels": labels}, protocol=2)
            self.images[split] += list(pixels.reshape(count, 3, 32, 32))
            self.labels[split] += labels
        meta = reader.meta["filename"]
        self.files[meta] = pickle.dumps({reader.meta["key"]: list(self.classes)}, protocol=2)
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            for file, content in self.files.items():
                info = tarfile.TarInfo(f"{reader.base_folder}/{file}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        self.packed = buffer.getvalue()
        md5 = {file: hashlib.md5(content).hexdigest() for file, content in self.files.items()}
        monkeypatch.setattr(reader, "tgz_md5", hashlib.md5(self.packed).hexdigest())
        monkeypatch.setattr(reader, "train_list", [[file, md5[file]] for file in batches])
        monkeypatch.setattr(reader, "test_list", [[file, md5[file]] for file in md5 if file.startswith("test")])
        monkeypatch.setattr(reader, "meta", {**reader.meta, "md5": md5[meta]})

    def unpack(self, root: Path) -> Path:
        folder = root / self.reader.base_folder
        folder.mkdir(parents=True)
        for file, content in self.files.items():
            (folder / file).write_bytes(content)
        return folder

    def assert_equal(self, loaded: Dataset) -> None:
        assert loaded.name == self.name
        assert loaded.classes == self.classes
        assert loaded.train_images.dtype == loaded.test_images.dtype == torch.uint8
        assert np.array_equal(loaded.train_images.numpy(), np.stack(self.images["train"]))
        assert np.array_equal(loaded.test_images.numpy(), np.stack(self.images["test"]))
        assert loaded.train_labels.tolist() == self.labels["train"]
        assert loaded.test_labels.tolist() == self.labels["test"]


@pytest.fixture(params=[datasets.CIFAR10, datasets.CIFAR100], ids=["cifar10", "cifar100"])
def archive(request: pytest.FixtureRequest, server: Loopback, monkeypatch: pytest.MonkeyPatch) -> Archive:
    """The small archive, and torchvision's reader pointed at the loopback server that offers it."""
    small = Archive(request.param, monkeypatch)
    monkeypatch.setattr(request.param, "url", server.url)
    server.answer = http_answer(small.packed)
    return small


@pytest.fixture
def cifar10_archive(server: Loopback, monkeypatch: pytest.MonkeyPatch) -> Archive:
    small = Archive(datasets.CIFAR10, monkeypatch)
    monkeypatch.setattr(datasets.CIFAR10, "url", server.url)
    server.answer = http_answer(small.packed)
    return small


def data_left(tmp_path: Path) -> list[str]:
    """Whatever a failed download left in the root, lock files aside."""
    return [path.name for path in (tmp_path / "root").rglob("*") if path.suffix != ".lock"]


def test_cifar_is_downloaded_verified_and_read_exactly(tmp_path: Path, archive: Archive) -> None:
    archive.assert_equal(load(tmp_path, archive.name))


def test_cifar_on_disk_needs_no_server(tmp_path: Path, archive: Archive, server: Loopback) -> None:
    load(tmp_path, archive.name)
    server.stop()
    archive.assert_equal(load(tmp_path, archive.name, download=False))


def test_cifar_unpacked_by_hand_is_read_where_data_root_says(tmp_path: Path, archive: Archive) -> None:
    archive.unpack(tmp_path / "elsewhere")
    archive.assert_equal(load(tmp_path, archive.name, root=str(tmp_path / "elsewhere"), download=False))


CUTS: dict[str, Callable[[bytes], bytes]] = {
    "half of the body": lambda body: http_answer(body, sent=len(body) // 2),
    "half of the body, length untold": lambda body: b"HTTP/1.0 200 OK\r\n\r\n" + body[: len(body) // 2],
    "half of a chunked body": lambda body: (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % len(body) + body[: len(body) // 2]
    ),
    "headers only": lambda body: http_answer(body, sent=0),
    "nothing": lambda body: b"",
    "an error": lambda body: b"HTTP/1.0 503 Service Unavailable\r\n\r\n",
    "no HTTP": lambda body: b"220 mail.example ESMTP\r\n",
}


@pytest.mark.parametrize("sent", CUTS)
def test_a_download_that_breaks_off_leaves_nothing_and_the_next_succeeds(
    tmp_path: Path, cifar10_archive: Archive, server: Loopback, sent: str
) -> None:
    server.answer = CUTS[sent](cifar10_archive.packed)
    with pytest.raises(DataUnavailable, match=r"(?s)could not be downloaded.*data\.root.*data=digits"):
        load(tmp_path, "cifar10", timeout=2)
    assert data_left(tmp_path) == []
    server.answer = http_answer(cifar10_archive.packed)
    cifar10_archive.assert_equal(load(tmp_path, "cifar10"))


def test_a_server_that_never_answers_is_given_up_within_the_timeout(
    tmp_path: Path, cifar10_archive: Archive, server: Loopback
) -> None:
    server.answer = None
    start = time.monotonic()
    with pytest.raises(DataUnavailable, match=r"could not be downloaded.*timed out"):
        load(tmp_path, "cifar10", timeout=1)
    assert 0.5 < time.monotonic() - start < 5
    assert data_left(tmp_path) == []


def test_an_archive_with_a_wrong_checksum_is_refused(tmp_path: Path, archive: Archive, server: Loopback) -> None:
    wrong = bytearray(archive.packed)
    wrong[len(wrong) // 2] ^= 1
    server.answer = http_answer(bytes(wrong))
    with pytest.raises(DataUnavailable, match=r"could not be downloaded.*corrupted"):
        load(tmp_path, archive.name)
    assert data_left(tmp_path) == []


def test_without_download_the_message_says_what_to_do(tmp_path: Path, archive: Archive) -> None:
    folder = archive.reader.base_folder
    with pytest.raises(DataUnavailable, match=rf"{archive.name} is not in .*{folder}.*data\.root.*data\.download=true"):
        load(tmp_path, archive.name, download=False)
    assert not (tmp_path / "root").exists()


def test_a_damaged_batch_on_disk_is_refused_without_download_and_fetched_again_with_it(
    tmp_path: Path, cifar10_archive: Archive
) -> None:
    folder = cifar10_archive.unpack(tmp_path / "root")
    flip_pixel(folder / "data_batch_3")
    with pytest.raises(DataUnavailable, match="broken"):
        load(tmp_path, "cifar10", download=False)
    cifar10_archive.assert_equal(load(tmp_path, "cifar10"))


def test_the_socket_timeout_of_the_process_is_left_as_it_was(tmp_path: Path, cifar10_archive: Archive) -> None:
    import socket

    socket.setdefaulttimeout(77.0)
    try:
        load(tmp_path, "cifar10", timeout=3)
        assert socket.getdefaulttimeout() == 77.0
    finally:
        socket.setdefaulttimeout(None)


# ------------------------------------------------------------------------------------------------------------- auto


def test_auto_takes_cifar10_where_it_is_on_disk(tmp_path: Path, cifar10_archive: Archive, server: Loopback) -> None:
    cifar10_archive.unpack(tmp_path / "root")
    server.stop()
    loaded = load(tmp_path, "auto")
    cifar10_archive.assert_equal(loaded)
    assert loaded.note == ""


def test_auto_takes_cifar10_where_it_can_be_downloaded(tmp_path: Path, cifar10_archive: Archive) -> None:
    cifar10_archive.assert_equal(load(tmp_path, "auto"))


def test_auto_falls_back_to_the_digits_and_says_why(tmp_path: Path, server: Loopback, cifar10_archive: Archive) -> None:
    server.stop()
    loaded = load(tmp_path, "auto")
    assert loaded.name == "digits"
    assert loaded.fingerprint() == DIGITS_FINGERPRINT
    assert "data=auto uses the digits inside scikit-learn" in loaded.note
    assert server.url in loaded.note
    assert "refused" in loaded.note


def test_auto_without_download_falls_back_to_the_digits_and_says_why(tmp_path: Path) -> None:
    loaded = load(tmp_path, "auto", download=False)
    assert loaded.name == "digits"
    assert f"cifar10 is not in {tmp_path / 'root'}" in loaded.note


def test_auto_falls_back_where_the_root_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "root").write_text("a file where a folder should be")
    loaded = load(tmp_path, "auto")
    assert loaded.name == "digits"
    assert os.fspath(tmp_path / "root") in loaded.note


def test_cifar10_never_falls_back(tmp_path: Path) -> None:
    with pytest.raises(DataUnavailable, match="could not be downloaded"):
        load(tmp_path, "cifar10")
