"""The kinds of operations in a network's graph."""

import inspect
import operator
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import fx, nn

from ptq_exp.networks.graph.calling import logits_of, of_shape, standard_strides

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
    "repeat", "contiguous", "clone", "detach", "to", "type", "type_as", "float", "double", "half", "bfloat16", "cpu",
    "cuda", "size", "dim", getattr, "index_select", logits_of, of_shape, standard_strides,
}  # fmt: skip
ARITHMETIC: set[Any] = ADDITIONS | {
    operator.sub, operator.isub, operator.mul, operator.imul, operator.neg,
    torch.sub, torch.rsub, torch.mul, torch.neg, "sub", "sub_", "mul", "mul_", "neg",
}  # fmt: skip
DIVISIONS: set[Any] = {operator.truediv, operator.itruediv, torch.div, "div", "div_"}
ARITHMETIC |= DIVISIONS
SPLITS: set[Any] = {torch.chunk, torch.split, torch.tensor_split, torch.unbind}
SPLITS |= {"chunk", "split", "tensor_split", "unbind"}
IN_PLACE: set[Any] = {operator.iadd, operator.isub, operator.imul, operator.itruediv}
IN_TRAINING = {"stochastic_depth", "drop_path"}  # functions of other packages that do nothing in evaluation mode
KNOWN_ATTRIBUTES = ("shape", "ndim", "device", "dtype", "is_nested")
SHAPES: set[Any] = {"size", "dim", "numel"}
SIZES: set[Any] = SHAPES | {"stride", "is_contiguous"}


class Operation(nn.Module):
    """A function of tensors as a module, with its other arguments fixed."""

    def __init__(self, node: fx.Node):
        super().__init__()
        places = {source: Place(number) for number, source in enumerate(given(node))}
        self.op, self.target = node.op, node.target
        self.arguments: Any = fx.node.map_arg((node.args, node.kwargs), cast(Any, places.__getitem__))

    def forward(self, *tensors: Any) -> Any:
        args, kwargs = fx.node.map_aggregate(self.arguments, lambda x: tensors[x.number] if isinstance(x, Place) else x)
        if self.op == "call_method":
            return getattr(args[0], str(self.target))(*args[1:], **kwargs)
        return self.target(*args, **kwargs)  # type: ignore[operator]


class Wrapper(nn.Module):
    """A module around an operation, which is called `operation`."""

    operation: nn.Module


@dataclass(frozen=True)
class Place:
    """Stands for one of the tensors among an operation's arguments."""

    number: int


def kind(node: fx.Node, module: nn.Module | None = None) -> Any:
    """What `node` does, as an entry of the sets of this module: a function, a method's name, or a module's class."""
    inner = unwrapped(module)
    if isinstance(inner, Operation):
        return inner.target
    return type(inner) if node.op == "call_module" else node.target


def unwrapped(module: nn.Module | None) -> nn.Module | None:
    """The operation inside a `Wrapper`, or the module itself."""
    return module.operation if isinstance(module, Wrapper) else module


