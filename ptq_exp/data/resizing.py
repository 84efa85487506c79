"""Images of the size that a network takes: bilinear with antialiasing, by Pillow, as in torchvision's transforms.

Pillow computes in integers, so every machine gets the same pixels.
"""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image
from torch import Tensor

CHUNK = 100  # images per call in a thread
MAX_PIXELS = 50_000_000  # of one image; a larger one takes hundreds of megabytes


def resized(image: Image.Image, side: int | None, crop: int | None = None) -> Image.Image:
    """The image scaled to a square of `side` pixels; unchanged if `side` is None.

    With `crop`, the shorter side is scaled to `side` and the central square of `crop` pixels is cut out, as by
    torchvision's `Resize(side)` and `CenterCrop(crop)`. Raises `ValueError` if that takes too many pixels.
    """
    if side is None:
        return image
    size = (side, side)
    if crop is not None:
        shorter = min(image.size)
        size = (side * image.width // shorter, side * image.height // shorter)
        if math.prod(size) > MAX_PIXELS:
            raise ValueError(f"scaled to {size[0]}x{size[1]} pixels it is too large")
    if image.size != size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    if crop is None:
        return image
    left, top = (round((length - crop) / 2) for length in image.size)
    return image.crop((left, top, left + crop, top + crop))


def resized_tensor(images: Tensor, side: int, crop: int | None = None) -> Tensor:
    """uint8 images (N, 1 or 3, H, W), each resized by `resized`, in threads: Pillow releases the interpreter lock."""
    out = crop or side
    pixels = images.movedim(1, 3).numpy()
    if grey := images.shape[1] == 1:
        pixels = pixels[..., 0]  # Pillow's grey images have no axis of channels
    result = np.empty((len(images), images.shape[1], out, out), dtype=np.uint8)

    def fill(start: int) -> None:
        for place in range(start, min(start + CHUNK, len(images))):
            found = np.asarray(resized(Image.fromarray(pixels[place]), side, crop))
            result[place] = found if grey else found.transpose(2, 0, 1)

    with ThreadPoolExecutor() as pool:
        list(pool.map(fill, range(0, len(images), CHUNK)))
    return torch.from_numpy(result)
