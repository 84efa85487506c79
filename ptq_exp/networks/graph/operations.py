"""The kinds of operations in a network's graph."""

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

# Of two tensors. The names are those of a tensor's methods.
ADDITIONS: set[Any] = {operator.add, operator.iadd, torch.add, "add", "add_"}
CONCATENATIONS: set[Any] = {torch.cat, torch.concat, torch.concatenate, torch.stack}
PRODUCTS: set[Any] = {
    operator.mul, operator.imul, operator.matmul, torch.mul, torch.multiply, torch.matmul, torch.bmm, torch.einsum,
    F.scaled_dot_product_attention, "mul", "mul_", "multiply", "matmul", "bmm",
}  # fmt: skip
# Between two layers, these commute with a positive factor per channel: f(s x) = s f(x).
HOMOGENEOUS: set[Any] = {nn.ReLU, nn.Identity, nn.Dropout, nn.Dropout2d, F.relu, torch.relu, torch.relu_, "relu"}
HOMOGENEOUS |= {F.dropout, F.dropout2d, "relu_"}
POOLINGS: set[Any] = {nn.MaxPool2d, nn.AvgPool2d}  # of images, per channel
ACTIVATIONS: set[Any] = HOMOGENEOUS | {
    nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.SiLU, nn.Mish, nn.GELU, nn.Hardswish, nn.Hardtanh,
    nn.Tanh, F.relu6, F.leaky_relu, F.elu, F.selu, F.silu, F.mish, F.gelu, F.hardswish, F.hardtanh, torch.tanh, "tanh",
}  # fmt: skip
# These return values of their input, or values between its levels and zero, so that they need no levels of their own.
PASSING: set[Any] = HOMOGENEOUS | {
    nn.ReLU6, nn.Hardtanh, F.relu6, F.hardtanh, torch.clamp, torch.clip, "clamp", "clamp_", "clip",
    nn.MaxPool2d, nn.AdaptiveMaxPool2d, F.max_pool2d, F.adaptive_max_pool2d, torch.max_pool2d, "amax", torch.amax,
    nn.Flatten, nn.Unflatten, nn.ChannelShuffle, nn.PixelShuffle, nn.PixelUnshuffle, nn.ZeroPad2d,
    F.pad, F.channel_shuffle, F.pixel_shuffle, torch.flatten, torch.reshape, torch.permute, torch.transpose,
    torch.chunk, torch.split, torch.squeeze, torch.unsqueeze, torch.unbind, torch.narrow, torch.select, torch.roll,
    operator.getitem, torch._assert, "flatten", "view", "view_as", "reshape", "reshape_as", "permute", "transpose", "t",
    "chunk", "split", "squeeze", "unsqueeze", "unbind", "unflatten", "narrow", "select", "roll", "expand", "expand_as",
    "repeat", "contiguous", "clone", "detach", "to", "float", "type_as", "size", "dim", getattr, "index_select",
}  # fmt: skip
SIZES: set[Any] = {"size", "dim", "stride", "numel", "is_contiguous"}


def kind(node: fx.Node, module: nn.Module | None = None) -> Any:
    """What `node` does, as an entry of the sets of this module: a function, a method's name, or a module's class."""
    return type(module) if node.op == "call_module" else node.target


def sources(node: fx.Node) -> list[fx.Node]:
    """The computed inputs of `node`: no parameters and no sizes."""
    return [source for source in node.all_input_nodes if source.op != "get_attr" and not is_size(source)]


def is_size(node: fx.Node) -> bool:
    """Whether the value is a size, or computed from sizes alone."""
    if node.op == "call_method" and node.target in SIZES:
        return True
    if node.op == "call_function" and node.target is getattr:
        return node.args[1] in ("shape", "ndim", "dtype", "device")
    inputs = node.all_input_nodes
    return node.op in ("call_function", "call_method") and bool(inputs) and all(map(is_size, inputs))


def is_addition(node: fx.Node) -> bool:
    """Whether the node adds two computed tensors, neither of them a number or a parameter."""
    return node.op in ("call_function", "call_method") and node.target in ADDITIONS and len(sources(node)) == 2


def is_concatenation(node: fx.Node) -> bool:
    """Whether the node joins several computed tensors side by side."""
    return node.op == "call_function" and node.target in CONCATENATIONS and len(sources(node)) >= 2


def is_product(node: fx.Node) -> bool:
    """Whether the node multiplies computed tensors: a gate, or the matrices of attention."""
    return node.op in ("call_function", "call_method") and node.target in PRODUCTS and len(sources(node)) >= 2
