"""Frequent activations on the boundary between two levels."""

import pytest
import torch
from samples import LEARNED
from torch import Tensor, nn

from ptq_exp.quantization.context import Calibration
from ptq_exp.quantization.layers import ActivationQuantizer, quantized_layers
from ptq_exp.quantization.options import QuantConfig, ReconstructionConfig
from ptq_exp.quantization.quantize import quantize
from ptq_exp.quantization.steps.separate_ties import separate_ties


def images(values: list[float], rare: float = 0.2) -> Tensor:
    """16 images. Half of them have `values`, and each has one of its own beside `rare`."""
    x = torch.full((16, 8), rare)
    x[:, 0] += torch.arange(16) / 1000
    x[::2, 1 : 1 + len(values)] = torch.tensor(values)
    return x


@pytest.mark.parametrize("frequent", [[1.5], [0.5, 2.5], [0.5 - 2e-6], [2.5 + 1e-6, 2.2]])
def test_a_frequent_value_leaves_the_boundary_and_keeps_its_level(frequent: list[float]) -> None:
    quantizer = ActivationQuantizer(2, 3.0)
    x = images(frequent)
    levels = quantizer(x).detach()
    separate_ties(nn.Sequential(quantizer), x)
    assert 0 < abs(quantizer.alpha.item() / 3 - 1) < 5e-5
    torch.testing.assert_close(quantizer(x), levels, rtol=1e-4, atol=0)
    position = x / quantizer.scale
    assert (position - position.floor() - 0.5).abs().min() >= 5e-6


def test_the_quantizer_behind_another_one_sees_its_changed_levels() -> None:
    first, second = ActivationQuantizer(2, 3.0), ActivationQuantizer(2, 6.0)  # the second one's boundary is at 1
    network = nn.Sequential(first, second)
    x = images([1.5, 1.0])
    before = network(x).detach()
    separate_ties(network, x)
    torch.testing.assert_close(network(x), before, rtol=1e-4, atol=0)
    position = first(x) / second.scale
    assert (position - position.floor() - 0.5).abs().min() >= 5e-6


def test_rare_values_and_wide_quantizers_stay_as_they_are() -> None:
    rare, wide = ActivationQuantizer(2, 3.0), ActivationQuantizer(8, 255.0)
    x = images([1.2])
    x[0, 5] = 1.5
    separate_ties(nn.Sequential(rare), x)
    separate_ties(nn.Sequential(wide), images([1.5]))
    assert (rare.alpha.item(), wide.alpha.item()) == (3.0, 255.0)


@pytest.mark.parametrize(("rounding", "act_learned"), [("block", True), ("block", False), ("nearest", True)])
def test_only_learned_scales_are_changed_behind_the_image(rounding: str, act_learned: bool) -> None:
    network = nn.Sequential(nn.ReLU(), nn.Conv2d(1, 1, 1), nn.Conv2d(1, 2, 1), nn.Flatten(), nn.LazyLinear(3)).eval()
    x = images([1.5, 3.0]).view(16, 1, 2, 4)
    network(x)
    with torch.no_grad():
        network[1].weight.fill_(1)
        network[1].bias.fill_(0)
    short = ReconstructionConfig(steps=1, batch_size=4, act_lr=0)
    changes = {"act_bits": 2, "act_rule": "max", "act_learned": act_learned}
    options = QuantConfig(**LEARNED | changes, rounding=rounding, reconstruction=short)
    quantized = quantize(network, options, 2, Calibration(x)).network
    (second, *_) = (module for module in quantized.modules() if isinstance(module, ActivationQuantizer))
    assert (second.alpha.item() != 3.0) == (rounding == "block" and act_learned)
    assert second.alpha.item() == pytest.approx(3.0, rel=1e-4)


PIXELS = {"sign_bit": "included", "layers": "all", "act_bits": 8, "act_rule": "max", "act_input_image": True}


def quantizer_of_the_image(x: Tensor, **changes: object) -> ActivationQuantizer:
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.LazyLinear(3)).eval()
    network(x)
    quantized = quantize(network, QuantConfig(**PIXELS | changes), 8, Calibration(x)).network
    return next(module for module in quantized.modules() if isinstance(module, ActivationQuantizer))


def test_a_pixel_on_the_boundary_between_two_levels_leaves_it() -> None:
    x = images([0.5 + 100, 255.0], rare=3.2).view(16, 1, 2, 4)
    quantizer = quantizer_of_the_image(x)
    assert 0 < abs(quantizer.alpha.item() / 255 - 1) < 1.1e-4
    position = x.double() / quantizer.scale.double()
    assert (position - position.floor() - 0.5).abs().min() >= 9e-5


@pytest.mark.parametrize("changes", [{"act_alpha": 255.0}, {"scales": "power_of_two", "grid": "power_of_two"}])
def test_a_given_range_and_scales_that_are_powers_of_two_stay(changes: dict[str, object]) -> None:
    x = images([0.5 + 100, 255.0], rare=3.2).view(16, 1, 2, 4)
    assert quantizer_of_the_image(x, **changes).alpha.item() == 255.0


def test_without_pixels_on_a_boundary_the_range_of_the_image_stays() -> None:
    x = images([100.2, 255.0], rare=3.2).view(16, 1, 2, 4)
    assert quantizer_of_the_image(x).alpha.item() == 255.0


def test_a_first_layer_that_stays_float_has_no_range() -> None:
    x = images([0.5 + 100, 255.0], rare=3.2).view(16, 1, 2, 4)
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1), nn.Flatten(), nn.LazyLinear(3)).eval()
    network(x)
    options = QuantConfig(**PIXELS, first_and_last="float")
    assert [*quantized_layers(quantize(network, options, 8, Calibration(x)).network)] == ["1"]
