"""What a checkpoint file is taken for: a known network that can hold it, or a description that helps."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from conftest import TINY, Outcome
from torch import nn

from ptq_exp import networks
from ptq_exp.base.errors import UserError
from ptq_exp.networks import build_model
from ptq_exp.networks.reading import Checkpoint, read_checkpoint


def read(path: Path) -> Checkpoint:
    return read_checkpoint(str(path), path.parent / "cache", timeout=5)


def refusal(content: Any, path: Path) -> str:
    torch.save(content, path)
    with pytest.raises(UserError) as error:
        read(path)
    return str(error.value)


def test_a_densenet_is_described_and_called_neither_resnet_nor_vgg(tmp_path: Path) -> None:
    network = torchvision.models.DenseNet(growth_rate=4, block_config=(2, 2), num_init_features=8, num_classes=7)
    message = refusal(network.state_dict(), tmp_path / "dense.pt")
    assert "VGG-" not in message
    assert "ResNet-" not in message
    convolutions = sum(isinstance(module, nn.Conv2d) for module in network.modules())
    assert f"{convolutions} convolutions, 1 linear" in message
    assert "the first is features.conv0.weight (8, 3, 7, 7)" in message
    assert "the last classifier.weight (7, 16)" in message
    assert "for 7 classes" in message


def test_a_network_with_the_names_but_not_the_shapes_of_a_family_says_what_differs(tmp_path: Path) -> None:
    weights = build_model("vgg", 10, depth=11).state_dict()
    weights["features.0.weight"] = torch.zeros(64, 1, 3, 3)
    message = refusal(weights, tmp_path / "grey.pt")
    assert "The closest is a VGG-11, but it does not fit" in message
    assert "features.0.weight (64, 1, 3, 3) instead of (64, 3, 3, 3)" in message


@pytest.mark.parametrize("depth", [11, 13, 16, 19])
def test_every_vgg_is_told_by_its_layers(tmp_path: Path, depth: int) -> None:
    with torch.device("meta"):
        shapes = build_model("vgg", 10, depth=depth).state_dict()
    torch.save({key: torch.zeros(()).expand(value.shape) for key, value in shapes.items()}, tmp_path / "vgg.pt")
    checkpoint = read(tmp_path / "vgg.pt")
    assert (checkpoint.architecture, checkpoint.options) == ("vgg", {"depth": depth})


@pytest.mark.parametrize("name", ["layer1.0.scale", "linear.alpha"])
def test_a_parameter_that_ends_in_scale_or_alpha_is_no_sign_of_quantization(tmp_path: Path, name: str) -> None:
    weights = build_model("resnet", 10, depth=8).state_dict() | {name: torch.ones(1)}
    message = refusal(weights, tmp_path / "scaled.pt")
    assert "quantization-aware" not in message
    assert f"unexpected: {name}" in message


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_any_float_type_are_read(tmp_path: Path, dtype: torch.dtype) -> None:
    weights = build_model("resnet", 10, depth=8).state_dict()
    changed = {key: value.to(dtype) if value.is_floating_point() else value for key, value in weights.items()}
    torch.save(changed, tmp_path / "half.pt")
    checkpoint = read(tmp_path / "half.pt")
    network = build_model("resnet", 10, **checkpoint.options)
    network.load_state_dict(checkpoint.weights)
    assert network.conv1.weight.dtype == torch.float32
    assert torch.equal(network.conv1.weight, weights["conv1.weight"].to(dtype).float())


CLAIMS = [
    ({"best_prec1": 91.73}, ("best_prec1", 91.73)),
    ({"best_prec1": torch.tensor(91.73)}, ("best_prec1", 91.73)),
    ({"epoch": 3, "acc": 0.9173}, ("acc", 91.73)),
    ({"best_acc": 91.73}, ("best_acc", 91.73)),
    ({"val_acc1": 91.73}, ("val_acc1", 91.73)),
    ({"test_accuracy": 91.73}, ("test_accuracy", 91.73)),
    ({"acc": None}, None),
    ({"accelerate": 7.0, "best_epoch": 91}, None),
    ({"best_acc": 0.0}, None),
]


@pytest.mark.parametrize(("extra", "claim"), CLAIMS)
def test_the_accuracy_that_a_file_claims_is_found(tmp_path: Path, extra: dict[str, Any], claim: Any) -> None:
    torch.save({"state_dict": build_model("resnet", 10, depth=8).state_dict(), **extra}, tmp_path / "model.pt")
    found = read(tmp_path / "model.pt").claim
    assert (found is None) == (claim is None)
    if claim:
        assert found is not None
        assert found[0] == claim[0]
        assert found[1] == pytest.approx(claim[1], abs=1e-4)


TINY_NETWORK = """
from torch import nn
def build(classes, width=4):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(width, classes))
"""


@pytest.mark.slow
def test_a_network_of_ones_own_is_read_back_from_the_store(
    cli: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One file and one YAML: it trains, is stored, and its stored file is read under another name."""
    (tmp_path / "networks").mkdir()
    (tmp_path / "networks" / "tiny.py").write_text(TINY_NETWORK)
    (tmp_path / "own" / "model").mkdir(parents=True)
    (tmp_path / "own" / "model" / "tiny.yaml").write_text("name: tiny\narchitecture: tiny\nwidth: 6\n")
    monkeypatch.setattr(networks, "__path__", [*networks.__path__, str(tmp_path / "networks")])
    few = [word for word in TINY if not word.startswith("model.")]
    given = [*few, f"hydra.searchpath=[file://{tmp_path}/own]", f"cache_dir={tmp_path / 'cache'}", "quant.bits=4"]
    outcome = cli(*given, "model=tiny")
    assert outcome.code == 0, outcome.err
    (stored,) = (tmp_path / "cache").rglob("last.safetensors")
    shutil.copy(stored, tmp_path / "mine.safetensors")
    again = cli(*given, f"checkpoint={tmp_path / 'mine.safetensors'}")
    assert again.code == 0, again.err
    tables = [[line for line in out.splitlines() if line.startswith("│")] for out in (outcome.out, again.out)]
    assert tables[0] == tables[1]
