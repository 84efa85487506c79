"""NNCF: `nncf.quantize_with_accuracy_control`, on OpenVINO's backend.

It quantizes to 8-bit weights and activations, and returns operations to float until the top-1 drop is at most the
margin. It knows no other widths. All 10,000 test images validate. OpenVINO runs the network, in float32 where it is not
8-bit.
"""

import copy
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from bench.search_peers.material import Material

QUESTION = "Which operations must stay float so that an 8-bit network stays within the margin?"
BATCH = 100


def answer(material: Material, margin: float) -> dict[str, Any]:
    """Run the accuracy control once."""
    import nncf
    import openvino

    images = material.calibration
    test = material.normalize(material.test).numpy()
    labels = material.test_labels.numpy()
    converted = openvino.convert_model(copy.deepcopy(material.model), example_input=images[:1])

    def top1(compiled: Any, data: Any) -> tuple[float, None]:
        hits = [(compiled(batch)[0].argmax(1) == target).mean() for batch, target in data]
        return float(np.mean(hits)), None

    batches = list(zip(np.split(test, len(test) // BATCH), np.split(labels, len(labels) // BATCH), strict=True))
    loader = [batch.numpy() for batch in images.contiguous().split(64)]
    quantized = nncf.quantize_with_accuracy_control(
        converted, nncf.Dataset(loader), nncf.Dataset(batches), validation_fn=top1, max_drop=margin / 100,
        drop_type=nncf.DropType.ABSOLUTE, preset=nncf.QuantizationPreset.MIXED, subset_size=len(loader),
    )  # fmt: skip
    final, _ = top1(openvino.compile_model(quantized, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}), batches)
    with tempfile.TemporaryDirectory() as folder:
        openvino.save_model(quantized, Path(folder) / "network.xml", compress_to_fp16=False)
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
    quantizers = sum(operation.get_type_name() == "FakeQuantize" for operation in quantized.get_ops())
    return {
        "answer": "8-bit weights and activations, except for the operations that the log names as reverted",
        "top1": round(100 * final, 2), "bytes": size, "quantizers": quantizers,
    }  # fmt: skip
