"""The numbers and figures of docs/why-4-bits-drop.md: `python -m bench.why --checkpoint ... --lossless ... --jpeg ...`.

Compares the notebook's quantizer with the same grid and one range per model, per tensor and per channel, at 2 to 8
bits. Needs neither Hydra nor MLflow.
"""

import argparse
import dataclasses
import json
from typing import Any

from bench.harness import on_images
from ptq_exp.base.paths import PROJECT_ROOT
from ptq_exp.data import load_dataset
from ptq_exp.evaluation.accuracy import evaluate
from ptq_exp.quantization.context import Calibration
from ptq_exp.quantization.options import QuantConfig
from ptq_exp.quantization.quantize import quantize
from ptq_exp.reporting import plots
from ptq_exp.reporting.plots.figures import bits_of
from ptq_exp.results.records import BitWidthResult
from ptq_exp.results.series import Series
from ptq_exp.runs.device import hardware, pick_device
from ptq_exp.runs.float_model import load_or_train
from ptq_exp.runs.measure import make_result
from ptq_exp.runs.shared import Shared

METHODS = {
    "notebook: 3 std of conv1": {},
    "one range per model (mse)": {"alpha_rule": "mse"},
    "one range per tensor (mse)": {"alpha_rule": "mse", "granularity": "tensor"},
    "one range per channel (mse)": {"alpha_rule": "mse", "granularity": "channel"},
}
BITS = (2, 3, 4, 5, 6, 8)
KEPT = ("bits", "bits_mean", "top1", "top1_ci_low", "top1_ci_high", "top1_float")


def main() -> None:
    """Measure, write bench/results/why.json and the figures, and print the tables."""
    parser = argparse.ArgumentParser(description="The numbers and figures of docs/why-4-bits-drop.md")
    parser.add_argument("--checkpoint", default="../shared/checkpoints/resnet20-12fca82f.th")
    parser.add_argument("--lossless", default="../shared/data/cifar10-lossless-6k.zip")
    parser.add_argument("--jpeg", default="../shared/data/cifar10-jpeg.tar.gz")
    arguments = parser.parse_args()
    device = pick_device("auto")
    figures = PROJECT_ROOT / "docs" / "figures"
    found: dict[str, Any] = {"hardware": hardware(device)}
    every: dict[str, Series] = {}
    for test, archive in (("lossless", arguments.lossless), ("jpeg", arguments.jpeg)):
        config = on_images(archive, None, arguments.checkpoint)
        dataset = load_dataset(config.data, config.cache, device)
        float_model = load_or_train(config, dataset, device)
        calibration = Calibration(float_model.normalize(dataset.train_images[:64]))
        images = dataset.test_images, dataset.test_labels, float_model.normalize
        baseline = evaluate(float_model.model, *images)
        shared = Shared(dataset, dataset.fingerprint(), float_model, baseline, network_digest="")
        series: Series = {}
        for method, changes in METHODS.items():
            own = dataclasses.replace(config, quant=QuantConfig(**changes))
            for bits in BITS:
                quantized = quantize(float_model.model, own.quant, bits, calibration)
                evaluation = evaluate(quantized.network, *images)
                result = make_result(bits, own, shared, quantized.report, evaluation, quantize_seconds=0.0)
                series.setdefault(method, []).append(result)
        # The layers do not depend on the test images, so they are stored once, at 4 bits.
        found[test] = {
            method: [_stored(result, test == "lossless" and result.bits == 4) for result in results]
            for method, results in series.items()
        }
        every[test] = series
        images_of = {"jpeg": "JPEG"}.get(test, test)
        title = f"ResNet-20 on CIFAR-10 ({images_of} test images)"
        plots.accuracy_against_bits(series, figures / f"granularity_{test}.png", title)
        print(f"\n{test}, float {baseline.top1:.2f} %\n| | " + " | ".join(map(str, BITS)) + " |")
        for method, results in series.items():
            print(f"| {method} | " + " | ".join(f"{result.top1:.2f}" for result in results) + " |")
    for method, name in zip(METHODS, ("notebook", "model", "tensor", "channel"), strict=True):
        result = every["lossless"][method][BITS.index(4)]
        plots.levels_used(
            result.layers, f"Levels of ResNet-20, {bits_of(result)}, {method}", figures / f"levels_{name}.png"
        )
    for path in figures.glob("*.svg"):  # the pages show the PNG files
        path.unlink()
    path = PROJECT_ROOT / "bench" / "results" / "why.json"
    path.write_text(json.dumps(found, indent=1))


def _stored(result: BitWidthResult, with_layers: bool) -> dict[str, Any]:
    """The content of the results file for one bit width."""
    row = {key: getattr(result, key) for key in KEPT}
    return row | ({"layers": [dataclasses.asdict(layer) for layer in result.layers]} if with_layers else {})


if __name__ == "__main__":
    main()
