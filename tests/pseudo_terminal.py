"""A real pseudo-terminal of a given width, and what a program shows in it."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from pathlib import Path

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")  # colours, cursor movements


def shown(command: list[str], columns: int, folder: Path, **environment: str) -> tuple[int, list[str]]:
    """Exit code, and the lines that `command` writes to a terminal so wide, as written: the terminal wraps none."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    clean = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, cwd=folder, env=clean | {"TERM": "xterm"} | environment
    )
    os.close(slave)
    parts = []
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:  # how Linux tells that the other end is closed
            break
        if not part:
            break
        parts.append(part)
    os.close(master)
    text = CONTROL.sub("", b"".join(parts).decode())
    return process.wait(), [line for part in text.split("\n") for line in part.split("\r") if line.strip()]
