"""C headers: a compiler decodes the weights and computes the sums of the first convolution."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import mostly_slow
from exported import EVERYTHING, random_tests, small_resnet, subject_of
from torch import nn

from ptq_exp.evaluation.integers import accumulators
from ptq_exp.export import compiled_header
from ptq_exp.export.compiled_header import compiled, first_sums
from ptq_exp.export.formats import Subject
from ptq_exp.export.header import Header
from ptq_exp.export.verification import export_all
from ptq_exp.quantization.layers import quantized_layers

needs_compiler = pytest.mark.skipif(
    not any(map(compiled_header.shutil.which, compiled_header.COMPILERS)), reason="no C compiler"
)
CASES: list[tuple[int, dict[str, Any]]] = [
    (4, EVERYTHING), (2, {"grid": "asymmetric", "layer_bits": {"*": 1.6}}), (3, {"grid": "float_zero_point"}),
    (4, {"grid": "apot"}), (8, {}), (4, {"sign_bit": "extra"}), (10, {}), (1, {"grid": "asymmetric"}),
    (4, EVERYTHING | {"grid": "asymmetric"}), (5, {"granularity": "tensor"}),
]  # fmt: skip


class Net(nn.Module):
    """A first convolution of any geometry."""

    def __init__(self, **geometry: Any):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, **geometry)
        self.fc = nn.Linear(6, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.relu(self.conv(x)).mean((2, 3)))


GEOMETRIES: list[dict[str, Any]] = [
    {"kernel_size": 3, "padding": 1}, {"kernel_size": 7, "stride": 2, "padding": 3}, {"kernel_size": (1, 5)},
    {"kernel_size": 3, "dilation": 2, "groups": 3, "bias": False},
]  # fmt: skip


def numbers(text: str, name: str) -> list[int]:
    """The whole numbers of an array in a header."""
    found = re.search(rf"{name}\[\d+\] = {{(.*?)}};", text, re.DOTALL)
    assert found, name
    return [int(number) for number in found.group(1).split(",") if number.strip()]


def written(subject: Subject, folder: Path) -> str:
    (file,) = Header().write(subject, folder, "q")
    return file.path.read_text()


@needs_compiler
@pytest.mark.parametrize(("bits", "changes"), mostly_slow(CASES, 3))
def test_c_decodes_weights_that_give_bit_identical_logits(bits: int, changes: dict[str, Any], tmp_path: Path) -> None:
    subject = subject_of(small_resnet(), bits, **changes)
    (file,) = Header().write(subject, tmp_path, "q")
    network, x = file.load(file.path), random_tests(subject).normalize(random_tests(subject).images)
    with torch.no_grad():
        assert torch.equal(network(x), subject.network(x))


@needs_compiler
@pytest.mark.parametrize("grid", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_sums_in_c_are_those_of_the_integer_reference(geometry: dict[str, Any], grid: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    subject = subject_of(Net(**geometry).eval(), 4, **EVERYTHING | {"grid": grid})
    written(subject, tmp_path)
    layer = quantized_layers(subject.network)["conv"]
    library = compiled(tmp_path / "q.h", ["conv", "fc"], "conv")
    for image in random_tests(subject, 3).normalize(random_tests(subject, 3).images):
        codes, wanted, _ = accumulators(layer, image[None])
        sums = first_sums(library, codes[0], wanted.shape[1:])
        assert torch.equal(sums.double(), wanted[0])
        assert sums.abs().max() > 1000


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_the_example_can_be_checked_by_hand(geometry: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    subject = subject_of(Net(**geometry).eval(), 8, **EVERYTHING)
    text = written(subject, tmp_path)
    height, width = map(int, re.findall(r"patch of (\d+) x (\d+) pixels", text)[0])
    layer = quantized_layers(subject.network)["conv"]
    patch = torch.tensor(numbers(text, "conv_example_codes")).view(3, height, width)
    step_y, step_x = layer.layer.dilation
    rows, columns = layer.codes.shape[2:]
    window = patch[:, height - 1 - step_y * (rows - 1) :: step_y, width - 1 - step_x * (columns - 1) :: step_x]
    if layer.layer.groups == 3:
        window = window.repeat_interleave(2, 0)[:, None]
    biases = torch.tensor(numbers(text, "conv_bias_codes"))
    assert ((layer.codes * window).flatten(1).sum(1) + biases).tolist() == numbers(text, "conv_example_sums")


@needs_compiler
def test_the_table_says_what_was_verified(tmp_path: Path) -> None:
    for changes, said in ((EVERYTHING, "C: weights, first sums"), ({}, "C: weights")):
        subject = subject_of(small_resnet(), 4, **changes)
        (export,) = export_all(["header"], subject, tmp_path / "q", random_tests(subject))
        assert (export.runtime, export.agreement, export.failed) == (said, 100, False)
        assert export.speed_1 is None  # the network ran in PyTorch


def test_a_network_without_quantized_image_has_only_weights(tmp_path: Path) -> None:
    text = written(subject_of(small_resnet(), 4), tmp_path)
    assert "The image is not quantized, so there is no integer pass of the first layer." in text
    assert "_sums(" not in text
    assert "Not in this file: nothing." in text
    assert "Not in this file: linear.weight, linear.bias." in written(
        subject_of(small_resnet(), 4, layers="conv"), tmp_path
    )


@needs_compiler
def test_a_wrong_sum_fails_the_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ptq_exp.export import header

    subject = subject_of(small_resnet(), 4, **EVERYTHING)
    monkeypatch.setattr(header, "FIRST", header.FIRST.replace("int32_t sum = ", "int32_t sum = 1 + "))
    (export,) = export_all(["header"], subject, tmp_path / "q", random_tests(subject))
    assert export.failed
    assert "sums of conv1 differ from those of the integer reference" in export.note


def test_without_a_compiler_the_file_is_written_and_not_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled_header.shutil, "which", lambda name: None)
    subject = subject_of(small_resnet(), 4)
    (export,) = export_all(["header"], subject, tmp_path / "q", random_tests(subject))
    assert export.note == "not verified (needs a C compiler: cc, gcc, clang)"
    assert not export.failed
    assert export.size_bytes == (tmp_path / "q.h").stat().st_size
