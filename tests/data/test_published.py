"""SVHN, MNIST and Fashion-MNIST: exact pixels from small archives in their own formats, verified and all or nothing."""

import functools
import gzip
import hashlib
import struct
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch
from loading import load
from torchvision import datasets

from ptq_exp.data import number_of_classes
from ptq_exp.data.normalization import own_constants
from ptq_exp.data.options import DataOptions
from ptq_exp.data.published import DataUnavailable

COUNTS = {"train": 30, "test": 12}
SHAPES = {"svhn": (3, 32, 32), "mnist": (1, 28, 28), "fashion_mnist": (1, 28, 28)}


def idx(values: np.ndarray) -> bytes:
    """MNIST's format: type, number of dimensions, sizes, then the values."""
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()


class Small:
    """A small data set: its images, its files as published, and torchvision's reader told to expect them."""

    def __init__(self, name: str, folder: Path, url: str, monkeypatch: pytest.MonkeyPatch):
        self.name, self.server, self.url = name, folder, url
        random = np.random.default_rng(5)
        self.images = {
            split: random.integers(0, 200, (count, *SHAPES[name]), dtype=np.uint8) for split, count in COUNTS.items()
        }
        self.labels = {split: random.integers(0, 10, count) for split, count in COUNTS.items()}
        self.files = self._svhn(monkeypatch) if name == "svhn" else self._mnist(monkeypatch)
        for file, content in self.files.items():
            (folder / Path(file).name).write_bytes(content)

    def _svhn(self, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
        listed, files = {}, {}
        for split, images in self.images.items():
            path = self.server / f"{split}_32x32.mat"
            labels = np.where(self.labels[split] == 0, 10, self.labels[split]).astype(np.uint8)  # a zero is class 10
            scipy.io.savemat(path, {"X": images.transpose(2, 3, 1, 0), "y": labels[:, None]})
            files[path.name] = path.read_bytes()
            listed[split] = [self.url + path.name, path.name, hashlib.md5(files[path.name]).hexdigest()]
        monkeypatch.setattr(datasets.SVHN, "split_list", listed)
        return files

    def _mnist(self, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
        reader = datasets.MNIST if self.name == "mnist" else datasets.FashionMNIST
        packed = {}
        for split, prefix in (("train", "train"), ("test", "t10k")):
            packed[f"{prefix}-images-idx3-ubyte.gz"] = gzip.compress(idx(self.images[split][:, 0]))
            packed[f"{prefix}-labels-idx1-ubyte.gz"] = gzip.compress(idx(self.labels[split].astype(np.uint8)))
        sums = [(name, hashlib.md5(content).hexdigest()) for name, content in packed.items()]
        monkeypatch.setattr(reader, "resources", sums)
        monkeypatch.setattr(reader, "mirrors", [self.url])
        return {f"{reader.__name__}/raw/{name}": content for name, content in packed.items()}

    def put(self, root: Path) -> None:
        for file, content in self.files.items():
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).write_bytes(content)

    def assert_equal(self, loaded: Any) -> None:
        assert loaded.name == self.name
        assert np.array_equal(loaded.train_images.numpy(), self.images["train"])
        assert np.array_equal(loaded.test_images.numpy(), self.images["test"])
        assert loaded.train_labels.tolist() == self.labels["train"].tolist()
        assert loaded.test_labels.tolist() == self.labels["test"].tolist()
        assert (loaded.train_images.dtype, loaded.train_labels.dtype) == (torch.uint8, torch.int64)


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address at which this machine offers the folder `server`."""
    (tmp_path / "server").mkdir()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    handler = functools.partial(Quiet, directory=str(tmp_path / "server"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture(params=list(SHAPES))
def small(request: pytest.FixtureRequest, tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> Small:
    return Small(request.param, tmp_path / "server", url, monkeypatch)


def test_it_is_downloaded_verified_and_read_exactly(tmp_path: Path, small: Small) -> None:
    loaded = load(tmp_path, small.name)
    small.assert_equal(loaded)
    for file in small.server.iterdir():
        file.unlink()
    small.assert_equal(load(tmp_path, small.name, download=False))
    assert len(loaded.classes) == number_of_classes(DataOptions(name=small.name)) == 10
    assert len(loaded.mean) == len(loaded.std) == loaded.train_images.shape[1]


def test_the_published_files_are_unpacked_without_a_download(tmp_path: Path, small: Small) -> None:
    small.put(tmp_path / "root")
    for file in small.server.iterdir():
        file.unlink()
    small.assert_equal(load(tmp_path, small.name, download=False))


def test_a_damaged_file_is_refused_without_download_and_fetched_again_with_it(tmp_path: Path, small: Small) -> None:
    small.put(tmp_path / "root")
    damaged = tmp_path / "root" / next(iter(small.files))
    damaged.write_bytes(damaged.read_bytes()[:-9])
    with pytest.raises(DataUnavailable, match=rf"{small.name} is not in .* \(or a file there is damaged\)"):
        load(tmp_path, small.name, download=False)
    small.assert_equal(load(tmp_path, small.name))


def test_a_download_with_a_wrong_checksum_leaves_nothing(tmp_path: Path, small: Small) -> None:
    for file in small.server.iterdir():
        file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(DataUnavailable, match=rf"(?s){small.name} .*could not be downloaded.*data\.root.*data=digits"):
        load(tmp_path, small.name)
    assert [path.name for path in (tmp_path / "root").rglob("*") if path.suffix != ".lock"] == []


def test_a_missing_data_set_is_told_before_the_job(cli: Callable[..., Any], tmp_path: Path, small: Small) -> None:
    outcome = cli(f"data={small.name}", "data.download=false", "data.root=here")
    assert outcome.code == 1
    assert f"{small.name} is not in here" in outcome.err
    assert all(Path(file).name in outcome.err for file in small.files)


def test_truncated_unpacked_files_are_unpacked_again(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    small = Small("mnist", tmp_path / "server", url, monkeypatch)
    load(tmp_path, "mnist")
    images = tmp_path / "root" / "MNIST" / "raw" / "train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:-100])
    small.assert_equal(load(tmp_path, "mnist", download=False))


def test_digits_are_not_mirrored_and_clothes_are(small: Small, tmp_path: Path) -> None:
    assert load(tmp_path, small.name).recipe.flip == (small.name == "fashion_mnist")


def test_the_statistics_are_those_of_all_training_pixels(small: Small, tmp_path: Path) -> None:
    found = own_constants(load(tmp_path, small.name))
    pixels = small.images["train"].transpose(1, 0, 2, 3).reshape(SHAPES[small.name][0], -1) / 255
    assert found.mean == pytest.approx(pixels.mean(1), abs=1e-4)
    assert found.std == pytest.approx(pixels.std(1), abs=1e-4)


def test_grey_images_are_scaled_and_repeated_for_a_network_of_colours(small: Small, tmp_path: Path) -> None:
    loaded = load(tmp_path, small.name, resize=40, train_limit=10).with_channels(3)
    assert loaded.train_images.shape == (10, 3, 40, 40)
    assert len(loaded.mean) == 3
