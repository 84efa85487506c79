"""ONNX files: weights as integer codes behind `DequantizeLinear`, activations between `QuantizeLinear` and it."""

from functools import partial
from pathlib import Path

from ptq_exp.export.formats import Format, NotInstalled, Subject, Written, needing, quantizes_activations
from ptq_exp.export.onnx.running import onnx_runtime, openvino


class Onnx(Format):
    """ONNX, for ONNX Runtime and OpenVINO.

    Two-bit types came with opset 25, and few runtimes have them. A network with such weights gets a second file, with
    opset 21 and four-bit types.
    """

    def write(self, subject: Subject, folder: Path, name: str) -> list[Written]:
        try:
            with needing("onnxscript"):
                from ptq_exp.export.onnx.nodes import FOUR_BITS, TWO_BITS
                from ptq_exp.export.onnx.writing import has_two_bit_weights, save, to_onnx
        except NotInstalled as error:
            raise NotInstalled("not written (pip install 'ptq_exp[export]')") from error

        opsets = [TWO_BITS, FOUR_BITS] if has_two_bit_weights(subject.network) else [FOUR_BITS]
        path, other = folder / f"{name}.onnx", folder / f"{name}_opset{FOUR_BITS}.onnx"
        written = [save(model, file) for model, file in zip(to_onnx(subject, opsets), (path, other), strict=False)]
        return [
            Written(
                path, "ONNX Runtime", "onnx", partial(onnx_runtime, decode=not quantizes_activations(subject.network))
            ),
            Written(written[-1], "OpenVINO", "openvino", openvino),
        ]
