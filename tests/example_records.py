"""Records with plausible values, of which a test names those that matter to it."""

from pathlib import Path
from typing import Any

from ptq_exp.quantization.layer_report import LayerReport
from ptq_exp.results.records import BitWidthResult, DatasetSummary, JobRecord


def layer(**changes: Any) -> LayerReport:
    values: dict[str, Any] = {
        "layer": "conv1", "shape": "4x3x3x3", "weights": 10, "stored_bits": 5.0, "alpha": 1.0, "weight_std": 0.3,
        "weight_max": 1.1, "clipped_percent": 0.0, "sparsity_float_percent": 0.0, "sparsity_percent": 0.0,
        "levels_used": 3, "levels_available": 31, "sqnr_db": 20.0, "output_sqnr_db": 18.0, "act_bits": None,
        "act_alpha": None,
    }  # fmt: skip
    return LayerReport(**values | changes)


def result(bits: int = 4, top1: float = 80.0, **changes: Any) -> BitWidthResult:
    values: dict[str, Any] = {
        "bits": bits, "act_bits": None, "top1": top1, "top1_ci_low": top1 - 2, "top1_ci_high": top1 + 2, "chance": 10.0,
        "top1_float": 90.0, "top1_float_ci_low": 88.0, "top1_float_ci_high": 92.0, "top1_drop": 90.0 - top1,
        "top1_drop_ci_low": 1.0, "top1_drop_ci_high": 2.0, "top5": 99.0, "agreement": 95.0, "loss": 0.5,
        "loss_float": 0.4, "bits_mean": float(bits), "size_bytes": 1000 * bits, "size_bytes_float": 32_000,
        "quantize_seconds": 0.1, "evaluate_seconds": 0.2, "diagnosis": "",
    }  # fmt: skip
    return BitWidthResult(**values | changes)


def job(*results: BitWidthResult, **changes: Any) -> JobRecord:
    values: dict[str, Any] = {
        "title": "resnet20 on digits", "name": "w4 notebook", "method": (), "overrides": "", "command": (),
        "key": "0" * 64, "started": 1, "ended": 2, "results": results, "params": {}, "defaults": {}, "tags": {},
        "history": (), "dataset": DatasetSummary("digits", "0" * 64, "scikit-learn", {"classes": 10}), "versions": {},
        "folder": Path("nowhere"),
    }  # fmt: skip
    return JobRecord(**values | changes)
