"""Networks and data sets by the names that people use."""

from typing import Any

import pytest

from ptq_exp.results.names import data_in_words, network_in_words, network_of


@pytest.mark.parametrize(
    ("options", "name", "said"),
    [
        ({"architecture": "resnet", "depth": 20, "shortcut": "conv"}, "resnet20", "ResNet-20"),
        ({"architecture": "resnet", "depth": 8}, "resnet20", "ResNet-8"),  # model.depth=8 of conf/model/resnet20.yaml
        ({"architecture": "vgg", "depth": 16}, "vgg16", "VGG-16"),
        ({"architecture": "custom", "target": "timm"}, "mobilenetv3_small_050", "mobilenetv3_small_050"),
        ({"architecture": "custom", "target": "torchvision.models:resnet18"}, "resnet18", "ResNet-18"),
        ({"architecture": "resnet", "depth": 20}, "my net", "my net"),  # a name of the user's own
    ],
)
def test_a_network_has_its_common_name(options: dict[str, Any], name: str, said: str) -> None:
    assert network_in_words(options, name) == said


def test_a_finished_job_names_the_network_that_was_used() -> None:
    assert (
        network_of({"model.used": "architecture=resnet depth=8 shortcut=conv", "model.name": "resnet20"}) == "ResNet-8"
    )
    assert network_of({"model.used": "", "model.name": "mine"}) == "mine"


def test_data_sets_have_their_common_names() -> None:
    assert [data_in_words(name) for name in ("cifar10", "digits")] == ["CIFAR-10", "digits"]
