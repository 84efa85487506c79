"""The integer reference: exact sums, the levels that differ, and what removes the differences."""

import math

import pytest
import torch
from exported import EVERYTHING, random_tests, small_resnet, subject_of
from torch import nn

from ptq_exp.base.errors import UserError
from ptq_exp.evaluation.integers import check_integers, fully_quantized
from ptq_exp.quantization.layers import quantized_layers
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
