"""Checkpoint files from anywhere: which network they hold, in our own names.

Files are only ever read as tensors (`weights_only=True`, safetensors): nothing inside them is executed.
"""

import hashlib
import http.client
import json
import os
import re
import tempfile
import urllib.request
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ptq_exp.console import progress
from ptq_exp.errors import UserError, did_you_mean
from ptq_exp.quantization.checked import load_checked

CONTAINERS = ("state_dict", "model_state_dict", "net", "model")
PREFIXES = ("module.", "_orig_mod.")
# Left: what other projects call it (pytorchcv, torchvision, chenyaofo, kuangliu, APoT). Right: what we call it.
RENAMES = [
    (r"^features\.init_block\.conv\.", "conv1."),
    (r"^features\.init_block\.bn\.", "bn1."),
    (r"^features\.stage(\d+)\.unit(\d+)\.body\.conv(\d)\.conv\.", r"layer\1.unit\2.conv\3."),
    (r"^features\.stage(\d+)\.unit(\d+)\.body\.conv(\d)\.bn\.", r"layer\1.unit\2.bn\3."),
    (r"^features\.stage(\d+)\.unit(\d+)\.identity_conv\.conv\.", r"layer\1.unit\2.shortcut.0."),
    (r"^features\.stage(\d+)\.unit(\d+)\.identity_conv\.bn\.", r"layer\1.unit\2.shortcut.1."),
    (r"\.downsample\.", ".shortcut."),
    (r"^(fc|output|classifier)\.", "linear."),
]
QUANTIZATION_AWARE = re.compile(r"act_alpha|wgt_alpha|weight_quant|act_quant|fake_quant|\.alpha$|\.scale$|zero_point")

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
KUANGLIU = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
CHENYAOFO_CIFAR100 = ((0.5070, 0.4865, 0.4409), (0.2673, 0.2564, 0.2761))


@dataclass
class Checkpoint:
    """A float network from a file: its weights in our names, and what the keys tell about it."""

    path: Path
    sha256: str
    weights: dict[str, Tensor]
    architecture: str
    options: dict[str, Any]  # depth, and shortcut where the architecture has one
    classes: int
    mean: tuple[float, ...] | None = None  # the normalization it was trained with, where that is known
    std: tuple[float, ...] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


def read_checkpoint(location: str, cache: Path, timeout: float) -> Checkpoint:
    """Read the checkpoint file at `location`, a path or an http(s) URL (downloaded once, into `cache`).

    Raises `UserError` where there is no such file, it is broken, it would need more than tensors, it was
    trained quantization-aware, or it holds no network that is known here.
    """
    if "://" not in location:
        return _read(Path(location).expanduser(), location)
    path = _download(location, cache, timeout)
    try:
        return _read(path, location)
    except UserError:  # a page to sign in, a download that broke off untold: the next attempt fetches it afresh
        path.unlink(missing_ok=True)
        raise


def _read(path: Path, location: str) -> Checkpoint:
    if not path.is_file():
        there = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() and not path.is_dir() else []
        near = did_you_mean(path.name, there)
        raise UserError(
            f"checkpoint={location}: there is no such file.{near} Give the path or URL of a checkpoint, "
            f"or checkpoint=auto to train a network (or use the one already trained)."
        )
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    content, metadata = _load(path)
    weights, container, parallel = _unwrap(content, path)
    _refuse_quantization_aware(weights, path)
    weights, layout = _rename(weights)
    architecture, options = _identify(weights, path)
    if broken := [key for key, value in weights.items() if not torch.isfinite(value).all()]:
        raise UserError(f"checkpoint={path}: {broken[0]} holds values that are not numbers. The file is broken.")
    mean, std = _normalization(layout, container, parallel, options, len(weights["linear.weight"]), metadata)
    return Checkpoint(path, sha256, weights, architecture, options, len(weights["linear.weight"]), mean, std, metadata)


