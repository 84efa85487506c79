"""AIMET (aimet-torch): batch-norm folding, AdaRound, ranges by `post_training_tf_enhanced`.

The recommended order of its documentation: `prepare_model`, `fold_all_batch_norms`, AdaRound, then a
`QuantizationSimModel` with the frozen weight encodings. Weights are symmetric per channel, activations asymmetric per
tensor. AIMET recommends cross-layer equalization for per-tensor weights, so it is not used. AdaRound takes 1,000 steps
per layer (AIMET's default below 8 bits is 15,000), and is not used from 7 bits on. The activations are quantized at the
input of each convolution and linear layer, except for the image, as in `quant=best`.
"""

import copy
import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.peers.common import batches

CANNOT: dict[str, str] = {}
SETTINGS: dict[str, Any] = {"adaround_steps": 1000, "batch_size": 32, "scheme": "post_training_tf_enhanced"}


def quantize(model: nn.Module, images: Tensor, bits: int, act_bits: int | None) -> nn.Module:
    """A fake-quantized copy of the float `model`, calibrated on normalized `images` (N, 3, H, W)."""
    network: nn.Module = simulation(model, images, bits, act_bits).model
    return network.eval()


def simulation(model: nn.Module, images: Tensor, bits: int, act_bits: int | None) -> Any:
    """The same as AIMET's `QuantizationSimModel`, which also writes files."""
    from aimet_torch import QuantizationSimModel
    from aimet_torch.common.defs import QuantScheme

    rounded, encodings = adaround(model, images, bits) if bits < 7 else (folded(model, images), None)
    with tempfile.TemporaryDirectory() as folder:
        sim = QuantizationSimModel(
            rounded, images[:1], QuantScheme.post_training_tf_enhanced, default_param_bw=bits,
            config_file=config_file(folder),
        )  # fmt: skip
        if encodings:
            path = Path(folder) / "weights.encodings"
            path.write_text(encodings)
            sim.set_and_freeze_param_encodings(str(path))
    if act_bits:
        quantize_inputs(sim.model, act_bits)
    sim.compute_encodings(run, images)
    return sim


def quantize_inputs(network: nn.Module, act_bits: int) -> None:
    """Give every convolution and linear layer except the first an input quantizer, in place.

    A configuration file cannot express this: it rejects a tensor that enters a convolution and an addition.
    """
    from aimet_torch.quantization.affine import QuantizeDequantize
    from aimet_torch.quantization.encoding_analyzer import TfEnhancedEncodingAnalyzer

    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    for layer in layers[1:]:
        analyzer = TfEnhancedEncodingAnalyzer(())
        quantizer = QuantizeDequantize((), act_bits, symmetric=False, encoding_analyzer=analyzer)
        layer.input_quantizers[0] = quantizer.to(layer.weight.device)


@functools.lru_cache(maxsize=2)
def adaround(model: nn.Module, images: Tensor, bits: int) -> tuple[nn.Module, str]:
    """The folded network with weights rounded by AdaRound, and their encodings as JSON.

    AdaRound sees float activations, so W4, W4A8 and W4A4 of a network share the result.
    """
    from aimet_torch.adaround.adaround_weight import Adaround, AdaroundParameters

    class Loader(list):
        """The interface that AIMET expects of a loader: batches of inputs, and their number."""

        batch_size = SETTINGS["batch_size"]

    loader = Loader(batches(images, SETTINGS["batch_size"]))
    parameters = AdaroundParameters(
        loader, len(loader), default_num_iterations=SETTINGS["adaround_steps"], forward_fn=lambda net, x: net(x)
    )
    with tempfile.TemporaryDirectory() as folder:
        rounded = Adaround.apply_adaround(
            folded(model, images), images[:1], parameters, folder, "weights", default_param_bw=bits,
            default_config_file=config_file(folder),
        )  # fmt: skip
        return rounded, (Path(folder) / "weights.encodings").read_text()


def folded(model: nn.Module, images: Tensor) -> nn.Module:
    """A copy with modules in place of functions and with batch norms folded into convolutions."""
    from aimet_torch.batch_norm_fold import fold_all_batch_norms
    from aimet_torch.model_preparer import prepare_model

    prepared = prepare_model(copy.deepcopy(model)).eval().to(memory_format=torch.channels_last)
    fold_all_batch_norms(prepared, tuple(images[:1].shape), dummy_input=images[:1])
    return prepared


def config_file(folder: str) -> str:
    """A quantsim configuration that quantizes the weights of convolutions and linear layers and nothing else."""
    config = {
        "defaults": {
            "ops": {}, "params": {"is_quantized": "True", "is_symmetric": "True"}, "strict_symmetric": "False",
            "per_channel_quantization": "True",
        },
        "params": {"bias": {"is_quantized": "False"}},
        "op_type": {"BatchNormalization": {"params": {"weight": {"is_quantized": "False"}}}},
        "supergroups": [], "model_input": {}, "model_output": {},
    }  # fmt: skip
    path = Path(folder) / "config.json"
    path.write_text(json.dumps(config))
    return str(path)


def run(network: nn.Module, images: Tensor) -> None:
    """Show `network` all images."""
    with torch.no_grad():
        for batch in batches(images, SETTINGS["batch_size"]):
            network(batch)
