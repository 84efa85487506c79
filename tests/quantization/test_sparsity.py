"""Weights that are exactly zero in the float network stay exactly zero, on every grid and through all learning."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import mostly_slow, prepare, quantize
from torch import Tensor, nn
from torch.nn.utils import prune

from ptq_exp.export.network_file import load_quantized, save_quantized
from ptq_exp.networks import build_model
from ptq_exp.quantization.effective_weights import target_layers
from ptq_exp.quantization.grids import GRIDS, parameters, weight_grid
from ptq_exp.quantization.layers import quantized_layers
from ptq_exp.quantization.options import QuantConfig, ReconstructionConfig
from ptq_exp.quantization.ranges import ALPHA_RULES
from ptq_exp.quantization.sparsity import SPARSE, groups_with_zeros

BEST = QuantConfig(
    sign_bit="included", grid="float_zero_point", alpha_rule="lp", granularity="channel", layers="all", act_rule="mse",
    fold_batch_norm=True, rounding="block",
    reconstruction=ReconstructionConfig(up_to_bits=8, steps=6, batch_size=8, distill_steps=6, distill_batch_size=8),
)  # fmt: skip
SHORT = replace(BEST, rounding="nearest", reconstruction=ReconstructionConfig())


def network() -> nn.Module:
    torch.manual_seed(4)
    return build_model("resnet", 10, depth=8).eval()


def pruned(share: float = 0.5) -> nn.Module:
    """Half of each convolution's weights are zero, the smallest; the linear layer is dense."""
    model = network()
    for layer in target_layers(model).values():
        prune.l1_unstructured(layer, "weight", amount=share)
    return model


def images(count: int = 32) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("bits", mostly_slow([2, 4, 8]))
@pytest.mark.parametrize(
    "changes",
    mostly_slow(
        [
            {"equalize": True, "bias_correction": True},
            {"rounding": "adaround", "grid": "asymmetric"},
            {},
            {"act_bits": 4},
            {"grid": "symmetric", "alpha_rule": "mse"},
            {"granularity": "tensor", "alpha_rule": "percentile"},
            {"granularity": "model", "alpha_rule": "max"},
        ],
        2,
    ),
)
def test_pruned_weights_stay_zero(tmp_path: Path, bits: int, changes: dict[str, object]) -> None:
    model, config = pruned(), replace(BEST, **changes)
    float_layers = target_layers(prepare(model, config), "all")
    quantized, report = quantize(model, config, bits, images())
    for name, layer in quantized_layers(quantized).items():
        zero = float_layers[name].weight == 0
        assert (layer.weight[zero] == 0).all(), name
        if name != "linear":
            assert zero.float().mean() == pytest.approx(0.5, abs=0.01)
            assert (layer.weight != 0).any() or config.granularity == "model"  # one range at two bits leaves little
    rows = {row.layer: row for row in report.layers}
    assert rows["conv1"].sparsity_float_percent == pytest.approx(50)
    assert rows["conv1"].sparsity_percent >= 50
    assert rows["linear"].sparsity_float_percent == 0
    save_quantized(quantized, tmp_path / "q.safetensors", {})
    loaded, _ = load_quantized(tmp_path / "q.safetensors", build_model("resnet", 10, depth=8))
    for name, layer in quantized_layers(loaded).items():
        assert (layer.weight[float_layers[name].weight == 0] == 0).all(), name


@pytest.mark.slow
def test_learning_moves_the_other_weights_of_a_pruned_network() -> None:
    model, x = pruned(), images()
    how = replace(BEST.reconstruction, steps=100)
    learned, nearest = (
        quantized_layers(quantize(model, config, 3, x)[0]) for config in (replace(BEST, reconstruction=how), SHORT)
    )
    moved = sum(int((learned[name].codes != layer.codes).sum()) for name, layer in nearest.items())
    assert moved > 100


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("rule", mostly_slow(sorted(ALPHA_RULES)))
@pytest.mark.parametrize("granularity", mostly_slow(["channel", "model", "tensor"]))
def test_a_channel_of_zeros_stays_one(grid: str, rule: str, granularity: str) -> None:
    model = network()
    for layer in target_layers(model).values():
        layer.weight.data[3] = 0
    config = replace(SHORT, grid=grid, alpha_rule=rule, granularity=granularity, fold_batch_norm=False)
    for bits in (2, 4):
        quantized, _ = quantize(model, config, bits, images(4))
        for name, layer in quantized_layers(quantized).items():
            assert name == "linear" or not layer.weight[3].any(), name
            assert torch.isfinite(layer.weight).all()


def test_zero_is_a_level_also_where_all_other_weights_have_one_sign() -> None:
    grid = weight_grid(2, "included", "float_zero_point")
    low, high = torch.tensor([0.5, 0.5, -3.0]), torch.tensor([3.0, 3.0, -1.0])
    scale, zero_point = parameters(grid, "float_zero_point", low, high, torch.tensor([True, False, True]))
    assert scale.tolist() == pytest.approx([1.0, 2.5 / 3, 1.0])
    assert zero_point.tolist() == pytest.approx([0.0, -0.6, 3.0])


def test_from_which_share_on_zeros_are_kept() -> None:
    weight = torch.ones(3, 1000)
    weight[1, :9] = 0
    weight[2, :10] = 0
    assert SPARSE == 0.01
    assert groups_with_zeros({"a": weight}, "channel")["a"].tolist() == [False, False, True]
    assert groups_with_zeros({"a": weight[:2], "b": weight}, "tensor")["b"].tolist() == [True]
    assert groups_with_zeros({"a": weight[:2], "b": weight}, "tensor")["a"].tolist() == [False]
    assert groups_with_zeros({"a": weight[:2], "b": weight}, "model")["a"].tolist() == [True]


def test_the_per_layer_table_shows_the_sparsity(cli: Callable[..., object], tmp_path: Path) -> None:
    from conftest import TINY

    assert cli("quant=mse", "quant.bits=4", *TINY, "quant.calibration_images=16").code == 0  # type: ignore[attr-defined]
    (table,) = tmp_path.glob("outputs/*/*/artifacts/layers_w4.csv")
    assert "sparsity_float_percent,sparsity_percent" in table.read_text(encoding="utf-8").splitlines()[0]
