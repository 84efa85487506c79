"""Convolutions over one dimension, such as those of token mixers and of efficient channel attention."""

from torch import Tensor, nn

from ptq_exp.networks.graph import alone


class Convolution1d(nn.Module):
    """The function of a `nn.Conv1d`, computed by a convolution over images of height 1, so that it can be quantized.

    It takes and returns (N, C, L), or (C, L).
    """

    def __init__(self, original: nn.Conv1d):
        super().__init__()
        padding = original.padding if isinstance(original.padding, str) else (0, original.padding[0])
        self.layer = nn.Conv2d(
            original.in_channels, original.out_channels, (1, original.kernel_size[0]), (1, original.stride[0]),
            padding, (1, original.dilation[0]), original.groups, original.bias is not None, original.padding_mode,
            device="meta",
        )  # fmt: skip
        self.layer.weight = nn.Parameter(original.weight.detach()[:, :, None], requires_grad=False)
        self.layer.bias = original.bias

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(x.unsqueeze(-2)).squeeze(-2)
        return result


def widen_convolutions(model: nn.Module) -> None:
    """Replace every `nn.Conv1d` by a `Convolution1d` with the same function, in place. Derived classes with their own
    forward function, and convolutions with hooks, stay."""
    made: dict[nn.Module, nn.Module] = {}  # a module may have several names
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if isinstance(child, nn.Conv1d) and alone(child, nn.Conv1d) and "weight" in child._parameters:
                made[child] = made.get(child) or Convolution1d(child).train(child.training)
                setattr(parent, name, made[child])
