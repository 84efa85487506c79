"""Records of version 1, which runs of the first edition stored on disk and in MLflow.

They can be reported. Their per-layer tables are incomplete, so figures of layers cannot be drawn again.
"""

from pathlib import Path
from typing import Any

from ptq_exp.results.records import BitWidthResult, DatasetSummary, JobRecord

# Defaults for fields that the oldest records lack.
UNKNOWN = {"chance": 0.0, "top1_float_ci_low": 100.0, "top1_float_ci_high": 100.0, "act_bits": None, "diagnosis": ""}


def job(content: dict[str, Any], folder: Path) -> JobRecord:
    """Convert the content of a version 1 `results.json` to a current record. Raises `KeyError` for anything else."""
    started, dataset = content.get("started", 0), content.get("dataset")
    history = [metrics for step, metrics in content.get("points", []) if step and "train_loss" in metrics]
    return JobRecord(
        title=content["title"],
        name=(content.get("run") or {}).get("name", content["title"]),
        method=tuple(content.get("method", ())),
        overrides=content.get("overrides", ""),
        command=tuple(content.get("command", ())),
        key=content["job"],
        started=started,
        ended=content.get("ended", started),
        results=tuple(BitWidthResult(**UNKNOWN | row) for row in content["rows"]),
        params=content["params"],
        defaults={},
        tags=content["tags"],
        history=tuple(history),
        dataset=DatasetSummary(**dataset) if dataset else None,
        versions=content.get("versions", {}),
        register=content.get("register"),
        folder=folder,
    )
