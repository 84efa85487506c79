"""An integer reference for networks with all activations quantized: does the simulation in float32 tell the truth?

Every quantized layer multiplies integer codes and adds them exactly. The bias is rounded to a multiple of the product
of both scales, as an int32 bias of an integer runtime. Scales are exact products, and everything between two layers
is computed in double precision (Jacob et al. 2018, section 2.2). Codes are kept in doubles, which are exact up to 2^53.
Sums below 2^24 are exact in float32 in any order, and are computed there, because convolutions of doubles take ten
times as long.
"""

import copy
from collections import defaultdict
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptq_exp.data.loader import Normalize
from ptq_exp.evaluation.integer_check import IntegerCheck, LevelRow
from ptq_exp.quantization.grids import UniformGrid, code_width
from ptq_exp.quantization.layers import ActivationQuantizer, AroundLayer, QuantizedLayer, quantized_layers
from ptq_exp.quantization.modules import replace_module

IMAGES, BATCH = 512, 32
EXACT = 2**24  # smaller integers and their sums are exact in float32


def fully_quantized(network: nn.Module, coverage: str) -> bool:
    """Whether integers describe the execution completely: `act_coverage=all`, and uniform grids for all weights."""
    layers = quantized_layers(network).values()
    return coverage == "all" and all(
        layer.activation is not None and isinstance(layer.grid, UniformGrid) for layer in layers
    )


@dataclass
class _Pass:
    """What the quantizers do during a forward pass, and what they see."""

    forced: dict[str, list[Tensor]] | None = None  # the codes of the simulation, which the quantizers then return
    half_away: bool = False
    exact_biases: bool = False
    codes: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    distances: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    differing: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    largest_sum: dict[str, float] = field(default_factory=lambda: defaultdict(float))


class _Quantizer(nn.Module):
    """An `ActivationQuantizer` in double precision."""

    def __init__(self, name: str, quantizer: ActivationQuantizer, state: list[_Pass]):
        super().__init__()
        self.name, self.grid, self.state = name, quantizer.grid, state
        self.scale = quantizer.scale.double()

    def forward(self, x: Tensor) -> Tensor:
        now = self.state[0]
        position = x.double() / self.scale  # the code of the network may have changed the type
        rounded = _half_away(position) if now.half_away else torch.round(position)
        codes = rounded.clamp_(self.grid.low, self.grid.high)
        call = len(now.codes[self.name])
        now.codes[self.name].append(codes)
        if now.forced is not None:
            wanted = now.forced[self.name][call]
            other = codes != wanted
            if other.any():
                boundary = (codes + wanted)[other] / 2
                distance = (position[other] - boundary).abs().max().item()
                now.distances[self.name] = max(now.distances[self.name], distance)
                now.differing[self.name] += int(other.sum())
            codes = wanted
        return codes * self.scale


def _half_away(position: Tensor) -> Tensor:
    return torch.where(position < 0, torch.ceil(position - 0.5), torch.floor(position + 0.5))


