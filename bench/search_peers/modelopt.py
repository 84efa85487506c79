"""ModelOpt: `modelopt.torch.quantization.auto_quantize`.

Its question is the reverse: mean bits of the weights are given (`effective_bits`), and the format of each layer is
found by a linear program over gradient-based scores. So `effective_bits` is lowered step by step, until the top-1 drop
on the 10,000 test images reaches the margin. The smallest value before that is the answer.

For CNNs, the documentation of ModelOpt supports one format, `INT8_DEFAULT_CFG`. The narrower ones here are custom
formats, which it calls experimental: integer weights per channel with 8-bit activations per tensor, calibrated by
"max". Batch norms are not folded. The weights are rounded to nearest. The scores come from the calibration images and
their labels.
"""

import copy
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.peers.modelopt import integers
from bench.search_peers.material import Material, widths

QUESTION = "Which format should each layer have so that the weights have the given mean bits?"
BITS = (6.0, 5.0, 4.5, 4.0, 3.5, 3.0, 2.5, 2.0)  # effective bits
NARROW = (6, 5, 4, 3, 2)
BATCH = 64


def answer(material: Material, margin: float) -> dict[str, Any]:
    """Search with the supported format, then with all of them and fewer and fewer effective bits."""
    trials: list[dict[str, Any]] = []
    best = None
    with tempfile.TemporaryDirectory() as folder:
        for number, bits in enumerate((8.0, *BITS)):
            narrow = NARROW if number else ()
            network, reached = searched(material, bits, narrow, Path(folder) / f"{len(narrow)}.pth")
            trial = {
                "formats_of_bits": [8, *narrow], "effective_bits": bits, "reached": reached,
                "top1": material.top1(network), **widths_of(network),
            }  # fmt: skip
            print(trial, flush=True)
            trials.append(trial)
            if material.float_top1 - trial["top1"] >= margin:
                break
            best = trial
    if best is None:
        return {"answer": None, "top1": None, "trials": trials}
    sentence = (
        f"{best['reached']:.2f} effective bits: {best['weight_bits']:.2f}-bit weights and {best['act_bits']:.2f}-bit "
        "inputs of layers on average, float counted as 32 bits"
    )
    return {"answer": sentence, **best, "trials": trials}


def searched(material: Material, bits: float, narrow: tuple[int, ...], scores: Path) -> tuple[nn.Module, float]:
    """The network with `bits` effective bits, and the number that the search reached.

    The file `scores` keeps the calibration and the scores, which do not depend on `bits`.
    """
    import modelopt.torch.quantization as mtq

    def loss(output: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        return torch.nn.functional.cross_entropy(output, batch[1])

    loader = list(zip(material.calibration.split(BATCH), material.calibration_labels.split(BATCH), strict=True))
    network, state = mtq.auto_quantize(
        copy.deepcopy(material.model), constraints={"effective_bits": bits},
        quantization_formats=[mtq.INT8_DEFAULT_CFG, *(integers(width, 8) for width in narrow)], data_loader=loader,
        forward_step=lambda network, batch: network(batch[0]), loss_func=loss, num_calib_steps=len(loader),
        num_score_steps=len(loader), checkpoint=str(scores),
    )  # fmt: skip
    return network.eval(), float(state["best"]["constraints"]["effective_bits"])


def widths_of(network: nn.Module) -> dict[str, Any]:
    """The bits of the weights and inputs of all convolutions and linear layers."""
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    return widths(
        [(layer.weight.numel(), width(layer.weight_quantizer)) for layer in layers],
        [width(layer.input_quantizer) for layer in layers],
    )


def width(quantizer: Any) -> int | None:
    """The bits of a quantizer, None if it is switched off."""
    return quantizer.num_bits if quantizer.is_enabled else None
