"""Which output of the network a class folder is, and what is said of trees that are laid out in another way."""

import hashlib
import io
import logging
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from ptq_exp.base.errors import UserError
from ptq_exp.data import class_names, load_dataset
from ptq_exp.data.class_names import CIFAR10, CIFAR100, DIGITS, ordered
from ptq_exp.data.dataset import Dataset
from ptq_exp.data.options import DataOptions

CPU = torch.device("cpu")
UNUSED = Path("unused")  # nothing is decoded, so nothing is kept
SHORT = ["plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (value,) * 3).save(buffer, "PNG")
    return buffer.getvalue()


def tree(root: Path, labels: list[str]) -> Path:
    """One training and one test image a class; the images of class k have the value k everywhere."""
    for split in ("train", "test"):
        for number, label in enumerate(labels):
            (root / split / label).mkdir(parents=True)
            (root / split / label / "0.png").write_bytes(png(number))
    return root


def load(root: Path, **options: Any) -> Dataset:
    return load_dataset(DataOptions(name="image_folder", root=str(root), **options), root.parent / "cache", CPU)


def labels_by_value(data: Dataset) -> list[int]:
    """The label of the images of value 0, 1, 2, ..."""
    by_value = sorted(
        (int(image.max()), int(label)) for image, label in zip(data.test_images, data.test_labels, strict=True)
    )
    return [label for _, label in by_value]


@pytest.mark.parametrize(
    ("folders", "reason"),
    [
        (list(CIFAR10), ""),
        (SHORT, "CIFAR-10"),
        ([name.upper() for name in CIFAR10], ""),
        (["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "SHIP", "TRUCK"], "CIFAR-10"),
        (["Aeroplane", "Car", "Bird", "Cat", "Deer", "Dog", "Frog", "Horse", "Boat", "Lorry"], "CIFAR-10"),
        (["airplanes", "cars", "birds", "cats", "deer", "dogs", "frogs", "horses", "ships", "trucks"], "CIFAR-10"),
        (list(CIFAR100), ""),
        ([name.replace("_", " ").title() for name in CIFAR100], ""),
        (
            [name.removesuffix("_tree").upper() if number % 2 else name for number, name in enumerate(CIFAR100)],
            "CIFAR-100",
        ),
        (list(DIGITS), "the digits"),
        ([str(number) for number in range(100)], "their numbers"),
        ([f"class_{number}" for number in range(12)], "their numbers"),
        ([f"{number:02d}" for number in range(12)], ""),
        ([f"{number} - thing {9 - number % 10}" for number in range(12)], "their numbers"),
        (["n01440764", "n01443537", "n02102040"], ""),
    ],
)
def test_known_names_and_numbers_have_their_order(folders: list[str], reason: str) -> None:
    assert ordered(folders[::-1], None, "") == (folders, reason)


@pytest.mark.parametrize(
    "folders",
    [
        ["plane", "car", "bird"],  # not all of them: a network of three classes may have any order
        [*SHORT, "boat"],  # two names of one class
        [*SHORT[:-1], "van"],
        ["1", "01", "2"],
        ["a1", "b2", "a10"],
        ["10", "9", "many"],
        ["b", "B", "a"],
    ],
)
def test_what_is_not_known_keeps_the_alphabet(folders: list[str]) -> None:
    assert ordered(folders, None, "") == (sorted(folders), "")


def test_cifar_100_is_torchvisions_order() -> None:
    assert len(set(CIFAR100)) == 100
    assert list(CIFAR100) == sorted(CIFAR100)
    assert all(
        target in {class_names._plain(name) for name in (*CIFAR10, *CIFAR100)}
        for target in class_names.SYNONYMS.values()
    )


@pytest.mark.parametrize("pack", [False, True])
def test_the_labels_are_those_of_the_known_order_and_it_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, pack: bool
) -> None:
    root = tree(tmp_path / "tree", SHORT)
    if pack:
        with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
            for path in root.rglob("*.png"):
                archive.write(path, f"top/{path.relative_to(root)}")
        root = tmp_path / "images.zip"
    with caplog.at_level(logging.INFO, logger="ptq_exp"):
        for _ in range(2):  # decoded, and from the cache
            caplog.clear()
            data = load(root)
            assert data.classes == tuple(SHORT)
            assert labels_by_value(data) == list(range(10))
            assert "The classes are in the order of CIFAR-10: 'plane', 'car', 'bird'" in caplog.text


def test_nothing_is_logged_for_the_plain_alphabet(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="ptq_exp"):
        load(tree(tmp_path / "tree", ["a", "b"]))
    assert "order" not in caplog.text


def test_a_list_in_the_configuration_wins_over_the_file_and_either_over_the_names(tmp_path: Path) -> None:
    root = tree(tmp_path / "tree", ["7", "8", "10"])
    assert load(root).classes == ("7", "8", "10")
    (root / "classes.txt").write_text("8\n\n 10 \n7\n", encoding="utf-8")
    assert load(root).classes == ("8", "10", "7")
    assert labels_by_value(load(root)) == [2, 0, 1]
    assert load(root, classes=["10", "7", "8"]).classes == ("10", "7", "8")
    assert load(root, classes=["7", "10", "8"]).classes == ("7", "10", "8")
    assert load(root).classes == ("8", "10", "7")
    (root / "classes.txt").write_text("8\n\n 7 \n10\n", encoding="utf-8")
    assert load(root).classes == ("8", "7", "10")
    (root / "classes.txt").unlink()
    assert load(root).classes == ("7", "8", "10")


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_a_list_in_an_archive_counts_beside_the_splits_alone(tmp_path: Path, kind: str) -> None:
    root = tree(tmp_path / "tree", ["a", "b"])
    (root / "classes.txt").write_bytes("\ufeffb\r\na\r\n".encode())
    (root / "docs").mkdir()
    (root / "docs" / "classes.txt").write_text("x", encoding="utf-8")
    target = tmp_path / f"images.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(target, "w") as archive:
            for path in root.rglob("*.*"):
                archive.write(path, f"top/{path.relative_to(root)}")
    else:
        with tarfile.open(target, "w:gz") as archive:
            archive.add(root, "top")
    assert load(target).classes == ("b", "a")


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (["a", "b", "c"], r"data\.classes does not match the 2 class folders: no such folder: 'c'\."),
        (["a"], r"not listed: 'b'\."),
        (["a", "b", "a"], r"listed twice: 'a'\."),
        (["A", "b"], r"no such folder: 'A'; not listed: 'a'\."),
        ([], r"data\.classes is empty|not listed: 'a', 'b'\."),
    ],
)
def test_a_list_of_other_classes_is_refused(tmp_path: Path, classes: list[str], words: str) -> None:
    root = tree(tmp_path / "tree", ["a", "b"])
    with pytest.raises(UserError, match=words):
        load(root, classes=classes)
    (root / "classes.txt").write_text("\n".join(classes), encoding="utf-8")
    with pytest.raises(UserError, match=words.replace(r"data\.classes", r"classes\.txt")):
        load(root)


