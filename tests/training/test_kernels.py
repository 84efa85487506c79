"""The Triton kernels against plain PyTorch: tiny shapes in Triton's interpreter, and real ones on a CUDA device."""

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptq_exp.base.machine import tf32, triton_works
from ptq_exp.networks import build_model
from ptq_exp.networks.resnet import ResNet
from ptq_exp.quantization.layers import ActivationQuantizer
from ptq_exp.training.fused import fuse, usable

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreter = pytest.mark.skipif(not INTERPRETED, reason="runs inside the test that starts the interpreter")
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def network(shortcut: str, device: str = "cpu", depth: int = 8) -> ResNet:
    """A network whose batch norms do something."""
    torch.manual_seed(0)
    model = build_model("resnet", 10, depth=depth, shortcut=shortcut)
    assert isinstance(model, ResNet)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)
    return model.to(device)


def distance(a: Tensor, b: Tensor) -> float:
    """Relative to b's norm."""
    return float((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-30))


def compare(model: ResNet, precision: str, images: Tensor, tolerance: float, buffers: float) -> list[Tensor]:
    """Logits, gradients and buffers of two passes are those of float64; the gradients."""
    reference = copy.deepcopy(model).double()
    labels = torch.arange(len(images), device=images.device) % 10
    fused = fuse(model, precision, images.shape)
    assert fused is not None
    for _ in range(2):
        model.zero_grad()
        reference.zero_grad()
        logits, wanted = fused(images), reference(images.double())
        F.cross_entropy(logits, labels).backward()
        F.cross_entropy(wanted, labels).backward()
        assert distance(logits, wanted) < tolerance
    for (name, one), other in zip(model.named_parameters(), reference.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert distance(one.grad, other.grad) < tolerance, name
    for (name, buffer), other_buffer in zip(model.named_buffers(), reference.named_buffers(), strict=True):
        assert distance(buffer, other_buffer[1]) < buffers, name
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="is the one that starts it")
def test_in_the_interpreter() -> None:
    """Triton reads TRITON_INTERPRET when it is imported: a process of its own."""
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "pytest", "-q", "-k", "interpreted", str(Path(__file__))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-3000:]


@interpreter
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("shortcut", ["conv", "pad"])
def test_interpreted_passes_equal_plain_pytorch(shortcut: str, layout: torch.memory_format) -> None:
    torch.manual_seed(1)
    compare(network(shortcut).to(memory_format=layout), "fp32", torch.randn(3, 3, 8, 8), 2e-5, 1e-5)


@interpreter
def test_interpreted_gradients_need_no_copy() -> None:
    """What the kernels write is what the optimizer reads."""
    model = network("conv").to(memory_format=torch.channels_last)
    fused = fuse(model, "fp32", torch.Size((2, 3, 8, 8)))
    assert fused is not None
    fused(torch.randn(2, 3, 8, 8)).sum().backward()
    storages = {p.grad.untyped_storage().data_ptr() for p in model.parameters() if p.grad is not None}
    assert len(storages) == 3  # one for all but the linear layer's weight and bias


@interpreter
def test_interpreted_nan_survives() -> None:
    model = network("conv")
    fused = fuse(model, "fp32", torch.Size((2, 3, 8, 8)))
    assert fused is not None
    images = torch.randn(2, 3, 8, 8)
    images[0, 0, 0, 0] = torch.nan
    assert fused(images).isnan().any()


def check_fake_quantize(device: str) -> None:
    """The kernel, and the module through it, give the bits of PyTorch's own operations."""
    from ptq_exp.quantization.activation_kernel import fake_quantize

    assert usable(torch.device(device))
    torch.manual_seed(0)
    for bits, lowest, alpha in ((8, 0, 3.7), (4, -5, 1.0), (2, -2, 0.9), (1, 0, 2.0), (16, -(2**15), 5.0)):
        quantizer = ActivationQuantizer(bits, alpha, lowest).to(device)
        low, high = quantizer.grid.low, quantizer.grid.high
        scale = quantizer.alpha / high
        x = 2 * torch.randn(3, 5, 7, 11, device=device)
        x.view(-1)[:40] = scale * (torch.arange(40, device=device) - 20 + 0.5)  # ties
        x.view(-1)[40:45] = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e30, -1e-30])
        wanted = torch.div(x, scale).round().clamp(low, high) * scale
        for layout in (torch.contiguous_format, torch.channels_last):
            here = x.contiguous(memory_format=layout)
            with torch.no_grad():
                for found in (
                    fake_quantize(here, quantizer.alpha, low, high),
                    quantizer(here),
                    quantizer(here[:, ::2, 1:]),
                ):
                    expected = wanted if found.shape == wanted.shape else wanted[:, ::2, 1:]
                    assert torch.equal(found.nan_to_num(nan=1e9), expected.nan_to_num(nan=1e9))
            assert quantizer(here).stride() == here.stride()
        assert fake_quantize(x[:0], quantizer.alpha, low, high).shape == (0, 5, 7, 11)


