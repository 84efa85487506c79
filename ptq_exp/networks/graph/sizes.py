"""Sizes of tensors while a network is traced.

A trace has no tensors. Where the code of a network asks for a size, as `assert x.shape[1] == 3` and
`int(x.size(1) * ratio)` do, the operations so far run on fake tensors, which have shapes but no values. The number of
images is a symbol there, so an answer that depends on it is noticed.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ptq_exp.networks.graph.operations import SPLITS, has_shape_alone, kind

SYMBOLS = (torch.SymInt, torch.SymFloat, torch.SymBool)


class KnownSizes:
    """The sizes in a trace for images of one shape (C, H, W), computed when they are asked for.

    `fixed` tells whether an answer would be another one for images of twice the height and width.
    """

    def __init__(self, root: nn.Module, shape: tuple[int, ...]):
        self.root, self.shape, self.fixed = root, shape, False
        self._runs: list[_Run] = []

    @property
    def running(self) -> bool:
        """Whether modules of the network are called with fake tensors now, not traced."""
        return any(run.running for run in self._runs)

    def ask(self, node: fx.Node, question: Callable[[Any], Any]) -> Any:
        """`question` of a size, such as `int`, or `len` of the parts of a tensor. Raises `ValueError` if the answer
        depends on anything but the size of the images."""
        if not has_shape_alone(node) and not (question is len and kind(node) in SPLITS):
            raise ValueError("its forward function depends on the values of tensors")
        if not self._runs:
            channels, height, width = self.shape
            self._runs = [_Run(self.root, self.shape), _Run(self.root, (channels, 2 * height, 2 * width))]
        answer = self._runs[0].answer(node, question)
        try:
            self.fixed = self.fixed or self._runs[1].answer(node, question) != answer
        except Exception:  # whatever the code of the network raises on images of another size
            self.fixed = True
        return answer


class _Run:
    """The values of a trace's nodes on fake images."""

    def __init__(self, root: nn.Module, shape: tuple[int, ...]):
        # Symbols need sympy, whose import takes half a second.
        from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

        self.root, self.running = root, False
        self.symbols = ShapeEnv()
        self.mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=self.symbols)
        like = next((p for p in root.parameters() if p.is_floating_point()), torch.empty(()))
        dynamic: Any = StatelessSymbolicContext([DimDynamic.DYNAMIC, *[DimDynamic.STATIC] * len(shape)])  # type: ignore[no-untyped-call]
        self.images = self.mode.from_tensor(like.new_empty(2, *shape), symbolic_context=dynamic)
        self.values: dict[fx.Node, Any] = {}

    def answer(self, node: fx.Node, question: Callable[[Any], Any]) -> Any:
        self.running = True
        try:
            with self.mode, torch.no_grad():
                self._compute(node)
        finally:
            self.running = False
        value = self.values[node]
        if self.symbols.replacements or (question is not len and isinstance(value, SYMBOLS)):
            raise ValueError("its forward function depends on the number of images")
        return question(value)

    def _compute(self, wanted: fx.Node) -> None:
        needed, left = set(), [wanted]
        while left:
            node = left.pop()
            if node not in self.values and node not in needed:
                needed.add(node)
                left += node.all_input_nodes
        for node in wanted.graph.nodes:
            if node in needed:
                self.values[node] = self._value(node)

    def _value(self, node: fx.Node) -> Any:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self.values.__getitem__)  # type: ignore[arg-type]
        if node.op == "placeholder":
            return self.images
        if node.op == "get_attr":
            return functools.reduce(getattr, str(node.target).split("."), self.root)
        if node.op == "call_module":
            return self.root.get_submodule(str(node.target)).forward(*args, **kwargs)  # without the hooks of others
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

    def __len__(self) -> int:
        return int(self.tracer.ask(self.node, len))


class SizedProxy(_Sized, fx.Proxy):
    """A value of a trace that is known where it is a size."""

    def __getattr__(self, name: str) -> "SizedAttribute":
        return SizedAttribute(self, name)


class SizedAttribute(_Sized, fx.proxy.Attribute):  # type: ignore[misc]
    """An attribute of such a value, as in `x.shape`."""
