"""Checks of option values that several steps share."""

from ptq_exp.base.errors import UserError
from ptq_exp.quantization.options import BITS_RANGE


def check_bits(key: str, bits: object) -> None:
    """Raise `UserError` unless `bits` is a bit width; `key` is its name on the command line."""
    if isinstance(bits, bool) or not isinstance(bits, int) or bits not in BITS_RANGE:
        raise UserError(
            f"{key}={bits} is not a bit width. Allowed: whole numbers from {BITS_RANGE.start} to "
            f"{BITS_RANGE.stop - 1}, or a list of them, {key}='[4,8]' for example."
        )


def check_positive(values: dict[str, float | None]) -> None:
    """Raise `UserError` unless every number is above zero or missing."""
    for key, value in values.items():
        if value is not None and value <= 0:
            raise UserError(f"{key}={value} must be positive.")


def check_not_negative(values: dict[str, float]) -> None:
    """Raise `UserError` unless every number is zero or more."""
    for key, value in values.items():
        if value < 0:
            raise UserError(f"{key} must not be negative.")


def check_percentile(key: str, value: float) -> None:
    """Raise `UserError` unless `value` is above 0 and at most 100."""
    if not 0 < value <= 100:
        raise UserError(f"{key}={value} must lie above 0 and at most at 100.")
