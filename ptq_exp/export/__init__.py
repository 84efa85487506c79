"""Quantized networks as files: one module or folder per format, and the run that verifies what was written.

A format is a class with `write` (see `formats.Format`) and one entry in `FORMATS`. This module imports no torch,
because the command line checks the names of formats.
"""

from ptq_exp.base.errors import check_choice

# The formats of `export=[...]`, in the order of the table.
FORMATS = {
    "onnx": "ptq_exp.export.onnx:Onnx",
    "packed": "ptq_exp.export.packed:Packed",
    "program": "ptq_exp.export.program:Program",
    "header": "ptq_exp.export.header:Header",
}


def check_formats(names: list[str]) -> None:
    """Raise `UserError` for an unknown format."""
    for name in names:
        check_choice("export", name, FORMATS)
