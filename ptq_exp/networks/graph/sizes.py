"""Sizes of tensors while a network is traced.

A trace has no tensors. Where the code of a network asks for a size, as `assert x.shape[1] == 3` and
`int(x.size(1) * ratio)` do, the operations so far run on images without content. The answer must not depend on the
number of images.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from ptq_exp.networks.graph.operations import is_size

BATCHES = 2, 3  # images


class KnownSizes:
    """The values of a trace's nodes for images of one shape (C, H, W), computed when they are asked for."""

    def __init__(self, root: nn.Module, shape: tuple[int, ...]):
        self.root, self.running = root, False
        like = next((p for p in root.parameters() if p.is_floating_point()), torch.empty(()))
        self.images = [like.new_zeros(number, *shape) for number in BATCHES]
        self.values: list[dict[fx.Node, Any]] = [{} for _ in BATCHES]

    def ask(self, node: fx.Node, question: Callable[[Any], Any]) -> Any:
        """`question` of a size, such as `int`. Raises `ValueError` if the answer depends on the number or the content
        of the images."""
        if not is_size(node):
            raise ValueError("its forward function depends on the values of tensors")
        self.running = True
        try:
            pairs = zip(self.images, self.values, strict=True)
            first, second = (question(self._run(node, images, known)) for images, known in pairs)
        finally:
            self.running = False
        if first != second:
            raise ValueError("its forward function depends on the number of images")
        return first

    @torch.no_grad()
    def _run(self, wanted: fx.Node, images: Tensor, known: dict[fx.Node, Any]) -> Any:
        needed, left = set(), [wanted]
        while left:
            node = left.pop()
            if node not in known and node not in needed:
                needed.add(node)
                left += node.all_input_nodes
        for node in wanted.graph.nodes:
            if node in needed:
                known[node] = self._value(node, images, known)
        return known[wanted]

    def _value(self, node: fx.Node, images: Tensor, known: dict[fx.Node, Any]) -> Any:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), known.__getitem__)  # type: ignore[arg-type]
        if node.op == "placeholder":
            return images
        if node.op == "get_attr":
            return functools.reduce(getattr, str(node.target).split("."), self.root)
        if node.op == "call_module":
            return self.root.get_submodule(str(node.target))(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]


class _Sized:
    """The parts of a proxy that need a number."""

    node: fx.Node
    tracer: Any

    def __int__(self) -> int:
        return int(self.tracer.ask(self.node, int))

    def __index__(self) -> int:
        return int(self)

    def __float__(self) -> float:
        return float(self.tracer.ask(self.node, float))


class SizedProxy(_Sized, fx.Proxy):
    """A value of a trace that is known where it is a size."""

    def __getattr__(self, name: str) -> "SizedAttribute":
        return SizedAttribute(self, name)


class SizedAttribute(_Sized, fx.proxy.Attribute):  # type: ignore[misc]
    """An attribute of such a value, as in `x.shape`."""

    def __len__(self) -> int:
        return int(self.tracer.ask(self.node, len))
