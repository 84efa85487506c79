"""Which layer gets how many bits: policies and mixed precision."""

import itertools
from dataclasses import replace

import pytest
import torch
from conftest import network, prepare, quantize
from samples import LEARNED, error, images

from ptq_exp.base.errors import UserError
from ptq_exp.quantization.allocation import allocate, sensitivities
from ptq_exp.quantization.options import QuantConfig, ReconstructionConfig
from ptq_exp.quantization.rounding import plan_bits
from ptq_exp.quantization.traced import Traced


def test_policies_for_layers() -> None:
    model = network()
    every = QuantConfig(layers="all")
    names = list(plan_bits(Traced(model), every, 3))
    assert names[0] == "conv1"
    assert names[-1] == "linear"
    assert "linear" not in plan_bits(Traced(model), QuantConfig(), 3)
    eight = plan_bits(Traced(model), replace(every, first_and_last="eight"), 3)
    assert (eight["conv1"], eight["linear"], eight["layer1.0.conv1"]) == (8, 8, 3)
    spared = plan_bits(Traced(model), replace(every, first_and_last="float"), 3)
    assert set(names) - set(spared) == {"conv1", "linear"}
    pattern = plan_bits(Traced(model), replace(every, layer_bits={"layer3.*": 5, "linear": 6}), 3)
    assert {name: bits for name, bits in pattern.items() if bits != 3} == {
        "layer3.0.conv1": 5, "layer3.0.conv2": 5, "layer3.0.shortcut.0": 5, "linear": 6,
    }  # fmt: skip
    with pytest.raises(UserError, match=r"'layer9\.\*' matches no layer"):
        plan_bits(Traced(model), replace(every, layer_bits={"layer9.*": 5}), 3)


def test_the_allocator_is_exact() -> None:
    """Against every plan there is, on random sensitivities and budgets."""
    generator = torch.Generator().manual_seed(0)
    config = QuantConfig(**LEARNED, mixed=True, mixed_candidates=[1, 2, 4])
    for _ in range(25):
        weights = {name: int(torch.randint(10, 1000, (1,), generator=generator)) for name in "abcde"}
        found = {
            name: {bits: float(torch.rand(1, generator=generator)) / 4**bits for bits in (1, 2, 4)} for name in "abcde"
        }
        budget = (1 + 3 * float(torch.rand(1, generator=generator))) * sum(weights.values())
        plan = allocate(found, weights, budget, config)
        best = min(
            sum(found[n][b] for n, b in zip("abcde", widths, strict=True))
            for widths in itertools.product((1, 2, 4), repeat=5)
            if sum(weights[n] * b for n, b in zip("abcde", widths, strict=True)) <= budget
        )
        assert sum(weights[n] * b for n, b in plan.items()) <= budget
        assert sum(found[n][b] for n, b in plan.items()) == pytest.approx(best)


@pytest.mark.slow
def test_mixed_precision_meets_its_budget_and_beats_uniform() -> None:
    model, x = network(), images(64, size=32)
    config = QuantConfig(**LEARNED)
    uniform, uniform_report = quantize(model, config, 3, x)
    mixed, report = quantize(model, replace(config, mixed=True), 3, x)
    assert report.bits_mean <= 3
    assert report.size_bytes <= uniform_report.size_bytes
    assert error(mixed, model, x) < error(uniform, model, x)
    assert len({row.stored_bits for row in report.layers}) > 1
    _, report = quantize(model, replace(config, mixed=True, size_budget=uniform_report.size_bytes), 3, x)
    assert 0.97 * uniform_report.size_bytes <= report.size_bytes <= uniform_report.size_bytes
    _, report = quantize(model, replace(config, mixed=True, mean_bits=2.25), 3, x)
    assert 2.1 <= report.bits_mean <= 2.25
    with pytest.raises(UserError, match="smallest"):
        quantize(model, replace(config, mixed=True, mean_bits=0.5), 3, x)


def test_sensitivity_falls_with_the_bits() -> None:
    model, x = network(), images(32)
    config = QuantConfig(**LEARNED, mixed=True, mixed_candidates=[2, 4, 8])
    found = sensitivities(Traced(prepare(model, config)), config, x)
    assert set(found) == set(plan_bits(Traced(prepare(model, config)), config, 4))
    for by_bits in found.values():
        assert by_bits[2] > by_bits[4] > by_bits[8] >= -1e-6


@pytest.mark.slow
def test_sensitivities_count_what_distillation_makes_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptq_exp.quantization.allocation.LEARNING_STEPS", 12)
    model, x = network(), images(64)
    nearest = QuantConfig(**LEARNED, mixed=True, mixed_candidates=[1, 8])
    learned = replace(nearest, reconstruction=ReconstructionConfig(distill_steps=1, distill_batch_size=16))
    reference = prepare(model, nearest)
    at_once, later = (sensitivities(Traced(reference), config, x) for config in (nearest, learned))
    assert sum(row[1] for row in later.values()) < 0.7 * sum(row[1] for row in at_once.values())
    assert all(later[name][8] == at_once[name][8] for name in later)


@pytest.mark.parametrize("act_bits", [None, 8])
@pytest.mark.parametrize("grid", ["symmetric", "float_zero_point"])
def test_the_size_of_a_uniform_network_is_a_budget_that_it_fits(grid: str, act_bits: int | None) -> None:
    model, x = network(), images(8, size=32)
    config = QuantConfig(**LEARNED | {"grid": grid}, act_bits=act_bits)
    _, uniform = quantize(model, config, 4, x)
    only = replace(config, mixed=True, mixed_candidates=[4, 5], size_budget=uniform.size_bytes)
    _, report = quantize(model, only, 4, x)
    assert {row.stored_bits for row in report.layers} == {4.0}
    assert report.size_bytes <= uniform.size_bytes
