"""Mistakes that people make with a network's code, its weights or its images, for `bench.consistency`.

Every mistake changes a correct network in place. Nothing but the batch-norm check can notice most of them: the shapes
fit, the network runs, and its accuracy is merely lower.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ptq_exp.networks.resnet import PadShortcut

Mistake = Callable[[Any], None]


class FirstOperand(nn.Module):
    """A sum without its second operand."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """The first operand."""
        return a


class PadBehind(nn.Module):
    """He's option A with all new channels behind the old ones."""

    def __init__(self, original: PadShortcut):
        super().__init__()
        self.channels = 2 * original.padding

    def forward(self, x: Tensor) -> Tensor:
        """Shape (N, C, H, W) -> (N, C + channels, H/2, W/2)."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.channels))


class PadBelow(nn.Module):
    """A convolution with its padding below and on the right, as TensorFlow pads for stride 2."""

    def __init__(self, convolution: nn.Conv2d):
        super().__init__()
        self.width = 2 * int(convolution.padding[0])
        self.convolution = convolution
        convolution.padding = (0, 0)

    def forward(self, x: Tensor) -> Tensor:
        """The shape is that of the convolution with its own padding, for stride 2 and even sizes."""
        return self.convolution(F.pad(x, (0, self.width, 0, self.width)))


def swap_modules(model: Any, first: str, second: str) -> None:
    """Exchange two submodules."""
    one, other = model.get_submodule(first), model.get_submodule(second)
    model.set_submodule(first, other)
    model.set_submodule(second, one)


def swap_tensors(model: Any, first: str, other: str) -> None:
    """Exchange the values of the tensor `first` of one norm and the same tensor of another."""
    second = f"{other}.{first.rpartition('.')[2]}"
    state = model.state_dict()
    state[first], state[second] = state[second].clone(), state[first].clone()
    model.load_state_dict(state)


def move_stride(model: Any, first: str, second: str) -> None:
    """Let the second convolution of a block stride instead of the first."""
    one, other = model.get_submodule(first), model.get_submodule(second)
    one.stride, other.stride = other.stride, one.stride


def reflect(model: Any) -> None:
    """Pad every convolution with reflected pixels instead of zeros."""
    for _, convolution in padded(model):
        convolution.padding_mode = "reflect"
        width = int(convolution.padding[0])
        convolution._reversed_padding_repeated_twice = [width] * 4


def pad_below(model: Any) -> None:
    """Pad the convolutions of stride 2 as TensorFlow does."""
    for name, convolution in padded(model):
        if convolution.stride[0] == 2:
            model.set_submodule(name, PadBelow(convolution))


def padded(model: Any) -> Iterator[tuple[str, nn.Conv2d]]:
    """The convolutions that pad their input."""
    modules = list(model.named_modules())
    yield from ((n, m) for n, m in modules if isinstance(m, nn.Conv2d) and m.padding[0] in (1, 2, 3))


def pad_behind(model: Any) -> None:
    """Put all new channels of option A behind the old ones."""
    for name, module in list(model.named_modules()):
        if isinstance(module, PadShortcut):
            model.set_submodule(name, PadBehind(module))


def blue_first(model: Any) -> None:
    """A network that was trained on BGR images: its first convolution expects blue, green, red."""
    first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    first.weight.data = first.weight.data.flip(1)


def leave_out(model: Any, block: str) -> None:
    """Leave out the shortcut of one of our ResNets' blocks."""
    model.set_submodule(f"{block}.add", FirstOperand())


def no_residual(model: Any, block: str) -> None:
    """Leave out the shortcut of a block of torchvision's MobileNetV2."""
    model.get_submodule(block).use_res_connect = False


def zero_shortcut(model: Any, block: str) -> None:
    """Leave out the shortcut of a block of the wide ResNet, whose addition is written out in `forward`."""
    module = model.get_submodule(block)
    forward = module.forward
    module.forward = lambda x: forward(x) - x


def max_pool(model: Any, name: str) -> None:
    """Average pooling replaced by max pooling."""
    model.set_submodule(name, nn.MaxPool2d(2, 2))


EVERYWHERE: dict[str, Mistake] = {
    "BGR images": blue_first,
    "padding: reflected pixels": reflect,
    "padding as in TensorFlow": pad_below,
}

