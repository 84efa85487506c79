"""Codes of few bits in bytes, and the file that a job keeps."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import mostly_slow
from hypothesis import given
from hypothesis import strategies as st

from ptq_exp.export.network_file import load_quantized, save_quantized
from ptq_exp.export.packed_file import read_packed
from ptq_exp.export.packing import pack, packed_bytes, unpack
from ptq_exp.networks import build_model
from ptq_exp.quantization.context import Calibration
from ptq_exp.quantization.options import QuantConfig
from ptq_exp.quantization.quantize import Quantized, quantize


@pytest.mark.parametrize(
    ("codes", "bits", "expected"),
    [
        ([1, 0, 1, 1, 0, 0, 0, 1, 1], 1, [0b10001101, 0b1]),
        ([1, 2, 3, 0, 1], 2, [0b00111001, 0b01]),
        ([1, 7, 4], 3, [0b00111001, 0b1]),  # the third code crosses into the second byte
        ([0x3, 0xA], 4, [0xA3]),
        ([200], 8, [200]),
        ([0x1234], 16, [0x34, 0x12]),
        ([1, 2, 0, 1, 2, 2], 1.6, [1 + 3 * 2 + 9 * 0 + 27 * 1 + 81 * 2, 2]),
    ],
)
def test_bytes_are_those_of_the_description(codes: list[int], bits: float, expected: list[int]) -> None:
    assert pack(torch.tensor(codes), bits).tolist() == expected


@given(st.data())
def test_packing_can_be_undone(data: st.DataObject) -> None:
    bits = data.draw(st.sampled_from([1, 1.6, 2, 3, 4, 5, 6, 7, 8, 11, 17]))
    highest = 2 if bits == 1.6 else 2 ** int(bits) - 1
    codes = data.draw(st.lists(st.integers(0, highest), min_size=1, max_size=40))
    packed = pack(torch.tensor(codes), bits)
    assert unpack(packed, bits, len(codes)).tolist() == codes
    assert len(packed) == packed_bytes(bits, len(codes))


def quantized(bits: int, depth: int = 20, **changes: object) -> Quantized:
    torch.manual_seed(0)
    model = build_model("resnet", 10, depth=depth).eval()
    options = QuantConfig(fold_batch_norm=True, layers="all", sign_bit="included", granularity="channel",
                          alpha_rule="max", **changes)  # type: ignore[arg-type]  # fmt: skip
    return quantize(model, options, bits, Calibration(torch.randn(8, 3, 32, 32)))


GRIDS = ["symmetric", "asymmetric", "float_zero_point", "power_of_two", "apot"]
CASES = [(bits, grid) for bits, grid in itertools.product([1, 2, 3, 4, 8], GRIDS)
         if not (bits == 1 and grid in ("symmetric", "power_of_two", "apot"))]  # fmt: skip


@pytest.mark.parametrize(("bits", "grid"), mostly_slow(CASES[::-1], 4))
def test_the_file_is_as_small_as_the_table_says(bits: int, grid: str, tmp_path: Path) -> None:
    found, file = quantized(bits, grid=grid, act_bits=8), tmp_path / "q.safetensors"
    save_quantized(found.network, file, {"classes": list("0123456789")})
    assert file.stat().st_size <= 1.02 * found.report.size_bytes + 8000
    loaded, about = load_quantized(file, build_model("resnet", 10, depth=20))
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(x), found.network(x))
    assert about["classes"] == list("0123456789")


def test_three_levels_take_a_fifth_of_a_byte(tmp_path: Path) -> None:
    found = quantized(2, depth=8, grid="asymmetric", layer_bits={"*": 1.6})
    save_quantized(found.network, tmp_path / "q.safetensors", {})
    tensors, about = read_packed(tmp_path / "q.safetensors")
    layer = about["layers"]["layer1.0.conv1"]
    assert (layer["code_bits"], layer["levels"]) == (1.6, 3)
    assert torch.equal(tensors["layer1.0.conv1.codes"], found.network.get_submodule("layer1.0.conv1").codes.int())
    weights = sum(math.prod(entry["shape"]) for entry in about["layers"].values())
    assert (tmp_path / "q.safetensors").stat().st_size < weights / 5 + 4 * sum(
        map(math.prod, about["floats"].values())
    ) + 4000


def test_the_documented_reader_reads_a_file(tmp_path: Path) -> None:
    """The reader of docs/packed-format.md needs NumPy alone, and gives the weights that the network computes with."""
    page = (Path(__file__).parents[2] / "docs" / "packed-format.md").read_text()
    code = page.partition("```python\n")[2].partition("```")[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 35
    assert "torch" not in code
    for bits, grid in ((3, "float_zero_point"), (4, "symmetric"), (2, "asymmetric"), (4, "apot")):
        found = quantized(bits, depth=8, grid=grid)
        save_quantized(found.network, tmp_path / "q.safetensors", {})
        names: dict[str, object] = {}
        exec(code, names)
        weights, others = names["read"](tmp_path / "q.safetensors")  # type: ignore[operator]
        for name, values in weights.items():
            expected = found.network.get_submodule(name).layer.weight.detach().numpy()  # type: ignore[union-attr]
            assert np.allclose(values, expected, rtol=1e-6, atol=1e-7), name
        assert "linear.layer.bias" in others
