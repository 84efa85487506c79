"""Trees of images: exact pixels from every container, a cache that heals, errors that name what is wrong."""

import io
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loading import CPU, flip_pixel, load
from PIL import Image

from ptq_exp.base.errors import UserError
from ptq_exp.data import load_dataset
from ptq_exp.data.dataset import Dataset
from ptq_exp.data.options import DataOptions


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
    with pytest.raises(UserError, match=r"test/dog/1\.png cannot be read as an image"):
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
    with pytest.raises(UserError, match=r"data=image_folder needs data\.root"):
        load_dataset(DataOptions(name="image_folder"), Path("unused"), CPU)


def test_a_tree_without_classes_is_answered_with_the_layouts_expected(tmp_path: Path) -> None:
    write_tree(tmp_path / "tree")
    for split in ("train", "test"):
        shutil.rmtree(tmp_path / "tree" / split)
    with pytest.raises(UserError, match=r"data\.root=.*no classes.*train/<class>/\* and test/<class>/\*"):
        load(tmp_path, "image_folder", root=str(tmp_path / "tree"))
    assert left_in_cache(tmp_path) == []


def test_a_test_class_that_train_does_not_have_is_named(tmp_path: Path) -> None:
    write_tree(tmp_path / "tree")
    (tmp_path / "tree" / "test" / "dog").rename(tmp_path / "tree" / "test" / "yak")
    with pytest.raises(UserError, match=r"test has the classes \['yak'\], which are not in train"):
        load(tmp_path, "image_folder", root=str(tmp_path / "tree"))


def test_a_class_without_test_images_is_said(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for split, label in (("train", "cat"), ("train", "dog"), ("test", "cat")):
        (tree / split / label).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tree / split / label / "0.png")
    data = load(tmp_path, "image_folder", root=str(tree))
    assert data.note == "There are no test images of the classes ['dog']."


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images.zip").write_text("not a zip at all")
    with pytest.raises(UserError, match=r"images\.zip is neither a folder nor a zip or tar archive"):
        load(tmp_path, "image_folder", root=str(tmp_path / "images.zip"))


def test_a_dangling_link_in_the_tree_harms_nothing(tmp_path: Path) -> None:
    pixels, _ = write_tree(tmp_path / "tree")
    (tmp_path / "tree" / "old-version").symlink_to(tmp_path / "gone")
    loaded = load(tmp_path, "image_folder", root=str(tmp_path / "tree"))
    assert np.array_equal(loaded.train_images.numpy(), pixels[:12])
