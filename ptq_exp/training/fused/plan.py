"""The network as its kernels see it: layers, blocks, and what a forward pass leaves behind."""

from dataclasses import dataclass, field

from torch import Tensor, nn

SKIP_NONE, SKIP_SAME, SKIP_PAD, SKIP_CONV = 0, 1, 2, 3  # what a block adds to its second convolution's output


@dataclass
class Layer:
    """A convolution and its batch norm on maps of `height` x `width`; and where its numbers go."""

    conv: nn.Conv2d
    norm: nn.BatchNorm2d
    height: int
    width: int
    index: int
    weight_at: int = 0  # its gradients' places in the flat gradient
    gamma_at: int = 0
    beta_at: int = 0

    @property
    def stride(self) -> int:
        return self.conv.stride[0]

    @property
    def out(self) -> tuple[int, int]:
        return self.height // self.stride, self.width // self.stride

    @property
    def strides(self) -> tuple[int, int, int]:
        """The weight's: of output channels, input channels, taps."""
        return self.conv.weight.stride(0), self.conv.weight.stride(1), self.conv.weight.stride(3)

    def state(self) -> list[Tensor | None]:
        norm = self.norm
        return [norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.num_batches_tracked]


@dataclass
class Block:
    """A residual block. `skip` is what its shortcut is."""

    first: Layer
    second: Layer
    shortcut: Layer | None
    skip: int


@dataclass
class Sum:
    """What a ReLU between blocks gets: batch norm of y plus the shortcut's; as the kernels read it."""

    y: Tensor
    layer: Layer
    other: Tensor | None = None
    shortcut: Layer | None = None
    skip: int = SKIP_NONE


@dataclass
class Pass:
    """What a forward pass leaves for the backward pass."""

    images: Tensor
    norms: list[Tensor]
    partial: Tensor
    sums: list[Sum] = field(default_factory=list)  # the stem's and every block's
    inputs: list[Tensor] = field(default_factory=list)  # every block's, and the head's
    middle: list[Tensor] = field(default_factory=list)  # every block's first convolution's output
    pooled: Tensor | None = None
    gradients: list[Tensor] = field(default_factory=list)  # the maps': the side stream reads them until the end