@interpreter
def test_interpreted_fake_quantization_has_pytorchs_bits() -> None:
    check_fake_quantize("cpu")


@interpreter
def test_interpreted_no_compiler_means_plain_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton compiles with the machine's C compiler; without one everything works, only slower."""

    def fails(*_: Any) -> None:
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr("ptq_exp.quantization.activation_kernel.fake_quantize", fails)
    monkeypatch.setattr("ptq_exp.training.fused.weights.add_up_weights", {(1,): fails})
    triton_works.cache_clear()
    try:
        assert fuse(network("conv"), "fp32") is None
        with torch.no_grad():
            assert ActivationQuantizer(4, 1.5)(torch.tensor([[0.11, 2.0]])).tolist() == [[pytest.approx(0.1), 1.5]]
    finally:
        triton_works.cache_clear()


@cuda
@pytest.mark.cuda
def test_on_cuda_fake_quantization_has_pytorchs_bits() -> None:
    check_fake_quantize("cuda")


def test_unknown_models_fall_back() -> None:
    """Without kernels for it, a model trains as before."""
    assert fuse(build_model("vgg", 10, depth=16), "fp32") is None
    model = network("conv")
    model.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=True)
    assert fuse(model, "fp32") is None
    model = network("conv")
    model.bn1 = nn.BatchNorm2d(16, momentum=None)
    assert fuse(model, "fp32") is None
    thin = build_model("resnet", 10, depth=8, shortcut="pad", channels=[16, 16, 64])
    assert fuse(thin, "fp32") is None
    assert fuse(network("conv"), "fp64") is None
    assert fuse(network("conv"), "fp32", torch.Size((2, 3, 30, 30))) is None
    if not INTERPRETED:
        assert fuse(network("conv"), "fp32") is None  # on the CPU


def gradient_error(model: ResNet, forward: Callable[[Tensor], Tensor], images: Tensor) -> tuple[float, list[Tensor]]:
    """The largest relative error of a parameter's gradient against float64, and the gradients."""
    reference = copy.deepcopy(model).double()
    labels = torch.arange(len(images), device=images.device) % 10
    model.zero_grad()
    F.cross_entropy(forward(images).float(), labels).backward()
    F.cross_entropy(reference(images.double()), labels).backward()
    grads = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    wanted = [parameter.grad for parameter in reference.parameters() if parameter.grad is not None]
    assert len(grads) == len(wanted) == len(list(model.parameters()))
    return max(distance(one, other) for one, other in zip(grads, wanted, strict=True)), [g.clone() for g in grads]


@cuda
@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("shortcut", ["conv", "pad"])
def test_on_cuda_gradients_are_as_exact_as_plain_pytorchs(shortcut: str, precision: str) -> None:
    """Where a ReLU's input is nearly zero any rounding decides: plain PyTorch in the same precision is the measure."""
    torch.manual_seed(1)
    images = torch.randn(48, 3, 32, 32, device="cuda")
    plain = network(shortcut, "cuda", 20).to(memory_format=torch.channels_last)

    def forward(x: Tensor) -> Tensor:
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
            logits: Tensor = plain(x)
        return logits

    with tf32(precision == "tf32"):
        allowed, _ = gradient_error(plain, forward, images)
    results = []
    for _ in range(2):
        model = network(shortcut, "cuda", 20).to(memory_format=torch.channels_last)
        fused = fuse(model, precision, images.shape)
        assert fused is not None
        results.append(gradient_error(model, fused, images))
    assert results[0][0] < 2 * allowed
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))  # the same bits


@cuda
@pytest.mark.cuda
def test_on_cuda_gradients_do_not_depend_on_which_stream_is_quicker() -> None:
    """The weights' gradients are computed beside the rest, from maps whose memory must not be used again meanwhile."""
    torch.manual_seed(1)
    images = torch.randn(160, 3, 32, 32, device="cuda")
    grads = []
    for delay in (0, 200_000_000):
        model = network("conv", "cuda", 20).to(memory_format=torch.channels_last)
        fused: Any = fuse(model, "fp32", images.shape)
        loss = fused(images).square().sum()
        with torch.cuda.stream(fused.side):
            torch.cuda._sleep(delay)  # cycles
        loss.backward()
        grads.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
