"""Reading checkpoint files from any source: the weights in them, and the known network that they belong to.

Nothing inside a file is executed: see `pickled.py`.
"""

import hashlib
import json
import re
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ptq_exp.base.console import log
from ptq_exp.base.errors import UserError, did_you_mean
from ptq_exp.base.tensors import load_checked
from ptq_exp.networks.reading.downloads import download
from ptq_exp.networks.reading.fitting import fit
from ptq_exp.networks.reading.identification import Identity, identify
from ptq_exp.networks.reading.pickled import Opaque
from ptq_exp.networks.reading.pickled_names import QuantizedError
from ptq_exp.networks.reading.renaming import shortened
from ptq_exp.networks.reading.state_dicts import AVERAGED, LONGEST_NAME, Values, find_state_dicts, has_matrices
from ptq_exp.networks.reading.stored_tensors import StoredTensor
from ptq_exp.networks.reading.torch_files import other_format, read_file
from ptq_exp.networks.reading.unwrapping import MOST_PARTS, unwrap
from ptq_exp.networks.reading.weights_file import Beside, Parts, WeightsFile

KEYWORDS = ("auto", "train", "pretrained")  # of `checkpoint`; anything else is a file
SHARED_ELEMENTS = 2**27  # more elements than bytes in the file, for tensors that share their storage
MOST_TENSORS = 20_000
QUANTIZATION_AWARE = re.compile(r"act_alpha|wgt_alpha|weight_quant|act_quant|fake_quant|zero_point")
FLOAT_NEEDED = (
    "Its weights are adapted to another quantizer, so post-training results would be misleading. "
    "Give a float checkpoint."
)
# Names of the accuracy that training loops store with the weights: best_prec1, best_acc, acc, test_top1, val_acc1 ...
CLAIM = re.compile(r"(best_?|test_?|val(id)?_?)*(acc(uracy)?|prec(ision)?|top)_?@?1?", re.IGNORECASE)


@dataclass
class Checkpoint:
    """A float network from a file: its weights under our names, and its architecture."""

    path: Path
    sha256: str
    weights: dict[str, Tensor]
    architecture: str
    options: dict[str, Any]  # depth; shortcut if the architecture has one; channels if they are not the usual ones
    classes: int
    metadata: dict[str, Any] = field(default_factory=dict)  # of our own files: normalization, classes, recipe ...
    claim: tuple[str, float] | None = None  # the accuracy stated in the file: its name and its value in percent

    @property
    def normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Mean and std used in the network's training, or None if the file does not state them."""
        about = self.metadata
        return (tuple(about["mean"]), tuple(about["std"])) if "mean" in about and "std" in about else None


def read_checkpoint(location: str, cache: Path, timeout: float) -> Checkpoint:
    """Read a known network from the file at `location`, a path or an http(s) URL (downloaded once, into `cache`).

    Raises `UserError` if there is no such file, it is damaged, it was trained quantization-aware, or it fits no known
    network.
    """
    file = read_weights(location, cache, timeout)
    found = Identity.stored(file.metadata) or identify(file)
    fitted = fit(found.network(), file)
    log.info("%s", fitted.how)
    return Checkpoint(
        file.path,
        file.sha256,
        fitted.weights,
        found.architecture,
        found.options,
        found.classes,
        file.metadata,
        file.claim,
    )


