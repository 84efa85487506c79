"""Checkpoints that do not fit, are damaged or hold code: a refusal that says why."""

import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import logits, prefixed, read, read_and_load, resnet
from safetensors.torch import save_file

from ptq_exp.base.errors import UserError
from ptq_exp.networks.reading import load_weights

pytestmark = pytest.mark.usefixtures("one_thread")


def refusal(path: Path) -> str:
    """The message with which the file is refused when it is read and loaded."""
    with pytest.raises(UserError) as error:
        read_and_load(path)
    assert str(path) in str(error.value)
    return str(error.value)


def test_missing_keys_are_listed(tmp_path: Path) -> None:
    weights = resnet().state_dict()
    for key in ("layer2.1.bn1.running_mean", "linear.bias"):
        del weights[key]
    torch.save(weights, tmp_path / "model.pt")
    message = refusal(tmp_path / "model.pt")
    assert "missing: layer2.1.bn1.running_mean, linear.bias." in message
    assert "unexpected" not in message


def test_extra_keys_are_listed(tmp_path: Path) -> None:
    weights = {**resnet().state_dict(), "layer1.0.conv1.bias": torch.zeros(16), "ema.decay": torch.tensor(0.9)}
    torch.save(weights, tmp_path / "model.pt")
    message = refusal(tmp_path / "model.pt")
    assert "unexpected: layer1.0.conv1.bias, ema.decay." in message
    assert "missing" not in message


def test_wrong_shapes_are_listed_with_both_shapes(tmp_path: Path) -> None:
    weights = {**resnet().state_dict(), "conv1.weight": torch.zeros(16, 1, 3, 3)}
    torch.save(weights, tmp_path / "model.pt")
    assert "conv1.weight (16, 1, 3, 3) instead of (16, 3, 3, 3)" in refusal(tmp_path / "model.pt")


def test_a_wide_network_is_refused_and_the_message_stays_short(tmp_path: Path) -> None:
    weights = {key: torch.cat([value, value]) if value.dim() else value for key, value in resnet().state_dict().items()}
    torch.save(weights, tmp_path / "model.pt")
    message = refusal(tmp_path / "model.pt")
    assert "more" in message
    assert len(message) < 1500


def test_nothing_is_loaded_into_a_network_that_does_not_fit(tmp_path: Path) -> None:
    torch.save(resnet(depth=20).state_dict(), tmp_path / "model.pt")
    model = resnet(depth=32)
    before = logits(model)
    with pytest.raises(UserError, match=r"does not fit.*missing: layer1\.3"):
        load_weights(model, read(tmp_path / "model.pt"))
    assert torch.equal(logits(model), before)


def test_a_checkpoint_with_a_block_missing_is_refused(tmp_path: Path) -> None:
    weights = {key: value for key, value in resnet().state_dict().items() if not key.startswith("layer3.2.")}
    torch.save(weights, tmp_path / "model.pt")
    with pytest.raises(UserError, match="18"):
        read_and_load(tmp_path / "model.pt")


@pytest.mark.parametrize("extra", ["act_alpha", "weight_quant.wgt_alpha"])
def test_a_quantization_aware_checkpoint_is_refused_with_the_reason(tmp_path: Path, extra: str) -> None:
    weights = {key.replace("linear.", "fc."): value for key, value in resnet().state_dict().items()}
    weights |= {f"layer{stage}.0.conv1.{extra}": torch.tensor(3.0) for stage in (1, 2, 3)}
    torch.save({"state_dict": prefixed(weights, "module."), "best_prec1": 92.4}, tmp_path / "model.pt")
    message = refusal(tmp_path / "model.pt")
    assert "trained quantization-aware" in message
    assert f"layer1.0.conv1.{extra}" in message
    assert "float checkpoint" in message


@pytest.mark.filterwarnings("ignore")
def test_a_network_quantized_by_torch_is_called_so(tmp_path: Path) -> None:
    from torch.ao import quantization

    network = quantization.quantize_dynamic(torch.nn.Sequential(torch.nn.Linear(3, 3)), dtype=torch.qint8)
    torch.save(network.state_dict(), tmp_path / "model.pt")
    assert "is quantized by torch. Its weights are adapted" in refusal(tmp_path / "model.pt")


