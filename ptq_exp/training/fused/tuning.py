"""How the kernels are cut into programs: the quickest of searches on an H200 and an H100 at batch 160."""

from typing import NamedTuple


class Tile(NamedTuple):
    """A convolution's tiles: pixels, output channels, inner dimension; warps; loads in flight; and at most how many
    programs over the pixels."""

    pixels: int
    columns: int
    inner: int
    warps: int
    stages: int
    programs: int


class Share(NamedTuple):
    """A weight gradient's: pixels at a time, columns and tail columns a program, warps, loads in flight, programs."""

    pixels: int
    columns: int
    tail: int
    warps: int
    stages: int
    programs: int


def forward_tile(inputs: int, outputs: int, precision: str) -> Tile:
    """The tile of a 3x3 convolution from `inputs` to `outputs` channels."""
    if inputs < 16:
        return Tile(128, outputs, 32, 4, 1, 660)
    if precision == "bf16":
        return {
            16: Tile(128, 16, 32, 4, 1, 528),
            32: Tile(64, 32, min(inputs, 32), 4, 1, 528),
            64: Tile(32, 64, 32, 4, 1, 320),
        }[outputs]
    return {
        16: Tile(64, 16, 32, 4, 1, 660),
        32: Tile(128, 32, 16, 4, 1, 320),
        64: Tile(64, 64, 32, 4, 1, 160),
    }[outputs]


def backward_tile(inputs: int, outputs: int, precision: str) -> Tile:
    """The tile for the gradient of its input: rows are input pixels, columns input channels."""
    if precision == "bf16":
        return {
            16: Tile(128, 16, 32, 4, 1, 396),
            32: Tile(64, 32, 32, 4, 1, 528),
            64: Tile(32, 64, 32, 4, 3, 320),
        }[inputs]
    return {
        16: Tile(128, 16, 32, 4, 1, 396),
        32: Tile(64, 32, 16, 4, 1, 640),
        64: Tile(32, 64, 32, 4, 1, 320),
    }[inputs]


def weight_share(inputs: int, outputs: int, taps: int, precision: str) -> Share:
    """The share for the gradient of its weights; those of 1x1 convolutions and of the first were not searched."""
    if taps == 1:
        return Share(64, inputs, 0, 4, 2, 64)
    if inputs < 16:
        return Share(64, 32, 0, 4, 2, 264)
    if precision == "bf16":
        return {
            16: Share(128, 16, 0, 4, 1, 132),
            32: Share(64, 32, 0, 4, 1, 66),
            64: Share(64, 64, 0, 4, 1, 66),
        }[inputs]
    return {
        16: Share(64, 32, 16, 4, 1, 132),
        32: Share(64, 32, 0, 4, 1, 66),
        64: Share(32, 32, 0, 4, 1, 66),
    }[inputs]
