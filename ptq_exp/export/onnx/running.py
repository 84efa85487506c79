"""Running ONNX files in ONNX Runtime and in OpenVINO."""

from pathlib import Path

import torch
from torch import Tensor

from ptq_exp.export.formats import Runner, needing
from ptq_exp.export.onnx.names import IMAGES


def onnx_runtime(path: Path, decode: bool) -> Runner:
    """The network of a file in ONNX Runtime, on the CPU.

    With `decode`, the weights are decoded once, at load. Otherwise they are decoded at every call, unless the runtime
    computes with their codes, for which activations need codes, too.
    """
    with needing("onnxruntime"):
        import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    if decode:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {IMAGES: images.contiguous().numpy()})[0])

    return run


def openvino(path: Path) -> Runner:
    """The network of a file in OpenVINO, on the CPU."""
    with needing("openvino"):
        import openvino as runtime

    # The default may be bfloat16, whose eight bits of precision are not the function that was exported, and may round
    # the inputs of linear layers to 8 bits.
    settings = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    compiled = runtime.Core().compile_model(path, "CPU", settings)

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(compiled(images.contiguous().numpy())[0].copy())

    return run
