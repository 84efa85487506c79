"""One function per tool, which quantizes the float network `found` and writes files to `folder`.

`images` are normalized calibration images (N, 3, H, W). The adapters of bench.peers quantize, with their settings for
accuracy.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.export_peers import File, Quantized
from bench.harness import preset
from bench.peers import adapter
from ptq_exp.export.formats import Subject
from ptq_exp.export.onnx import Onnx
from ptq_exp.export.onnx.names import BATCH, IMAGES, LOGITS
from ptq_exp.export.packed import Packed
from ptq_exp.export.program import Program
from ptq_exp.networks import custom
from ptq_exp.quantization.context import Calibration
from ptq_exp.quantization.quantize import quantize
from ptq_exp.runs.fitting import FloatModel

STEPS = 400  # of ptq_exp's learning per block, and half of its distillation: agreement does not depend on accuracy
RUNTIMES = {"onnx": "onnxruntime", "openvino": "openvino", "packed": "packed", "program": "program"}
BOTH = ("onnxruntime", "openvino")
# tool -> (its name in the table, widths that it does not offer and why)
TOOLS: dict[str, tuple[str, dict[str, str]]] = {
    "ptq_exp": ("ptq_exp", {}),
    "aimet": ("AIMET", {}),
    "brevitas": ("Brevitas", {}),
    "nncf": ("NNCF", {"W4": "convolutions stay at 8 bits"}),
    "onnxruntime": ("ONNX Runtime's quantizer", {"W4": "`quantize_static` always quantizes activations"}),
    "torchao": ("torchao", {}),
}


def write(tool: str, found: FloatModel, images: Tensor, widths: tuple[int, int | None], folder: Path) -> Quantized:
    """Quantize `found` with `tool` and write its files to `folder`."""
    function: Callable[..., Quantized] = globals()[f"_{tool}"]
    return function(found, images, *widths, folder)


def subject_of(found: FloatModel, network: nn.Module, images: Tensor) -> Subject:
    """`network` as a subject of ptq_exp's exports."""
    about = {
        "model": custom.as_stored(found.options), "classes": list(found.dataset.classes), "contiguous": False,
        "mean": found.config.data.mean, "std": found.config.data.std, "quant": {},
    }  # fmt: skip
    return Subject.of(network, images[0], about)


def _ptq_exp(found: FloatModel, images: Tensor, bits: int, act_bits: int | None, folder: Path) -> Quantized:
    options = preset("integer" if act_bits else "best")
    learning = dataclasses.replace(options.reconstruction, steps=STEPS, distill_steps=2 * STEPS)
    options = dataclasses.replace(options, calibration_images=len(images), reconstruction=learning)
    subject = subject_of(found, quantize(found.model, options, bits, Calibration(images, 0)).network, images)
    written = [file for kind in (Onnx, Packed, Program) for file in kind().write(subject, folder, "ptq_exp")]
    files: dict[str, list[str]] = {}
    for file in written:
        files.setdefault(file.path.name, []).append(RUNTIMES[file.metric])
    names = {".onnx": "ONNX", ".safetensors": "packed", ".pt2": "program"}
    settings = {"preset": options.name, "steps": 0 if act_bits else STEPS, "calibration_images": len(images)}
    return Quantized(
        tuple(File(names[Path(name).suffix], (name,), tuple(runtimes)) for name, runtimes in files.items()),
        subject.network, settings,
    )  # fmt: skip


def _aimet(found: FloatModel, images: Tensor, bits: int, act_bits: int | None, folder: Path) -> Quantized:
    from aimet_torch import onnx as aimet_onnx

    tool = adapter("aimet")
    sim = tool.simulation(found.model, images, bits, act_bits)
    sample = (images[:2].clone(),)
    names: dict[str, Any] = {"input_names": [IMAGES], "output_names": [LOGITS]}
    old = names | {"dynamic_axes": {IMAGES: {0: BATCH}}, "dynamo": False}  # its exporter with encodings needs this one
    sim.onnx.export(sample, str(folder / "aimet.onnx"), **old)
    new = names | {"dynamic_shapes": ({0: torch.export.Dim(BATCH, min=1)},), "dynamo": True, "opset_version": 21}
    aimet_onnx.export(sim, sample, str(folder / "aimet_qdq.onnx"), prequantize_constants=True, **new)
    files = (
        File("ONNX, encodings beside it", ("aimet.onnx", "aimet.encodings"), BOTH),
        File("ONNX (QDQ)", ("aimet_qdq.onnx",), BOTH),
    )
    return Quantized(files, sim.model, tool.SETTINGS)


