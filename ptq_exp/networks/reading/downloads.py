"""Downloads of checkpoint files: once, all or nothing, and given up in time."""

import hashlib
import http.client
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlparse

from ptq_exp.base.console import log
from ptq_exp.base.errors import UserError, without_password
from ptq_exp.base.files import write_atomically
from ptq_exp.base.sockets import socket_timeout


def download(url: str, cache: Path, timeout: float) -> Path:
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