def load_weights(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Copy the weights into `model`. Raises `UserError` if anything but `num_batches_tracked` differs."""
    file = WeightsFile(checkpoint.path, checkpoint.sha256, checkpoint.weights, checkpoint.weights)
    model.load_state_dict(fit(model, file).weights, strict=False)


def read_weights(location: str, cache: Path, timeout: float) -> WeightsFile:
    """Read the weights in the file at `location`, a path or an http(s) URL (downloaded once, into `cache`).

    Raises `UserError` if there is no such file, it is damaged, it holds no state dict, or it was trained
    quantization-aware.
    """
    if "://" not in location:
        return _read(Path(location).expanduser(), location)
    path = download(location, cache, timeout)
    try:
        return _read(path, location)
    except UserError:  # such as a sign-in page or an unnoticed partial download; the next attempt downloads it again
        path.unlink(missing_ok=True)
        raise


def _read(path: Path, location: str) -> WeightsFile:
    if not path.is_file():
        there = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() and not path.is_dir() else []
        near = did_you_mean(path.name, [*there, *KEYWORDS])
        raise UserError(
            f"checkpoint={location}: there is no such file.{near} Give the path or URL of a checkpoint, or one of "
            f"these words: auto (the stored network, trained once), train (always train), pretrained (the constructor "
            f"brings weights)."
        )
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    if sentence := other_format(content, path.name):
        raise UserError(f"checkpoint={path} is not a file of torch.save or safetensors. {sentence}")
    if path.suffix == ".safetensors" or content[8:10] == b'{"':
        original, metadata = _read_safetensors(path)
        claims, beside = metadata, Beside()
    else:
        original, claims, beside = _read_pickled(path, content)
        metadata = {}
    if len(original) > MOST_TENSORS or any(len(key) > LONGEST_NAME for key in original):
        raise UserError(f"checkpoint={path} holds no network: its tensors are too many, or their names too long.")
    _refuse_quantization_aware(original, path)
    try:
        weights, constants = unwrap(original)
    except RuntimeError as error:
        raise _damaged(path, error) from error
    return WeightsFile(path, sha256, weights, original, constants | metadata, _claim(claims), beside)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors in the natural order of their names (the file sorts them by type), and our metadata."""
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            if "sha256" in about:  # written by us
                tensors, metadata = load_checked(path)
            else:
                tensors = {key: file.get_tensor(key) for key in list(file.keys())}
                metadata = json.loads(about.get("ptq_exp", "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"checkpoint={path} is damaged or not a safetensors file ({error}).") from error
    return {key: _as_float(tensors[key]) for key in sorted(tensors, key=_natural)}, metadata


def _natural(name: str) -> list[str]:
    """`layer.9` comes before `layer.10`."""
    return [part.rjust(9, "0") if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _read_pickled(path: Path, content: bytes) -> tuple[dict[str, Tensor], dict[Any, Any], Beside]:
    """The tensors of the state dict in a file, the content of the file, and the state dicts in the same dictionary."""
    try:
        whole = read_file(content)
        found = find_state_dicts(whole)
        if found:
            (place, values), *others = found.items()
            weights = _tensors(values, len(content))
        top = whole.content() if isinstance(whole, Opaque) else whole if isinstance(whole, dict) else {}
        claims = {key: value.tensor() if _is_number(value) else value for key, value in top.items()}
    except QuantizedError as error:
        raise UserError(f"checkpoint={path} is quantized by torch. {FLOAT_NEEDED}") from error
    except Exception as error:  # a damaged file causes half a dozen types of errors
        raise _damaged(path, error) from error
    if not found:
        raise UserError(
            f"checkpoint={path} contains no state dict. Expected: tensors by name, at the top level or in dictionaries."
        )
    unused = [name for name, other in others if has_matrices(other)]
    choice = f"using the weights under {shortened([place])}, not those under {shortened(unused)}"
    beside = Beside(choice if place and unused else "", partial(_beside, place, found, len(content)))
    return weights, claims, beside


def _beside(place: str, found: dict[str, Values], size: int) -> Parts:
    """The state dicts in the same dictionary as that at `place`, without averages. None if they are many or damaged."""
    parent, dot, _ = place.rpartition(".")
    names = {path: path.removeprefix(parent + dot) for path in found if path.rpartition(".")[0] == parent}
    chosen = {name: found[path] for path, name in names.items() if name and not AVERAGED.search(name)}
    if not place or not 1 < len(chosen) <= MOST_PARTS or sum(map(len, chosen.values())) > MOST_TENSORS:
        return {}
    try:
        return {name: unwrap(_tensors(values, size))[0] for name, values in chosen.items()}
    except Exception:  # a damaged file causes half a dozen types of errors
        return {}


def _tensors(values: Values, size: int) -> dict[str, Tensor]:
    """The tensors of a state dict, read from the file of `size` bytes."""
    chosen = {key: value for key, value in values.items() if not (CLAIM.fullmatch(key) and not value.shape)}
    if sum(value.elements for value in chosen.values()) > size + SHARED_ELEMENTS:
        raise ValueError("its tensors have many times more elements than the file has bytes")
    return {key: _as_float(value.tensor()) for key, value in chosen.items()}


def _as_float(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value


def _is_number(value: Any) -> bool:
    return isinstance(value, StoredTensor) and value.storage is not None and value.elements == 1


def _damaged(path: Path, error: Exception) -> UserError:
    reason = shortened(str(error).splitlines()[:1])
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    return UserError(
        f"checkpoint={path} is damaged or not a checkpoint ({kind}{reason}). Expected: a file written by torch.save, "
        f"or a .safetensors file, with the network's weights."
    )


def _refuse_quantization_aware(weights: dict[str, Tensor], path: Path) -> None:
    if any(key.rpartition(".")[2] == "codes" for key in weights):
        raise UserError(
            f"checkpoint={path} is a network quantized by ptq_exp. Give its float checkpoint instead. To use the "
            f"quantized network, call ptq_exp.load('{path.name}')."
        )
    if found := [key for key in weights if QUANTIZATION_AWARE.search(key)]:
        raise UserError(f"checkpoint={path} was trained quantization-aware ({shortened(found[:3])}). {FLOAT_NEEDED}")


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
