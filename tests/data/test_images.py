"""Images of every mode come out as a viewer would show them, to the pixel; odd names and trees are read."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ptq_exp.data import load_dataset
from ptq_exp.data.dataset import Dataset
from ptq_exp.data.options import DataOptions
from ptq_exp.data.pixels import as_rgb

GREY = np.array([[0, 1, 127, 128], [200, 254, 255, 77]], np.uint8)
RGB = np.random.default_rng(0).integers(0, 256, (2, 4, 3), dtype=np.uint8)
ALPHA = np.array([[0, 255, 128, 1], [254, 64, 255, 0]], np.uint8)
ON_WHITE = np.rint(RGB * (ALPHA[:, :, None] / 255) + (255.0 - ALPHA[:, :, None])).astype(np.uint8)
GREY_RGB = np.stack([GREY] * 3, 2)
GREY_ON_WHITE = np.stack([np.rint(GREY * (ALPHA / 255) + (255.0 - ALPHA)).astype(np.uint8)] * 3, 2)


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def opened(image: Image.Image, kind: str = "PNG", **options: Any) -> Image.Image:
    return Image.open(io.BytesIO(saved(image, kind, **options)))


def palette(transparency: bool) -> Image.Image:
    """Four colours; the last is transparent where asked."""
    image = Image.frombytes("P", (4, 2), bytes([0, 1, 2, 3, 3, 2, 1, 0]))
    image.putpalette([9, 8, 7, 60, 70, 80, 250, 120, 30, 11, 22, 33])
    if transparency:
        image.info["transparency"] = 3
    return image


COLOURS = np.array([[9, 8, 7], [60, 70, 80], [250, 120, 30], [11, 22, 33]], np.uint8)
INDICES = np.array([[0, 1, 2, 3], [3, 2, 1, 0]])
PALETTE = COLOURS[INDICES]
PALETTE_ON_WHITE = np.where((INDICES == 3)[:, :, None], np.uint8(255), PALETTE)


def with_alpha() -> Image.Image:
    return Image.fromarray(np.dstack([RGB, ALPHA]))


def grey_with_alpha() -> Image.Image:
    return Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA)])


def wide(kind: str = "<u2") -> Image.Image:
    return Image.fromarray(GREY.astype(kind) * 257)


CASES: dict[str, tuple[Callable[[], Image.Image], str, np.ndarray]] = {
    "L": (lambda: opened(Image.fromarray(GREY)), "L", GREY_RGB),
    "RGB": (lambda: opened(Image.fromarray(RGB)), "RGB", RGB),
    "1": (lambda: opened(Image.fromarray(GREY > 100)), "1", np.where(GREY_RGB > 100, 255, 0)),
    "LA": (lambda: opened(grey_with_alpha()), "LA", GREY_ON_WHITE),
    "RGBA": (lambda: opened(with_alpha()), "RGBA", ON_WHITE),
    "RGBA in a lossless WebP": (lambda: opened(with_alpha(), "WEBP", lossless=True, exact=True), "RGBA", ON_WHITE),
    "P": (lambda: opened(palette(False)), "P", PALETTE),
    "P with transparency": (lambda: opened(palette(True)), "P", PALETTE_ON_WHITE),
    "GIF": (lambda: opened(palette(False), "GIF"), "P", PALETTE),
    "GIF with transparency": (lambda: opened(palette(True), "GIF"), "P", PALETTE_ON_WHITE),
    "PA": (lambda: palette(True).convert("PA"), "PA", PALETTE_ON_WHITE),
    "RGB with a transparent colour": (
        lambda: opened(Image.fromarray(PALETTE), transparency=(11, 22, 33)), "RGB", PALETTE_ON_WHITE,
    ),
    "L with a transparent grey": (
        lambda: opened(Image.fromarray(GREY), transparency=127), "L", np.where(GREY_RGB == 127, 255, GREY_RGB),
    ),
    "16 bits PNG": (lambda: opened(wide()), "I;16", GREY_RGB),
    "16 bits TIFF": (lambda: opened(wide(), "TIFF"), "I;16", GREY_RGB),
    "16 bits, big-endian": (
        lambda: Image.frombytes("I;16B", (4, 2), (GREY.astype(">u2") * 257).tobytes()), "I;16B", GREY_RGB,
    ),
    "16 bits PGM": (lambda: opened(wide().convert("I"), "PPM"), "I", GREY_RGB),
    "32 bits TIFF of 16-bit values": (lambda: opened(wide("<i4"), "TIFF"), "I", GREY_RGB),
    "float TIFF to 1": (lambda: opened(Image.fromarray((GREY / 255).astype(np.float32)), "TIFF"), "F", GREY_RGB),
    "float TIFF to 255": (lambda: opened(Image.fromarray(GREY.astype(np.float32)), "TIFF"), "F", GREY_RGB),
    "float TIFF to 65535": (lambda: opened(Image.fromarray(GREY.astype(np.float32) * 257), "TIFF"), "F", GREY_RGB),
    "float TIFF around zero": (
        lambda: opened(Image.fromarray(GREY.astype(np.float32) / 51 - 2.5), "TIFF"), "F", GREY_RGB,
    ),
    "CMYK": (
        lambda: opened(Image.merge("CMYK", [Image.fromarray(255 - RGB[:, :, c]) for c in range(3)] + [
            Image.new("L", (4, 2), 0)]), "TIFF"), "CMYK", RGB,
    ),
    "YCbCr": (
        lambda: Image.merge("YCbCr", [Image.fromarray(GREY), *[Image.new("L", (4, 2), 128)] * 2]), "YCbCr", GREY_RGB,
    ),
    "HSV": (lambda: Image.merge("HSV", [Image.new("L", (4, 2)), Image.new("L", (4, 2)), Image.fromarray(GREY)]), "HSV",
            GREY_RGB),
    "first frame of a GIF": (
        lambda: opened(palette(False), "GIF", save_all=True, append_images=[Image.new("P", (4, 2))]), "P", PALETTE,
    ),
    "first frame of a PNG": (
        lambda: opened(Image.fromarray(RGB), save_all=True, append_images=[Image.new("RGB", (4, 2))]), "RGB", RGB,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_every_mode_is_read_as_it_is_shown(name: str) -> None:
    make, mode, expected = CASES[name]
    image = make()
    assert image.mode == mode
    found = as_rgb(image)
    assert found.mode == "RGB"
    assert np.array_equal(np.asarray(found), expected)


def test_lab_is_converted() -> None:
    lab = Image.merge("LAB", [Image.new("L", (4, 2), 128), Image.new("L", (4, 2), 128), Image.new("L", (4, 2), 128)])
    pixels = np.asarray(as_rgb(opened(lab, "TIFF"))).astype(int)
    assert np.ptp(pixels) <= 3  # a grey
    assert 100 < pixels.mean() < 140


@pytest.mark.parametrize(
    ("orientation", "turned"),
    [
        (1, RGB), (2, RGB[:, ::-1]), (3, RGB[::-1, ::-1]), (4, RGB[::-1]), (5, RGB.transpose(1, 0, 2)),
        (6, np.rot90(RGB, -1)), (7, RGB[::-1, ::-1].transpose(1, 0, 2)), (8, np.rot90(RGB, 1)),
    ],
)  # fmt: skip
def test_the_orientation_is_applied(orientation: int, turned: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = np.asarray(as_rgb(opened(Image.fromarray(RGB), exif=exif)))
    assert np.array_equal(found, turned)


def test_a_damaged_exif_block_stops_nothing() -> None:
    image = opened(Image.fromarray(RGB), exif=b"Exif\0\0II*\0\xff\xff\xff\xff not one")
    assert np.array_equal(np.asarray(as_rgb(image)), RGB)


# Trees -----------------------------------------------------------------------------------------------------------


def tree(root: Path, labels: list[str], name: str = "0.png", image: Image.Image | None = None) -> Path:
    """One training and one test image a class."""
    for split in ("train", "test"):
        for number, label in enumerate(labels):
            (root / split / label).mkdir(parents=True)
            picture = image or Image.fromarray(np.full((4, 4, 3), number, np.uint8))
            picture.save(root / split / label / name, Image.registered_extensions()[Path(name).suffix.lower()])
    return root


def load(root: Path, **options: Any) -> Dataset:
    images = DataOptions(name="image_folder", root=str(root), **options)
    return load_dataset(images, root.parent / "cache", torch.device("cpu"))


def test_resizing_comes_after_the_conversion(tmp_path: Path) -> None:
    root = tree(tmp_path / "tree", ["a", "b"], image=Image.fromarray(np.full((8, 8), 40 * 257, np.uint16)))
    assert load(root, resize=4).train_images.unique().tolist() == [40]


@pytest.mark.parametrize("label", ["a dog", "Übung", "犬", ".hidden", "-x", "a,b=c", "[0]", "null", "o'neil"])
def test_odd_class_names_are_names(tmp_path: Path, label: str) -> None:
    root = tree(tmp_path / "tree", [label, "other"])
    for _ in range(2):  # decoded, and from the cache
        data = load(root)
        assert sorted(data.classes) == sorted([label, "other"])
        where = data.train_labels == data.classes.index(label)
        assert data.train_images[where].unique().tolist() == [0]


@pytest.mark.parametrize("name", ["0.PNG", "0.JPG", "0.Jpeg", "0.jfif", "0.jpe", "0.TIFF", "0.pbm", "0.tga"])
def test_endings_in_any_case(tmp_path: Path, name: str) -> None:
    image = Image.new("1", (4, 4)) if name.endswith("pbm") else None
    assert len(load(tree(tmp_path / "tree", ["a", "b"], name, image)).train_images) == 2


def test_what_systems_leave_in_folders_is_not_an_image(tmp_path: Path) -> None:
    root = tree(tmp_path / "tree", ["a", "b"])
    junk_files = [
        "__MACOSX/train/a/0.png", "train/a/Thumbs.db", "train/a/.DS_Store", "train/a/._0.png", "train/desktop.ini",
        "train/.ipynb_checkpoints/0.png", "train/a/@eaDir/0.png", "train/@eaDir/0.png",
    ]  # fmt: skip
    for junk in junk_files:
        (root / junk).parent.mkdir(parents=True, exist_ok=True)
        (root / junk).write_bytes(saved(Image.fromarray(RGB)))
    data = load(root)
    assert data.classes == ("a", "b")
    assert len(data.train_images) == 2


def test_folders_that_are_links_are_read(tmp_path: Path) -> None:
    elsewhere = tree(tmp_path / "elsewhere", ["a", "b"])
    root = tmp_path / "tree"
    (root / "train").mkdir(parents=True)
    (root / "test").symlink_to(elsewhere / "test")
    for label in "ab":
        (root / "train" / label).symlink_to(elsewhere / "train" / label)
    (root / "train" / "a" / "round").symlink_to(root)
    data = load(root)
    assert (data.classes, len(data.train_images), len(data.test_images)) == (("a", "b"), 2, 2)
    (tmp_path / "link").symlink_to(root)
    assert load(tmp_path / "link").fingerprint() == data.fingerprint()
