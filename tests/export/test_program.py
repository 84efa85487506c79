"""PyTorch programs, which run in a process that has torch and not this package."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import mostly_slow
from exported import EVERYTHING, random_tests, small_resnet, subject_of

from ptq_exp.export.program import Program
from ptq_exp.export.verification import export_all

CASES: list[tuple[int, dict[str, Any]]] = [
    (4, EVERYTHING), (2, {"grid": "float_zero_point"}), (2, {"grid": "asymmetric", "layer_bits": {"*": 1.6}}),
    (3, {}), (8, {}), (4, {"grid": "apot"}), (4, {"sign_bit": "extra"}), (10, {}), (1, {"grid": "asymmetric"}),
]  # fmt: skip


@pytest.mark.parametrize(("bits", "changes"), mostly_slow(CASES, 2))
def test_a_program_gives_bit_identical_logits(bits: int, changes: dict[str, Any], tmp_path: Path) -> None:
    subject = subject_of(small_resnet(), bits, **changes)
    (file,) = Program().write(subject, tmp_path, "q")
    x = random_tests(subject).normalize(random_tests(subject).images)
    with torch.no_grad():
        assert torch.equal(file.load(file.path)(x), subject.network(x))


def test_it_runs_without_this_package(tmp_path: Path) -> None:
    subject = subject_of(small_resnet(), 4)
    (export,) = export_all(["program"], subject, tmp_path / "q", random_tests(subject))
    assert export.agreement == 100
    images = torch.randn(3, 3, 32, 32)
    torch.save(images, tmp_path / "images.pt")
    code = (
        "import sys, torch; sys.modules['ptq_exp'] = None; images = torch.load('images.pt'); "
        "logits = torch.export.load('q.pt2').module()(images); torch.save(logits, 'logits.pt')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=120, env={"PATH": ""})
    with torch.no_grad():
        assert torch.equal(torch.load(tmp_path / "logits.pt"), subject.network(images))


def test_weights_take_four_bits_inside(tmp_path: Path) -> None:
    subject = subject_of(small_resnet(), 4)
    Program().write(subject, tmp_path, "q")
    program = torch.export.load(tmp_path / "q.pt2")
    packed = [value for name, value in program.state_dict.items() if name.endswith("packed")]
    assert all(value.dtype == torch.uint8 for value in packed)
    weights = sum(layer.codes.numel() for layer in subject.network.modules() if hasattr(layer, "codes"))
    assert sum(value.numel() for value in packed) == weights // 2
