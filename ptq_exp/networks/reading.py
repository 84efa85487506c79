"""Reading checkpoint files from any source: the network and its weights under our names.

Only tensors are read (`weights_only=True`, safetensors), so nothing inside a file is executed.
"""

import hashlib
import http.client
import json
import re
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ptq_exp.base.console import log
from ptq_exp.base.errors import UserError, did_you_mean, without_password
from ptq_exp.base.files import write_atomically
from ptq_exp.base.sockets import socket_timeout
from ptq_exp.base.tensors import load_checked
from ptq_exp.networks.identification import COUNTERS, Identity, Shapes, differences, identify, shortened

CONTAINERS = ("state_dict", "model_state_dict", "net", "model")
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")  # of wrappers, single or nested
# Left: names in other projects (pytorchcv, torchvision, chenyaofo, kuangliu, APoT). Right: our names.
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
QUANTIZATION_AWARE = re.compile(r"act_alpha|wgt_alpha|weight_quant|act_quant|fake_quant|zero_point")
# Names of the accuracy that training loops store with the weights: best_prec1, best_acc, acc, test_top1, val_acc1 ...
CLAIM = re.compile(r"(best_?|test_?|val(id)?_?)*(acc(uracy)?|prec(ision)?|top)_?@?1?", re.IGNORECASE)


@dataclass
class Checkpoint:
    """A float network from a file: its weights under our names, and its architecture."""

    path: Path
    sha256: str
    weights: dict[str, Tensor]
    architecture: str
    options: dict[str, Any]  # depth, and shortcut if the architecture has one
    classes: int
    metadata: dict[str, Any] = field(default_factory=dict)  # of our own files: normalization, classes, recipe ...
    claim: tuple[str, float] | None = None  # the accuracy stated in the file: its name and its value in percent

    @property
    def normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Mean and std used in the network's training, or None if the file does not state them."""
        about = self.metadata
        return (tuple(about["mean"]), tuple(about["std"])) if "mean" in about and "std" in about else None


def read_checkpoint(location: str, cache: Path, timeout: float) -> Checkpoint:
    """Read the checkpoint file at `location`, a path or an http(s) URL (downloaded once, into `cache`).

    Raises `UserError` if there is no such file, it is damaged, it contains more than tensors, it was trained
    quantization-aware, or it fits no known network.
    """
    if "://" not in location:
        return _read(Path(location).expanduser(), location)
    path = _download(location, cache, timeout)
    try:
        return _read(path, location)
    except UserError:  # such as a sign-in page or an unnoticed partial download; the next attempt downloads it again
        path.unlink(missing_ok=True)
        raise


def _read(path: Path, location: str) -> Checkpoint:
    if not path.is_file():
        there = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() and not path.is_dir() else []
        near = did_you_mean(path.name, there)
        raise UserError(
            f"checkpoint={location}: there is no such file.{near} Give the path or URL of a checkpoint, "
            f"or use checkpoint=auto for a network that is trained here (or already stored)."
        )
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    content, metadata = _load(path)
    weights = _unwrap(content, path)
    _refuse_quantization_aware(weights, path)
    original, weights = weights, _rename(weights)
    stored = Identity.stored(metadata)
    found = stored or identify(_shapes(weights), path, _shapes(original))
    weights = {key: _dense(key, value, path) for key, value in weights.items()}
    claim = _claim({**content, **metadata} if isinstance(content, dict) else metadata)
    return Checkpoint(path, sha256, weights, found.architecture, found.options, found.classes, metadata, claim)


