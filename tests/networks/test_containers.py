"""State dicts in any container, pickled modules, wrappers, masks and norms; and formats that are not torch.save's."""

import argparse
import gzip
import io
import pickle
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign import Weights, logits, prefixed, read, read_and_load, resnet
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from ptq_exp.base.errors import UserError
from ptq_exp.networks.reading import read_weights
from ptq_exp.networks.reading.weights_file import WeightsFile

pytestmark = pytest.mark.usefixtures("one_thread")


class EasyDict(dict):  # as many projects have it
    def __init__(self, **items: Any):
        super().__init__(items)
        self.__dict__.update(items)


class Trainer:
    """An object that holds a network, as training frameworks pickle them."""

    def __init__(self, network: nn.Module):
        self.model, self.epoch = network, 3


def state() -> Weights:
    return resnet(8).state_dict()


def zeros() -> Weights:
    return {key: torch.zeros_like(value) for key, value in state().items()}


def stepped() -> dict[str, Any]:
    """The state of an optimizer after a step."""
    network = resnet(8)
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.zeros(1, 3, 8, 8)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


def unpersistent() -> nn.Module:
    network = resnet(8)
    network.register_buffer("grid", torch.ones(3, 3), persistent=False)
    return network


CONTAINERS: dict[str, Callable[[], Any]] = {
    "net.state_dict": lambda: {"epoch": 3, "net": {"state_dict": state()}},
    "any name": lambda: {"weights_of_epoch_9": state(), "epoch": 9},
    "an optimizer": lambda: {"optimizer": stepped(), "state": state()},
    "an optimizer under another name": lambda: {"opt": stepped(), "state": state()},
    "an average before the weights": lambda: {"model_ema": zeros(), "model": state()},
    "only an average": lambda: {"ema": state()},
    "a namespace": lambda: {"state_dict": state(), "args": argparse.Namespace(lr=0.1, nested=argparse.Namespace(a=1))},
    "numpy scalars": lambda: {"state_dict": state(), "loss": np.float64(0.3), "epoch": np.int64(4)},
    "an easydict": lambda: EasyDict(model=state(), config=EasyDict(lr=0.1)),
    "an ordered dictionary": lambda: OrderedDict(state()),
    "a default dictionary": lambda: defaultdict(list, model=state()),
    "a path and a type": lambda: {"state_dict": state(), "path": Path("a/b"), "kind": nn.Conv2d, "set": {1, 2}},
    "a lambda's class": lambda: {"state_dict": state(), "rng": np.random.default_rng(1).bit_generator.state},
    "a whole module": lambda: resnet(8),
    "a module with a buffer that is not saved": unpersistent,
    "a module in a dictionary": lambda: {"epoch": 3, "model": resnet(8)},
    "a parallel module": lambda: nn.DataParallel(resnet(8)),
    "a compiled module's weights": lambda: prefixed(state(), "module._orig_mod."),
    "a trainer": lambda: Trainer(resnet(8)),
    "a distilled student": lambda: prefixed(state(), "student.network."),
    "a backbone": lambda: {"model": prefixed(state(), "backbone.encoder.")},
    "a wrapper that nobody knows": lambda: prefixed(state(), "lit.classifier_net."),
    "a profiler's counters": lambda: state() | {"total_ops": torch.zeros(1), "layer1.0.total_params": torch.zeros(1)},
    "an accuracy among the weights": lambda: state() | {"best_acc": torch.tensor(93.0)},
    "integers beside the weights": lambda: state() | {"epoch": 4, "name": "resnet"},
}


