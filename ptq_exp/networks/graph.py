"""The order of layers in the network's graph (torch.fx), and properties that the graph proves.

Every function takes `opaque`, classes of modules that are not traced into. Layers and norms are never traced into.
"""

import inspect
import operator
from collections import Counter
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ptq_exp.base.errors import UserError

# Between two layers, these commute with a positive factor per channel: f(s x) = s f(x).
_POINTWISE_MODULES = (nn.ReLU, nn.Identity, nn.Dropout)
_POINTWISE_FUNCTIONS = {F.relu, torch.relu}
_POOLINGS = (nn.MaxPool2d, nn.AvgPool2d)  # of images, per channel
_ADDITIONS = {operator.add, operator.iadd, torch.add, "add", "add_"}  # functions, and methods of tensors

Classes = tuple[type[nn.Module], ...]


class _Tracer(fx.Tracer):
    """Does not trace into layers, norms (including classes derived from torch's) and `opaque` modules."""

    def __init__(self, opaque: Classes):
        super().__init__()
        self.leaves = (*opaque, nn.Conv2d, nn.Linear, nn.BatchNorm2d)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, self.leaves) or super().is_leaf_module(m, module_qualified_name)


class Graph:
    """The calls of a network's modules in order, and how often each module and weight is used.

    Raises `UserError` if the network cannot be traced.
    """

    def __init__(self, model: nn.Module, opaque: Classes = ()):
        try:
            self.nodes = list(_Tracer(opaque).trace(model).nodes)
        except Exception as error:  # fx raises whatever the forward function raises on symbolic inputs
            raise UserError(
                f"The network cannot be traced ({error}). Batch-norm folding and equalization need tracing. Set "
                f"quant.fold_batch_norm=false and quant.equalize=false."
            ) from error
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

    def once(self, module: nn.Module) -> bool:
        """Whether the module is called exactly once."""
        return self.calls[id(module)] == 1

    def own(self, layer: nn.Module) -> bool:
        """Whether the parameters may change: a standard torch layer, called once, that alone uses its parameters."""
        base = next((base for base in (nn.Conv2d, nn.Linear) if isinstance(layer, base)), None)
        if base is None or not _as(layer, base) or not self.once(layer):
            return False
        held = [p for p in layer._parameters.values() if p is not None]
        return "weight" in layer._parameters and all(self.owners[p.data_ptr()] == 1 for p in held)


def _as(module: nn.Module, base: type[nn.Module]) -> bool:
    """Whether `module` has the forward function of `base`, since a derived class may change it."""
    kept = (getattr(type(module), name, None) is getattr(base, name, None) for name in ("forward", "_conv_forward"))
    return isinstance(module, base) and all(kept)


def _attribute(model: nn.Module, name: str) -> object:
    found: object = model
    for part in name.split("."):
        found = getattr(found, part)
    return found


def batch_norm_pairs(model: nn.Module, opaque: Classes = ()) -> list[tuple[str, str]]:
    """(convolution, batch norm) for every batch norm that the graph proves to be foldable.

    Only the norm uses the convolution's output. Each is called once. The convolution alone uses its weights. The norm
    has running statistics; without them it would use those of the batch.
    """
    graph = Graph(model, opaque)
    pairs = []
    for node in graph.nodes:
        norm = graph.module(node)
        if not isinstance(norm, nn.BatchNorm2d) or not _as(norm, nn.BatchNorm2d) or not graph.once(norm):
            continue
        if norm.running_mean is None or norm.running_var is None or len(node.all_input_nodes) != 1:
            continue
        (source,) = node.all_input_nodes
        conv = graph.module(source)
        if isinstance(conv, nn.Conv2d) and graph.own(conv) and len(source.users) == 1:
            pairs.append((str(source.target), str(node.target)))
    return pairs


def layer_pairs(model: nn.Module, opaque: Classes = ()) -> list[tuple[str, str]]:
    """(layer, next layer) for every pair with only ReLU, pooling and the like in between, and no branch.

    Each layer is called once, and nothing else uses its parameters.
    """
    graph = Graph(model, opaque)
    pairs = []
    for node in graph.nodes:
        first = graph.module(node)
        if first is None or not graph.own(first):
            continue
        here, flat = node, isinstance(first, nn.Linear)
        while len(here.users) == 1:
            here = next(iter(here.users))
            second = graph.module(here)
            if isinstance(second, nn.Conv2d | nn.Linear):
                # A linear layer on unflattened images would treat their columns as channels.
                if graph.own(second) and flat == isinstance(second, nn.Linear):
                    pairs.append((str(node.target), str(here.target)))
                break
            if isinstance(second, nn.Flatten) and (second.start_dim, second.end_dim) == (1, -1):
                flat = True
            elif not (_passes(graph, here) or (not flat and type(second) in _POOLINGS)):
                break
    return pairs


def _passes(graph: Graph, node: fx.Node) -> bool:
    if node.op == "call_function":
        return node.target in _POINTWISE_FUNCTIONS or (node.target is operator.getitem and _all_channels(node.args[1]))
    return type(graph.module(node)) in _POINTWISE_MODULES


def _all_channels(index: object) -> bool:
    """Whether x[index] selects rows and columns only, with all images and channels."""
    return isinstance(index, tuple) and len(index) == 4 and index[:2] == (slice(None), slice(None))


def additions(model: nn.Module, opaque: Classes = ()) -> list[str]:
    """The modules that only add their two inputs, as in residual networks."""
    return [name for name, module in model.named_modules() if _is_addition(module, opaque)]


def _is_addition(module: nn.Module, opaque: Classes) -> bool:
    try:
        if len(inspect.signature(module.forward).parameters) != 2:
            return False  # almost every module ends here, since tracing takes longer
    except (TypeError, ValueError):  # not written in Python
        return False
    nodes = _traced(module, opaque)
    if [node.op for node in nodes[:2]] != ["placeholder"] * 2 or len(nodes) != 4:
        return False
    first, second, total, _ = nodes
    # In either order, and without a factor.
    return _is_join(total) and set(total.args) == {first, second} and not total.kwargs


def blocks(model: nn.Module, opaque: Classes = ()) -> list[str]:
    """The smallest modules with one input and one output that contain layers and a join (see `_is_join`).

    The network itself is not a block. A network that cannot be traced has no blocks.
    """
    if not _traced(model, opaque):
        return []
    found = [name for name, module in model.named_modules() if name and _is_block(module, opaque)]
    return [name for name in found if not any(other.startswith(f"{name}.") for other in found)]


def _is_block(module: nn.Module, opaque: Classes) -> bool:
    if not any(isinstance(inner, nn.Conv2d | nn.Linear) for inner in list(module.modules())[1:]):
        return False
    nodes = _traced(module, opaque)
    inputs = [node for node in nodes if node.op == "placeholder"]
    return any(map(_is_join, nodes)) and len(inputs) == 1 and isinstance(nodes[-1].args[0], fx.Node)


def _traced(module: nn.Module, opaque: Classes) -> list[fx.Node]:
    """A module's own trace: its inputs, operations and output. Empty if it cannot be traced."""
    try:
        return list(_Tracer(opaque).trace(module).nodes)
    except Exception:  # fx raises whatever the forward function raises on symbolic inputs
        return []


def _is_join(node: fx.Node) -> bool:
    """Whether the node adds two computed tensors, neither of them a number or a parameter."""
    if node.op not in ("call_function", "call_method") or node.target not in _ADDITIONS:
        return False
    return len([source for source in node.all_input_nodes if source.op != "get_attr"]) == 2
