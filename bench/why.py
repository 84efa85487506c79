"""The numbers and figures of docs/why-4-bits-drop.md: `python -m bench.why --checkpoint ... --lossless ... --jpeg ...`.

The notebook's quantizer against the same grid with a range for the model, for each tensor and for each channel, at 2
to 8 bits. Needs neither Hydra nor MLflow.
"""

import argparse
import dataclasses
import json
from typing import Any

from ptq_exp.base.paths import PROJECT_ROOT
from ptq_exp.config import Config, DataConfig
from ptq_exp.data import load_dataset
from ptq_exp.evaluation.accuracy import evaluate
from ptq_exp.networks.store import load_or_train
from ptq_exp.quantization.context import Calibration
from ptq_exp.quantization.options import QuantConfig
from ptq_exp.quantization.quantize import quantize
from ptq_exp.reporting import plots
from ptq_exp.runs.job import hardware, pick_device

METHODS = {
    "notebook: 3 std of the first convolution": {},
    "one range for the model (mse)": {"alpha_rule": "mse"},
    "one for each tensor (mse)": {"alpha_rule": "mse", "granularity": "tensor"},
    "one for each channel (mse)": {"alpha_rule": "mse", "granularity": "channel"},
}
BITS = (2, 3, 4, 5, 6, 8)


def main() -> None:
    """Measure, write bench/results/why.json and the figures, print the tables."""
    parser = argparse.ArgumentParser(description="The numbers and figures of docs/why-4-bits-drop.md")
    parser.add_argument("--checkpoint", default="../shared/checkpoints/resnet20-12fca82f.th")
    parser.add_argument("--lossless", default="../shared/data/cifar10-lossless-6k.zip")
    parser.add_argument("--jpeg", default="../shared/data/cifar10-jpeg.tar.gz")
    arguments = parser.parse_args()
    device = pick_device("auto")
    figures = PROJECT_ROOT / "docs" / "figures"
    found: dict[str, Any] = {"hardware": hardware(device)}
    for test, archive in (("lossless", arguments.lossless), ("jpeg", arguments.jpeg)):
        data = DataConfig(name="image_folder", root=archive, resize=32)
        config = Config(data=data, checkpoint=arguments.checkpoint)
        dataset = load_dataset(config, device)
        float_model = load_or_train(config, dataset, device)
        calibration = Calibration(float_model.normalize(dataset.train_images[:64]))
        images = dataset.test_images, dataset.test_labels, float_model.normalize
        baseline = evaluate(float_model.model, *images)
        series: dict[str, list[dict[str, Any]]] = {}
        for method, changes in METHODS.items():
            for bits in BITS:
                quantized = quantize(float_model.model, QuantConfig(**changes), bits, calibration)
                result = evaluate(quantized.network, *images)
                report = quantized.report
                low, high = result.interval()
                row = {"bits": bits, "bits_mean": report.bits_mean, "top1": result.top1}
                row |= {"top1_ci_low": low, "top1_ci_high": high}
                row |= {"top1_float": baseline.top1, "layers": [dataclasses.asdict(layer) for layer in report.layers]}
                series.setdefault(method, []).append(row)
        found[test] = series
        plots.accuracy_against_bits(series, figures / f"granularity_{test}.png")
        print(f"\n{test}, float {baseline.top1:.2f} %\n| | " + " | ".join(map(str, BITS)) + " |")
        for method, rows in series.items():
            print(f"| {method} | " + " | ".join(f"{row['top1']:.2f}" for row in rows) + " |")
    for method, name in zip(METHODS, ("notebook", "model", "tensor", "channel"), strict=True):
        layers = found["lossless"][method][BITS.index(4)]["layers"]
        plots.levels_used(layers, f"4 bits, {method}", figures / f"levels_{name}.png")
    path = PROJECT_ROOT / "bench" / "results" / "why.json"
    for test in ("lossless", "jpeg"):  # the layers do not depend on the test images: kept once, at 4 bits
        for rows in found[test].values():
            for row in rows:
                if test == "jpeg" or row["bits"] != 4:
                    del row["layers"]
    path.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
