"""Files with a backbone and a head in state dicts of their own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import Weights, logits, prefixed, read, read_and_load, resnet
from torch import nn

from ptq_exp.base.errors import UserError
from ptq_exp.networks.reading import read_weights
from ptq_exp.networks.reading.fitting import Fit, fit

pytestmark = pytest.mark.usefixtures("one_thread")


def backbone() -> Weights:
    return {key: value for key, value in resnet(8).state_dict().items() if not key.startswith("linear")}


def head(prefix: str = "") -> Weights:
    linear = resnet(8).linear.state_dict()
    return {prefix + key: value for key, value in linear.items()}


def other_names(weights: Weights) -> Weights:
    modules = list(dict.fromkeys(key.rpartition(".")[0] for key in weights))
    return {f"m{modules.index(key.rpartition('.')[0])}.{key.rpartition('.')[2]}": weights[key] for key in weights}


LAYOUTS: dict[str, tuple[Callable[[], Any], str]] = {
    "a backbone and a head": (
        lambda: {"epoch": 3, "backbone": backbone(), "head": head()},
        "The weights under `backbone` and `head` together fit after renaming `head` to `linear`.",
    ),
    "the classifier first, a wrapped encoder": (
        lambda: {"net": {"classifier": head(), "encoder": prefixed(backbone(), "module.")}},
        "The weights under `classifier` and `encoder` together fit after renaming `classifier` to `linear`.",
    ),
    "whole names": (
        lambda: {"features": backbone(), "top": head("linear."), "optimizer": {"step": torch.ones(3, 3)}},
        "The weights under `features` and `top` together fit by name.",
    ),
    "other names": (
        lambda: {"trunk": other_names(backbone()), "top": head("fc2."), "ema": backbone()},
        "The weights under `trunk` and `top` together fit in order",
    ),
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_state_dicts_next_to_each_other_are_one_network(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="ptq_exp")
    layout, words = LAYOUTS[kind]
    torch.save(layout(), tmp_path / "model.pt")
    assert torch.equal(logits(read_and_load(tmp_path / "model.pt")), logits(resnet(8)))
    assert words in caplog.text
    assert "not those under" not in caplog.text


class Two(nn.Module):
    """A network that calls its parts like the file does."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()), nn.Linear(4, 2)


def fitted(model: nn.Module, content: Any, path: Path) -> Fit:
    torch.save(content, path)
    return fit(model, read_weights(str(path), path.parent, 1))


def test_the_names_of_the_parts_may_be_those_of_the_network(tmp_path: Path) -> None:
    model = Two()
    content = {"head": model.head.state_dict(), "backbone": model.backbone.state_dict()}
    found = fitted(Two(), content, tmp_path / "model.pt")
    assert found.how == "The weights under `head` and `backbone` together fit by name."
    assert found.weights.keys() == model.state_dict().keys()
    assert all(torch.equal(found.weights[key], value) for key, value in model.state_dict().items())


def test_one_part_alone_is_used_if_it_fits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="ptq_exp")
    model = Two()
    content = {"backbone": model.backbone.state_dict(), "head": model.head.state_dict()}
    assert fitted(Two().backbone, content, tmp_path / "model.pt").how == "The weights fit by name."
    assert "using the weights under backbone, not those under head." in caplog.text


def test_parts_that_do_not_make_the_network_are_refused(tmp_path: Path) -> None:
    torch.save({"backbone": backbone(), "head": {"weight": torch.ones(10, 7)}}, tmp_path / "model.pt")
    with pytest.raises(UserError, match="contains no known network"):
        read(tmp_path / "model.pt")
    with pytest.raises(UserError, match=r"does not fit the network\. missing: linear\.weight, linear\.bias"):
        fitted(resnet(8), {"backbone": backbone(), "head": {"weight": torch.ones(10, 7)}}, tmp_path / "model.pt")