def test_a_list_that_is_no_text_is_refused(tmp_path: Path) -> None:
    root = tree(tmp_path / "tree", ["a", "b"])
    (root / "classes.txt").write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(UserError, match=r"classes\.txt in data\.root=.* cannot be read as UTF-8 text"):
        load(root)


def test_accents_may_be_written_in_either_way(tmp_path: Path) -> None:
    root = tree(tmp_path / "tree", ["u\u0308bung", "a"])
    assert load(root, classes=["\u00fcbung", "a"]).classes == ("u\u0308bung", "a")


def test_the_key_is_known_on_the_command_line(cli: Callable[..., Any], tmp_path: Path) -> None:
    tree(tmp_path / "tree", ["1", "2"])
    outcome = cli("data=image_folder", f"data.root={tmp_path / 'tree'}", "data.classes=[1,3]")
    assert outcome.code == 1
    assert "data.classes does not match the 2 class folders: no such folder: '3'; not listed: '2'." in outcome.err


def test_a_list_of_classes_that_nothing_reads_is_refused() -> None:
    with pytest.raises(UserError, match=r"data\.classes has no effect with data=digits"):
        load_dataset(DataOptions(name="digits", classes=["0"]), UNUSED, CPU)


# Other layouts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["train/0.png", "test/0.png"], ["test (1), train (1)", "one folder per class"]),
        (["train/0.png", "val/0.png", "pictures/0.png"], ["pictures (1), train (1), val (1)", "one folder per class"]),
        (["train/a/0.png", "train/a/1.png"], ["train/a (2)", "for at least two classes"]),
        (["0.png", "labels.csv"], ["Found images in the folders . (1)", "with a table of their labels"]),
        (["train/a/0.npy", "labels.csv"], ["no images, but files with these extensions: .csv, .npy"]),
        ([], ["Found no files"]),
    ],
)
def test_a_tree_of_another_layout_is_described(tmp_path: Path, files: list[str], words: list[str]) -> None:
    (tmp_path / "tree").mkdir()
    for name in files:
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_bytes(png(0))
    with pytest.raises(UserError, match=r"has no classes.*train/<class>/\* and test") as error:
        load(tmp_path / "tree")
    for word in words:
        assert word in str(error.value)


