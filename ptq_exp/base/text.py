"""Text for streams and files of any encoding. A terminal may support only ASCII. Our files are always UTF-8."""

import codecs
import io
import shutil
import sys
import textwrap
from pathlib import Path

READABLE = "ptq_exp.readable"  # the name of the error handler
ASCII = {
    "–": "-", "—": "-", "−": "-", "±": "+-", "≥": ">=", "≤": "<=", "≈": "~", "×": "x", "·": "*", "∞": "inf",
    "→": "->", "…": "...", "’": "'", "‘": "'", "“": '"', "”": '"', "µ": "u", "²": "^2", "°": " deg",
}  # fmt: skip


def _readable(error: UnicodeError) -> tuple[str | bytes, int]:
    """ASCII for characters that an encoding lacks: a similar one, else an escape such as `\\xfc` or `\\u4e2d`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    shown = [ASCII.get(letter) or letter.encode("ascii", "backslashreplace").decode() for letter in lacking]
    return "".join(shown), error.end


codecs.register_error(READABLE, _readable)


def write_what_fits() -> None:
    """Let standard output and error replace characters that their encoding lacks by ASCII. Python would raise a
    `UnicodeEncodeError`, possibly after all the work, or print escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "backslashreplace"):
            stream.reconfigure(errors=READABLE)


def in_lines(text: str, width: int) -> str:
    """`text` with line breaks between words. A path or an address that is longer than a line stays in one piece, so
    that it can be copied and clicked."""

    def fill(line: str) -> str:
        return textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False, replace_whitespace=False)

    return "\n".join(map(fill, text.split("\n")))


def complain(message: str) -> None:
    """Print an error to standard error, wrapped to its width if it is a terminal."""
    text = f"Error: {message}"
    print(in_lines(text, shutil.get_terminal_size().columns) if sys.stderr.isatty() else text, file=sys.stderr)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, regardless of the locale. File names that are not valid UTF-8 are written with escapes."""
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def read_text(path: Path) -> str:
    """Read a file written by `write_text`."""
    return path.read_text(encoding="utf-8")
