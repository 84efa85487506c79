"""The table of bench.export_peers: one row per file and runtime, with a reason where a cell has no number."""

import pytest

from bench.export_peers.measuring import reason
from bench.export_peers.table import table_of

SPEEDS = {"1": 1.234, "64": 2.0}
RESULT = {
    "command": "python -m bench.export_peers", "date": "2026-01-02", "hardware": "one thread",
    "versions": {"torch": "3"},
    "written": [
        {
            "task": ["brevitas", "W8A8"], "simulation": {"top1": 81.0, "speeds": {"1": 0.5, "64": 0.25}},
            "files": [{"format": "QONNX", "paths": ["q.onnx"], "runtimes": ["onnxruntime", "qonnx"], "size_bytes": 9}],
        },
        {"task": ["aimet", "W4"], "error": "ValueError: no | such type"},
        {"task": ["nncf", "W8A8"], "error": "OSError"},
    ],
    "runs": [
        {"task": ["brevitas", "W8A8"], "format": "QONNX", "runtime": "onnxruntime", "error": "Fail: Quant " + 80 * "x"},
        {"task": ["brevitas", "W8A8"], "format": "QONNX", "runtime": "qonnx", "top1": 80.5, "agreement": 99.5,
         "speeds": SPEEDS},
    ],
}  # fmt: skip


def test_a_row_per_file_and_runtime_and_a_reason_where_there_is_no_number() -> None:
    header, _, aimet, *brevitas, _, nncf, _, below = table_of(RESULT).splitlines()
    assert header.startswith("| tool | | file | bytes | runs in | top-1 |".replace("| |", "|  |"))
    assert aimet == "| AIMET | W4 | ValueError: no / such type | | | | | | |"
    assert brevitas[0] == "| Brevitas | W8A8 | - | | PyTorch (simulation) | 81.00 | | 0.50 | 0.25 |"
    assert brevitas[1].startswith("| Brevitas | W8A8 | QONNX | 9 | ONNX Runtime: does not load (Fail: Quant xxx")
    assert brevitas[1].endswith("...) | | | | |")
    assert brevitas[2] == "| Brevitas | W8A8 | QONNX | 9 | qonnx | 80.50 | 99.50 | 1.23 | 2.00 |"
    # ONNX Runtime's quantizer, which cannot do this either, was not asked for.
    assert nncf == "| NNCF | W4 | convolutions stay at 8 bits | | | | | | |"
    assert below == "`python -m bench.export_peers`, 2026-01-02, one thread, torch 3."
    assert {row.count("|") for row in (header, aimet, *brevitas, nncf)} == {10}


@pytest.mark.parametrize(
    ("message", "said"),
    [("Exception from core.cpp:132:\nCheck 'false' failed at report.cpp:151:\n-- No conversion rule found\n\n",
      "No conversion rule found"),
     ("[ONNXRuntimeError] : 1 : FAIL : Load model from a/b.onnx failed:Fatal error: Quant(-1) is not registered",
      "Quant(-1) is not registered"),
     ("", "ValueError")],
)  # fmt: skip
def test_the_reason_is_what_a_runtime_says_and_not_where(message: str, said: str) -> None:
    assert reason(ValueError(message)) == said
