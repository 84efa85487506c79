"""The store of trained float networks.

It is content-addressed: `<cache>/float/<digest>/` holds the network of one training configuration on one data set, so
that every job and every later sweep with this configuration finds it.
"""

import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from ptq_exp.base.console import log
from ptq_exp.base.files import write_atomically, write_json
from ptq_exp.base.tensors import save_checked
from ptq_exp.base.text import read_text

State = TypeVar("State")


class StoreEntry:
    """One folder of the store. `metadata.json` is written last: an entry with it is complete."""

    def __init__(self, folder: Path, identity: dict[str, Any]):
        self.folder, self.identity = folder, identity

    def locked(self) -> FileLock:
        """A lock that jobs wait for while another job trains this network. A killed process releases it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{self.folder}.lock")
        try:
            lock.acquire(timeout=0)
            lock.release()
        except Timeout:
            log.info("Waiting for another job that trains the same float model (%s).", self.folder)
        return lock

    def complete(self) -> bool:
        """Whether both checkpoints exist and are undamaged."""
        try:
            sums: dict[str, str] = json.loads(read_text(self.folder / "metadata.json"))["sha256"]
            return all(_sha256(self.folder / name) == value for name, value in sums.items())
        except (OSError, ValueError, KeyError):
            return False

    def clear(self) -> None:
        """Delete the network and any unfinished training."""
        for name in ("metadata.json", "training-state.pt"):
            (self.folder / name).unlink(missing_ok=True)

    def training_state(self, kind: Callable[..., State]) -> State | None:
        """The state of an unfinished training, built by `kind` from the result of `save_state`, or None."""
        path = self.folder / "training-state.pt"
        try:
            with zipfile.ZipFile(path) as content:  # torch does not verify the checksums inside
                if damaged := content.testzip():
                    raise ValueError(f"{damaged} is damaged")
            return kind(**torch.load(path, map_location="cpu", weights_only=True))
        except FileNotFoundError:
            return None
        except Exception as error:  # a file damaged in any way: training starts again
            log.warning("The unfinished training in %s cannot be read (%s). Starting again.", path, error)
            return None

    def save_state(self, state: object) -> None:
        """Write the attributes of an unfinished training's state."""
        buffer = io.BytesIO()  # torch's own writing does not raise OSError if the disk is full
        torch.save(vars(state), buffer)
        write_atomically(self.folder / "training-state.pt", lambda path: path.write_bytes(buffer.getbuffer()))

    def finish(
        self,
        networks: dict[str, tuple[dict[str, Tensor], dict[str, float]]],
        history: list[dict[str, float]],
        metadata: dict[str, Any],
    ) -> None:
        """Store the weights by name with their metadata, and the history, and mark the entry as complete."""
        for name, (weights, about) in networks.items():
            save_weights(self.folder / f"{name}.safetensors", weights, metadata | about)
        sums = {f"{name}.safetensors": _sha256(self.folder / f"{name}.safetensors") for name in networks}
        content = {"identity": self.identity, **metadata, "history": history, "sha256": sums}
        write_json(self.folder / "metadata.json", content, indent=1)
        (self.folder / "training-state.pt").unlink(missing_ok=True)


def weights_digest(model: nn.Module) -> str:
    """SHA-256 (hex) of the names and values of a network's state."""
    sha = hashlib.sha256()
    for name, value in model.state_dict().items():
        sha.update(name.encode())
        sha.update(value.cpu().contiguous().numpy().data)
    return sha.hexdigest()


def save_weights(path: Path, weights: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write a safetensors file that `read_checkpoint` reads; `metadata` must be JSON."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in weights.items()}
    write_atomically(path, lambda temporary: save_checked(tensors, temporary, metadata))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
