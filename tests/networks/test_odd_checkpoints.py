"""Odd but valid checkpoint files give the network they hold, and others a sentence."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ptq_exp.base.errors import UserError
from ptq_exp.networks import build_model
from ptq_exp.networks.reading import Checkpoint, read_checkpoint

Weights = dict[str, Tensor]


def weights() -> Weights:
    torch.manual_seed(3)
    return build_model("resnet", 10, depth=8).state_dict()


def read(path: Path) -> Checkpoint:
    return read_checkpoint(str(path), path.parent / "cache", timeout=5)


def channels_last(state: Weights) -> Weights:
    return {k: v.contiguous(memory_format=torch.channels_last) if v.dim() == 4 else v for k, v in state.items()}


def zeros(state: Weights) -> Weights:
    return {key: torch.zeros_like(value) for key, value in state.items()}


ODD: dict[str, Callable[[Weights], Any]] = {
    "model and ema": lambda state: {"ema": zeros(state), "model": state},
    "state_dict and state_dict_ema": lambda state: {"state_dict_ema": zeros(state), "state_dict": state},
    "parameters": lambda state: {k: nn.Parameter(v, False) if v.is_floating_point() else v for k, v in state.items()},
    "channels last": channels_last,
    "in reverse order": lambda state: dict(reversed(list(state.items()))),
    "wrapped twice": lambda state: {"state_dict": {f"module.module.{key}": value for key, value in state.items()}},
    "a wrapper's attribute": lambda state: {"net": {f"module.model.{key}": value for key, value in state.items()}},
    "a sparse tensor": lambda state: state | {"linear.weight": state["linear.weight"].to_sparse()},
    "an optimizer beside": lambda state: {"model": state, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}},
    "accuracies as a list": lambda state: {"state_dict": state, "acc": [91.0, 92.0]},
    "an accuracy that is no number": lambda state: {"state_dict": state, "best_acc": float("nan")},
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
def test_the_weights_are_found(tmp_path: Path, kind: str) -> None:
    state = weights()
    torch.save(ODD[kind](state), tmp_path / "odd.pt")
    found = read(tmp_path / "odd.pt")
    assert found.options == {"depth": 8, "shortcut": "conv"}
    assert found.claim is None
    assert found.weights.keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in found.weights.items())


def test_which_of_two_networks_in_a_file_is_used_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="ptq_exp")
    torch.save(ODD["model and ema"](weights()), tmp_path / "odd.pt")
    read(tmp_path / "odd.pt")
    assert "using the weights under model, not those under ema" in caplog.text


def test_a_file_saved_on_a_gpu_that_is_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = weights()
    monkeypatch.setattr(torch.serialization, "location_tag", lambda _: "cuda:3")
    torch.save(state, tmp_path / "odd.pt")
    monkeypatch.undo()
    assert b"cuda:3" in (tmp_path / "odd.pt").read_bytes()
    assert torch.equal(read(tmp_path / "odd.pt").weights["conv1.weight"], state["conv1.weight"])


@pytest.mark.parametrize("name", ["a b.pt", "nét=1,2.pt", "NET.PTH", "no suffix"])
def test_any_file_name(tmp_path: Path, name: str) -> None:
    torch.save(weights(), tmp_path / name)
    (tmp_path / "link.pt").symlink_to(tmp_path / name)
    assert read(tmp_path / name).sha256 == read(tmp_path / "link.pt").sha256


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda value: value.to(torch.int8), "linear.bias has int8 values"),
        (lambda value: torch.empty_like(value, device="meta"), "linear.bias has a shape but no values"),
    ],
)
def test_weights_without_float_values_are_refused(
    tmp_path: Path, change: Callable[[Tensor], Tensor], words: str
) -> None:
    state = weights()
    torch.save(state | {"linear.bias": change(state["linear.bias"])}, tmp_path / "odd.pt")
    with pytest.raises(UserError, match=words):
        read(tmp_path / "odd.pt")


def test_a_temperature_is_named_as_what_does_not_fit(tmp_path: Path) -> None:
    torch.save(weights() | {"temperature": torch.tensor(1.5)}, tmp_path / "odd.pt")
    with pytest.raises(UserError, match=r"The closest is a ResNet-8 with conv shortcuts.*unexpected: temperature"):
        read(tmp_path / "odd.pt")
