"""Traces of networks (torch.fx), and the facts about modules that a trace proves.

Every function takes `opaque`, classes of modules that are not traced into. Layers and norms are never traced into.
"""

import contextlib
import itertools
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from ptq_exp.base.errors import UserError
from ptq_exp.networks.graph.calling import logits_of, standard_strides
from ptq_exp.networks.graph.operations import Operation, in_place, is_size, kind, mark_fixed, only_adds
from ptq_exp.networks.graph.sizes import KnownSizes, SizedProxy

Classes = tuple[type[nn.Module], ...]
TORCH = str(Path(torch.__file__).parent)


class _Tracer(fx.Tracer):
    """Does not trace into layers, norms (including classes derived from torch's), modules that only add their inputs,
    `opaque` classes, and the modules called `leaves`."""

    def __init__(self, opaque: Classes, leaves: dict[str, str]):
        super().__init__()
        self.opaque, self.leaves = (*opaque, nn.Conv2d, nn.Linear, nn.BatchNorm2d, Operation), leaves
        self.failed: str | None = None  # the innermost module in which the trace failed
        self.sizes: KnownSizes | None = None

    def create_arg(self, a: Any) -> Any:
        """A constant (`torch.tensor(2.0)` in the code of the network) has one name in all traces of a network, since
        the files of quantized networks name it."""
        if isinstance(a, Tensor) and not isinstance(a, nn.Parameter) and a not in self.tensor_attrs:
            every = map("_tensor_constant{}".format, itertools.count())  # the names of fx
            for name in itertools.takewhile(lambda name: hasattr(self.root, name), every):
                if _equal(getattr(self.root, name), a):
                    self.tensor_attrs[a] = name
                    break
        return super().create_arg(a)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """The network is only called with images, so its other arguments have their defaults."""
        if not self.root.training and (shape := image_shape(self.root)):
            self.sizes = KnownSizes(self.root, shape)
        image = self.create_proxy("placeholder", "x", (), {})
        return (lambda root, x: root_fn(root, x)), [self.root, image]

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return SizedProxy(node, self)

    def ask(self, node: fx.Node, question: Callable[[Any], Any]) -> Any:
        """See `KnownSizes.ask`."""
        if self.sizes is None:
            raise ValueError("its forward function depends on its input")
        return self.sizes.ask(node, question)

    def to_bool(self, obj: fx.Proxy) -> bool:
        return bool(self.ask(obj.node, bool))

    def iter(self, obj: Any) -> Iterator[fx.Proxy]:
        return iter([obj[number] for number in range(self.ask(obj.node, len))])  # of a size, or of parts

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if self.sizes and self.sizes.running:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, self.opaque) or module_qualified_name in self.leaves:
            return True
        if only_adds(m):
            return True
        # torch's own modules with layers inside, such as transformer layers, are not single operations.
        return super().is_leaf_module(m, module_qualified_name) and next(m.children(), None) is None

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if self.sizes and self.sizes.running:
            return forward(*args, **kwargs)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed = self.failed or self.path_of_module(m)
            raise


class Trace(NamedTuple):
    """A graph, why modules in it were not traced into, and the shape (C, H, W) of images if its code depends on it."""

    graph: fx.Graph
    untraced: dict[str, str]
    shape: tuple[int, ...] | None


class Graph:
    """The calls of a network in order, and how often each module and weight is used.

    A module whose forward function cannot be traced becomes a single call; `untraced` has the reason by its name.
    Raises `UserError` if the forward function of the network itself cannot be traced.
    """

    def __init__(self, model: nn.Module, opaque: Classes = ()):
        self.opaque = opaque
        self.graph, self.untraced, self.shape = _trace(model, opaque)
        self.nodes = list(self.graph.nodes)
        mark_fixed(self.nodes)
        self.modules = dict(model.named_modules())
        self.calls = Counter(id(module) for node in self.nodes for module in self._called(node))
        # Parameters by memory address, since two different objects may share memory.
        self.owners = Counter(p.data_ptr() for m in model.modules() for p in m._parameters.values() if p is not None)
        for node in self.nodes:
            if node.op == "get_attr" and isinstance(read := _attribute(model, str(node.target)), Tensor):
                self.owners[read.data_ptr()] += 1

    def _called(self, node: fx.Node) -> Iterator[nn.Module]:
        """The called module, and twice each module inside it, because the number of their calls is unknown."""
        if node.op == "call_module":
            module = self.modules[str(node.target)]
            yield module
            inside = list(module.modules())[1:]
            yield from [*inside, *inside]

    def module(self, node: fx.Node) -> nn.Module | None:
        """The module that `node` calls."""
        return self.modules[str(node.target)] if node.op == "call_module" else None

    def layer(self, node: fx.Node) -> nn.Module | None:
        """The convolution or linear layer that `node` calls, or the opaque module around one."""
        module = self.module(node)
        if isinstance(module, self.opaque):
            return module if any(isinstance(inner, nn.Conv2d | nn.Linear) for inner in module.modules()) else None
        return module if isinstance(module, nn.Conv2d | nn.Linear) else None

    def computes(self, function: Callable[..., Any]) -> bool:
        """Whether the network calls this function, which `expose` may have made a module of."""
        return any(kind(node, self.module(node)) is function for node in self.nodes)

    def once(self, module: nn.Module) -> bool:
        """Whether the module is called exactly once."""
        return self.calls[id(module)] == 1

    def own(self, layer: nn.Module) -> bool:
        """Whether the parameters may change: a standard torch layer, called once, that alone uses its parameters."""
        base = next((base for base in (nn.Conv2d, nn.Linear) if isinstance(layer, base)), None)
        if base is None or not alone(layer, base) or not self.once(layer):
            return False
        held = [p for p in layer._parameters.values() if p is not None]
        return "weight" in layer._parameters and all(self.owners[p.data_ptr()] == 1 for p in held)


