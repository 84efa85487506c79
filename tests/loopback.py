"""A web server on this machine that answers as a test wants: whole, cut off, or not at all."""

import contextlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Loopback(ThreadingHTTPServer):
    """A server on this machine that gives every request the same answer, or none at all where it is None."""

    daemon_threads = True

    def __init__(self, path: str) -> None:
        self.path = path
        self.answer: bytes | None = b""
        self.requests = 0
        self.closing = threading.Event()
        super().__init__(("127.0.0.1", 0), LoopbackHandler)
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/{self.path}"

    def stop(self) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()


class LoopbackHandler(BaseHTTPRequestHandler):
    server: Loopback

    def do_GET(self) -> None:
        self.server.requests += 1
        if self.server.answer is None:
            self.server.closing.wait(60)
            return
        with contextlib.suppress(OSError):  # the client may hang up first
            self.wfile.write(self.server.answer)

    def log_message(self, *args: Any) -> None:
        pass
