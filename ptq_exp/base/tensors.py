"""safetensors files with a checksum, so that a flipped bit is an error instead of a wrong number.

Imports that need torch are inside the functions, so that importing this module is fast.
"""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def save_checked(tensors: "dict[str, Tensor]", path: Path, metadata: dict[str, Any]) -> None:
    """Write contiguous CPU tensors with `metadata` (JSON) and the SHA-256 of both."""
    from safetensors.torch import save

    content = json.dumps(metadata)
    path.write_bytes(save(tensors, {"ptq_exp": content, "sha256": _digest(tensors, content)}))


def load_checked(path: Path) -> "tuple[dict[str, Tensor], dict[str, Any]]":
    """Read tensors and metadata. Raises `ValueError` if they differ from what was written, and `SafetensorError` or
    `OSError` if the file cannot be read."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        about = file.metadata() or {}
        tensors = {key: file.get_tensor(key) for key in list(file.keys())}
    content = about.get("ptq_exp", "")
    if about.get("sha256") != _digest(tensors, content):
        raise ValueError("its checksum is wrong: the file is damaged")
    return tensors, json.loads(content)


def _digest(tensors: "dict[str, Tensor]", content: str) -> str:
    sha = hashlib.sha256(content.encode())
    for name in sorted(tensors):
        value = tensors[name]
        sha.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        sha.update(value.contiguous().numpy().tobytes())
    return sha.hexdigest()
