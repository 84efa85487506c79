"""Networks with functional operations as modules, so that the operations have names and their inputs can be changed."""

from torch import fx, nn

from ptq_exp.networks.graph.calling import (
    logits_of,
    needs_contiguous_images,
    of_shape,
    returns_only_logits,
    standard_strides,
)
from ptq_exp.networks.graph.operations import (
    Operation,
    given,
    is_addition,
    is_size,
    joins_channels,
    kind,
    only_numbers,
    passes_levels,
    sources,
    unwrapped,
)
from ptq_exp.networks.graph.tracing import Classes, Graph, image_shape, owner, unsteady


def operations(graph: Graph, additions_only: bool) -> list[fx.Node]:
    """The operations of a network that need levels for their operands: additions of two computed tensors, or all.

    All are the operations that are no layers and compute new values: additions, products, average pooling,
    concatenation, norms and curved activation functions. A batch norm of concatenated channels is left out: each
    channel has the levels of its part, and its scale goes into the factor of the norm.
    """
    return [node for node in graph.nodes if _computes(node, graph, additions_only)]


def operands(graph: Graph, additions_only: bool) -> dict[str, int]:
    """The modules that are such `operations`, with the number of their operands."""
    found: dict[str, int] = {}
    for node in operations(graph, additions_only):
        if node.op == "call_module":
            name = str(node.target)
            found[name] = max(_count(node, graph), found.get(name, 0))  # calls may differ
    return found


def expose(model: nn.Module, additions_only: bool, opaque: Classes = ()) -> nn.Module:
    """The network with these `operations` as modules. It is `model` itself if they are modules already.

    The new network shares the modules of `model` and computes the same. Modules that its graph does not call are left
    out. Raises `UserError` if the network cannot be traced.
    """
    graph = Graph(model, opaque)
    functional = [node for node in operations(graph, additions_only) if node.op != "call_module"]
    if not functional:
        return model
    tensors = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
    names = _names(functional, {*graph.modules, *tensors})
    network = fx.GraphModule(model, graph.graph)
    _keep_layers(network, graph)
    for node in functional:
        network.add_submodule(names[node], Operation(node))
        with graph.graph.inserting_before(node):
            call = graph.graph.call_module(names[node], tuple(given(node)))
        node.replace_all_uses_with(call)
        graph.graph.erase_node(node)
    _adapt(model, graph)
    network.graph = graph.graph
    network.train(model.training)
    # Copies of the network keep this.
    network.meta |= {
        "operations": "additions" if additions_only else "all",
        "contiguous": needs_contiguous_images(model),
        "image_shape": image_shape(model),
        "unsteady": unsteady(model),
    }
    return network


def _keep_layers(network: fx.GraphModule, graph: Graph) -> None:
    """Keep layers whose weights are read without a call, which the constructor replaces by plain modules."""
    for node in graph.nodes:
        name = str(node.target).rpartition(".")[0]
        if node.op == "get_attr" and isinstance(graph.modules.get(name), nn.Conv2d | nn.Linear):
            network.set_submodule(name, graph.modules[name])


def exposed(network: nn.Module) -> str | None:
    """Which operations `expose` made modules of: `additions`, `all`, or None."""
    found: str | None = getattr(network, "meta", {}).get("operations")
    return found


def _computes(node: fx.Node, graph: Graph, additions_only: bool) -> bool:
    module = graph.module(node)
    if is_addition(node, module):
        return True
    if additions_only:
        return False
    if node.op in ("placeholder", "get_attr", "output") or is_size(node) or not sources(node) or only_numbers(node):
        return False
    if node.op == "call_module" and (graph.layer(node) is not None or str(node.target) in graph.untraced):
        return False
    if kind(node, module) is nn.BatchNorm2d and joins_channels(source := sources(node)[0], graph.module(source)):
        return False
    return not passes_levels(kind(node, module))


def _count(node: fx.Node, graph: Graph) -> int:
    """The number of operands: all tensors given to a module, but not the parameters and sizes given to a function."""
    if isinstance(unwrapped(graph.module(node)), Operation):
        return len(sources(node))
    return sum(isinstance(x, fx.Node) for x in (*node.args, *node.kwargs.values()))


def _names(nodes: list[fx.Node], taken: set[str]) -> dict[fx.Node, str]:
    """A name for each operation, inside the module that calls it: `layer1.0.add`."""
    names = {}
    for node in nodes:
        function = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "operation")
        base = f"{owner(node)}.{function.strip('_')}".lstrip(".")
        name, number = base, 1
        while name in taken or hasattr(nn.Module, name.rpartition(".")[2]):
            name, number = f"{base}_{number}", number + 1
        taken.add(name)
        names[node] = name
    return names


def _adapt(model: nn.Module, traced: Graph) -> None:
    """Put into the graph what hooks do around the network, and a check of the images if their size is fixed."""
    graph = traced.graph
    image = next(node for node in graph.nodes if node.op == "placeholder")
    if traced.shape is not None:
        with graph.inserting_after(image):
            checked = graph.call_function(of_shape, (image, traced.shape))
        checked.meta["is_wrapped"] = True
        image.replace_all_uses_with(checked, lambda user: user is not checked)
        image = checked
    if needs_contiguous_images(model):
        with graph.inserting_after(image):
            contiguous = graph.call_function(standard_strides, (image,))
        contiguous.meta["is_wrapped"] = True  # the code of the network then calls it as a wrapped function
        image.replace_all_uses_with(contiguous, lambda user: user is not contiguous)
    (output,) = (node for node in graph.nodes if node.op == "output")
    if not isinstance(output.args[0], fx.Node) or returns_only_logits(model):
        with graph.inserting_before(output):
            logits = graph.call_function(logits_of, (output.args[0],))
        logits.meta["is_wrapped"] = True
        output.args = (logits,)