@torch.no_grad()
def check_trace(model: nn.Module, images: Tensor, opaque: Classes = ()) -> None:
    """Mark `model` as one that cannot be traced if its trace computes something else, in place.

    A trace takes the branch of `if isinstance(x, Tensor)` that symbolic inputs take, for example. The model is also
    marked with the shape of the images, so that its code may ask for sizes while it is traced, and as `unsteady` if its
    outputs are random or depend on the other images of a batch. `model` must be in evaluation mode and accept the
    normalized `images`.
    """
    set_image_shape(model, images.shape[1:])
    with contextlib.suppress(UserError):
        graph = _trace(model, opaque).graph
        wanted = logits_of(model(images))
        if not torch.equal(wanted, logits_of(model(images))):
            model._unsteady = "are random, so its accuracy and its agreement vary"  # type: ignore[assignment]
            return
        with contextlib.suppress(Exception):  # whatever a network raises that takes single images
            among = logits_of(model(torch.cat([images, images.flip(-1)])))[: len(images)]
            if not _close(among, wanted):
                how = "depend on the other images of a batch, so its accuracy depends on the size of batches"
                model._unsteady = how  # type: ignore[assignment]
        try:
            found = logits_of(fx.GraphModule(model, graph)(standard_strides(images)))
            same = _close(found, wanted)
        except Exception:  # whatever the code of the network raises
            same = False
        if not same:
            model._misleading = True  # type: ignore[assignment]


def _close(found: Tensor, wanted: Tensor) -> bool:
    return found.shape == wanted.shape and torch.allclose(found, wanted, 1e-3, 1e-3 * wanted.abs().max().item())


def unsteady(model: nn.Module) -> str | None:
    """What `check_trace` found out about the outputs of a network that are not the same in each call, as the end of a
    sentence."""
    found: str | None = getattr(model, "_unsteady", None)
    return found or getattr(model, "meta", {}).get("unsteady")


def set_image_shape(model: nn.Module, shape: Sequence[int]) -> None:
    """Mark `model` with the shape (C, H, W) of its images, so that its code may ask for sizes while it is traced."""
    model._image_shape = tuple(shape)  # type: ignore[assignment]


def image_shape(model: nn.Module) -> tuple[int, ...] | None:
    """The shape (C, H, W) of the images that `set_image_shape` was given, here or before `expose`."""
    found: tuple[int, ...] | None = getattr(model, "_image_shape", None)
    return found or getattr(model, "meta", {}).get("image_shape")


def standard(module: nn.Module, base: type[nn.Module]) -> bool:
    """Whether `module` has the forward function of `base`, since a derived class or an instance may change it."""
    return isinstance(module, base) and all(
        getattr(type(module), name, None) is getattr(base, name, None) and name not in vars(module)
        for name in ("forward", "_conv_forward")
    )


def alone(module: nn.Module, base: type[nn.Module]) -> bool:
    """Whether `module` is `standard` and no hook of the user changes its input or output."""
    return standard(module, base) and not module._forward_hooks and not module._forward_pre_hooks


def owner(node: fx.Node) -> str:
    """The module in whose forward function the node is called."""
    if node.op == "call_module":  # by its name, because exposed networks call all modules from one function
        return str(node.target).rpartition(".")[0]
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return str(stack[-1][0]) if stack else ""


def _trace(model: nn.Module, opaque: Classes) -> Trace:
    if getattr(model, "_misleading", False):
        raise UserError("The network cannot be traced: its trace computes something else than its forward function.")
    leaves: dict[str, str] = {}
    while True:
        tracer = _Tracer(opaque, leaves)
        try:
            graph = tracer.trace(model)
            _drop_sizes(graph)
            _follow_changes(graph, model)
            fixed = tracer.sizes is not None and tracer.sizes.fixed
            return Trace(graph, leaves, image_shape(model) if fixed else None)
        except Exception as error:  # fx raises whatever the forward function raises on symbolic inputs
            if not tracer.failed or tracer.failed in leaves:
                raise UserError(f"The network cannot be traced: {_reason(error)}.") from error
            leaves[tracer.failed] = _reason(error)


def _drop_sizes(graph: fx.Graph) -> None:
    """Drop sizes that only the code of the network needed."""
    for node in reversed(graph.nodes):
        if not node.users and node.op.startswith("call") and is_size(node):
            graph.erase_node(node)


def _follow_changes(graph: fx.Graph, model: nn.Module) -> None:
    """Let every node after an operation in place read its result instead of its operand, which has the same values.

    Otherwise, the graph would not say that it depends on the operation.
    """
    nodes = list(graph.nodes)
    for place, node in enumerate(nodes):
        module = model.get_submodule(str(node.target)) if node.op == "call_module" else None
        if in_place(node, module) and (operands := node.all_input_nodes):
            operands[0].replace_all_uses_with(node, set(nodes[place + 1 :]).__contains__)


def _reason(error: Exception) -> str:
    """The error and the line of the network's own code that raised it."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(TORCH)]
    own = [frame for frame in frames if Path(frame.filename).parent != Path(__file__).parent]
    place = f" ({Path(own[-1].filename).name}, line {own[-1].lineno}: {own[-1].line})" if own else ""
    return f"{str(error).strip().partition(chr(10))[0]}{place}"


def _equal(one: object, other: Tensor) -> bool:
    same = isinstance(one, Tensor) and one.dtype == other.dtype and one.device == other.device
    return same and torch.equal(one, other)  # type: ignore[arg-type]


def _attribute(model: nn.Module, name: str) -> object:
    found: object = model
    for part in name.split("."):
        found = getattr(found, part)
    return found
