"""The notebook of the documentation, cell by cell."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
CODE = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]


def test_the_cells_run_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], one_thread: None
) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ptq_exp.config.schema.PROJECT_ROOT", tmp_path)  # of the cache
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, code in enumerate(CODE):
        exec(compile(code, f"{NOTEBOOK.name}, code cell {number}", "exec"), names)
    out = capsys.readouterr().out
    assert "Likeliest cause: one alpha" in out
    assert "digits_w2a8.safetensors in PyTorch, ptq_exp.load: 100.00 % of the predictions" in out
    top1 = {method: [found.top1 for _, found in points] for method, points in names["curves"].items()}
    assert all(values[0] < values[-1] for values in top1.values())  # fewer bits cost accuracy
    assert names["small"].bits_mean == 2
    assert len(names["axes"].lines) == 3
    mpl.pyplot.close("all")


def test_it_is_stored_without_outputs_and_paths() -> None:
    assert not [cell for cell in CELLS if cell.get("outputs") or cell.get("execution_count")]
    assert len(CODE) <= 12
    assert all(len(code.splitlines()) <= 12 for code in CODE)