def load_weights(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Copy the weights into `model`. Raises `UserError` if anything but `num_batches_tracked` differs."""
    expected = _shapes(model.state_dict())
    if problems := differences(expected, _shapes(checkpoint.weights)):
        raise UserError(f"checkpoint={checkpoint.path} does not fit the network. {problems}.")
    model.load_state_dict(checkpoint.weights, strict=False)


def _shapes(weights: dict[str, Tensor]) -> Shapes:
    return {key: tuple(value.shape) for key, value in weights.items()}


def _load(path: Path) -> tuple[Any, dict[str, Any]]:
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                about = file.metadata() or {}
                if "sha256" in about:  # written by us
                    return load_checked(path)
                return {key: file.get_tensor(key) for key in list(file.keys())}, json.loads(about.get("ptq_exp", "{}"))
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(f"checkpoint={path} is damaged or not a safetensors file ({error}).") from error
    try:
        if zipfile.is_zipfile(path) and (bad := zipfile.ZipFile(path).testzip()):
            raise UserError(f"checkpoint={path} is damaged: the checksum of {bad} in it is wrong.")
        return torch.load(path, map_location="cpu", weights_only=True), {}
    except UserError:
        raise
    except Exception as error:  # torch raises half a dozen types for files that are not checkpoints
        if "weights_only" in str(error) and "Unsupported operand" not in str(error):
            raise _more_than_tensors(path, str(error)) from error
        reason = str(error).splitlines()[0][:120] if str(error) else ""
        raise UserError(
            f"checkpoint={path} is damaged or not a checkpoint ({type(error).__name__}: {reason}). Expected: a file "
            f"written by torch.save, or a .safetensors file, with the network's state_dict()."
        ) from error


def _more_than_tensors(path: Path, reason: str) -> UserError:
    """The error for a file with more than tensors. It names the class and a command that saves the weights alone."""
    name = re.search(r"GLOBAL ([\w.]+)|Unsupported class ([\w.]+)|(?:class|global) ([\w]+(?:\.[\w]+)+)", reason)
    culprit = f" ({next(filter(None, name.groups()))})" if name else ""
    rescued = path.with_name(f"{path.stem}-weights.pt")
    keys = ", ".join(f"'{container}'" for container in CONTAINERS)
    return UserError(
        f"checkpoint={path} contains more than tensors{culprit}. Loading it could execute hidden code, so it is "
        f"rejected. If you trust its author, this command saves the state_dict() alone:\n"
        f"python -c \"import torch; f = torch.load('{path}', 'cpu', weights_only=False); "
        f"w = next((f[k] for k in ({keys}) if k in f), f) if isinstance(f, dict) else f; "
        f"torch.save(w.state_dict() if hasattr(w, 'state_dict') else w, '{rescued}')\""
    )


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    """The state dict, taken out of its container and without prefixes."""
    container = next((c for c in CONTAINERS if isinstance(content, dict) and isinstance(content.get(c), dict)), "")
    weights = content[container] if container else content
    if not _is_state_dict(weights):
        raise UserError(
            f"checkpoint={path} contains no state dict. Expected: tensors by name, at the top level or under "
            f"{', '.join(CONTAINERS)}."
        )
    others = [key for key, value in content.items() if key != container and _is_state_dict(value)] if container else []
    if others:
        log.info("checkpoint=%s: using the weights under %s, not those under %s.", path, container, shortened(others))
    while prefix := next((p for p in PREFIXES if all(key.startswith(p) for key in weights)), ""):
        weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    return weights


def _is_state_dict(content: Any) -> bool:
    named = isinstance(content, dict) and len(content) > 0 and all(isinstance(key, str) for key in content)
    return named and all(isinstance(value, Tensor) for value in content.values())


def _refuse_quantization_aware(weights: dict[str, Tensor], path: Path) -> None:
    if any(key.endswith(".codes") for key in weights):
        raise UserError(
            f"checkpoint={path} is a network quantized by ptq_exp. Give its float checkpoint instead. To use the "
            f"quantized network, call ptq_exp.load('{path.name}')."
        )
    if found := [key for key in weights if QUANTIZATION_AWARE.search(key)]:
        raise UserError(
            f"checkpoint={path} was trained quantization-aware ({shortened(found[:3])}). Its weights are adapted to "
            f"another quantizer, so post-training results would be misleading. Give a float checkpoint."
        )


def _rename(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights to our names."""
    renamed = {}
    for key, value in weights.items():
        for pattern, replacement in RENAMES:
            key = re.sub(pattern, replacement, key)
        # pytorchcv numbers the blocks of a stage from 1.
        renamed[re.sub(r"\.unit(\d+)\.", lambda match: f".{int(match[1]) - 1}.", key)] = value
    return renamed


def _dense(key: str, value: Tensor, path: Path) -> Tensor:
    """The tensor in dense form. Raises `UserError` if its values are not finite floats (counters may be integers)."""
    problem = ""
    if value.is_meta:
        problem = "has a shape but no values (it was saved from the meta device)"
    elif not value.is_floating_point() and not key.endswith(COUNTERS):
        problem = f"has {str(value.dtype).removeprefix('torch.')} values, but float weights are needed"
    elif value.layout != torch.strided:
        return _dense(key, value.to_dense(), path)
    elif not torch.isfinite(value).all():
        problem = "has values that are not finite. The file is damaged"
    if problem:
        raise UserError(f"checkpoint={path}: {key} {problem}.")
    return value


def _claim(content: dict[Any, Any]) -> tuple[str, float] | None:
    """The first entry of a file with the name of an accuracy. Values of at most 1 are shares, others percent."""
    for key, value in content.items():
        single = isinstance(value, Tensor) and value.numel() == 1
        if not isinstance(key, str) or not CLAIM.fullmatch(key) or not (single or isinstance(value, int | float)):
            continue
        number = float(value)
        percent = 100 * number if number <= 1 else number
        if 0 < percent <= 100:
            return key, percent
    return None


def _download(url: str, cache: Path, timeout: float) -> Path:
    """Download `url` once into `cache`, atomically. It fails after `timeout` seconds without data."""
    folder = cache / "downloads"
    name = Path(urlparse(url).path).name or "checkpoint"
    target = folder / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{name}"
    if target.is_file():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    log.info("Downloading %s.", without_password(url))
    try:
        with socket_timeout(timeout):
            # torch.hub's function would accept a partial download as complete.
            write_atomically(target, lambda path: urllib.request.urlretrieve(url, path))
    except urllib.error.ContentTooShortError:
        raise UserError(f"checkpoint={url}: the download was interrupted. Try again.") from None
    except (http.client.HTTPException, OSError, ValueError) as error:
        raise UserError(
            f"checkpoint={url} could not be downloaded ({error}). Give the path of a local file."
        ) from error
    return target