def test_another_network_is_refused_with_its_keys(tmp_path: Path) -> None:
    torch.save({"encoder.0.weight": torch.ones(3, 3), "encoder.0.bias": torch.ones(3)}, tmp_path / "model.pt")
    message = refusal(tmp_path / "model.pt")
    assert "contains no known network" in message
    assert "encoder.0.weight, encoder.0.bias" in message


@pytest.mark.parametrize("key", ["layer2.0.conv1.weight", "bn1.running_var", "linear.bias"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_numbers_are_refused_by_name(tmp_path: Path, key: str, value: float) -> None:
    weights = resnet().state_dict()
    weights[key].view(-1)[3] = value
    torch.save(weights, tmp_path / "model.pt")
    assert f"{key} has values that are not finite" in refusal(tmp_path / "model.pt")


def test_negative_variances_are_refused(tmp_path: Path) -> None:
    weights = resnet().state_dict()
    weights["bn1.running_var"][1] = -0.5
    torch.save(weights, tmp_path / "model.pt")
    assert "bn1.running_var has negative variances" in refusal(tmp_path / "model.pt")


def test_a_missing_path_is_answered_with_what_else_there_is(tmp_path: Path) -> None:
    message = refusal(tmp_path / "nowhere.pt")
    assert "no such file" in message
    assert "auto (the stored network" in message


def test_a_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.pt").mkdir()
    refusal(tmp_path / "model.pt")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"\x00" * 500, b"<html>404</html>", random.Random(1).randbytes(5000)])
def test_a_file_that_is_no_checkpoint_is_called_broken(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    assert "is damaged or not a" in refusal(path)


@pytest.mark.parametrize("kept", [0.01, 0.5, 0.999])
@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_a_truncated_file_is_called_broken(tmp_path: Path, form: str, kept: float) -> None:
    path = tmp_path / f"model.{form}"
    if form == "safetensors":
        save_file(resnet().state_dict(), path)
    else:
        torch.save(resnet().state_dict(), path, _use_new_zipfile_serialization=form == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    assert "is damaged" in refusal(path)


@pytest.mark.parametrize(
    "content",
    [{}, {"state_dict": {}}, [], None, 5, torch.ones(3), {"epoch": 3}, {0: torch.ones(3)}, {"net": {1: torch.ones(3)}}],
    ids=["empty", "empty state dict", "list", "none", "number", "tensor", "no tensors", "numbered", "numbered in net"],
)
def test_a_file_without_a_state_dict_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "model.pt")
    message = refusal(tmp_path / "model.pt")
    assert "contains no state dict" in message


def test_a_scalar_where_a_matrix_belongs_is_a_wrong_shape(tmp_path: Path) -> None:
    torch.save({**resnet().state_dict(), "linear.weight": torch.tensor(1.0)}, tmp_path / "model.pt")
    assert "linear.weight" in refusal(tmp_path / "model.pt")


def tensor_bytes(path: Path) -> list[int]:
    """Where in a torch zip file the tensors' own bytes lie."""
    content = path.read_bytes()
    positions: list[int] = []
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if "/data/" in info.filename:
                header = info.header_offset
                lengths = content[header + 26 : header + 30]
                start = header + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
                positions += range(start, start + info.file_size)
    return positions


def test_a_flipped_byte_never_gives_other_weights_silently(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    original = resnet().state_dict()
    torch.save(original, path)
    content, positions = path.read_bytes(), tensor_bytes(path)
    assert len(positions) == sum(value.nbytes for value in original.values())
    chosen = random.Random(6).sample(positions, 20)
    for position in chosen:
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        assert "is damaged" in refusal(path)
    path.write_bytes(content)
    assert all(torch.equal(value, original[key]) for key, value in read(path).weights.items())


class Payload:
    """An object that creates the file `path` when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_the_code_in_a_file_is_not_run_and_the_weights_beside_it_are_read(tmp_path: Path, form: str) -> None:
    marker, path = tmp_path / "executed", tmp_path / f"model.{form}"
    original = resnet()
    content = {"state_dict": original.state_dict(), "extra": Payload(marker)}
    if form in ("zip", "legacy"):
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
        torch.load(path, weights_only=False)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
        pickle.loads(path.read_bytes())
    assert marker.exists(), "the payload must work where it is executed"
    marker.unlink()
    assert torch.equal(logits(read_and_load(path)), logits(original))
    assert not marker.exists()