RESNET: dict[str, Mistake] = EVERYWHERE | {
    "swapped blocks": lambda m: swap_modules(m, "layer2.1", "layer2.2"),
    "swapped convolutions": lambda m: swap_modules(m, "layer1.1.conv1", "layer1.1.conv2"),
    "swapped late convolutions": lambda m: swap_modules(m, "layer3.2.conv1", "layer3.2.conv2"),
    "missing shortcut": lambda m: leave_out(m, "layer2.1"),
    "shortcut padded at one end": pad_behind,
    "stride in the other convolution": lambda m: move_stride(m, "layer2.0.conv1", "layer2.0.conv2"),
    "one norm's weight in another": lambda m: swap_tensors(m, "layer2.1.bn1.weight", "layer2.2.bn1"),
    "one norm's bias in another": lambda m: swap_tensors(m, "layer2.1.bn1.bias", "layer2.2.bn1"),
    "one norm's mean in another": lambda m: swap_tensors(m, "layer2.1.bn1.running_mean", "layer2.2.bn1"),
}  # fmt: skip

MOBILENET: dict[str, Mistake] = EVERYWHERE | {
    "swapped blocks": lambda m: swap_modules(m, "features.5", "features.6"),
    "swapped convolutions": lambda m: swap_modules(m, "features.5.conv.1.0", "features.6.conv.1.0"),
    "swapped late convolutions": lambda m: swap_modules(m, "features.15.conv.1.0", "features.16.conv.1.0"),
    "missing shortcut": lambda m: no_residual(m, "features.5"),
    "stride in the other convolution": lambda m: move_stride(m, "features.7.conv.0.0", "features.7.conv.1.0"),
    "one norm's weight in another": lambda m: swap_tensors(m, "features.5.conv.0.1.weight", "features.6.conv.0.1"),
    "one norm's bias in another": lambda m: swap_tensors(m, "features.5.conv.0.1.bias", "features.6.conv.0.1"),
    "one norm's mean in another": lambda m: swap_tensors(m, "features.5.conv.0.1.running_mean", "features.6.conv.0.1"),
}  # fmt: skip

WIDE_RESNET: dict[str, Mistake] = EVERYWHERE | {
    "swapped convolutions": lambda m: swap_modules(m, "blocks.1.conv1", "blocks.1.conv2"),
    "swapped late convolutions": lambda m: swap_modules(m, "blocks.5.conv1", "blocks.5.conv2"),
    "missing shortcut": lambda m: zero_shortcut(m, "blocks.1"),
    "stride in the other convolution": lambda m: move_stride(m, "blocks.2.conv1", "blocks.2.conv2"),
    "one norm's weight in another": lambda m: swap_tensors(m, "blocks.3.bn1.weight", "blocks.3.bn2"),
    "one norm's bias in another": lambda m: swap_tensors(m, "blocks.3.bn1.bias", "blocks.3.bn2"),
    "one norm's mean in another": lambda m: swap_tensors(m, "blocks.3.bn1.running_mean", "blocks.3.bn2"),
}  # fmt: skip

_DENSE = "features.denseblock2.denselayer{}.{}"
DENSENET: dict[str, Mistake] = EVERYWHERE | {
    "swapped convolutions": lambda m: swap_modules(m, _DENSE.format(3, "conv2"), _DENSE.format(4, "conv2")),
    "swapped late convolutions": lambda m: swap_modules(
        m, "features.denseblock3.denselayer6.conv2", "features.denseblock3.denselayer7.conv2"),
    "max pooling for average pooling": lambda m: max_pool(m, "features.transition1.pool"),
    "one norm's weight in another": lambda m: swap_tensors(
        m, "features.denseblock2.denselayer3.norm2.weight", _DENSE.format(4, "norm2")),
    "one norm's bias in another": lambda m: swap_tensors(
        m, "features.denseblock2.denselayer3.norm2.bias", _DENSE.format(4, "norm2")),
    "one norm's mean in another": lambda m: swap_tensors(
        m, "features.denseblock2.denselayer3.norm2.running_mean", _DENSE.format(4, "norm2")),
}  # fmt: skip