def _brevitas(found: FloatModel, images: Tensor, bits: int, act_bits: int | None, folder: Path) -> Quantized:
    from brevitas.export import export_onnx_qcdq, export_qonnx

    tool = adapter("brevitas")
    network = tool.quantize(found.model, images, bits, act_bits)
    names: dict[str, Any] = {
        "args": images[:2].clone(), "input_names": [IMAGES], "output_names": [LOGITS], "dynamo": False,
        "dynamic_axes": {IMAGES: {0: BATCH}}, "keep_initializers_as_inputs": False,
    }  # fmt: skip
    export_onnx_qcdq(network, export_path=str(folder / "brevitas_qcdq.onnx"), opset_version=20, **names)
    export_qonnx(network, export_path=str(folder / "brevitas_qonnx.onnx"), **names)
    files = (
        File("ONNX (QCDQ)", ("brevitas_qcdq.onnx",), BOTH),
        File("QONNX", ("brevitas_qonnx.onnx",), (*BOTH, "qonnx")),
    )
    return Quantized(files, network, tool.SETTINGS)


def _nncf(found: FloatModel, images: Tensor, bits: int, act_bits: int | None, folder: Path) -> Quantized:
    import openvino

    tool = adapter("nncf")
    openvino.save_model(tool.quantized(found.model, images, bits, act_bits), folder / "nncf.xml")
    return Quantized((File("OpenVINO IR", ("nncf.xml", "nncf.bin"), ("openvino",)),), None, tool.SETTINGS)


def _onnxruntime(found: FloatModel, images: Tensor, bits: int, act_bits: int | None, folder: Path) -> Quantized:
    """The defaults of `quantize_static` with scales per channel, as its documentation recommends for accuracy.

    Seven bits are its `reduce_range`, recommended for processors without VNNI.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(CalibrationDataReader):
        """The calibration images, in batches."""

        def __init__(self) -> None:
            self.batches = iter(images.contiguous().split(64))

        def get_next(self) -> dict[str, Any] | None:
            """The next batch, or None."""
            batch = next(self.batches, None)
            return None if batch is None else {IMAGES: batch.numpy()}

    float_file, prepared = folder / "float.onnx", folder / "prepared.onnx"
    Onnx().write(subject_of(found, found.model, images).unquantized(), folder, "float")
    quant_pre_process(float_file, prepared)
    settings = {"per_channel": True, "reduce_range": bits == 7}
    quantize_static(prepared, folder / "onnxruntime.onnx", Images(), quant_format=QuantFormat.QDQ, **settings)
    return Quantized((File("ONNX (QDQ)", ("onnxruntime.onnx",), BOTH),), None, settings | {"batch_size": 64})


def _torchao(found: FloatModel, images: Tensor, bits: int, act_bits: int | None, folder: Path) -> Quantized:
    tool = adapter("torchao")
    network = tool.quantize(found.model, images, bits, act_bits)
    dynamic = ({0: torch.export.Dim("batch", min=1, max=1024)},)
    program = torch.export.export(network, (images[:2].clone(),), dynamic_shapes=dynamic)
    torch.export.save(program, folder / "torchao.pt2")
    model = torch.onnx.export(
        program, dynamo=True, input_names=[IMAGES], output_names=[LOGITS], opset_version=21, verbose=False
    )
    assert model is not None
    model.save(folder / "torchao.onnx")
    files = (
        File("program", ("torchao.pt2",), ("program", "program_torchao")),
        File("ONNX (torch.onnx.export)", ("torchao.onnx",), BOTH),
    )
    return Quantized(files, network, tool.SETTINGS)