def in_place(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether the node changes its first operand and returns it."""
    inner, target = unwrapped(module), kind(node, module)
    if inner is not None and not isinstance(inner, Operation):
        return type(inner).__module__.startswith("torch.nn.") and getattr(inner, "inplace", False) is True
    args, kwargs = inner.arguments if inner is not None else (node.args, node.kwargs)
    if not isinstance(target, str) and getattr(target, "__module__", "") == F.__name__:
        return bool(inspect.signature(target).bind(*args, **kwargs).arguments.get("inplace", False))
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    torchs = isinstance(target, str) or getattr(torch, name, None) is target
    return target in IN_PLACE or (torchs and name.endswith("_") and not name.endswith("__"))


def passes_levels(what: Any) -> bool:
    """Whether an operation of this kind returns values of its input, or values between its levels and zero."""
    return what in PASSING or getattr(what, "__name__", "") in IN_TRAINING


def mark_fixed(nodes: list[fx.Node]) -> None:
    """Mark the nodes, in the order of execution, whose values do not depend on the image: parameters, and what is
    computed from parameters and sizes alone."""
    for node in nodes:
        inputs = [source for source in node.all_input_nodes if not is_size(source)]
        computed = node.op in ("call_function", "call_method", "call_module") and not is_size(node)
        node.meta["fixed"] = node.op == "get_attr" or (computed and all(map(is_fixed, inputs)))


def is_fixed(node: fx.Node) -> bool:
    """Whether the value does not depend on the image, see `mark_fixed`."""
    return bool(node.meta.get("fixed", node.op == "get_attr"))


def sources(node: fx.Node) -> list[fx.Node]:
    """The computed inputs of `node`: no parameters, nothing that is computed from them alone, and no sizes."""
    return [source for source in node.all_input_nodes if not is_fixed(source) and not is_size(source)]


def given(node: fx.Node) -> list[fx.Node]:
    """The inputs of a node: first its computed tensors, then parameters and sizes."""
    computed = sources(node)
    return [*computed, *(source for source in node.all_input_nodes if source not in computed)]


def is_size(node: fx.Node) -> bool:
    """Whether the value is a size, or computed from sizes alone."""
    return _is_of(node, SIZES)


def has_shape_alone(node: fx.Node) -> bool:
    """Whether the value depends on the shapes of tensors, their device and type, but not on their memory or content."""
    return _is_of(node, SHAPES)


def _is_of(node: fx.Node, methods: set[Any]) -> bool:
    """Whether the value comes from these methods of tensors or from `KNOWN_ATTRIBUTES`, and from nothing else."""
    if node.op == "call_method" and node.target in SIZES:
        return node.target in methods
    if node.op == "call_function" and node.target is getattr and node.args[1] in KNOWN_ATTRIBUTES:
        return True
    inputs = node.all_input_nodes
    calls = node.op in ("call_function", "call_method")
    return calls and bool(inputs) and all(_is_of(source, methods) for source in inputs)


def only_numbers(node: fx.Node) -> bool:
    """Whether the node computes from a tensor and numbers: levels are scaled, moved or mirrored, but stay levels."""
    if node.target not in ARITHMETIC:
        return False
    given = (*node.args, *node.kwargs.values())
    divisor = node.target in DIVISIONS and len(node.args) > 1 and isinstance(node.args[1], fx.Node)
    return sum(isinstance(x, fx.Node) for x in given) == 1 and not divisor


def is_addition(node: fx.Node, module: nn.Module | None = None) -> bool:
    """Whether the node adds two computed tensors, neither of them a number or a parameter."""
    inner = unwrapped(module)
    added = kind(node, module) in ADDITIONS or (inner is not None and only_adds(inner))
    return added and len(sources(node)) == 2


def is_concatenation(node: fx.Node, module: nn.Module | None = None) -> bool:
    """Whether the node joins several computed tensors side by side."""
    return kind(node, module) in CONCATENATIONS and len(sources(node)) >= 2


def joins_channels(node: fx.Node, module: nn.Module | None = None) -> bool:
    """Whether the node concatenates images or maps (N, C, H, W) along their channels."""
    if kind(node, module) not in CONCATENATIONS - {torch.stack}:
        return False
    args, named = arguments(node, module)
    return named.get("dim", named.get("axis", args[1] if len(args) > 1 else 0)) in (1, -3)


def joined(node: fx.Node, module: nn.Module | None = None) -> list[fx.Node]:
    """The tensors that a concatenation joins, in their order. Empty if they are not listed in the call."""
    args, _ = arguments(node, module)
    parts = args[0] if args and isinstance(args[0], list | tuple) else ()
    return [node.all_input_nodes[part.number] if isinstance(part, Place) else part for part in parts]


def stacks(node: fx.Node, module: nn.Module | None = None) -> bool:
    """Whether the node stacks tensors in front of the dimension of the images."""
    if kind(node, module) is not torch.stack:
        return False
    args, named = arguments(node, module)
    return bool(named.get("dim", args[1] if len(args) > 1 else 0) == 0)


def arguments(node: fx.Node, module: nn.Module | None = None) -> Any:
    """The positional and the named arguments of the function that the node calls, as a module or not."""
    inner = unwrapped(module)
    return inner.arguments if isinstance(inner, Operation) else (node.args, node.kwargs)


def is_product(node: fx.Node, module: nn.Module | None = None) -> bool:
    """Whether the node multiplies computed tensors: a gate, or the matrices of attention."""
    return kind(node, module) in PRODUCTS and len(sources(node)) >= 2


def only_adds(module: nn.Module) -> bool:
    """Whether the module only adds its two inputs, in either order and without a factor."""
    try:
        if len(inspect.signature(module.forward).parameters) != 2 or next(module.children(), None) is not None:
            return False  # almost every module ends here, since tracing takes longer
        nodes = list(fx.Tracer().trace(module).nodes)
    except Exception:  # not written in Python, or fx raises whatever the forward function raises on symbolic inputs
        return False
    if [node.op for node in nodes[:2]] != ["placeholder"] * 2 or len(nodes) != 4:
        return False
    first, second, total, _ = nodes
    return total.target in ADDITIONS and set(total.args) == {first, second} and not total.kwargs
