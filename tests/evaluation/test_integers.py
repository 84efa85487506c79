"""The integer reference: exact sums, the levels that differ, and what removes the differences."""

import math

import pytest
import torch
from exported import EVERYTHING, random_tests, small_resnet, subject_of
from torch import nn

from ptq_exp.base.errors import UserError
from ptq_exp.evaluation.integers import accumulators, check_integers, fully_quantized
from ptq_exp.quantization.grids import weight_grid
from ptq_exp.quantization.layers import ActivationQuantizer, QuantizedLayer, quantized_layers
from ptq_exp.quantization.options import QuantConfig
from ptq_exp.quantization.steps import check_method

SHIFTS = EVERYTHING | {"grid": "power_of_two", "scales": "power_of_two"}


def test_power_of_two_scales_make_simulation_and_integers_identical() -> None:
    subject = subject_of(small_resnet(), 8, **SHIFTS)
    for module in subject.network.modules():
        if hasattr(module, "grid") and hasattr(module, "alpha"):
            assert math.log2(module.scale.item()).is_integer()
    tests = random_tests(subject)
    found = check_integers(subject.network, tests.images, tests.normalize)
    assert (found.agreement, found.other_level_percent, found.propagated_percent) == (100, 0, 0)
    assert "land on another level" not in found.sentence()


def test_rounded_biases_leave_the_order_of_summation_alone() -> None:
    with_fractions = subject_of(small_resnet(), 4, **EVERYTHING | {"integer_biases": False})
    rounded = subject_of(small_resnet(), 4, **EVERYTHING)
    tests = random_tests(rounded)
    before = check_integers(with_fractions.network, tests.images, tests.normalize)
    after = check_integers(rounded.network, tests.images, tests.normalize)
    assert before.other_level_percent > 10 * after.other_level_percent
    assert after.other_level_percent < 0.01
    assert after.largest_distance < 1e-3


def test_accumulators_are_those_of_an_example_by_hand() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x.flatten(1)[:, :3])

    model = Net().eval()
    model.fc.weight.data = torch.tensor([[1.0, -1.0, 0.5], [0.25, 0.5, 1.0]])
    subject = subject_of(model, 8, size=2, **EVERYTHING | {"act_rule": "max", "act_zero_point": False})
    layer = quantized_layers(subject.network)["fc"]
    assert layer.codes.tolist() == [[127, -127, 64], [32, 64, 127]]
    tests = random_tests(subject)
    (row,) = check_integers(subject.network, tests.images, tests.normalize).rows
    # Signed activations reach -128: 128 x (127 + 127 + 64) = 40,704 takes 16 bits and a sign.
    assert row.accumulator_bits_at_most == 17
    codes = layer.activation.scale.reciprocal() * tests.normalize(tests.images).flatten(1)[:, :3]
    sums = codes.round().clamp(-128, 127) @ layer.codes.float().T
    assert row.accumulator_bits == int(sums.abs().max()).bit_length() + 1


@pytest.mark.parametrize(
    ("channels", "groups", "bits"), [(2000, 1, 8), (2001, 1, 8), (64, 1, 12), (64, 64, 8), (16, 1, 4)]
)
@pytest.mark.parametrize("linear", [False, True])
def test_sums_are_exact_however_large_they_are(channels: int, groups: int, bits: int, linear: bool) -> None:
    """Float32 alone would round sums above 2^24."""
    torch.manual_seed(0)
    layer = nn.Linear(channels, 8) if linear else nn.Conv2d(channels, max(8, groups), 3, groups=groups)
    with torch.no_grad():
        layer.weight.uniform_(0.9, 1.0)
    grid = weight_grid(bits, "included", "symmetric")
    scale = torch.tensor([1 / grid.high])
    quantized = QuantizedLayer(layer, grid, scale, torch.tensor([0.0]), bits)
    quantized.activation = ActivationQuantizer(8, 255.0)
    x = torch.randint(200, 256, (2, channels) if linear else (2, channels, 4, 4)).float()
    _, sums, biases = accumulators(quantized, x)
    whole = quantized.codes.long()
    if linear:
        wanted = x.long() @ whole.T + biases.long()
    else:
        patches = torch.nn.functional.unfold(x.double(), 3).long().view(2, groups, -1, 4)
        products = torch.einsum("gok,ngkp->ngop", whole.view(groups, len(whole) // groups, -1), patches)
        wanted = products.reshape(2, len(whole), 2, 2) + biases.long().view(-1, 1, 1)
    assert torch.equal(sums.long(), wanted)
    if channels >= 2000:
        assert int(sums.abs().max()) > 2**24


def test_it_needs_levels_everywhere() -> None:
    assert fully_quantized(subject_of(small_resnet(), 4, **EVERYTHING).network, "all")
    assert not fully_quantized(subject_of(small_resnet(), 4).network, "layers")
    assert not fully_quantized(subject_of(small_resnet(), 4, act_bits=8).network, "layers")


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"integer_biases": True}, "needs quantized activations"),
     ({"integer_biases": True, "act_bits": 8, "grid": "float_zero_point"}, "zero among its levels"),
     ({"scales": "power_of_two", "act_bits": 8}, "Set quant.grid=power_of_two"),
     ({"scales": "power of two"}, "Did you mean 'power_of_two'")],
)  # fmt: skip
def test_what_does_not_go_together_is_said(changes: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_method(QuantConfig(**changes))  # type: ignore[arg-type]
