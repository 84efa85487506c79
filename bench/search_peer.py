"""What NNCF answers to the question of `search=fewest`: `python -m bench.search_peer`.

`nncf.quantize_with_accuracy_control` quantizes to 8-bit weights and activations, and returns operations to float until
the top-1 drop is at most `--max-drop` points. It knows no other widths. It runs on the ResNet-20 of docs/results.md,
with the 1,024 JPEG calibration images of bench.peers. All 10,000 test images validate. The result is written to
bench/results/search_peer.json.
Needs the extra `bench`, neither Hydra nor MLflow.
"""

import argparse
import copy
import json
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.peers.__main__ import SHARED
from bench.peers.networks import calibration_images, load
from ptq_exp.base.machine import installed
from ptq_exp.base.paths import PROJECT_ROOT

RESULTS = PROJECT_ROOT / "bench" / "results" / "search_peer.json"
BATCH = 100


def main() -> None:
    """Run NNCF's accuracy control once."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--checkpoint", default=str(SHARED / "checkpoints" / "resnet20-12fca82f.th"))
    parser.add_argument("--jpeg", default=str(SHARED / "data" / "cifar10-jpeg.tar.gz"))
    parser.add_argument("--cache", default=None, help="folder of decoded images")
    parser.add_argument("--max-drop", type=float, default=1.0, help="points of top-1")
    arguments = parser.parse_args()
    import nncf
    import openvino

    found = load("resnet20", arguments, torch.device("cpu"))
    images = calibration_images(found, 0)
    test = found.normalize(found.dataset.test_images).numpy()
    labels = found.dataset.test_labels.numpy()
    converted = openvino.convert_model(copy.deepcopy(found.model).eval(), example_input=images[:1])

    def top1(compiled: Any, data: Any) -> tuple[float, None]:
        hits = [(compiled(batch)[0].argmax(1) == target).mean() for batch, target in data]
        return float(np.mean(hits)), None

    batches = list(zip(np.split(test, len(test) // BATCH), np.split(labels, len(labels) // BATCH), strict=True))
    loader = [batch.numpy() for batch in images.contiguous().split(64)]
    started = time.perf_counter()
    quantized = nncf.quantize_with_accuracy_control(
        converted, nncf.Dataset(loader), nncf.Dataset(batches), validation_fn=top1, max_drop=arguments.max_drop / 100,
        drop_type=nncf.DropType.ABSOLUTE, preset=nncf.QuantizationPreset.MIXED, subset_size=len(loader),
    )  # fmt: skip
    seconds = time.perf_counter() - started
    final, _ = top1(openvino.compile_model(quantized, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}), batches)
    with tempfile.TemporaryDirectory() as folder:
        openvino.save_model(quantized, Path(folder) / "network.xml", compress_to_fp16=False)
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
    result = {
        "max_drop": arguments.max_drop, "top1": 100 * final, "bytes": size,
        "seconds": seconds, "date": date.today().isoformat(), "versions": installed(("nncf", "openvino", "torch")),
    }  # fmt: skip
    print(json.dumps(result, indent=1))
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
