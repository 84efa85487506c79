"""Which constructors of torchvision and timm a file may name."""

import importlib
import sys
from types import ModuleType
from typing import Any

import pytest
from torch import nn

from ptq_exp.networks import custom


def trusted(target: str, **args: Any) -> Any:
    return custom.trusted({"architecture": "custom", "target": target, "args": args})


def built(target: str, **args: Any) -> nn.Module:
    allowed = trusted(target, **args)
    assert allowed is not None
    return custom.build(7, **allowed)


@pytest.mark.parametrize(
    ("target", "args"),
    [
        ("torchvision.models.mobilenet_v2", {"width_mult": 0.25}),
        ("torchvision.models.resnet18", {"weights": None}),
        ("torchvision.models.resnet.resnet18", {}),
        ("torchvision.models.DenseNet", {"growth_rate": 4, "block_config": [2, 2], "num_init_features": 8}),
        ("torchvision.models.densenet.DenseNet", {"growth_rate": 4, "block_config": [2], "num_init_features": 8}),
        ("torchvision.models.MobileNetV2", {"width_mult": 0.25}),
        ("torchvision.models.get_model", {"name": "shufflenet_v2_x0_5", "num_classes": 7}),
        ("torchvision.models.quantization.mobilenet_v2", {"width_mult": 0.25}),
    ],
)
def test_networks_of_torchvision_are_built_as_before(target: str, args: dict) -> None:
    found, wanted = (network.state_dict() for network in (built(target, **args), custom.build(7, target, args)))
    assert {key: value.shape for key, value in found.items()} == {key: value.shape for key, value in wanted.items()}


HOSTILE = [
    "torchvision.models._utils.os.system", "torchvision.models._api.get_model", "torchvision.models.os.system",
    "torchvision.models.get_weight", "torchvision.models.list_models", "torchvision.models.get_model_builder",
    "torchvision.models.resnet.load_state_dict_from_url", "torchvision.models.densenet.nn.Conv2d",
    "torchvision.models.densenet.partial", "torchvision.models.resnet.Callable", "torchvision.models.ResNet18_Weights",
    "torchvision.models.__builtins__.eval", "torchvision.models.resnet18.__globals__", "torchvision.models.nowhere.a",
    "torchvision.datasets.utils.download_url", "torchvision.io.read_file", "torchvision.models", "torchvision", "",
    "torchvision.models..resnet18", "torchvision.models.densenet.cp.sys.exit", "torchvision:models.resnet18",
    "timm", "timm.utils.model_ema.load_state_dict", "timm.models._helpers.torch.load", "timm.models.load_checkpoint",
    "timm.models.load_pretrained", "timm.data.create_dataset", "timm.list_models", "timm.layers.nn.Linear",
    "timm.no.resnet18",
]  # fmt: skip


@pytest.mark.parametrize("target", HOSTILE)
def test_no_other_function_of_these_packages_can_be_named(target: str) -> None:
    assert trusted(target) is None


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The package, or a stand-in with the functions that decide what is a network."""
    try:
        return importlib.import_module("timm")
    except ImportError:
        stand_in, models = ModuleType("timm"), ModuleType("timm.models")

    def resnet18(num_classes: int = 1000, pretrained: bool = False) -> nn.Module:
        assert not pretrained
        return nn.Linear(3, num_classes)

    def create_model(model_name: str, pretrained: bool = False, checkpoint_path: str = "", **args: Any) -> nn.Module:
        assert not checkpoint_path
        return resnet18(pretrained=pretrained, **args)

    functions = {
        "create_model": create_model, "is_model": lambda name: name.partition(".")[0] == "resnet18",
        "model_entrypoint": {"resnet18": resnet18}.__getitem__,
    }  # fmt: skip
    vars(stand_in).update(functions, models=models, __path__=[])
    vars(models).update(functions, resnet18=resnet18, load_checkpoint=print)
    monkeypatch.setitem(sys.modules, "timm", stand_in)
    monkeypatch.setitem(sys.modules, "timm.models", models)
    return stand_in


def test_networks_of_timm_are_built_without_reading_other_files(timm: Any) -> None:
    for target, args in (("timm.create_model", {"model_name": "resnet18"}), ("timm.models.resnet18", {})):
        network = built(target, **args, pretrained=True)
        assert list(network.parameters())[-1].shape == (7,)
    assert trusted("timm.create_model", model_name="resnet18.a1_in1k", pretrained=True, checkpoint_path="evil.pt") == {
        "target": "timm.create_model", "args": {"model_name": "resnet18.a1_in1k"},
    }  # fmt: skip


@pytest.mark.parametrize("name", ["hf-hub:someone/evil", "local-dir:evil", "hf_hub:a/resnet18.b", "no such network"])
def test_networks_of_a_hub_or_a_folder_cannot_be_named(timm: Any, name: str) -> None:
    assert trusted("timm.create_model", model_name=name) is None
    assert trusted("timm.create_model") is None


@pytest.mark.parametrize("target", ["timm.models.load_checkpoint", "timm.is_model", "timm.model_entrypoint"])
def test_other_functions_of_timm_cannot_be_named(timm: Any, target: str) -> None:
    assert trusted(target) is None
