"""Learned rounding, our AdaRound against AIMET's in equal steps: `python -m bench.reconstruction --checkpoint FILE`.

Both start from the same folded float network and quantize every convolution and the linear layer to the same bits (sign
included, one range per channel). Both use the same calibration images, 32 per step, and the same test images. Needs the
extra `bench`; without AIMET only ours is timed, and the page says so. Needs neither Hydra nor MLflow.
"""

import argparse
import copy
import importlib.util
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bench.harness import on_images, preset, rows_of, save
from ptq_exp.data import load_dataset
from ptq_exp.evaluation.accuracy import evaluate
from ptq_exp.quantization.context import Calibration
from ptq_exp.quantization.effective_weights import target_layers
from ptq_exp.quantization.options import ReconstructionConfig
from ptq_exp.quantization.quantize import quantize
from ptq_exp.runs.device import pick_device
from ptq_exp.runs.float_model import load_or_train

BATCH = 32
AIMET = importlib.util.find_spec("aimet_torch") is not None


def main() -> None:
    """Quantize with each tool in turn, then compare the accuracy."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--checkpoint", default="../shared/checkpoints/resnet20-12fca82f.th")
    parser.add_argument("--images", default="../shared/data/cifar10-lossless-6k.zip", help="an archive of images")
    parser.add_argument("--bits", type=int, default=2)
    parser.add_argument("--steps", type=int, default=500, help="optimizer steps per layer")
    parser.add_argument("--calibration", type=int, default=1024, help="number of calibration images")
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    device = pick_device("auto")
    config = on_images(arguments.images, None, arguments.checkpoint)
    dataset = load_dataset(config.data, config.cache, device)
    trained = load_or_train(config, dataset, device)
    order = torch.randperm(len(dataset.train_images), generator=torch.Generator().manual_seed(0))
    images = trained.normalize(dataset.train_images[order[: arguments.calibration].to(device)])
    ours = preset("adaround", reconstruction=ReconstructionConfig(steps=arguments.steps, batch_size=BATCH))
    layers = len(target_layers(trained.model, "all"))
    makers: dict[str, Callable[[], nn.Module]] = {
        "ours: AdaRound": lambda: quantize(trained.model, ours, arguments.bits, Calibration(images)).network
    }
    if AIMET:
        folded = quantize(trained.model, replace(ours, rounding="nearest"), 8, Calibration(images)).reference
        makers["AIMET: AdaRound"] = lambda: aimet(folded, images, arguments.bits, arguments.steps)
    seconds: dict[str, list[float]] = {name: [] for name in makers}
    top1: dict[str, float] = {}
    for number in range(arguments.rounds):
        for name in list(makers) if number % 2 else list(makers)[::-1]:
            started = time.perf_counter()
            network = makers[name]()
            seconds[name].append(time.perf_counter() - started)
            result = evaluate(network, dataset.test_images, dataset.test_labels, trained.normalize)
            top1[name] = result.top1
    rows = rows_of(seconds, list(makers)[-1], per=layers)
    accuracy = ", ".join(f"{name} {value:.2f} %" for name, value in top1.items())
    notes = [f"Top-1 after rounding, on {len(dataset.test_labels):,} test images: {accuracy}."]
    found = (
        f"AIMET takes {1 / rows[0]['ratio']:.1f} times as long as ours."
        if AIMET
        else "AIMET is not installed: not measured."
    )
    notes.append(found)
    unit = f"seconds per layer ({layers} layers), {arguments.steps} steps, {arguments.bits} bits"
    content: dict[str, Any] = {"unit": unit, "ratio_of": "relative to the last row", "rows": rows, "notes": notes}
    save("reconstruction", device, content)


def aimet(model: nn.Module, images: Tensor, bits: int, steps: int) -> nn.Module:
    """A copy of the folded float `model` with weights rounded by AIMET's AdaRound."""
    from aimet_torch.adaround.adaround_weight import Adaround, AdaroundParameters
    from aimet_torch.common.defs import QuantScheme
    from aimet_torch.common.quantsim_config.utils import get_path_for_per_channel_config
    from aimet_torch.nn import QuantizationMixin

    for kind in {type(module) for module in model.modules() if not list(module.children())}:
        if not kind.__module__.startswith("torch."):  # our additions and shortcuts, which have no weights
            QuantizationMixin.ignore(kind)

    class Loader(list):
        """The interface that AIMET expects of a loader: batches of inputs, and their number."""

        batch_size = BATCH

    def forward(network: nn.Module, batch: Tensor) -> None:
        with torch.no_grad():
            network(batch)

    batches = Loader(images.contiguous().split(BATCH))
    parameters = AdaroundParameters(batches, len(batches), default_num_iterations=steps, forward_fn=forward)
    copied = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    with tempfile.TemporaryDirectory() as folder:
        return Adaround.apply_adaround(
            copied, images[:1].contiguous(), parameters, folder, "bench", default_param_bw=bits,
            default_quant_scheme=QuantScheme.post_training_tf_enhanced,
            default_config_file=get_path_for_per_channel_config(),
        )  # fmt: skip


if __name__ == "__main__":
    main()