def load_weights(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Copy the weights into `model`. Only `num_batches_tracked` may be missing; `UserError` lists the rest."""
    expected = model.state_dict()
    missing = [k for k in expected if k not in checkpoint.weights and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in checkpoint.weights if k not in expected]
    shapes = [
        f"{k} {tuple(value.shape)} instead of {tuple(expected[k].shape)}"
        for k, value in checkpoint.weights.items()
        if k in expected and value.shape != expected[k].shape
    ]
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    if any(problems.values()):
        found = "; ".join(f"{name}: {_shortened(keys)}" for name, keys in problems.items() if keys)
        raise UserError(f"checkpoint={checkpoint.path} does not fit the network. {found}.")
    model.load_state_dict(checkpoint.weights, strict=False)


def _shortened(keys: list[str]) -> str:
    return ", ".join(keys[:8]) + (f" and {len(keys) - 8} more" if len(keys) > 8 else "")


def _load(path: Path) -> tuple[Any, dict[str, Any]]:
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                about = file.metadata() or {}
                if "sha256" in about:  # written by us
                    return load_checked(path)
                return {key: file.get_tensor(key) for key in list(file.keys())}, json.loads(about.get("ptq_exp", "{}"))
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(f"checkpoint={path} is broken or no safetensors file ({error}).") from error
    try:
        if zipfile.is_zipfile(path) and (bad := zipfile.ZipFile(path).testzip()):
            raise UserError(f"checkpoint={path} is broken: the checksum of {bad} in it is wrong.")
        return torch.load(path, map_location="cpu", weights_only=True), {}
    except UserError:
        raise
    except Exception as error:  # torch raises half a dozen types for files that are not checkpoints
        if "weights_only" in str(error) and "Unsupported operand" not in str(error):
            raise UserError(
                f"checkpoint={path} holds more than tensors: loading it could run code hidden in it, so it is "
                f"refused. Save its state_dict() alone, with torch.save or as safetensors."
            ) from error
        reason = str(error).splitlines()[0][:120] if str(error) else ""
        raise UserError(
            f"checkpoint={path} is broken or no checkpoint ({type(error).__name__}: {reason}). Expected is a file of "
            f"torch.save or a .safetensors file with the network's state_dict()."
        ) from error


def _unwrap(content: Any, path: Path) -> tuple[dict[str, Tensor], str, bool]:
    """The state dict inside its container and without prefixes, the container's name, and whether `nn.DataParallel`
    wrote it."""
    container = next((c for c in CONTAINERS if isinstance(content, dict) and isinstance(content.get(c), dict)), "")
    weights = content[container] if container else content
    named = isinstance(weights, dict) and all(isinstance(key, str) for key in weights)
    if not named or not weights or not all(isinstance(value, Tensor) for value in weights.values()):
        raise UserError(
            f"checkpoint={path} holds no state dict. Expected are tensors by name, bare or under "
            f"{', '.join(CONTAINERS)}."
        )
    parallel = all(key.startswith("module.") for key in weights)
    while prefix := next((p for p in PREFIXES if all(key.startswith(p) for key in weights)), ""):
        weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    return weights, container, parallel


def _refuse_quantization_aware(weights: dict[str, Tensor], path: Path) -> None:
    if any(key.endswith(".codes") for key in weights):
        raise UserError(
            f"checkpoint={path} is a network that ptq_exp quantized. Give the float checkpoint it was made from; "
            f"ptq_exp.load('{path.name}') uses it as it is."
        )
    if found := [key for key in weights if QUANTIZATION_AWARE.search(key)]:
        raise UserError(
            f"checkpoint={path} was trained quantization-aware ({_shortened(found[:3])}): its weights are adapted to "
            f"another quantizer, so post-training results on it would mislead. Give the float checkpoint."
        )


def _rename(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """The weights under our names, and the project whose names they had."""
    keys = list(weights)
    if any("init_block" in key for key in keys):
        layout = "pytorchcv"
    elif any(".downsample." in key for key in keys):
        layout = "chenyaofo"
    else:
        layout = ""
    renamed = {}
    for key, value in weights.items():
        for pattern, replacement in RENAMES:
            key = re.sub(pattern, replacement, key)
        # pytorchcv counts the blocks of a stage from 1.
        renamed[re.sub(r"\.unit(\d+)\.", lambda match: f".{int(match[1]) - 1}.", key)] = value
    return renamed, layout


def _identify(weights: dict[str, Tensor], path: Path) -> tuple[str, dict[str, Any]]:
    """Architecture and options, told from the keys."""
    if "linear.weight" in weights:
        if weights["linear.weight"].dim() != 2:
            shape = tuple(weights["linear.weight"].shape)
            raise UserError(f"checkpoint={path}: linear.weight has the shape {shape}, not (classes, features).")
        blocks = {match[0] for key in weights if (match := re.match(r"layer\d+\.\d+\.", key))}
        if blocks and "conv1.weight" in weights:
            depth, stages = 2 * len(blocks) + 2, len({block.split(".")[0] for block in blocks})
            if stages != 3 or (depth - 2) % 6:
                raise UserError(
                    f"checkpoint={path} holds a ResNet of {stages} stages with {len(blocks)} blocks ({depth} layers). "
                    f"Known here are CIFAR ResNets of three equal stages (20, 32, 44, 56, 110 layers)."
                )
            conv = any(".shortcut." in key for key in weights)
            return "resnet", {"depth": depth, "shortcut": "conv" if conv else "pad"}
        convolutions = [key for key, value in weights.items() if key.startswith("features.") and value.dim() == 4]
        if convolutions:
            return "vgg", {"depth": len(convolutions) + 3}
    raise UserError(
        f"checkpoint={path} holds no network that is known here (a CIFAR ResNet or VGG). "
        f"Its keys: {_shortened(list(weights))}."
    )


def _normalization(
    layout: str, container: str, parallel: bool, options: dict[str, Any], classes: int, metadata: dict[str, Any]
) -> tuple[Any, Any]:
    """Mean and std the network was trained with: our own files say, some projects are known by their layout."""
    if "mean" in metadata:
        return tuple(metadata["mean"]), tuple(metadata["std"])
    if layout == "chenyaofo" and classes == 100:
        return CHENYAOFO_CIFAR100
    if (layout or container == "net") and classes == 10:
        return KUANGLIU
    if classes == 10 and container == "state_dict" and parallel and options.get("shortcut") == "pad":
        return IMAGENET  # akamaster's pytorch_resnet_cifar10
    return None, None


def _download(url: str, cache: Path, timeout: float) -> Path:
    """Fetch `url` once into `cache`, all or nothing; `timeout` seconds without a byte give it up."""
    folder = cache / "downloads"
    name = Path(urlparse(url).path).name or "checkpoint"
    target = folder / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{name}"
    if target.is_file():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkstemp(prefix=".download-", dir=folder)[1])
    try:
        with urllib.request.urlopen(url, timeout=timeout) as response, partial.open("wb") as file:
            expected = response.headers.get("Content-Length")
            with progress(f"Downloading {name}", int(expected or 0)) as advance:
                while chunk := response.read(2**16):
                    file.write(chunk)
                    advance(len(chunk))
        if expected is not None and partial.stat().st_size != int(expected):
            raise UserError(f"checkpoint={url}: the download broke off. Try again.")
        os.replace(partial, target)
    except (http.client.HTTPException, OSError, ValueError) as error:
        raise UserError(
            f"checkpoint={url} could not be downloaded ({error}). Give the path of a local file."
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return target
