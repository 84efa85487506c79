"""The state of a quantization that its steps change, and the data shared by quantizations of one float network."""

import contextlib
import copy
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor, nn

from ptq_exp.base.errors import UserError
from ptq_exp.quantization.options import QuantConfig
from ptq_exp.quantization.traced import Traced

if TYPE_CHECKING:
    from ptq_exp.quantization.activations import Observation

T = TypeVar("T")
Sensitivities = dict[str, dict[float, float]]  # layer -> bits -> mean Kullback-Leibler divergence in nats
# (description, steps, begin and end of the stage as shares of the learning) -> context manager that yields `advance()`
Progress = Callable[..., Any]


def shown(progress: Progress | None, description: str, steps: int, *span: tuple[float, float]) -> Any:
    """A context manager that yields `advance()`, either of a progress bar or without effect. `span` is the part of the
    learning that this stage takes, if it learns."""
    return progress(description, steps, *span) if progress else contextlib.nullcontext(lambda: None)


class Calibration:
    """Normalized images (N, 3, H, W) on the network's device, the random seed, and a cache of values that quantizations
    with these images share. A float network must not change while the cache is in use."""

    def __init__(self, images: Tensor, seed: int = 0):
        self.images, self.seed = images, seed
        self._values: dict[Hashable, object] = {}

    def once(self, key: Hashable, compute: Callable[[], T]) -> T:
        """The value for `key`, computed at the first call. `key` must contain everything else that it depends on."""
        if key not in self._values:
            self._values[key] = compute()
        return self._values[key]  # type: ignore[return-value]


@dataclass
class Context:
    """The state of one quantization in progress: the options, and the results of the steps so far.

    `reference` is the float network with plain weights. Its batch norm is folded and its layers are equalized once
    these steps have run. `network` is its copy that becomes the quantized network. The rounding step creates it.
    """

    options: QuantConfig
    bits: int
    calibration: Calibration
    reference: nn.Module
    progress: Progress | None = None
    store: Path | None = None  # the folder that keeps learned results, so that an interrupted quantization can continue
    network: nn.Module = field(init=False)
    plan: dict[str, float] = field(init=False)  # layer -> bits
    sensitivity: Sensitivities | None = None  # of mixed precision
    observed: "dict[str, Observation]" = field(default_factory=dict)  # the quantized inputs of layers

    @property
    def images(self) -> Tensor:
        """The calibration images."""
        return self.calibration.images

    @property
    def traced(self) -> Traced:
        """The float network with its graph."""
        return self.calibration.once(("traced", self.reference), lambda: Traced(self.reference))

    def weights(self) -> dict[str, Tensor]:
        """The float weights of every layer of the quantized kinds, by name."""
        return {name: layer.weight.detach() for name, layer in self.traced.layers(self.options.layers).items()}

    def change_reference(self, change: Callable[[nn.Module], object]) -> None:
        """Apply `change` to a copy of the float network, once for all quantizations that share the calibration.

        `change` works in place or returns another network. The network stays as it is if it cannot be traced.
        """
        before = self.reference

        def changed() -> nn.Module:
            network = copy.deepcopy(before)
            try:
                result = change(network)
            except UserError:  # the report says so, see `coverage.limits`
                return before
            return result if isinstance(result, nn.Module) else network

        self.reference = self.calibration.once((change, before), changed)
