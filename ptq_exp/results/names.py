"""Networks and data sets as people call them: ResNet-20 on CIFAR-10."""

import re
from collections.abc import Mapping
from typing import Any

FAMILIES = {
    "resnet": "ResNet", "vgg": "VGG", "densenet": "DenseNet", "resnext": "ResNeXt", "alexnet": "AlexNet",
    "googlenet": "GoogLeNet",
}  # fmt: skip
DATA = {
    "cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "mnist": "MNIST", "fashion_mnist": "Fashion-MNIST", "svhn": "SVHN",
    "image_folder": "own images",
}  # fmt: skip


def network_in_words(options: Mapping[str, Any], name: str) -> str:
    """`ResNet-20` for the options of a network of ours (`architecture=resnet depth=20`), else the words for `name`."""
    architecture, depth = options.get("architecture"), options.get("depth")
    if architecture and depth and name.startswith(str(architecture)):
        name = f"{architecture}{depth}"  # model.depth may differ from the depth in the name
    found = re.fullmatch(r"([a-z]+)-?(\d*)", name)
    family, number = found.groups() if found else (name, "")
    if family not in FAMILIES:
        return name
    return f"{FAMILIES[family]}-{number}" if number else FAMILIES[family]


def network_of(params: Mapping[str, Any]) -> str:
    """The same for the parameters of a finished job."""
    used = str(params.get("model.used", ""))
    options = dict(word.partition("=")[::2] for word in used.split(" "))
    return network_in_words(options, str(params.get("model.name") or used))


def data_in_words(name: str) -> str:
    """`CIFAR-10` for `cifar10`. Other names stay as they are."""
    return DATA.get(name, name)
