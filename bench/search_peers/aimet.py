"""AIMET: automatic mixed precision, `choose_mixed_precision`, with the margin as `allowed_accuracy_drop`.

Batch norms are folded. The candidates are W8A16, W8A8, W4A8 and W4A4. AIMET quantizes the weights per channel and the
outputs of all operations (its file default_config_per_channel.json), with ranges by `post_training_tf_enhanced`.
Weights are rounded to nearest: AdaRound fixes one width before this search, so it is not used.

Phase 1 measures the sensitivity of each group of quantizers: the signal-to-noise ratio of the outputs on 128
calibration images, AIMET's default. Phase 2 lowers the groups in this order. A binary search finds the last point
within the margin, on 2,000 training images. Only its result is evaluated on the 10,000 test images. aimet-torch 2.42
has no AutoQuant.
"""

import tempfile
from importlib.resources import files
from typing import Any

from torch import nn
from torch.utils.data import DataLoader

from bench.peers.aimet import SETTINGS, folded, run
from bench.search_peers.material import Material, widths

QUESTION = "Which of the given widths can each group of quantizers have so that the drop stays within the margin?"
CANDIDATES = ((8, 16), (8, 8), (4, 8), (4, 4))  # bits of weights, of activations


def answer(material: Material, margin: float) -> dict[str, Any]:
    """Run the automatic mixed precision once."""
    from aimet_torch import QuantizationSimModel
    from aimet_torch.amp.mixed_precision_algo import EvalCallbackFactory
    from aimet_torch.common.defs import CallbackFunc, QuantizationDataType, QuantScheme
    from aimet_torch.mixed_precision import choose_mixed_precision

    kind, images = QuantizationDataType.int, material.calibration
    scores: list[float] = []
    loader: DataLoader = DataLoader(images, SETTINGS["batch_size"])  # type: ignore[arg-type]

    def evaluate(network: nn.Module, _: Any) -> float:
        scores.append(material.search_top1(network))
        print(f"training images: {scores[-1]:.2f} %", flush=True)
        return scores[-1]

    sim = QuantizationSimModel(
        folded(material.model, images), images[:1], QuantScheme.post_training_tf_enhanced,
        config_file=str(files("aimet_torch.common.quantsim_config") / "default_config_per_channel.json"),
    )  # fmt: skip
    sim.compute_encodings(run, images)  # `choose_mixed_precision` runs the network before it calibrates it
    with tempfile.TemporaryDirectory() as folder:
        pareto = choose_mixed_precision(
            sim, images[:1], [((act, kind), (weight, kind)) for weight, act in CANDIDATES],
            EvalCallbackFactory(loader).sqnr(), CallbackFunc(evaluate), margin, folder,
            True, CallbackFunc(run, images),
        )  # fmt: skip
    found = widths_of(sim.model)
    return {
        "answer": f"{found['weight_bits']:.2f}-bit weights and {found['act_bits']:.2f}-bit activations on average",
        "top1": material.top1(sim.model), **found, "candidates": [f"W{weight}A{act}" for weight, act in CANDIDATES],
        "training_top1_of_evaluations": scores, "points": None if pareto is None else len(pareto),
    }  # fmt: skip


def widths_of(network: nn.Module) -> dict[str, Any]:
    """The bits of the weight and activation quantizers of a simulation."""
    weights, activations = [], []
    for module in network.modules():
        quantizers = getattr(module, "param_quantizers", {})
        if "weight" in quantizers:
            quantizer = quantizers["weight"]
            weights.append((module.weight.numel(), None if quantizer is None else quantizer.bitwidth))
        for name in ("input_quantizers", "output_quantizers"):
            activations += [quantizer.bitwidth for quantizer in getattr(module, name, ()) if quantizer is not None]
    return widths(weights, activations)
