"""Trees in the layouts that people have: which images are the training and the test images, and of which class."""

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import shared
from PIL import Image

from ptq_exp.base.errors import UserError
from ptq_exp.data import load_dataset
from ptq_exp.data.dataset import Dataset
from ptq_exp.data.options import DataOptions

CPU = torch.device("cpu")
Pack = Callable[[dict[str, bytes]], Path]


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (2, 2), value).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(params=["folder", "zip", "tar.gz"])
def pack(request: pytest.FixtureRequest, tmp_path: Path) -> Pack:
    """Writes files as a folder or as an archive that has them in a folder."""

    def write(files: dict[str, bytes]) -> Path:
        target = tmp_path / f"images.{request.param}"
        if request.param == "folder":
            for name, content in files.items():
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                (target / name).write_bytes(content)
        elif request.param == "zip":
            with zipfile.ZipFile(target, "w") as archive:
                for name, content in files.items():
                    archive.writestr(f"top/{name}", content)
        else:
            with tarfile.open(target, "w:gz") as archive:
                for name, content in files.items():
                    info = tarfile.TarInfo(f"top/{name}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
        return target

    return write


def images(*names: str, start: int = 0) -> dict[str, bytes]:
    """Images of different values, in the order of their names in the call."""
    return {name: png(start + number) for number, name in enumerate(names)}


def write(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def load(root: Path, **options: Any) -> Dataset:
    return load_dataset(DataOptions(name="image_folder", root=str(root), **options), root.parent / "cache", CPU)


def found(data: Dataset) -> tuple[dict[int, str], dict[int, str]]:
    """The classes of the training and of the test images, by the value of their pixels."""
    one, two = (
        {int(image.max()): data.classes[label] for image, label in zip(split, labels.tolist(), strict=True)}
        for split, labels in ((data.train_images, data.train_labels), (data.test_images, data.test_labels))
    )
    return one, two


SPLIT = ({0: "cat", 1: "dog"}, {2: "cat", 3: "dog"})


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "val"), ("Train", "Test"), ("training", "validation"), ("TRAIN", "valid"), ("train", "eval"),
        ("training_set", "test_set"), ("data/set/train", "data/set/testing"), ("test/train", "test/val"),
    ],
)  # fmt: skip
def test_splits_have_many_names(pack: Pack, train: str, test: str) -> None:
    files = images(f"{train}/cat/0.png", f"{train}/dog/0.png", f"{test}/cat/0.png", f"{test}/dog/0.png")
    data = load(pack(files))
    assert found(data) == SPLIT
    assert data.note == ""


def test_of_val_and_test_the_latter_is_used(pack: Pack) -> None:
    files = images("train/cat/0.png", "train/dog/0.png", "test/cat/0.png", "test/dog/0.png", "val/cat/0.png")
    data = load(pack(files))
    assert found(data) == SPLIT
    assert data.note == "The image in val is not used."


def test_classes_may_be_above_the_splits(pack: Pack) -> None:
    files = images("cat/train/0.png", "dog/train/0.png", "cat/test/0.png", "dog/test/0.png")
    assert found(load(pack(files))) == SPLIT
    assert load(pack(files | {"classes.txt": b"dog\ncat\n"})).classes == ("dog", "cat")


def test_folders_inside_a_class_belong_to_it(pack: Pack) -> None:
    files = images("train/cat/a/0.png", "train/dog/images/0.png", "test/cat/0.png", "test/dog/b/c/0.png")
    assert found(load(pack(files))) == SPLIT


def test_folders_beside_the_images_of_a_class_are_left_out(pack: Pack) -> None:
    files = images("train/cat/0.png", "train/dog/0.png", "test/cat/0.png", "test/dog/0.png")
    assert found(load(pack(files | {"train/cat/masks/0.png": png(9)}))) == SPLIT


def test_what_systems_leave_is_no_class(pack: Pack) -> None:
    files = images("cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png")
    junk = ["__MACOSX/cat/0.png", "cat/._0.png", ".ipynb_checkpoints/0.png", "@eaDir/0.png", "cat/Thumbs.db"]
    assert load(pack(files | dict.fromkeys(junk, png(9)))).classes == ("cat", "dog")


# One folder, divided ---------------------------------------------------------------------------------------------

MANY = images(*[f"cat/{n}.png" for n in range(10)], *[f"dog/{n}.png" for n in range(20)], "elk/0.png")


@pytest.mark.parametrize("above", ["", "train/", "val/", "some/set/"])
def test_one_folder_of_classes_is_divided_by_a_fixed_rule(pack: Pack, above: str) -> None:
    data = load(pack({above + name: content for name, content in MANY.items()}))
    train, test = found(data)
    assert sorted([*train, *test]) == list(range(31))
    assert sorted(test.values()) == ["cat"] * 2 + ["dog"] * 4, "20 % of each class, and the only elk is kept"
    lacking = "training images with labels" if above == "val/" else "test folder"
    assert data.note.startswith(
        f"No {lacking}: 20 % of each class (6 of 31 images), chosen by a fixed shuffle, are the test images. A network "
        "that was trained on these images would look better than it is."
    )
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0)).tolist()
    assert {value for value, label in test.items() if label == "cat"} == set(order[:2])


