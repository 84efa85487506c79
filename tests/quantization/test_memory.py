"""Memory of learned rounding at the size of ImageNet's images."""

import dataclasses

import pytest
import torch

from ptq_exp.config.compose import compose
from ptq_exp.quantization.context import Calibration
from ptq_exp.quantization.quantize import quantize


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_resnet18_at_224_pixels_fits_into_12_gib() -> None:
    """With 1,024 calibration images, few steps, and 4-bit weights and activations."""
    from torchvision.models import resnet18

    torch.manual_seed(0)
    model = resnet18(num_classes=10).cuda().eval().to(memory_format=torch.channels_last)
    images = torch.randn(1024, 3, 224, 224, device="cuda")
    options = compose("quant=best").quant
    how = dataclasses.replace(options.reconstruction, steps=6, distill_steps=6)
    options = dataclasses.replace(options, act_bits=4, reconstruction=how)
    torch.cuda.reset_peak_memory_stats()
    quantized = quantize(model, options, 4, Calibration(images, 0))
    peak = torch.cuda.max_memory_allocated() / 2**30
    print(f"peak {peak:.2f} GiB")
    assert peak < 12
    with torch.no_grad():
        assert torch.isfinite(quantized.network(images[:2])).all()
