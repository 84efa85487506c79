"""Folding, equalization, bias correction and re-estimation: what they leave and what they restore."""

import copy

import pytest
import torch
from conftest import network, prepare, quantize
from samples import LEARNED, images
from torch import nn

from ptq_exp.quantization.options import QuantConfig
from ptq_exp.quantization.steps.correct_biases import correct_biases, output_means
from ptq_exp.quantization.steps.equalize import equalize
from ptq_exp.quantization.steps.fold_batch_norm import fold_batch_norm
from ptq_exp.quantization.steps.reestimate_batch_norm import reestimate_batch_norm


@pytest.mark.parametrize("model", [network(), network(shortcut="pad"), network("vgg", depth=11)])
def test_folding_and_equalization_leave_the_function(model: nn.Module) -> None:
    x = images(8, size=32)
    folded = copy.deepcopy(model)
    names = fold_batch_norm(folded)
    assert len(names) == sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    with torch.no_grad():
        assert torch.allclose(folded(x), model(x), rtol=1e-4, atol=1e-4)
        before = {n: p.clone() for n, p in folded.named_parameters()}
        equalize(folded)
        assert torch.allclose(folded(x), model(x), rtol=1e-4, atol=1e-4)
    assert any(not torch.equal(p, before[n]) for n, p in folded.named_parameters())


def test_equalization_equalizes() -> None:
    model = network()
    fold_batch_norm(model)
    model.get_submodule("layer1.0.conv1").weight.data[0] *= 50
    equalize(model)
    rows = model.get_submodule("layer1.0.conv1").weight.flatten(1).abs().amax(1)
    columns = model.get_submodule("layer1.0.conv2").weight.transpose(0, 1).flatten(1).abs().amax(1)
    assert torch.allclose(rows, columns, rtol=1e-3)


def test_bias_correction_restores_the_mean_of_every_output() -> None:
    model, x = network(), images()
    config = QuantConfig(**LEARNED)
    reference = prepare(model, config)
    quantized, _ = quantize(model, config, 2, x)
    name = "layer2.0.conv2"
    gap = output_means(quantized, [name], x)[name] - output_means(reference, [name], x)[name]
    correct_biases(quantized, reference, x)
    names = ["conv1", "layer2.0.conv2", "linear"]
    left, wanted = output_means(quantized, names, x), output_means(reference, names, x)
    for name in names:
        assert (left[name] - wanted[name]).abs().max() < 1e-4
    assert gap.abs().max() > 1e-2


def test_batch_norm_reestimation_takes_the_statistics_of_the_images() -> None:
    model, x = network(), images()
    reestimate_batch_norm(model, x)
    seen: list[torch.Tensor] = []
    model.get_submodule("bn1").register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    model(x)
    assert torch.allclose(model.get_submodule("bn1").running_mean, seen[0].mean((0, 2, 3)), atol=1e-5)
    assert not model.training
    assert not any(module.training for module in model.modules())


def test_batch_norm_reestimation_counts_every_image_once() -> None:
    """257 images are no full batch and one image that counts as much."""
    model, x = nn.Sequential(nn.BatchNorm2d(3)), torch.zeros(257, 3, 4, 4)
    x[256] = 257.0
    reestimate_batch_norm(model, x)
    assert torch.allclose(model[0].running_mean, torch.ones(3), atol=0.01)