def test_backslashes_in_an_archive_are_folders(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for split in ("train", "test"):
            for label in "ab":
                archive.writestr(f"top\\{split}\\{label}\\0.png", png(0))
    assert load(tmp_path / "images.zip").classes == ("a", "b")


def cifar_files() -> dict[str, bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3072), dtype=np.uint8)
    entry = pickle.dumps({"data": pixels, "labels": [0, 1]}, protocol=2)
    files = dict.fromkeys([*[f"data_batch_{number}" for number in range(1, 6)], "test_batch"], entry)
    return files | {"batches.meta": pickle.dumps({"label_names": list(CIFAR10)}, protocol=2)}


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with CIFAR-10 (two images a batch) as archive and, in `unpacked`, as folder."""
    files, reader = cifar_files(), datasets.CIFAR10
    folder = tmp_path / "data" / "unpacked" / reader.base_folder
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    archive = tmp_path / "data" / reader.filename
    with tarfile.open(archive, "w:gz") as file:
        file.add(folder, reader.base_folder)
    sums = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(reader, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    for key in ("train_list", "test_list"):
        monkeypatch.setattr(reader, key, [[name, sums[name]] for name, _ in getattr(reader, key)])
    monkeypatch.setattr(reader, "meta", reader.meta | {"md5": sums["batches.meta"]})
    monkeypatch.setattr(reader, "url", "http://127.0.0.1:9/nothing-here")
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("root", "holder"),
    [
        ("cifar-10-python.tar.gz", "."),
        ("unpacked/cifar-10-batches-py", "unpacked"),
        ("unpacked", "unpacked"),
        ("unpacked/cifar-10-batches-py/data_batch_1", "unpacked"),
    ],
)
def test_cifar_itself_is_answered_with_a_setting_that_works(cifar: Path, root: str, holder: str) -> None:
    place = cifar / holder
    with pytest.raises(UserError, match=r"is the original CIFAR-10\. Set data=cifar10 data\.root=") as error:
        load(cifar / root)
    assert str(error.value).endswith(f"data.root={place}.")
    data = load_dataset(DataOptions(name="cifar10", root=str(place), download=False), UNUSED, CPU)
    assert (len(data.train_images), len(data.test_images)) == (10, 2)


@pytest.mark.parametrize(
    ("root", "files", "setting"),
    [
        ("cifar-100-python", ["train", "test", "meta"], "data=cifar100 data.root=HERE"),
        ("mine", ["cifar-100-python/train"], "data=cifar100 data.root=HERE/mine"),
        ("cifar-10-batches-bin", ["data_batch_1.bin"], "data=cifar10 data.root=HERE data.download=true"),
        ("mine", ["x/y/data_batch_1", "x/y/test_batch"], "data=cifar10 data.root=HERE/mine/x"),
    ],
)
def test_cifar_in_other_forms(tmp_path: Path, root: str, files: list[str], setting: str) -> None:
    for name in files:
        (tmp_path / root / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / root / name).write_bytes(b"x")
    with pytest.raises(UserError) as error:
        load(tmp_path / root)
    assert setting.replace("HERE", str(tmp_path)) in str(error.value)
    assert ("binary version" in str(error.value)) == ("bin" in root)


def test_the_binary_archive_is_named(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "cifar-100-binary.tar.gz", "w:gz") as file:
        file.addfile(tarfile.TarInfo("cifar-100-binary/train.bin"))
    with pytest.raises(
        UserError, match=r"binary version of CIFAR-100.*data=cifar100 data\.root=.* data\.download=true"
    ):
        load(tmp_path / "cifar-100-binary.tar.gz")
