"""Weights under the names of a network that is known: by name, renamed, in order, and what does not fit."""

import logging
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from conftest import SHARED, mostly_slow, shared
from foreign import Weights, logits, prefixed, read, read_and_load, resnet, trained_like
from torch import Tensor, nn

from bench.foreign import INVERTED_RESIDUALS
from ptq_exp.base.errors import UserError
from ptq_exp.networks import build_model
from ptq_exp.networks.reading import read_weights
from ptq_exp.networks.reading.fitting import Fit, fit

pytestmark = pytest.mark.usefixtures("one_thread")

TORCHVISION: dict[str, Callable[[], nn.Module]] = {
    "mobilenet_v2": lambda: torchvision.models.mobilenet_v2(num_classes=10, width_mult=0.25),
    "densenet": lambda: torchvision.models.DenseNet(4, (2, 2), 8, num_classes=7),
    "resnet18": lambda: torchvision.models.resnet18(num_classes=5),
    "shufflenet": lambda: torchvision.models.shufflenet_v2_x0_5(num_classes=5),
    "vit": lambda: torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=5),
}


def fitted(model: nn.Module, weights: object, path: Path) -> Fit:
    torch.save(weights, path)
    return fit(model, read_weights(str(path), path.parent, 1))


def scrambled(weights: Weights) -> Weights:
    """Other names for every module, in the same order."""
    modules = list(dict.fromkeys(key.rpartition(".")[0] for key in weights))
    names = {module: f"part{number}" for number, module in enumerate(modules)}
    return {".".join((names[key.rpartition(".")[0]], key.rpartition(".")[2])): weights[key] for key in weights}


def assert_weights(found: Fit, model: nn.Module) -> None:
    state = model.state_dict()
    assert found.weights.keys() == state.keys()
    assert all(torch.equal(found.weights[key], value) for key, value in state.items())


@pytest.mark.parametrize("kind", TORCHVISION)
@pytest.mark.parametrize(
    ("layout", "how"),
    [
        (dict, "The weights fit by name."),
        (lambda weights: prefixed(weights, "module."), "The weights fit by name."),
        (lambda weights: prefixed(weights, "lit.net_a."), "The weights fit after removing `lit.net_a`."),
    ],
)
def test_networks_of_torchvision_fit_by_name(tmp_path: Path, kind: str, layout: Callable, how: str) -> None:
    model = TORCHVISION[kind]()
    found = fitted(TORCHVISION[kind](), layout(model.state_dict()), tmp_path / "model.pt")
    assert_weights(found, model)
    assert found.how == how


@pytest.mark.parametrize("kind", ["mobilenet_v2", "densenet", "resnet18", "shufflenet"])
def test_other_names_fit_in_order(tmp_path: Path, kind: str) -> None:
    model = TORCHVISION[kind]()
    count = sum("tracked" not in key for key in model.state_dict())
    found = fitted(TORCHVISION[kind](), scrambled(model.state_dict()), tmp_path / "model.pt")
    assert_weights(found, model)
    assert found.how == (
        f"The weights fit in order: the names differ, but the {count} tensors have the same shapes in the same order."
    )


def test_renamed_parts_are_named(tmp_path: Path) -> None:
    model = TORCHVISION["resnet18"]()
    weights = {
        re.sub(r"^layer(\d)", lambda match: f"stages.{int(match[1]) - 1}", key)
        .replace("fc.", "head.").replace("downsample", "shortcut"): value for key, value in model.state_dict().items()
    }  # fmt: skip
    found = fitted(TORCHVISION["resnet18"](), weights, tmp_path / "model.pt")
    assert_weights(found, model)
    assert "after renaming" in found.how
    assert "after renaming `head` to `fc`." in fitted(TORCHVISION["resnet18"](), {
        key.replace("fc.", "head."): value for key, value in model.state_dict().items()
    }, tmp_path / "model.pt").how  # fmt: skip


def test_two_tensors_for_one_name_are_ambiguous(tmp_path: Path) -> None:
    weights = TORCHVISION["resnet18"]().state_dict()
    weights |= {"head.weight": weights["fc.weight"], "head.bias": weights["fc.bias"]}
    with pytest.raises(UserError, match=r"ambiguous: fc\.weight, head\.weight could each be the network's fc\.wei"):
        fitted(TORCHVISION["resnet18"](), weights, tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda weights: {k: v for k, v in weights.items() if k != "bn1.bias"}, "missing: bn1.bias"),
        (lambda weights: weights | {"extra.weight": torch.ones(2, 2)}, "unexpected: extra.weight"),
        (lambda weights: weights | {"fc.weight": torch.ones(9, 512)}, "fc.weight (9, 512) instead of (5, 512)"),
        (lambda weights: weights | {"conv1.bias": torch.ones(63)}, "unexpected: conv1.bias"),
    ],
)
def test_weights_that_do_not_fit_are_described_with_the_remedy(
    tmp_path: Path, change: Callable[[Weights], Weights], words: str
) -> None:
    with pytest.raises(UserError) as error:
        fitted(TORCHVISION["resnet18"](), change(TORCHVISION["resnet18"]().state_dict()), tmp_path / "model.pt")
    assert words in str(error.value)
    assert "17 convolutions" in str(error.value)
    assert "model=custom model.target=path/to/nets.py:ClassName" in str(error.value)