def test_the_division_depends_on_the_sorted_order_of_the_names_alone(tmp_path: Path) -> None:
    renamed = {name.replace("cat/", "cat/photo-"): content for name, content in MANY.items()}
    first, second = load(write(tmp_path / "one", MANY)), load(write(tmp_path / "two", renamed))
    assert torch.equal(first.test_images, second.test_images)


def test_the_share_can_be_chosen(tmp_path: Path) -> None:
    root = write(tmp_path / "tree", MANY)
    assert len(load(root).test_images) == 6
    half = load(root, test_share=0.5)
    assert len(half.test_images) == 15
    assert "50 % of each class (15 of 31 images)" in half.note
    assert len(load(root).test_images) == 6


def test_single_images_cannot_be_divided(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no test images, and no class has two images"):
        load(write(tmp_path / "tree", images("cat/0.png", "dog/0.png")))


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    files = images(*[f"{label}/{number}.png" for label in ("bus", "train", "truck") for number in range(2)])
    data = load(write(tmp_path / "tree", files))
    assert data.classes == ("bus", "train", "truck")
    assert len(data.test_images) == 3


# Tables of labels ------------------------------------------------------------------------------------------------

FLAT = [f"train/{number}.png" for number in range(1, 11)]
TABLE = [f"{number},{'cat' if number % 2 else 'dog'}" for number in range(1, 11)]


def classes_by_value(data: Dataset) -> dict[int, str]:
    train, test = found(data)
    return train | test


EXPECTED = {number - 1: "cat" if number % 2 else "dog" for number in range(1, 11)}


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("trainLabels.csv", ["id,label", *TABLE]),
        ("labels.csv", ["filename,label", *[row.replace(",", ".png,") for row in TABLE]]),
        ("train.csv", TABLE),
        ("train.csv", ["image,breed", *[f"./train/{row.replace(',', '.JPG,')}" for row in TABLE]]),
        ("train_labels.tsv", ["index\timage\tx\tlabel"] + [f"{n}\ttrain/{row.replace(',', '.png	7	')}"
                                                          for n, row in enumerate(TABLE, start=500)]),
        ("labels.txt", [row.replace(",", " ") for row in TABLE]),
        ("train/labels.csv", [row.replace(",", ";") for row in TABLE]),
    ],
)  # fmt: skip
def test_a_table_beside_the_images_has_their_labels(pack: Pack, name: str, lines: list[str]) -> None:
    data = load(pack(images(*FLAT) | {name: "\r\n".join(lines).encode("utf-8-sig")}))
    assert classes_by_value(data) == EXPECTED
    assert len(data.test_images) == 2
    assert f"{name}." in data.note
    assert "The labels of 10 images are those in" in data.note
    assert "No test folder: 20 % of each class (2 of 10 images)" in data.note


def test_the_unlabelled_test_images_of_a_competition_are_left_out(pack: Pack) -> None:
    test = images(*[name.replace("train", "test") for name in FLAT], start=100)
    tables = {
        "trainLabels.csv": "\n".join(["id,label", *TABLE]).encode(),
        "sampleSubmission.csv": "\n".join(["id,label", *[f"{number},cat" for number in range(1, 11)]]).encode(),
        "names.csv": b"1,cat\n",
    }
    data = load(pack(images(*FLAT) | test | tables))
    assert classes_by_value(data) == EXPECTED
    assert "The 10 images without labels in test are not used." in data.note
    assert "No test images with labels: 20 %" in data.note


def test_a_table_without_a_split_in_its_name_is_about_the_training_images(tmp_path: Path) -> None:
    test = images(*[name.replace("train", "test") for name in FLAT], start=100)
    root = write(tmp_path / "tree", images(*FLAT) | test | {"labels.csv": "\n".join(TABLE).encode()})
    assert classes_by_value(load(root)) == EXPECTED


def test_tiny_imagenet(pack: Pack) -> None:
    wnids = ["n01443537", "n01629819"]
    train = images(*[f"train/{wnid}/images/{wnid}_{n}.JPEG" for wnid in wnids for n in range(2)])
    val = images("val/images/val_0.JPEG", "val/images/val_1.JPEG", start=10)
    files = {
        "val/val_annotations.txt": b"val_0.JPEG\tn01629819\t0\t32\t44\t62\nval_1.JPEG\tn01443537\t52\t55\t57\t59\n",
        "train/n01443537/n01443537_boxes.txt": b"n01443537_0.JPEG\t0\t10\t63\t58\n",
        "wnids.txt": b"n01443537\nn01629819\n",
        "words.txt": b"n00001740\tentity\nn01443537\tgoldfish, Carassius auratus\n",
        **images("test/images/test_0.JPEG", "test/images/test_1.JPEG", start=20),
    }
    data = load(pack(train | val | files))
    assert found(data) == (
        {0: wnids[0], 1: wnids[0], 2: wnids[1], 3: wnids[1]},
        {10: wnids[1], 11: wnids[0]},
    )
    assert "The labels of 2 images are those in" in data.note
    assert "The 2 images without labels in test are not used." in data.note


