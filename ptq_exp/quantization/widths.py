"""Checks of bit widths."""

from ptq_exp.base.errors import UserError
from ptq_exp.quantization.grids import TWO_SIDED
from ptq_exp.quantization.options import BITS_RANGE, TERNARY, QuantConfig


def check_bits(key: str, bits: object, more: str = "") -> None:
    """Raise `UserError` unless `bits` is a bit width; `key` is its name on the command line. `more` is also allowed."""
    if isinstance(bits, bool) or not isinstance(bits, int) or bits not in BITS_RANGE:
        allowed = f"integers from {BITS_RANGE.start} to {BITS_RANGE.stop - 1}"
        raise UserError(f"{key}={bits} is not a bit width. Allowed: {allowed}{more}.")


def check_widths(options: QuantConfig) -> None:
    """Raise `UserError` for a bit width of the weights that the grid does not support."""
    widths, two_sided = options.bit_widths(), options.grid in TWO_SIDED
    if not widths:
        raise UserError("quant.bits is empty. Give a bit width or a list of them, for example quant.bits='[4,8]'.")
    if options.mixed and not options.mixed_candidates:
        raise UserError(
            "quant.mixed_candidates is empty. Give bit widths, for example quant.mixed_candidates='[2,4,8]'."
        )
    source = "quant.bits" if options.mean_bits is None else "quant.mean_bits"
    for key, bits in (
        [(source, b) for b in widths]
        + [(f"quant.layer_bits.{name}", b) for name, b in options.layer_bits.items()]
        + [("quant.mixed_candidates", b) for b in options.mixed_candidates if options.mixed]
    ):
        if bits == TERNARY and two_sided and key != source:
            continue
        several = ", or a list of them, for example quant.bits='[4,8]'" if key == "quant.bits" else ""
        check_bits(key, bits, several or (f", or {TERNARY}" if two_sided and key != source else ""))
        if bits == 1 and options.sign_bit == "included" and not two_sided:
            raise UserError(
                f"{key}=1 with quant.sign_bit=included leaves no level but zero. Use 2 bits (three levels), "
                f"quant.sign_bit=extra, or quant.grid=float_zero_point."
            )
    if len(set(widths)) < len(widths):
        raise UserError(f"quant.bits={widths} contains a bit width twice.")
