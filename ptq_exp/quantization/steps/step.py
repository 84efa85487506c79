"""What a step of a quantization method is."""

from typing import ClassVar

from ptq_exp.quantization.context import Context
from ptq_exp.quantization.options import QuantConfig


class Step:
    """One step of a method. It does nothing where the options do not ask for it."""

    name: ClassVar[str]
    reads: ClassVar[tuple[str, ...]]  # the fields of `QuantConfig` that it looks at

    def check(self, options: QuantConfig) -> None:
        """Raise `UserError` for values and combinations that this step cannot do."""

    def run(self, context: Context) -> None:
        """Change the context's networks in place, or put others there."""
        raise NotImplementedError
