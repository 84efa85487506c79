"""One function per runtime: it loads a file and returns a function from images to logits. All have one thread."""

import contextlib
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor

from bench.export_peers import SIMULATION, Runner
from ptq_exp.export.formats import runner
from ptq_exp.export.inference import load as load_packed
from ptq_exp.export.onnx.names import IMAGES, LOGITS


def onnx_runtime(path: Path, weights_only: bool) -> Runner:
    """An ONNX file in ONNX Runtime. Weights are decoded once, at load, where activations are float."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    if weights_only:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {IMAGES: images.numpy()})[0])


def openvino(path: Path, weights_only: bool) -> Runner:
    """An ONNX file or an IR in OpenVINO."""
    import openvino as runtime

    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = runtime.Core().compile_model(path, "CPU", settings)
    return lambda images: torch.from_numpy(compiled(images.numpy())[0].copy())


def qonnx(path: Path, weights_only: bool) -> Runner:
    """A QONNX file in the Python executor of the package qonnx, which runs one operator after the other."""
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.core.onnx_exec import execute_onnx
    from qonnx.transformation.infer_shapes import InferShapes

    models: dict[int, ModelWrapper] = {}

    def run(images: Tensor) -> Tensor:
        if len(images) not in models:  # shapes are fixed
            model = ModelWrapper(str(path))
            model.set_tensor_shape(IMAGES, list(images.shape))
            models[len(images)] = model.transform(InferShapes())
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            logits = execute_onnx(models[len(images)], {IMAGES: images.numpy()})[LOGITS]
        return torch.from_numpy(logits)

    return run


def packed(path: Path, weights_only: bool) -> Runner:
    """A packed file of ptq_exp."""
    return runner(load_packed(path).network)


def program(path: Path, weights_only: bool) -> Runner:
    """A program of torch.export."""
    return runner(torch.export.load(path).module())


def program_torchao(path: Path, weights_only: bool) -> Runner:
    """A program of torch.export with the operators of torchao."""
    import_module("torchao.quantization.pt2e.quantize_pt2e")
    return program(path, weights_only)


@dataclass(frozen=True)
class Runtime:
    """A runtime: its name in the table, how it loads a file, and the float file that speeds are relative to."""

    label: str
    load: Callable[[Path, bool], Runner]
    reference: str  # empty: the float network in PyTorch


RUNTIMES = {
    "onnxruntime": Runtime("ONNX Runtime", onnx_runtime, "float.onnx"),
    "openvino": Runtime("OpenVINO", openvino, "float.onnx"),
    "packed": Runtime("PyTorch with ptq_exp", packed, ""),
    "program": Runtime("PyTorch", program, "float.pt2"),
    "program_torchao": Runtime("PyTorch with torchao", program_torchao, "float.pt2"),
    "qonnx": Runtime("qonnx", qonnx, "float.onnx"),
}
LABELS = {key: runtime.label for key, runtime in RUNTIMES.items()} | {SIMULATION: "PyTorch (simulation)"}