@pytest.mark.parametrize("kind", CONTAINERS)
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_the_network_is_found(tmp_path: Path, kind: str, form: str) -> None:
    content, path = CONTAINERS[kind](), tmp_path / "model.pt"
    if form == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=4))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    model, original = read_and_load(path), resnet(8)
    assert all(torch.equal(value, original.state_dict()[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_numpy_arrays_of_any_protocol_are_read(tmp_path: Path, protocol: int) -> None:
    arrays = {key: value.numpy() for key, value in state().items()}
    arrays["layer1.0.conv1.weight"] = np.asfortranarray(arrays["layer1.0.conv1.weight"])
    arrays["linear.weight"] = arrays["linear.weight"].astype(">f8")
    (tmp_path / "model.pkl").write_bytes(pickle.dumps({"model": arrays, "names": np.array(["a"])}, protocol))
    found = read(tmp_path / "model.pkl").weights
    assert all(torch.equal(found[key], value) for key, value in state().items())


def test_which_weights_are_used_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="ptq_exp")
    torch.save({"net": {"ema": zeros(), "weights": state(), "optimizer": stepped()}}, tmp_path / "model.pt")
    read(tmp_path / "model.pt")
    assert "using the weights under net.weights, not those under net.ema." in caplog.text


def file_of(path: Path, weights: Any) -> WeightsFile:
    torch.save(weights, path)
    return read_weights(str(path), path.parent, 1)


NORMALIZERS: dict[str, Callable[[Tensor, Tensor], Weights]] = {
    "a sequential": lambda mean, std: {"0.mean": mean, "0.std": std, **prefixed(state(), "1.")},
    "a named layer": lambda mean, std: {"normalize.mean": mean, "normalize.std": std, **prefixed(state(), "model.")},
    "wrapped": lambda mean, std: prefixed({"normalizer.mean": mean, "normalizer.std": std, **state()}, "module."),
    "images": lambda mean, std: {"mean": mean.view(1, 3, 1, 1), "std": std.view(1, 3, 1, 1), **state()},
    "bytes": lambda mean, std: {"pixel_mean": mean * 255, "pixel_std": std * 255, **state()},
    "greek": lambda mean, std: {"norm.mu": mean, "norm.sigma": std, **state()},
}


@pytest.mark.parametrize("kind", NORMALIZERS)
def test_a_layer_that_normalizes_gives_the_constants(tmp_path: Path, kind: str) -> None:
    mean, std = torch.tensor([0.49, 0.48, 0.44]), torch.tensor([0.2, 0.21, 0.22])
    torch.save(NORMALIZERS[kind](mean, std), tmp_path / "model.pt")
    found = read(tmp_path / "model.pt")
    assert found.normalization is not None
    assert found.normalization[0] == pytest.approx([0.49, 0.48, 0.44])
    assert found.normalization[1] == pytest.approx([0.2, 0.21, 0.22])
    assert torch.equal(logits(read_and_load(tmp_path / "model.pt")), logits(resnet(8)))


def older_spectral_norm(layer: nn.Module) -> None:
    """With the estimates that training leaves."""
    torch.manual_seed(0)
    spectral_norm(layer, n_power_iterations=20)
    for hook in layer.train()._forward_pre_hooks.values():
        hook(layer, ())
    layer.eval()


COMPUTED: dict[str, Callable[[nn.Module], Any]] = {
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", amount=0.5),
    "older weight norm": weight_norm,
    "weight norm over no dimension": lambda layer: weight_norm(layer, dim=None),
    "weight norm over another dimension": lambda layer: weight_norm(layer, dim=1),
    "weight norm": parametrizations.weight_norm,
    "older spectral norm": older_spectral_norm,
    "spectral norm": parametrizations.spectral_norm,
}


@pytest.mark.parametrize("kind", COMPUTED)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
def test_a_weight_that_is_stored_in_parts_is_computed(tmp_path: Path, kind: str) -> None:
    network = resnet(8)
    for layer in (network.conv1, network.layer2[0].conv2, network.linear):
        COMPUTED[kind](layer)
    torch.save(network.state_dict(), tmp_path / "model.pt")
    wanted = logits(network)
    assert any("weight_" in key or "parametrizations" in key for key in network.state_dict())
    assert (logits(read_and_load(tmp_path / "model.pt")) - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_are_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    weights = {"conv.weight": torch.rand(2, 3, 3, 3).to(dtype)}
    found = file_of(tmp_path / "model.pt", weights).weights
    assert torch.equal(found["conv.weight"], weights["conv.weight"].float())
    assert found["conv.weight"].dtype == torch.float32


def test_views_of_one_storage_and_tied_weights_are_read(tmp_path: Path) -> None:
    flat = torch.arange(100.0)
    weights = {"a": flat[10:22].view(3, 4).t(), "b": flat[::7], "c": flat[5].expand(2, 2), "d": flat.view(10, 10)}
    found = file_of(tmp_path / "model.pt", weights | {"e": weights["d"]}).weights
    assert all(torch.equal(found[key], value) for key, value in weights.items())
    assert torch.equal(found["e"], weights["d"])


def test_a_file_of_another_byte_order_is_read(tmp_path: Path) -> None:
    weights = {"w": torch.arange(6.0).view(2, 3), "h": torch.arange(4.0).view(2, 2).bfloat16()}
    sizes = {torch.float32: torch.int32, torch.bfloat16: torch.int16}
    swapped = {
        key: torch.from_numpy(value.view(sizes[value.dtype]).numpy().byteswap()).view(value.dtype)
        for key, value in weights.items()
    }
    buffer = io.BytesIO()
    torch.save(swapped, buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(tmp_path / "model.pt", "w") as new:
        for name in old.namelist():
            new.writestr(name, b"big" if name.endswith("byteorder") else old.read(name))
    found = read_weights(str(tmp_path / "model.pt"), tmp_path, 1).weights
    assert torch.equal(found["w"], weights["w"])
    assert torch.equal(found["h"], weights["h"].float())


def jit(path: Path) -> None:
    torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)).save(path)


def exported(path: Path) -> None:
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),)), path)


OTHERS: list[tuple[str, Callable[[Path], Any], str]] = [
    ("model.pt", jit, "torch.jit.load('model.pt').state_dict()"),
    ("model.pt2", exported, "torch.export.load('model.pt2')"),
    ("model.npz", lambda path: np.savez(path, a=np.zeros(3)), "numpy.load('model.npz')"),
    ("model.h5", lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(99)), "TensorFlow or Keras"),
    ("model.onnx", lambda path: path.write_bytes(b"\x08\x07\x12\x07pytorch" + bytes(99)), "ONNX"),
    ("model.pt.gz", lambda path: path.write_bytes(gzip.compress(b"x")), "Unpack it"),
    ("model.pth", lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
]


@pytest.mark.parametrize(("name", "write", "words"), OTHERS)
@pytest.mark.filterwarnings("ignore")
def test_another_format_is_named_with_what_to_do(
    tmp_path: Path, name: str, write: Callable[[Path], Any], words: str
) -> None:
    write(tmp_path / name)
    with pytest.raises(UserError, match=r"is not a file of torch\.save or safetensors") as error:
        read(tmp_path / name)
    assert words in str(error.value)


def test_the_advice_for_torchscript_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())).save(tmp_path / "model.pt")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        read(tmp_path / "model.pt")
    exec(str(error.value).partition("used: ")[2].removesuffix("."), {"torch": torch})
    assert read_weights(str(tmp_path / "weights.pt"), tmp_path, 1).weights["0.weight"].shape == (4, 3, 3, 3)