def test_tables_of_two_splits_divide_one_folder_of_images(tmp_path: Path) -> None:
    tables = {"train.csv": "\n".join(TABLE[:6]).encode(), "test.csv": "\n".join(TABLE[6:]).encode()}
    root = write(tmp_path / "tree", images(*[f"images/{number}.png" for number in range(1, 11)]) | tables)
    train, test = found(load(root))
    assert (sorted(train), sorted(test)) == (list(range(6)), list(range(6, 10)))
    assert train | test == EXPECTED


def test_images_without_a_label_and_labels_without_an_image_are_counted(tmp_path: Path) -> None:
    table = "\n".join([*TABLE[:8], "77,cat"]).encode()
    data = load(write(tmp_path / "tree", images(*FLAT) | {"labels.csv": table}))
    assert len(data.train_images) + len(data.test_images) == 8
    assert (
        "2 images without a label are not used, the first is train/10.png. 1 of its rows label no image." in data.note
    )


def test_a_table_given_by_the_user_takes_precedence_over_folders(tmp_path: Path) -> None:
    files = images(*[f"part_{number % 2}/{number}.png" for number in range(1, 11)])
    root = write(tmp_path / "tree", files | {"table.csv": "\n".join(TABLE).encode()})
    assert load(root).classes == ("part_0", "part_1")
    assert classes_by_value(load(root, labels="table.csv")) == EXPECTED
    outside = tmp_path / "mine.csv"
    outside.write_text("\n".join(row.replace("cat", "yak") for row in TABLE), encoding="utf-8")
    assert load(root, labels=str(outside)).classes == ("dog", "yak")
    outside.write_text("\n".join(row.replace("cat", "elk") for row in TABLE), encoding="utf-8")
    assert load(root, labels=str(outside)).classes == ("dog", "elk")


def test_many_small_tables_do_not_matter(tmp_path: Path) -> None:
    """One text file of boxes for each image, as for object detectors."""
    boxes = {f"boxes/{number}.txt": b"0 0.5 0.5 1 1\n" for number in range(300)}
    root = write(tmp_path / "tree", images(*FLAT) | boxes | {"labels.csv": "\n".join(TABLE).encode()})
    assert classes_by_value(load(root)) == EXPECTED


@pytest.mark.parametrize(
    ("tables", "options", "words"),
    [
        ({"a.csv": ["1001,cat", "1002,dog"]}, {"labels": "a.csv"}, r"none of its names matches .*'1002'.*train/1\.png"),
        ({"a.csv": ["1001,cat", "1002,dog"]}, {}, r"has no classes.*data\.labels; a\.csv did not fit the images"),
        ({"a.csv": [*TABLE, "1,dog"]}, {}, r"a\.csv gives the image train/1\.png two labels: 'cat' and 'dog'"),
        ({"a.csv": TABLE, "b.csv": TABLE}, {}, r"a\.csv and b\.csv\. Choose one with data\.labels=a\.csv"),
        ({"a.csv": TABLE}, {"labels": "b.csv"}, r"data\.labels=b\.csv is not a file.*Tables in data\.root: a\.csv"),
        ({"a.csv": ["one", "two"]}, {"labels": "a.csv"}, "not a table .* fewer than two columns"),
    ],
)
def test_tables_that_do_not_fit_are_refused(
    tmp_path: Path, tables: dict[str, list[str]], options: dict[str, str], words: str
) -> None:
    files = {name: "\n".join(lines).encode() for name, lines in tables.items()}
    with pytest.raises(UserError, match=words):
        load(write(tmp_path / "tree", images(*FLAT) | files), **options)


def test_labels_that_nothing_reads_are_refused() -> None:
    with pytest.raises(UserError, match=r"data\.labels has no effect with data=digits"):
        load_dataset(DataOptions(name="digits", labels="a.csv"), Path("unused"), CPU)


@pytest.mark.shared_data
def test_the_real_images_are_those_of_before(tmp_path: Path) -> None:
    data = load_dataset(
        DataOptions(name="image_folder", root=str(shared("data/cifar10-lossless-6k.zip"))), tmp_path / "cache", CPU
    )
    assert data.fingerprint() == "699e12edac157587ba805b235cfd65c1b78a0727efd8d86d4f768b252504523e"
    assert data.note == ""
