"""The pixels of an image of any mode, as a viewer would show them."""

import contextlib

import numpy as np
from PIL import Image, ImageCms, ImageOps

BACKGROUND = 255  # behind transparent pixels: white, as in web pages and most viewers
WIDE, WIDEST = 257, 16_843_009  # (2^16 - 1) / 255 and (2^32 - 1) / 255


def as_rgb(image: Image.Image) -> Image.Image:
    """Convert an opened image (its first frame) to mode RGB: rotated according to EXIF, 16 bits scaled to 8,
    transparent pixels on white."""
    image.load()
    with contextlib.suppress(Exception):  # viewers also show images with a damaged EXIF block
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    if image.mode == "LAB":
        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        found = ImageCms.profileToProfile(image, *profiles, outputMode="RGB")
        assert found is not None
        return found
    if image.has_transparency_data:
        return _on_background(image.convert("RGBA"))
    return image.convert("RGB")


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """Convert grey values of 16 or 32 bits, or floats, to uint8.

    Integers count as 16 bits unless one is larger. The range of floats is the first that fits: 0 to 1, 0 to 255, or
    0 to 65,535. Other floats are stretched from their smallest to their largest value.
    """
    grey = np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0)
    low, high = grey.min(), grey.max()
    if values.dtype.kind in "iu":
        grey = grey / (WIDE if high <= 65_535 else WIDEST)
    elif low >= 0 and high <= 65_535:
        grey = grey * 255 if high <= 1 else grey if high <= 255 else grey / WIDE
    else:
        grey = (grey - low) / (high - low) * 255
    return np.clip(np.rint(grey), 0, 255).astype(np.uint8)


def _on_background(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image).astype(np.uint32)
    colours, alpha = pixels[:, :, :3], pixels[:, :, 3:]
    return Image.fromarray(((colours * alpha + BACKGROUND * (255 - alpha) + 127) // 255).astype(np.uint8))