class _Layer(AroundLayer):
    """A `QuantizedLayer` in integers. With a zero-point between two levels, the sum of the inputs is needed, too."""

    def __init__(self, name: str, layer: QuantizedLayer, state: list[_Pass]):
        super().__init__()
        assert layer.activation is not None
        self.name, self.layer, self.state = name, layer.layer, state
        self.activation = _Quantizer(name, layer.activation, state)
        self.scale = layer.scale.double().flatten() * self.activation.scale
        self.codes, self.zero_point = layer.codes.double(), layer.zero_point.double().flatten()
        self.parts = self._exact_parts()
        bias = torch.zeros(()) if layer.layer.bias is None else layer.layer.bias
        self.exact_bias = bias.double() / self.scale
        self.bias_codes = torch.round(self.exact_bias)

    def forward(self, input: Tensor) -> Tensor:
        codes = self.input_codes(input)
        sums = self._product(codes, self.codes)
        now = self.state[0]
        now.largest_sum[self.name] = max(
            now.largest_sum[self.name], (sums + self._channels(self.bias_codes)).abs().max().item()
        )
        bias = self.exact_bias if now.exact_biases else self.bias_codes
        return (self._shifted(sums, codes) + self._channels(bias)) * self._channels(self.scale)

    def input_codes(self, input: Tensor) -> Tensor:
        """The codes of the input."""
        return torch.round(self.activation(input) / self.activation.scale)

    def sums(self, codes: Tensor) -> Tensor:
        """The sums for these codes of the input, with the zero-points and the rounded biases."""
        return self._shifted(self._product(codes, self.codes), codes) + self._channels(self.bias_codes)

    def _shifted(self, sums: Tensor, codes: Tensor) -> Tensor:
        """The sums of products of codes, less what the zero-points of the weights add to them."""
        if not self.zero_point.any():
            return sums
        return sums - self._product(codes, torch.ones_like(self.codes)) * self._channels(self.zero_point)

    def _exact_parts(self) -> list[slice]:
        """Parts of the input channels whose sums are exact in float32; none if there is no such partition."""
        count = self.codes.shape[1]
        groups = isinstance(self.layer, nn.Conv2d) and self.layer.groups > 1
        for size in [count] if groups else [count // number for number in (1, 2, 4, 8, 16) if number <= count]:
            parts = [slice(first, first + size) for first in range(0, count, size)]
            if all(self._largest_sums(self.codes[:, own].abs().clamp(min=1)).max() < EXACT for own in parts):
                return parts
        return []

    def _largest_sums(self, codes: Tensor) -> Tensor:
        """The largest magnitude of each channel's sum with these magnitudes of the weights' codes, for any image."""
        grid = self.activation.grid
        return codes.flatten(1).sum(1) * max(abs(grid.low), abs(grid.high))

    def _product(self, codes: Tensor, weights: Tensor) -> Tensor:
        if not self.parts:
            return self._sums(codes, weights)
        codes, weights = codes.float(), weights.float()
        if len(self.parts) == 1:  # also for groups
            return self._sums(codes, weights).double()
        channels = -1 if isinstance(self.layer, nn.Linear) else 1
        given = [codes.narrow(channels, own.start, weights[:, own].shape[1]) for own in self.parts]
        sums = [self._sums(x, weights[:, own]).double() for x, own in zip(given, self.parts, strict=True)]
        return torch.stack(sums).sum(0)

    def _sums(self, codes: Tensor, weights: Tensor) -> Tensor:
        if isinstance(self.layer, nn.Linear):
            return F.linear(codes, weights)
        return self.layer._conv_forward(codes, weights, None)

    def _channels(self, values: Tensor) -> Tensor:
        """One value per channel, shaped to broadcast: channels are the second dimension of images, else the last."""
        if isinstance(self.layer, nn.Linear) or values.numel() == 1:
            return values
        return values.view(-1, *[1] * (self.layer.weight.dim() - 2))

    def most(self) -> float:
        """The largest magnitude of the accumulator for any image."""
        return float((self._largest_sums(self.codes.abs()) + self.bias_codes.abs()).max())


@torch.no_grad()
def accumulators(layer: QuantizedLayer, input: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The codes of the float `input` of a layer with quantized input, its sums, and the codes of its biases.

    The sums are those of the integer reference, with zero-points and rounded biases. All are doubles, the sums have the
    shape of the layer's output.
    """
    reference = _Layer("", layer, [_Pass()])
    codes = reference.input_codes(input.double())
    return codes, reference.sums(codes), reference.bias_codes


@torch.no_grad()
def largest_accumulator(layer: QuantizedLayer) -> float:
    """The largest magnitude of the accumulator of a layer with quantized input, for any input."""
    return _Layer("", layer, [_Pass()]).most()


def _reference(network: nn.Module, state: list[_Pass]) -> nn.Module:
    """A copy of `network` in double precision with integer layers and quantizers that follow `state[0]`."""
    network = copy.deepcopy(network).double()
    for name, layer in quantized_layers(network).items():
        replace_module(network, name, _Layer(name, layer, state))
    for name, module in list(network.named_modules()):
        if isinstance(module, ActivationQuantizer):
            replace_module(network, name, _Quantizer(name, module, state))
    return network


@torch.inference_mode()
def check_integers(network: nn.Module, images: Tensor, normalize: Normalize) -> IntegerCheck:
    """Compare `network` (on the CPU) with its integer reference on the first of the `images` (N, C, H, W)."""
    state = [_Pass()]
    reference, images = _reference(network, state), images[:IMAGES]
    simulated = _Simulation(copy.deepcopy(network))
    quantizers = {m.name: m for m in reference.modules() if isinstance(m, _Quantizer)}
    values: dict[str, int] = defaultdict(int)
    forced_, exact, free = _Pass(forced={}), _Pass(forced={}, exact_biases=True), _Pass()
    same = same_away = same_fraction = moved = 0
    for batch in images.split(BATCH):
        x = normalize(batch)
        predictions, codes = simulated(x)
        for given in (forced_, exact):
            given.forced, given.codes = codes, defaultdict(list)
            state[0] = given
            reference(x.double())
        free.codes = defaultdict(list)
        state[0] = free
        same += int((reference(x.double()).argmax(1) == predictions).sum())
        for name, calls in free.codes.items():
            moved += sum(int((a != b).sum()) for a, b in zip(calls, codes[name], strict=True))
            values[name] += sum(call.numel() for call in calls)
        state[0] = _Pass(exact_biases=True)
        same_fraction += int((reference(x.double()).argmax(1) == predictions).sum())
        state[0] = _Pass(half_away=True)
        same_away += int((reference(x.double()).argmax(1) == predictions).sum())
    total, count = sum(values.values()), len(images)
    layers = {m.name: m for m in reference.modules() if isinstance(m, _Layer)}
    rows = tuple(
        LevelRow(
            tensor=name,
            bits=code_width(quantizer.grid.levels),
            values=values[name],
            other_level_percent=100 * forced_.differing[name] / max(values[name], 1),
            largest_distance=forced_.distances[name],
            accumulator_bits=_bits(free.largest_sum[name]) if name in layers else None,
            accumulator_bits_at_most=_bits(layers[name].most()) if name in layers else None,
        )
        for name, quantizer in quantizers.items()
    )
    return IntegerCheck(
        images=count,
        agreement=100 * same / count,
        agreement_exact_biases=100 * same_fraction / count,
        agreement_half_away=100 * same_away / count,
        other_level_percent=100 * sum(forced_.differing.values()) / max(total, 1),
        exact_bias_percent=100 * sum(exact.differing.values()) / max(total, 1),
        largest_distance=max(exact.distances.values(), default=0.0),
        propagated_percent=100 * moved / max(total, 1),
        rows=rows,
    )


def _bits(magnitude: float) -> int:
    """The bits of a two's complement number of this magnitude."""
    return int(magnitude).bit_length() + 1


class _Simulation:
    """The simulation, with the codes of all its quantizers."""

    def __init__(self, network: nn.Module):
        self.network = network
        self.codes: dict[str, list[Tensor]] = defaultdict(list)
        layers = {id(layer.activation): name for name, layer in quantized_layers(network).items()}
        for name, module in network.named_modules():
            if isinstance(module, ActivationQuantizer):
                module.register_forward_hook(self._keep(layers.get(id(module), name)))

    def _keep(self, name: str):  # type: ignore[no-untyped-def]
        def keep(quantizer: ActivationQuantizer, _: object, output: Tensor) -> None:
            self.codes[name].append(torch.round(output / quantizer.scale).double())

        return keep

    def __call__(self, images: Tensor) -> tuple[Tensor, dict[str, list[Tensor]]]:
        """Predictions (N,), and the codes of every call of every quantizer."""
        self.codes = defaultdict(list)
        predictions = self.network(images).argmax(1)
        return predictions, self.codes
