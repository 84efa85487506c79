"""Checkpoints from a URL: downloaded once, all or nothing, and given up in time."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from foreign import logits, resnet
from loopback import Loopback

from ptq_exp.base.errors import UserError
from ptq_exp.networks import build_model
from ptq_exp.networks.reading import load_weights, read_checkpoint


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
    with pytest.raises(UserError, match="interrupted"):
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
