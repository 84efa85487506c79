"""`export=[...]` in a job, and `python -m ptq_exp.export` for one that is finished."""

import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY, Outcome
from exported import random_tests, small_resnet, subject_of

from ptq_exp.export.verification import export_all

pytest.importorskip("onnxruntime")

Cli = Callable[..., Outcome]
Runs = Callable[[str], dict[str, Any]]
FORMATS = "export=[onnx,packed,program,header]"


def test_a_job_exports_verifies_and_shows_its_files(cli: Cli, store: str, runs: Runs, tmp_path: Path) -> None:
    outcome = cli(*TINY, "quant=integer", "quant.bits=4", "quant.rounding=nearest",
                  "quant.reconstruction.distill_steps=0", FORMATS, f"tracking.uri={store}")  # fmt: skip
    assert outcome.code == 0, outcome.err
    for word in (
        "quantized_w4.onnx",
        "ONNX Runtime",
        "OpenVINO",
        "PyTorch, torch.export",
        "C: weights",
        "Integer reference on 48 images",
    ):
        assert word in outcome.out, word
    (run,) = runs(store).values()
    metrics = run.data.metrics
    assert metrics["packed_agreement"] == metrics["program_agreement"] == metrics["header_agreement"] == 100
    assert metrics["onnx_agreement"] >= 98
    assert {"onnx_top1", "onnx_bytes", "openvino_agreement", "packed_bytes", "integer_agreement"} <= metrics.keys()
    assert metrics["packed_bytes"] <= 1.02 * metrics["size_bytes"] + 8000
    (artifacts,) = tmp_path.glob("outputs/*/*/artifacts")
    names = {path.name for path in artifacts.iterdir()}
    assert {"quantized_w4.onnx", "quantized_w4.pt2", "quantized_w4.safetensors", "integers_w4.csv"} <= names
    assert metrics["onnx_bytes"] == (artifacts / "quantized_w4.onnx").stat().st_size
    page = (artifacts / "report.html").read_text()
    assert "Exports" in page
    assert "quantized_w4.pt2, PyTorch, torch.export" in page
    (record,) = json.loads((artifacts.parent / "results.json").read_text())["results"]
    assert [export["format"] for export in record["exports"]] == ["onnx", "onnx", "packed", "program", "header"]


def test_the_documented_code_classifies_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    subject = subject_of(small_resnet(), 4)
    tests = random_tests(subject, 5)
    export_all(["onnx"], subject, tmp_path / "quantized_w4", tests)
    np.save(tmp_path / "images.npy", tests.images.numpy())
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text()
    (tmp_path / "code.py").write_text(page.partition("```python\n")[2].partition("```")[0])
    monkeypatch.chdir(tmp_path)
    runpy.run_path("code.py")
    assert capsys.readouterr().out == f"{[str(number) for number in tests.predictions.tolist()]}\n"


@pytest.mark.slow
def test_a_finished_job_is_exported_from_its_folder_or_its_run(
    cli: Cli, store: str, runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli(*TINY, "quant=best", "quant.bits=8", f"tracking.uri={store}").code == 0
    (run,) = runs(store).values()
    (folder,) = tmp_path.glob("outputs/*/*")
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "ptq_exp.export", "--format", "program", "--format", "packed"]
    for job, more in ((str(folder), []), (run.info.run_id, ["--uri", store, "--output", str(tmp_path / "out")])):
        done = subprocess.run(
            [*command, job, *more], cwd=root, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "quantized_w8.pt2" in done.stdout
        assert "100.00" in done.stdout
    assert (folder / "artifacts" / "quantized_w8.pt2").exists()
    assert (tmp_path / "out" / "quantized_w8.pt2").exists()


def test_an_unknown_format_is_said_before_anything_runs(cli: Cli) -> None:
    outcome = cli(*TINY, "export=[onx]")
    assert outcome.code == 1
    assert "export=onx is not known. Did you mean 'onnx'? Allowed: header, onnx, packed, program." in outcome.err


def test_a_failed_export_keeps_the_results(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ptq_exp.export import verification

    monkeypatch.setattr(verification, "WEIGHTS_AGREE", 101.0)
    outcome = cli(*TINY, "quant.bits=4", "export=program")
    assert outcome.code == 1
    assert "The results are kept" in outcome.err
    assert "quantized_w4.pt2" in outcome.err
    (results,) = tmp_path.glob("outputs/*/*/results.json")
    (row,) = json.loads(results.read_text())["results"]
    assert row["exports"][0]["failed"] is True
    assert row["top1"] > 0


def test_a_folder_without_networks_is_said(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "ptq_exp.export", str(tmp_path), "--format", "onnx"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "holds no quantized network" in done.stderr
    assert "Traceback" not in done.stderr
