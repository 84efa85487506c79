"""CIFAR-10 and CIFAR-100: exact pixels, downloads all or nothing, and the digits that stand in for CIFAR-10."""

import hashlib
import io
import os
import pickle
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from loading import DIGITS_FINGERPRINT, flip_pixel, load
from loopback import Loopback
from torchvision import datasets

from ptq_exp.data.dataset import Dataset
from ptq_exp.data.published import DataUnavailable


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
    with pytest.raises(DataUnavailable, match="damaged"):
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
