"""Neural Compressor: `neural_compressor.torch.quantization.autotune`, with the margin as `tolerable_loss`.

It tries the configurations of a list in order, and returns the first one whose relative loss is within the margin. The
first list is its own for static quantization: 8-bit weights and activations, `INT8StaticQuantConfig`. The second one is
round-to-nearest with 2, 3, 4 and 8 bits, `RTNConfig`: the only width below 8 that its PyTorch API has for any network.
It quantizes linear layers alone, and the convolutions stay float. All 10,000 test images validate.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from bench.search_peers.material import Material, widths

QUESTION = "Which is the first configuration of a list whose loss is within the margin?"
NARROW_FIRST = (2, 3, 4, 8)
BATCH = 64


def answer(material: Material, margin: float) -> dict[str, Any]:
    """Tune both lists. The answer is that of the static quantization, which covers the convolutions."""
    trials = {}
    for name, tune in (("static", static), ("weight_only", weight_only)):
        try:
            trials[name] = tune(material, margin / material.float_top1)
        except Exception as error:
            trials[name] = {"answer": None, "top1": None, "error": f"{type(error).__name__}: {error}"}
        print(name, trials[name], flush=True)
    return trials["static"] | {"trials": trials}


def static(material: Material, loss: float) -> dict[str, Any]:
    """Tune the tool's own list of static configurations on the exported network."""
    from neural_compressor.torch.export import export
    from neural_compressor.torch.quantization import INT8StaticQuantConfig, TuningConfig, autotune

    example = (material.calibration[:BATCH],)
    exported = export(copy.deepcopy(material.model), example, dynamic_shapes=({0: torch.export.Dim("batch")},))
    scores, evaluate = scorer(material)
    network = autotune(
        exported, TuningConfig([INT8StaticQuantConfig.get_config_set_for_tuning()], tolerable_loss=loss), evaluate,
        run_fn=lambda network: calibrate(network, material), example_inputs=example,
    )  # fmt: skip
    top1, tried = scores[-1], len(scores) - 1  # the first score is that of the float network
    if relative(scores[0], top1) > loss:
        return {"answer": None, "top1": None, "top1_of_trials": scores[1:]}
    kinds = [str(node.target) for node in network.graph.nodes if node.op == "call_function"]
    return {
        "answer": f"8-bit weights and activations, configuration {tried}", "top1": top1, "top1_of_trials": scores[1:],
        "quantize_operations": sum("quantize_per" in kind and "dequantize" not in kind for kind in kinds),
        "dequantize_operations": sum("dequantize_per" in kind for kind in kinds),
        "convolutions": sum("conv2d" in kind for kind in kinds),
    }  # fmt: skip


def weight_only(material: Material, loss: float) -> dict[str, Any]:
    """Tune round-to-nearest from narrow to wide."""
    from neural_compressor.torch.quantization import RTNConfig, TuningConfig, autotune

    scores, evaluate = scorer(material)
    configurations = [RTNConfig(bits=bits, group_size=-1) for bits in NARROW_FIRST]
    network = autotune(copy.deepcopy(material.model), TuningConfig(configurations, tolerable_loss=loss), evaluate)
    if relative(scores[0], scores[-1]) > loss:
        return {"answer": None, "top1": None, "top1_of_trials": scores[1:]}
    bits = NARROW_FIRST[len(scores) - 2]
    layers = [
        (module.weight.numel(), bits if isinstance(module, nn.Linear) else None)
        for module in material.model.modules() if isinstance(module, nn.Conv2d | nn.Linear)
    ]  # fmt: skip
    return {
        "answer": f"{bits} bits for the weights of the linear layer, all else float", "top1": scores[-1],
        "top1_of_trials": scores[1:], "changed": changed(material.model, network), **widths(layers, []),
    }  # fmt: skip


def changed(model: nn.Module, network: nn.Module) -> list[str]:
    """The layers of the float `model` that are of another class in `network`."""
    after = dict(network.named_modules())
    return [name for name, module in model.named_modules() if type(after.get(name)) is not type(module)]


def relative(reference: float, score: float) -> float:
    """The loss as the tool measures it: relative to the float network."""
    return (reference - score) / reference


def scorer(material: Material) -> tuple[list[float], Callable[[Any], float]]:
    """A function that measures a network on the test images, and the list of what it measured."""
    scores: list[float] = []

    def evaluate(network: Any) -> float:
        scores.append(material.top1(network))
        return scores[-1]

    return scores, evaluate


@torch.no_grad()
def calibrate(network: Any, material: Material) -> None:
    """Show `network` the calibration images."""
    for batch in material.calibration.split(BATCH):
        network(batch)
