"""Checkpoints of other projects: the same logits to the last bit, or a refusal that says why."""

import json
import pickle
import random
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from loopback import Loopback
from safetensors.torch import save_file
from torch import Tensor, nn

from ptq_exp.base.errors import UserError
from ptq_exp.networks import build_model
from ptq_exp.networks.reading import Checkpoint, load_weights, read_checkpoint

Weights = dict[str, Tensor]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The tensors are small: more threads would only wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def trained_like(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model with weights and batch-norm statistics that differ from a fresh one's everywhere."""
    generator = torch.Generator().manual_seed(seed)
    for key, value in model.state_dict().items():
        if key.endswith("num_batches_tracked"):
            value.fill_(1234)
        elif key.endswith("running_var") or (value.dim() == 1 and key.endswith("weight")):
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
        else:
            fan_in = value[0].numel() if value.dim() > 1 else 16
            value.copy_(torch.randn(value.shape, generator=generator) * 0.5 / fan_in**0.5)
    return model.eval()


def resnet(depth: int = 20, shortcut: str = "conv", classes: int = 10) -> nn.Module:
    return trained_like(build_model("resnet", classes, depth=depth, shortcut=shortcut))


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        result = model.eval()(torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(8)))
    assert 0.001 < result.std() < 1000, "logits that tell nothing about the weights"
    return result


def read(path: Path) -> Checkpoint:
    return read_checkpoint(str(path), path.parent / "cache", timeout=5)


def read_and_load(path: Path) -> nn.Module:
    checkpoint = read(path)
    model = build_model(checkpoint.architecture, checkpoint.classes, **checkpoint.options)
    load_weights(model, checkpoint)
    return model


# ---------------------------------------------------------------------------------------------------------- layouts


def prefixed(weights: Weights, prefix: str) -> Weights:
    return {prefix + key: value for key, value in weights.items()}


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
@pytest.mark.parametrize("depth", [20, 56])
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


# ------------------------------------------------------------------------------- networks that do not fit or suit


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


def test_another_network_is_refused_with_its_keys(tmp_path: Path) -> None:
    torch.save({"encoder.0.weight": torch.ones(3, 3), "encoder.0.bias": torch.ones(3)}, tmp_path / "model.pt")
    message = refusal(tmp_path / "model.pt")
    assert "no network that is known here" in message
    assert "encoder.0.weight, encoder.0.bias" in message


@pytest.mark.parametrize("key", ["layer2.0.conv1.weight", "bn1.running_var", "linear.bias"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_numbers_are_refused_by_name(tmp_path: Path, key: str, value: float) -> None:
    weights = resnet().state_dict()
    weights[key].view(-1)[3] = value
    torch.save(weights, tmp_path / "model.pt")
    assert f"{key} holds values that are not numbers" in refusal(tmp_path / "model.pt")


# ------------------------------------------------------------------------------------------- files that are broken


def test_a_missing_path_is_answered_with_what_else_there_is(tmp_path: Path) -> None:
    message = refusal(tmp_path / "nowhere.pt")
    assert "no such file" in message
    assert "checkpoint=auto" in message


def test_a_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.pt").mkdir()
    refusal(tmp_path / "model.pt")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"\x00" * 500, b"<html>404</html>", random.Random(1).randbytes(5000)])
def test_a_file_that_is_no_checkpoint_is_called_broken(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    assert "is broken or no" in refusal(path)


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
    assert "is broken" in refusal(path)


@pytest.mark.parametrize(
    "content",
    [{}, {"state_dict": {}}, [], None, 5, torch.ones(3), {"epoch": 3}, {0: torch.ones(3)}, {"net": {1: torch.ones(3)}}],
    ids=["empty", "empty state dict", "list", "none", "number", "tensor", "no tensors", "numbered", "numbered in net"],
)
def test_a_file_without_a_state_dict_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "model.pt")
    message = refusal(tmp_path / "model.pt")
    assert "holds no" in message


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
        assert "is broken" in refusal(path)
    path.write_bytes(content)
    assert all(torch.equal(value, original[key]) for key, value in read(path).weights.items())


