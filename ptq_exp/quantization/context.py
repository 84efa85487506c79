"""What the steps of a quantization work on, and what several quantizations of one float network share."""

import contextlib
import copy
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor, nn

from ptq_exp.quantization.options import QuantConfig
from ptq_exp.quantization.rounding import target_layers

if TYPE_CHECKING:
    from ptq_exp.quantization.activations import Observation

T = TypeVar("T")
Sensitivities = dict[str, dict[float, float]]  # layer -> bits -> mean Kullback-Leibler divergence in nats
Progress = Callable[[str, int], Any]  # (description, steps) -> context manager that yields `advance()`


def shown(progress: Progress | None, description: str, steps: int) -> Any:
    """A context manager that yields `advance()`: of a progress bar, or one that does nothing."""
    return progress(description, steps) if progress else contextlib.nullcontext(lambda: None)


class Calibration:
    """Normalized images (N, 3, H, W) on the network's device, the seed of everything random, and what quantizations
    on these images have in common: it is computed once. A float network must not change in between."""

    def __init__(self, images: Tensor, seed: int = 0):
        self.images, self.seed = images, seed
        self._values: dict[Hashable, object] = {}

    def once(self, key: Hashable, compute: Callable[[], T]) -> T:
        """The value called `key`, computed at the first call; `key` must name everything else that it depends on."""
        if key not in self._values:
            self._values[key] = compute()
        return self._values[key]  # type: ignore[return-value]


@dataclass
class Context:
    """One quantization on its way: what was asked for, and what the steps have made of it so far.

    `reference` is the float network: plain weights, with batch norm folded and layers equalized once these steps ran.
    `network` is the copy of it that becomes the quantized network; the step that rounds the weights makes it.
    """

    options: QuantConfig
    bits: int
    calibration: Calibration
    reference: nn.Module
    progress: Progress | None = None
    store: Path | None = None  # the folder that keeps what was learned, so that an interrupted learning goes on
    network: nn.Module = field(init=False)
    plan: dict[str, float] = field(init=False)  # layer -> bits
    sensitivity: Sensitivities | None = None  # of mixed precision
    observed: "dict[str, Observation]" = field(default_factory=dict)  # the inputs of layers that are quantized

    @property
    def images(self) -> Tensor:
        """The calibration images."""
        return self.calibration.images

    def weights(self) -> dict[str, Tensor]:
        """The float weights of every layer of the kind that is quantized, by name."""
        layers = target_layers(self.reference, self.options.layers)
        return {name: layer.weight.detach() for name, layer in layers.items()}

    def change_reference(self, change: Callable[[nn.Module], object]) -> None:
        """Let `change` alter a copy of the float network, once for all that share the calibration."""
        before = self.reference

        def changed() -> nn.Module:
            network = copy.deepcopy(before)
            change(network)
            return network

        self.reference = self.calibration.once((change, before), changed)
