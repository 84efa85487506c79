"""The interface of a step of a quantization method."""

from typing import ClassVar

from ptq_exp.quantization.context import Context
from ptq_exp.quantization.options import QuantConfig


class Step:
    """One step of a method. It does nothing if the options do not request it."""

    name: ClassVar[str]
    reads: ClassVar[tuple[str, ...]]  # the fields of `QuantConfig` that it uses

    def check(self, options: QuantConfig) -> None:
        """Raise `UserError` for values and combinations that this step does not support."""

    def run(self, context: Context) -> None:
        """Change the context's networks in place, or replace them."""
        raise NotImplementedError
