"""torchao: PT2E quantization (`prepare_pt2e`, `convert_pt2e`) with a quantizer written as its tutorial describes.

torchao's other interface, `quantize_`, leaves convolutions float. Its own quantizers for PT2E have 8 bits only. The one
here annotates every convolution and linear layer, except for the image, with a `QuantizationSpec` of any width.
Weights: affine per channel, `PerChannelMinMaxObserver`. Activations: affine per tensor, `HistogramObserver`. These are
the observers of its quantizer for x86, whose weights are symmetric; affine weights use all levels below 8 bits. PT2E
has no learned rounding and no bias correction. It folds the batch norms that follow a convolution.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

CANNOT: dict[str, str] = {}
SETTINGS: dict[str, Any] = {
    "weights": "affine, PerChannelMinMaxObserver", "activations": "affine, HistogramObserver", "batch_size": 64,
}  # fmt: skip
LAYERS = (torch.ops.aten.conv2d.default, torch.ops.aten.linear.default)


def quantize(model: nn.Module, images: Tensor, bits: int, act_bits: int | None) -> nn.Module:
    """A quantized copy of the float `model`, calibrated on normalized `images` (N, 3, H, W)."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    batch = images[: SETTINGS["batch_size"]]
    dynamic = {0: torch.export.Dim("batch", min=1, max=1024)}
    exported = torch.export.export(copy.deepcopy(model).eval(), (batch,), dynamic_shapes=(dynamic,)).module()
    prepared = prepare_pt2e(exported, quantizer(bits, act_bits))
    with torch.no_grad():
        for chunk in images.split(SETTINGS["batch_size"]):
            prepared(chunk)
    return convert_pt2e(prepared)


def quantizer(bits: int, act_bits: int | None) -> Any:
    """A PT2E quantizer of all weights, and of all layers' inputs except the image."""
    from torchao.quantization.pt2e.observer import HistogramObserver, PerChannelMinMaxObserver
    from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, QuantizationSpec, Quantizer

    weight = QuantizationSpec(
        dtype=torch.int8, quant_min=-(2 ** (bits - 1)), quant_max=2 ** (bits - 1) - 1, ch_axis=0,
        qscheme=torch.per_channel_affine, observer_or_fake_quant_ctr=PerChannelMinMaxObserver.with_args(eps=2**-12),
    )  # fmt: skip
    activation = act_bits and QuantizationSpec(
        dtype=torch.uint8, quant_min=0, quant_max=2**act_bits - 1, qscheme=torch.per_tensor_affine,
        observer_or_fake_quant_ctr=HistogramObserver.with_args(eps=2**-12),
    )  # fmt: skip

    class Layers(Quantizer):
        """Annotates the inputs and weights of `LAYERS`."""

        def annotate(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
            for node in model.graph.nodes:
                if node.target in LAYERS:
                    source, weights = node.args[:2]
                    specs = {weights: weight}
                    if activation and source.op != "placeholder":
                        specs[source] = activation
                    node.meta["quantization_annotation"] = QuantizationAnnotation(
                        input_qspec_map=specs, _annotated=True
                    )
            return model

        def validate(self, model: torch.fx.GraphModule) -> None:
            """Nothing to check: every layer of these networks has weights of its own."""

    return Layers()