class Payload:
    """An object that creates the file `path` when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle", "safetensors"])
def test_a_file_with_code_in_it_is_refused_and_the_code_not_run(tmp_path: Path, form: str) -> None:
    marker, path = tmp_path / "executed", tmp_path / f"model.{form}"
    content = {"state_dict": resnet().state_dict(), "extra": Payload(marker)}
    if form in ("zip", "legacy"):
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
        torch.load(path, weights_only=False)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
        pickle.loads(path.read_bytes())
    assert marker.exists(), "the payload must work where it is executed"
    marker.unlink()
    message = refusal(path)
    assert not marker.exists()
    if form != "safetensors":
        assert "holds more than tensors" in message
        assert "refused" in message


def test_a_whole_pickled_model_is_refused_with_the_remedy(tmp_path: Path) -> None:
    torch.save(resnet(), tmp_path / "model.pt")
    message = refusal(tmp_path / "model.pt")
    assert "holds more than tensors" in message
    assert "state_dict()" in message


# -------------------------------------------------------------------------------------------------------- downloads


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Loopback]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    loopback = Loopback("models/resnet20.pt?raw=true")
    yield loopback
    loopback.stop()


def http_answer(body: bytes, sent: int | None = None) -> bytes:
    """A complete answer, or one that breaks off after `sent` bytes of the body it announces."""
    return b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body[:sent]


@pytest.fixture
def stored(tmp_path: Path) -> bytes:
    torch.save(resnet().state_dict(), tmp_path / "upstream.pt")
    return (tmp_path / "upstream.pt").read_bytes()


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_url_is_downloaded_once(tmp_path: Path, server: Loopback, stored: bytes) -> None:
    server.answer = http_answer(stored)
    first = read_checkpoint(server.url, tmp_path / "cache", timeout=5)
    model = build_model(first.architecture, first.classes, **first.options)
    load_weights(model, first)
    assert torch.equal(logits(model), logits(resnet()))
    server.stop()
    second = read_checkpoint(server.url, tmp_path / "cache", timeout=5)
    assert second.sha256 == first.sha256
    assert server.requests == 1
    assert len(files_in(tmp_path / "cache")) == 1


def test_two_urls_with_the_same_file_name_do_not_collide(tmp_path: Path, server: Loopback, stored: bytes) -> None:
    server.answer = http_answer(stored)
    first = read_checkpoint(server.url, tmp_path / "cache", timeout=5)
    torch.save(resnet(shortcut="pad").state_dict(), tmp_path / "other.pt")
    server.answer = http_answer((tmp_path / "other.pt").read_bytes())
    second = read_checkpoint(server.url.replace("/models/", "/others/"), tmp_path / "cache", timeout=5)
    assert (first.options["shortcut"], second.options["shortcut"]) == ("conv", "pad")


BAD_ANSWERS: dict[str, Callable[[bytes], bytes]] = {
    "half of the body": lambda body: http_answer(body, sent=len(body) // 2),
    "half of the body, length untold": lambda body: b"HTTP/1.0 200 OK\r\n\r\n" + body[: len(body) // 2],
    "half of a chunked body": lambda body: (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % len(body) + body[: len(body) // 2]
    ),
    "nothing": lambda body: b"",
    "not found": lambda body: b"HTTP/1.0 404 Not Found\r\n\r\n",
    "a page": lambda body: http_answer(b"<html>Sign in to download</html>"),
    "no HTTP": lambda body: b"220 mail.example ESMTP\r\n",
}


@pytest.mark.parametrize("sent", BAD_ANSWERS)
def test_a_failed_download_leaves_nothing_and_the_next_succeeds(
    tmp_path: Path, server: Loopback, stored: bytes, sent: str
) -> None:
    server.answer = BAD_ANSWERS[sent](stored)
    with pytest.raises(UserError, match="checkpoint="):
        read_checkpoint(server.url, tmp_path / "cache", timeout=2)
    assert files_in(tmp_path / "cache") == []
    server.answer = http_answer(stored)
    assert read_checkpoint(server.url, tmp_path / "cache", timeout=5).options == {"depth": 20, "shortcut": "conv"}


def test_a_download_that_breaks_off_is_called_so(tmp_path: Path, server: Loopback, stored: bytes) -> None:
    server.answer = http_answer(stored, sent=len(stored) - 1)
    with pytest.raises(UserError, match="broke off"):
        read_checkpoint(server.url, tmp_path / "cache", timeout=5)


def test_a_404_is_named(tmp_path: Path, server: Loopback) -> None:
    server.answer = b"HTTP/1.0 404 Not Found\r\n\r\n"
    with pytest.raises(UserError, match=r"could not be downloaded.*404"):
        read_checkpoint(server.url, tmp_path / "cache", timeout=5)


def test_a_server_that_never_answers_is_given_up(tmp_path: Path, server: Loopback) -> None:
    server.answer = None
    start = time.monotonic()
    with pytest.raises(UserError, match="timed out"):
        read_checkpoint(server.url, tmp_path / "cache", timeout=0.5)
    assert time.monotonic() - start < 4
    assert files_in(tmp_path / "cache") == []


def test_a_server_that_is_not_there_is_a_users_mistake(tmp_path: Path, server: Loopback) -> None:
    server.stop()
    with pytest.raises(UserError, match=r"could not be downloaded.*path of a local file"):
        read_checkpoint(server.url, tmp_path / "cache", timeout=5)


def test_a_url_of_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="could not be downloaded"):
        read_checkpoint("htp://127.0.0.1/model.pt", tmp_path / "cache", timeout=5)