def test_the_same_number_of_tensors_in_another_order_does_not_fit(tmp_path: Path) -> None:
    weights = scrambled(TORCHVISION["mobilenet_v2"]().state_dict())
    with pytest.raises(UserError, match="does not fit"):
        fitted(TORCHVISION["mobilenet_v2"](), dict(reversed(list(weights.items()))), tmp_path / "model.pt")


@pytest.mark.parametrize("beside", ["criterion", "teacher_ema"])
def test_a_network_beside_others_in_one_state_dict_is_found(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, beside: str
) -> None:
    caplog.set_level(logging.INFO, logger="ptq_exp")
    other = resnet(14, classes=10).state_dict() if "ema" in beside else {"weight": torch.ones(10, 10)}
    original = resnet(8)
    weights = {**prefixed(other, f"{beside}."), **prefixed(original.state_dict(), "student.")}
    found = fitted(resnet(8), weights, tmp_path / "model.pt")
    assert_weights(found, original)
    assert found.how == "The weights under `student` fit by name."
    assert torch.equal(logits(read_and_load(tmp_path / "model.pt")), logits(original))


def test_two_networks_of_the_same_kind_in_one_state_dict_are_ambiguous(tmp_path: Path) -> None:
    state = resnet(8).state_dict()
    with pytest.raises(UserError, match="the weights under left, right fit the network"):
        fitted(resnet(8), {**prefixed(state, "left."), **prefixed(state, "right.")}, tmp_path / "model.pt")


class WithBiases(nn.Module):
    """Convolutions with biases before their batch norms, and one without a batch norm."""

    def __init__(self, bias: bool):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 3, bias=bias), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 8, 3, groups=2, bias=bias), nn.BatchNorm2d(8)
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))).mean((2, 3))


@pytest.mark.parametrize("layout", [dict, scrambled])
def test_biases_before_batch_norm_are_absorbed(tmp_path: Path, layout: Callable[[Weights], Weights]) -> None:
    original, model = trained_like(WithBiases(True)), WithBiases(False)
    found = fitted(model, layout(original.state_dict()), tmp_path / "model.pt")
    model.load_state_dict(found.weights)
    assert (logits(model) - logits(original)).abs().max() <= 1e-5 * logits(original).abs().max()
    assert not torch.equal(model.bn1.running_mean, original.bn1.running_mean)


def test_a_bias_that_nothing_takes_is_refused(tmp_path: Path) -> None:
    class Without(WithBiases):
        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.bn2(self.conv2(self.bn1(self.conv1(x).relu())))).mean((2, 3))

    with pytest.raises(UserError, match=r"Unexpected: conv1\.bias"):
        fitted(Without(False), WithBiases(True).state_dict(), tmp_path / "model.pt")


class Normalizing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1))
        self.register_buffer("std", torch.full((3, 1, 1), 0.25))
        self.model = resnet(8)


def test_a_network_that_normalizes_its_images_keeps_its_constants_and_says_so(tmp_path: Path) -> None:
    found = fitted(Normalizing(), Normalizing().state_dict(), tmp_path / "model.pt")
    assert_weights(found, Normalizing())
    assert found.normalizes
    assert not fitted(resnet(8), Normalizing().state_dict(), tmp_path / "model.pt").normalizes


@pytest.mark.parametrize("prefix", ["module.", "model.", "module._orig_mod."])
def test_weights_in_parts_and_constants_fit_behind_a_prefix(prefix: str, tmp_path: Path) -> None:
    def network() -> nn.Module:
        model = Normalizing()
        model.body = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.Linear(4, 2))
        return model

    model = network()
    found = fitted(network(), prefixed(model.state_dict(), prefix), tmp_path / "model.pt")
    assert_weights(found, model)
    assert found.normalizes


def test_integer_buffers_of_a_network_are_no_obstacle(tmp_path: Path) -> None:
    class Indexed(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 3)
            self.register_buffer("index", torch.arange(3))

    model = Indexed()
    assert_weights(fitted(Indexed(), model.state_dict(), tmp_path / "model.pt"), model)


