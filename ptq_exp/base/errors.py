"""Errors that the user can fix.

They are raised as `UserError`. The message states the problem, its place, the allowed values and, for a misspelt word,
the nearest valid spelling. `run.py` prints it without a traceback and exits with code 1.
"""

import difflib
import re
from collections.abc import Iterable


def without_password(text: str) -> str:
    """The text with passwords and tokens in addresses replaced by stars, for display and logging."""

    def starred(found: re.Match[str]) -> str:
        user, colon, _ = found[1].partition(":")
        return f"://{user}:***@" if user and colon else "://***@"

    return re.sub(r"""://([^/\s"']*)@""", starred, text)


class UserError(Exception):
    """A problem with the configuration, the files or the machine that the user can fix."""

    def __init__(self, message: str):
        super().__init__(without_password(message))


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """A sentence with the nearest candidate, or an empty string if none is near."""
    near = difflib.get_close_matches(word, list(candidates), n=1, cutoff=0.6)
    return f" Did you mean '{near[0]}'?" if near else ""


def check_choice(key: str, value: object, allowed: Iterable[str]) -> None:
    """Raise `UserError` unless `value` is one of `allowed`; `key` is its name on the command line."""
    names = sorted(allowed)
    if value not in names:
        raise UserError(f"{key}={value} is not known.{did_you_mean(str(value), names)} Allowed: {', '.join(names)}.")


def unknown_key(key: str, allowed: list[str]) -> UserError:
    """The error for a dotted key that does not exist beside the `allowed` ones."""
    return UserError(f"There is no key '{key}'.{did_you_mean(key, allowed)} Allowed: {', '.join(allowed)}.")
