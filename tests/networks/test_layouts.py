"""Checkpoints of other projects: the same logits to the last bit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import mostly_slow
from foreign import Weights, logits, prefixed, read, read_and_load, resnet, trained_like
from safetensors.torch import save_file

from ptq_exp.networks import build_model

pytestmark = pytest.mark.usefixtures("one_thread")


def untracked(weights: Weights) -> Weights:
    return {key: value for key, value in weights.items() if not key.endswith("num_batches_tracked")}


def akamaster(weights: Weights) -> dict[str, Any]:
    return {"state_dict": prefixed(untracked(weights), "module."), "best_prec1": 91.73}


def chenyaofo(weights: Weights) -> dict[str, Any]:
    return {k.replace(".shortcut.", ".downsample.").replace("linear.", "fc."): v for k, v in weights.items()}


def kuangliu(weights: Weights) -> dict[str, Any]:
    return {"net": prefixed(weights, "module."), "acc": 95.47, "epoch": 199}


def pytorchcv(weights: Weights) -> dict[str, Any]:
    renamed = {}
    for key, value in weights.items():
        parts = key.split(".")
        if parts[0] in ("conv1", "bn1"):
            name = f"features.init_block.{parts[0][:-1]}.{parts[1]}"
        elif parts[0] == "linear":
            name = f"output.{parts[1]}"
        else:
            unit = f"features.stage{parts[0].removeprefix('layer')}.unit{int(parts[1]) + 1}"
            if parts[2] == "shortcut":
                name = f"{unit}.identity_conv.{('conv', 'bn')[int(parts[3])]}.{parts[4]}"
            else:
                name = f"{unit}.body.conv{parts[2][-1]}.{parts[2][:-1]}.{parts[3]}"
        renamed[name] = value
    return renamed


def bare(weights: Weights) -> dict[str, Any]:
    return dict(weights)


def compiled(weights: Weights) -> dict[str, Any]:
    return prefixed(weights, "_orig_mod.")


def compiled_and_parallel(weights: Weights) -> dict[str, Any]:
    return {"model": prefixed(weights, "module._orig_mod."), "epoch": 3}


Layout = Callable[[Weights], dict[str, Any]]
LAYOUTS: list[tuple[Layout, str]] = [  # and the shortcut of its project
    (akamaster, "pad"),
    (chenyaofo, "conv"),
    (kuangliu, "conv"),
    (pytorchcv, "conv"),
    (bare, "conv"),
    (bare, "pad"),
    (compiled, "conv"),
    (compiled, "pad"),
    (compiled_and_parallel, "conv"),
]


@pytest.mark.parametrize(("layout", "shortcut"), LAYOUTS)
def test_a_third_party_layout_gives_the_logits_of_the_original(tmp_path: Path, layout: Layout, shortcut: str) -> None:
    original = resnet(20, shortcut)
    torch.save(layout(original.state_dict()), tmp_path / "model.pt")
    checkpoint = read(tmp_path / "model.pt")
    assert (checkpoint.architecture, checkpoint.classes) == ("resnet", 10)
    assert checkpoint.options == {"depth": 20, "shortcut": shortcut}
    assert checkpoint.normalization is None, "the spelling of keys says nothing about the images"
    model = read_and_load(tmp_path / "model.pt")
    assert torch.equal(logits(model), logits(original))
    expected = original.state_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(value, expected[key]) or (layout is akamaster and key.endswith("num_batches_tracked"))


@pytest.mark.parametrize("layout", [akamaster, chenyaofo, pytorchcv])
@pytest.mark.parametrize("depth", mostly_slow([56, 20]))
@pytest.mark.parametrize("classes", [10, 100])
def test_depth_classes_and_shortcut_are_told_from_the_keys(
    tmp_path: Path, layout: Layout, depth: int, classes: int
) -> None:
    shortcut = "pad" if layout is akamaster else "conv"
    original = resnet(depth, shortcut, classes)
    torch.save(layout(original.state_dict()), tmp_path / "model.th")
    checkpoint = read(tmp_path / "model.th")
    assert checkpoint.options == {"depth": depth, "shortcut": shortcut}
    assert checkpoint.classes == classes
    assert torch.equal(logits(read_and_load(tmp_path / "model.th")), logits(original))


@pytest.mark.parametrize("layout", [chenyaofo, kuangliu, pytorchcv, bare])
def test_num_batches_tracked_may_be_missing(tmp_path: Path, layout: Layout) -> None:
    original = resnet()
    torch.save(layout(untracked(original.state_dict())), tmp_path / "model.pt")
    assert torch.equal(logits(read_and_load(tmp_path / "model.pt")), logits(original))


def test_safetensors_without_metadata(tmp_path: Path) -> None:
    original = resnet()
    save_file(chenyaofo(original.state_dict()), tmp_path / "model.safetensors")
    checkpoint = read(tmp_path / "model.safetensors")
    assert checkpoint.normalization is None
    assert checkpoint.metadata == {}
    assert torch.equal(logits(read_and_load(tmp_path / "model.safetensors")), logits(original))


def test_safetensors_metadata_of_our_own_carries_the_normalization(tmp_path: Path) -> None:
    original = resnet(shortcut="pad")
    ours = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "epoch": 12}
    save_file(original.state_dict(), tmp_path / "model.safetensors", metadata={"ptq_exp": json.dumps(ours)})
    checkpoint = read(tmp_path / "model.safetensors")
    assert checkpoint.normalization == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert checkpoint.metadata["epoch"] == 12
    assert torch.equal(logits(read_and_load(tmp_path / "model.safetensors")), logits(original))


def test_safetensors_metadata_of_another_program_is_no_obstacle(tmp_path: Path) -> None:
    original = resnet()
    save_file(original.state_dict(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(logits(read_and_load(tmp_path / "model.safetensors")), logits(original))


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_both_file_formats_of_torch_are_read(tmp_path: Path, form: str) -> None:
    original = resnet()
    torch.save(original.state_dict(), tmp_path / "model.pt", _use_new_zipfile_serialization=form == "zip")
    assert torch.equal(logits(read_and_load(tmp_path / "model.pt")), logits(original))


@pytest.mark.parametrize("classes", [10, 100])
def test_vgg16_gives_the_logits_of_the_original(tmp_path: Path, classes: int) -> None:
    original = trained_like(build_model("vgg", classes, depth=16))
    weights = original.state_dict()
    torch.save({"state_dict": {k.replace("linear.", "classifier."): v for k, v in weights.items()}}, tmp_path / "vgg")
    checkpoint = read(tmp_path / "vgg")
    assert (checkpoint.architecture, checkpoint.options, checkpoint.classes) == ("vgg", {"depth": 16}, classes)
    assert torch.equal(logits(read_and_load(tmp_path / "vgg")), logits(original))


def test_equal_files_have_equal_digests_and_others_do_not(tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        save_file(trained_like(build_model("resnet", 10), seed).state_dict(), tmp_path / f"{name}.safetensors")
    one, two, three = (read(tmp_path / f"{name}.safetensors").sha256 for name in ("one", "two", "three"))
    assert one == two != three