@pytest.mark.shared_data
@pytest.mark.parametrize("name", ["mobilenet_v2", "wrn16_2", "densenet"])
def test_foreign_networks_fit_and_are_described_without_their_class(name: str, tmp_path: Path) -> None:
    path = shared(f"checkpoints/foreign/{name}.pt")
    state = torch.load(path, weights_only=True)
    module: dict = {}
    exec((SHARED / "checkpoints/foreign/wide_resnet.py").read_text(), module)
    model = {
        "mobilenet_v2": lambda: torchvision.models.mobilenet_v2(
            num_classes=10, width_mult=0.5, inverted_residual_setting=INVERTED_RESIDUALS
        ),
        "wrn16_2": module["WideResNet"],
        "densenet": lambda: torchvision.models.DenseNet(12, (8, 8, 8), 24, num_classes=10),
    }[name]()
    for weights in (state, scrambled(state)):
        found = fitted(model, weights, tmp_path / "model.pt")
        assert all(torch.equal(found.weights[key], value) for key, value in state.items())
    with pytest.raises(UserError, match=r"contains no known network: .*for 10 classes.*model\.target=") as error:
        read(path)
    assert not re.search(r"(VGG|ResNet)-\d", str(error.value))


def thin_resnet(**options: object) -> nn.Module:
    return trained_like(build_model("resnet", 10, **options))


PRUNED = [12, 5, 12, 7, 12, 9, 24, 11, 24, 13, 40, 15, 40]
WIDTHS = [
    ("resnet", {"depth": 20, "shortcut": "conv"}),
    ("resnet", {"depth": 20, "shortcut": "pad"}),
    ("resnet", {"depth": 56, "shortcut": "pad"}),
    ("resnet", {"depth": 20, "shortcut": "conv", "channels": [8, 16, 32]}),
    ("resnet", {"depth": 20, "shortcut": "pad", "channels": [5, 8, 13]}),
    ("resnet", {"depth": 8, "shortcut": "conv", "channels": [64, 128, 256]}),
    ("resnet", {"depth": 14, "shortcut": "conv", "channels": PRUNED}),
    ("resnet", {"depth": 8, "shortcut": "conv", "channels": [16, 32, 32, 64, 64, 128, 128]}),
    ("vgg", {"depth": 11}),
    ("vgg", {"depth": 16, "channels": [8, 16, 24, 32, 32]}),
    ("vgg", {"depth": 11, "channels": [9, 8, 7, 6, 5, 4, 3, 2]}),
]


@pytest.mark.parametrize(("architecture", "options"), WIDTHS)
@pytest.mark.parametrize("layout", mostly_slow([scrambled, dict]))
def test_a_family_of_any_width_and_with_any_names_is_found(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, architecture: str, options: dict, layout: Callable
) -> None:
    caplog.set_level(logging.INFO, logger="ptq_exp")
    original = trained_like(build_model(architecture, 10, **options))
    torch.save(layout(original.state_dict()), tmp_path / "model.pt")
    found = read(tmp_path / "model.pt")
    assert (found.architecture, found.options, found.classes) == (architecture, options, 10)
    assert ("in order" if layout is scrambled else "by name") in caplog.text
    assert torch.equal(logits(read_and_load(tmp_path / "model.pt")), logits(original))


def test_a_vgg_with_biases_gives_the_logits_of_the_original(tmp_path: Path) -> None:
    original = trained_like(build_model("vgg", 10, depth=11, channels=[8, 8, 16, 16, 16]))
    for name, module in list(original.named_modules()):
        if isinstance(module, nn.Conv2d):
            module.bias = nn.Parameter(torch.rand(module.out_channels) - 0.5)
            assert name.startswith("features")
    torch.save(original.state_dict(), tmp_path / "model.pt")
    found = logits(read_and_load(tmp_path / "model.pt"))
    assert (found - logits(original)).abs().max() <= 1e-4 * logits(original).abs().max()


def test_tensors_that_fit_two_networks_in_order_are_ambiguous(tmp_path: Path) -> None:
    weights = thin_resnet(depth=14, shortcut="pad").state_dict()
    assert torch.equal(weights["conv1.weight"], read_saved(tmp_path, weights)["conv1.weight"])
    with pytest.raises(UserError, match=r"fit a ResNet-14 with pad shortcuts and a VGG-16 .* in order"):
        read_saved(tmp_path, scrambled(weights))


def read_saved(folder: Path, weights: Weights) -> Weights:
    torch.save(weights, folder / "model.pt")
    return read(folder / "model.pt").weights


def test_a_resnet_of_four_stages_is_not_taken_for_one_of_three(tmp_path: Path) -> None:
    widths = [8] * 7 + [16] * 6 + [32] * 6 + [64] * 6
    convs = [nn.Conv2d(a, b, 3, bias=False) for a, b in zip([3, *widths], widths, strict=False)]
    layers = [layer for conv in convs for layer in (conv, nn.BatchNorm2d(conv.out_channels))]
    with pytest.raises(UserError, match="contains no known network"):
        read_saved(tmp_path, nn.Sequential(*layers, nn.Linear(64, 10)).state_dict())


@pytest.mark.parametrize("channels", [[16], [16, 32, 0], [16, 32, "64"], [16.0, 32, 64], [8, 16, 32, 64]])
def test_channels_that_are_none_are_refused_with_what_is_allowed(channels: list) -> None:
    with pytest.raises(UserError, match=r"model\.channels=.*3 positive integers .one per stage. or 7"):
        build_model("resnet", 10, depth=8, channels=channels)
