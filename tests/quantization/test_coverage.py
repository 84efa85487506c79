"""Activations everywhere: operands on their grids, zero-points, files, portions of memory, and what stays float."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import network, quantize
from torch import Tensor, nn
from zoo import ZOO, Body, Net, build, conv, images

from ptq_exp.base.errors import UserError
from ptq_exp.base.tensors import save_checked
from ptq_exp.export.network_file import load_quantized, save_quantized
from ptq_exp.export.packed_file import read_packed
from ptq_exp.networks.graph.calling import logits_of, only_logits
from ptq_exp.quantization.activations import observe, with_zero_point
from ptq_exp.quantization.coverage import float_tensors, limits
from ptq_exp.quantization.layers import ActivationQuantizer, QuantizedOperation, quantized_layers
from ptq_exp.quantization.modules import plain_copy
from ptq_exp.quantization.options import QuantConfig
from ptq_exp.quantization.steps import check_method
from ptq_exp.quantization.traced import Traced

BASE = QuantConfig(
    sign_bit="included", grid="asymmetric", alpha_rule="max", granularity="channel", layers="all", fold_batch_norm=True,
    act_bits=8,
)  # fmt: skip
ALL = replace(BASE, act_coverage="all", act_zero_point=True)


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """Tiny tensors."""


def assert_on_grid(x: Tensor, quantizer: ActivationQuantizer) -> None:
    codes = x / (quantizer.alpha / quantizer.grid.high)
    assert torch.allclose(codes, codes.round(), atol=1e-3)
    assert codes.min() > quantizer.grid.low - 0.5
    assert codes.max() < quantizer.grid.high + 0.5


@pytest.mark.parametrize("zero_point", [True, False])
@pytest.mark.parametrize("name", ZOO)
@torch.no_grad()
def test_with_all_every_operand_lies_on_its_grid_and_the_file_gives_the_same_logits(
    name: str, zero_point: bool, tmp_path: Path
) -> None:
    model, x = build(name), images()
    only_logits(model)
    quantized, _ = quantize(model, replace(ALL, act_zero_point=zero_point), 8, x)
    checked: list[str] = []
    for module in quantized.modules():
        if isinstance(module, QuantizedOperation):

            def check(_: Any, given: Any, named: Any, owner: QuantizedOperation = module) -> None:
                tensors = [x for x in (*given, *named.values()) if isinstance(x, Tensor)]
                for tensor, quantizer in zip(tensors, owner.operands, strict=False):
                    if isinstance(quantizer, ActivationQuantizer):
                        assert_on_grid(tensor, quantizer)
                        checked.append("operand")

            module.operation.register_forward_pre_hook(check, with_kwargs=True)
    for layer in quantized_layers(quantized).values():
        assert layer.activation is not None  # also the layer of the image
        layer.layer.register_forward_pre_hook(lambda _, given, layer=layer: assert_on_grid(given[0], layer.activation))
    wanted, found = logits_of(model(x)), logits_of(quantized(x))
    assert checked
    assert 0 < (found - wanted).norm() / wanted.norm() < 0.1
    save_quantized(quantized, tmp_path / "q.safetensors", {})
    loaded, _ = load_quantized(tmp_path / "q.safetensors", build(name))
    assert torch.equal(logits_of(loaded(x)), found)


def operations(model: nn.Module) -> dict[str, int]:
    """The operations with quantized operands, and their number."""
    found = {name: m for name, m in model.named_modules() if isinstance(m, QuantizedOperation)}
    return {name: sum(isinstance(q, ActivationQuantizer) for q in m.operands) for name, m in found.items()}


def test_the_operations_that_get_levels() -> None:
    gated, _ = quantize(build("gate alone"), ALL, 8, images())
    names = {"body.0.adaptive_avg_pool2d", "body.0.silu", "body.0.sigmoid", "body.0.mul", "mean"}
    assert set(operations(gated)) == names
    assert operations(gated)["body.0.mul"] == 2
    odd, _ = quantize(build("odd operands"), ALL, 8, images())
    assert operations(odd)["body.0.where"] == 2  # not the mask
    assert operations(odd)["body.0.mul"] == 1  # y * y


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("x + 1", 0), ("x / 6", 0), ("1 - x", 0), ("x * 0.5 + 1", 0), ("-x", 0), ("relu6", 0), ("max_pool", 0),
        ("1 / x", 1), ("x * x", 1), ("leaky", 1), ("avg_pool", 1), ("parameter", 1), ("cat", 1), ("softmax", 1),
    ],
)  # fmt: skip
def test_operations_that_only_move_or_scale_levels_get_none(name: str, count: int) -> None:
    compute = {
        "x + 1": lambda m, x: x + 1,
        "x / 6": lambda m, x: x / 6,
        "1 - x": lambda m, x: 1 - x,
        "x * 0.5 + 1": lambda m, x: x * 0.5 + 1,
        "-x": lambda m, x: -x,
        "relu6": lambda m, x: F.relu6(x),
        "max_pool": lambda m, x: F.max_pool2d(x, 2),
        "1 / x": lambda m, x: 1 / (x + 9),
        "x * x": lambda m, x: x * x,
        "leaky": lambda m, x: F.leaky_relu(x),
        "avg_pool": lambda m, x: F.avg_pool2d(x, 2),
        "parameter": lambda m, x: x * m.factor,
        "cat": lambda m, x: torch.cat([x, x], 1)[:, ::2],
        "softmax": lambda m, x: x.softmax(1),
    }[name]
    body = Body(compute)
    body.register_parameter("factor", nn.Parameter(torch.ones(8, 1, 1)))
    quantized, _ = quantize(Net(body).eval(), ALL, 8, images())
    assert sum(n for operation, n in operations(quantized).items() if operation.startswith("body")) == count


class Joined(nn.Module):
    """A module that cannot be traced, with two inputs or one."""

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        return x if other is None or bool(x.isnan().any()) else torch.maximum(x, other)


@torch.no_grad()
def test_integers_infinite_scores_and_other_numbers_of_inputs(tmp_path: Path) -> None:
    def compute(m: Any, x: Tensor) -> Tensor:
        y = m.norm(input=m.a(x))
        index = x.flatten(2).argmax(2, keepdim=True)
        y = y + torch.gather(x.flatten(2), 2, index).unsqueeze(3)
        scores = (y * 3).masked_fill(x > 0.5, -torch.inf)
        return m.join(m.join(y), scores.softmax(1) + m.b(y))

    def fresh() -> nn.Module:
        torch.manual_seed(0)
        return Net(Body(compute, norm=nn.GroupNorm(2, 8), join=Joined())).eval()

    model, x = fresh(), images()
    quantized, _ = quantize(model, ALL, 8, x)
    assert (quantized(x) - model(x)).norm() < 0.1 * model(x).norm()
    assert operations(quantized)["body.0.gather"] == 1
    assert operations(quantized)["body.0.softmax"] == 0
    save_quantized(quantized, tmp_path / "q.safetensors", {})
    loaded, _ = load_quantized(tmp_path / "q.safetensors", fresh())
    assert torch.equal(loaded(x), quantized(x))
    assert limits(Traced(plain_copy(model)), ALL)[0].startswith("body.0.join cannot be traced: ")


# Zero-points -------------------------------------------------------------------------------------------------------


def affine(values: np.ndarray, low: float, high: float, bits: int) -> np.ndarray:
    scale = (high - low) / (2**bits - 1)
    zero = np.round(-low / scale)
    return (np.clip(np.round(values / scale) + zero, 0, 2**bits - 1) - zero) * scale


@pytest.mark.parametrize("rule", ["max", "percentile", "mse"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_zero_points_against_numpy(rule: str, bits: int) -> None:
    torch.manual_seed(0)
    x = F.silu(3 * torch.randn(4, 3, 32, 32))
    x[0, 0, 0, :2] = torch.tensor([-1.0, 9.0]) * 2
    seen = observe(nn.Sequential(nn.Identity()), ["0"], x, both=True)["0"][0]
    alpha, low = with_zero_point(seen, bits, rule, 99.0)
    quantizer, values = ActivationQuantizer(bits, alpha, low), x.numpy().ravel().astype(np.float64)
    with torch.no_grad():
        found = quantizer(x).numpy().ravel()
    assert 0 in quantizer(torch.zeros(1)).tolist()
    assert len(np.unique(found)) <= 2**bits
    if rule == "max":
        assert np.allclose(found, affine(values, values.min(), values.max(), bits), atol=1e-5)
    elif rule == "percentile":
        ends = np.quantile(values, [0.005, 0.995])
        step = (ends[1] - ends[0]) / (2**bits - 1)
        assert np.abs([found.min() - ends[0], found.max() - ends[1]]).max() < 0.51 * step + 0.02
    else:
        grid = [(a, b) for a in np.linspace(0.02, 1, 40) for b in np.linspace(0.02, 1, 40)]
        best = min(
            float(((affine(values, a * values.min(), b * values.max(), bits) - values) ** 2).mean()) for a, b in grid
        )
        assert float(((found - values) ** 2).mean()) < 1.1 * best


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_a_tensor_below_zero_is_not_clipped(bits: int) -> None:
    x = -torch.rand(4, 3, 8, 8) - 0.1
    seen = observe(nn.Sequential(nn.Identity()), ["0"], x, both=True)["0"][0]
    quantizer = ActivationQuantizer(bits, *with_zero_point(seen, bits, "max", 100))
    with torch.no_grad():
        assert (quantizer(x) - x).abs().max() <= float(-x.min()) / (2**bits - 2) / 2 * 1.001


def test_one_signed_bit_is_refused_unless_there_is_a_zero_point() -> None:
    with pytest.raises(UserError, match="act_zero_point=true"):
        quantize(build("post-activation"), replace(BASE, act_bits=1, act_input_image=True), 8, images())
    quantized, _ = quantize(build("post-activation"), replace(ALL, act_bits=1), 8, images())
    assert quantized(images()).isfinite().all()


@pytest.mark.parametrize("changes", [{"layers": "conv"}, {"first_and_last": "float"}])
def test_an_execution_in_integers_needs_every_layer(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"quant\.layers=all"):
        check_method(replace(ALL, **changes))


# Files of the first edition ----------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_file_of_the_first_edition_is_read(tmp_path: Path) -> None:
    """It names the operands of an addition `first` and `second`, and knows signed quantizers instead of `low`."""
    model, x = network(), torch.randn(4, 3, 16, 16)
    quantized, _ = quantize(model, replace(BASE, act_residual=True, act_input_image=True), 4, x)
    save_quantized(quantized, tmp_path / "now.safetensors", {"bits": 4})
    tensors, metadata = read_packed(tmp_path / "now.safetensors")
    del metadata["operations"]
    for layer in metadata["layers"].values():
        layer["grid"] = {"low": layer["lowest"], "high": layer["lowest"] + layer.pop("levels") - 1}
        del layer["lowest"], layer["shape"], layer["code_bits"]

    def old(name: str) -> str:
        return name.replace(".operands.0", ".first").replace(".operands.1", ".second")

    metadata["activations"] = {
        old(name): {"bits": found["bits"], "signed": found["low"] < 0}
        for name, found in metadata["activations"].items()
    }
    assert any(found["signed"] for found in metadata["activations"].values())
    assert ".first" in json.dumps(metadata)
    save_checked({old(name): x for name, x in tensors.items()}, tmp_path / "old.safetensors", metadata)
    loaded, about = load_quantized(tmp_path / "old.safetensors", network())
    assert torch.equal(loaded(x), quantized(x))
    assert about["bits"] == 4


# Nothing in silence ------------------------------------------------------------------------------------------------


def test_the_share_of_quantized_weights_and_the_reasons_for_the_rest() -> None:
    class Odd(Net):
        def __init__(self) -> None:
            super().__init__(conv())
            self.position, self.up = nn.Parameter(torch.randn(8, 8, 8)), nn.ConvTranspose2d(8, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(self.up(self.body(self.stem(x)) + self.position).mean((2, 3)))
            return logits

    for options, head in ((BASE, None), (replace(BASE, layers="conv"), "layers=conv")):
        share, reasons = float_tensors(quantize(Odd().eval(), options, 4, images())[0], options)
        wanted = {"position": "no layer of its own", "up.weight": "ConvTranspose2d is not supported"}
        assert reasons == wanted | ({"head.weight": head} if head else {})
        done = 3 * 8 * 9 + 8 * 8 * 9 + (0 if head else 40)
        assert share == pytest.approx(100 * done / (3 * 8 * 9 + 8 * 8 * 9 + 40 + 512 + 64))


def test_the_ends_are_those_that_run_first_and_last() -> None:
    """The classifier is registered first."""
    model, x = build("post-activation"), images()
    eight, report = quantize(model, replace(BASE, first_and_last="eight"), 3, x)
    assert {row.layer for row in report.layers if row.stored_bits == 8} == {"stem.0", "head"}
    layers = quantized_layers(eight)
    assert layers["stem.0"].activation is None
    assert layers["head"].activation is not None
    spared, _ = quantize(model, replace(BASE, first_and_last="float"), 3, x)
    assert float_tensors(spared, replace(BASE, first_and_last="float"))[1] == dict.fromkeys(
        ("head.weight", "stem.0.weight"), "first_and_last=float"
    )
