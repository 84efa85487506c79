"""The list of steps: what each reads, that it is all there is, and what jobs with one calibration share."""

import ast
import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, network
from samples import LEARNED, images
from torch import nn

from ptq_exp.base.errors import UserError
from ptq_exp.quantization.context import Calibration, Context
from ptq_exp.quantization.hooks import StopForward, watching
from ptq_exp.quantization.modules import plain_copy
from ptq_exp.quantization.options import QuantConfig, ReconstructionConfig
from ptq_exp.quantization.quantize import quantize
from ptq_exp.quantization.steps import STEPS, check_method

ELSEWHERE = {"name", "calibration_seed", "sensitivity"}  # what a job does with its methods
SHORT = ReconstructionConfig(steps=2, batch_size=4, distill_steps=2, distill_batch_size=4)


class Recorder:
    """Options that remember which of their fields were read."""

    def __init__(self, options: QuantConfig):
        self.options = options
        self.read: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        if name in {field.name for field in dataclasses.fields(QuantConfig)}:
            self.read.add(name)
        elif name == "bit_widths":
            self.read |= {"bits"}
        return getattr(self.options, name)


def test_every_option_is_read_by_a_step() -> None:
    fields = {field.name for field in dataclasses.fields(QuantConfig)}
    assert {name for step in STEPS for name in step.reads} == fields - ELSEWHERE
    assert len({step.name for step in STEPS}) == len(STEPS)


@pytest.mark.parametrize(
    "options",
    [
        QuantConfig(),
        QuantConfig(**LEARNED, act_bits=4, act_residual=True, rounding="block", equalize=True, bias_correction=True,
                    reconstruction=SHORT),
        QuantConfig(act_bits=4, act_alpha=1.0, batch_norm_reestimation=True, first_and_last="eight",
                    granularity="tensor", layer_bits={"layer2*": 3}),
    ],
)  # fmt: skip
def test_a_step_reads_what_it_says(options: QuantConfig) -> None:
    context = Context(options, 3, Calibration(images(8)), plain_copy(network()))
    for step in STEPS:
        recorder: Any = Recorder(options)
        context.options = recorder
        step.check(recorder)
        step.run(context)
        assert recorder.read <= set(step.reads), step.name


def test_a_step_refuses_what_it_cannot_do() -> None:
    refused = {
        "equalize": QuantConfig(equalize=True),
        "round weights": QuantConfig(mixed=True),
        "calibrate activations": QuantConfig(act_bits=17),
        "reconstruct": QuantConfig(grid="apot", rounding="block"),
        "distill": QuantConfig(grid="apot", reconstruction=SHORT),
        "re-estimate batch norm": QuantConfig(fold_batch_norm=True, batch_norm_reestimation=True),
    }
    for step in STEPS:
        step.check(QuantConfig())
        if step.name in refused:
            with pytest.raises(UserError):
                step.check(refused[step.name])
            with pytest.raises(UserError):
                check_method(refused[step.name])


def test_quantizations_with_one_calibration_share_the_float_network() -> None:
    model, calibration = network(), Calibration(images(8))
    options = QuantConfig(**LEARNED, equalize=True)
    first, second = (quantize(model, options, bits, calibration) for bits in (3, 5))
    assert first.reference is second.reference
    assert set(first.plan.values()) == {3}
    alone = quantize(model, options, 5, Calibration(images(8)))
    assert second.report.layers == alone.report.layers
    plain = quantize(model, QuantConfig(), 5, calibration)  # other steps, another float network
    assert any(isinstance(module, nn.BatchNorm2d) for module in plain.reference.modules())
    other = network(shortcut="pad")
    again, fresh = (quantize(other, options, 5, shared) for shared in (calibration, Calibration(images(8))))
    assert again.report.layers == fresh.report.layers


def test_a_pass_can_be_ended_early_and_leaves_no_hooks() -> None:
    model, reached = nn.Sequential(nn.Identity(), nn.Identity(), nn.Identity()), []

    def stop(name: str, _: object) -> None:
        reached.append(name)
        if name == "1":
            raise StopForward

    with watching(model, ["0", "1", "2"], inputs=stop) as forward:
        forward(torch.zeros(1))
        forward(torch.zeros(1))
    assert reached == ["0", "1"] * 2

    def fail(*_: object) -> None:
        raise ValueError

    with pytest.raises(ValueError), watching(model, ["0"], outputs=fail) as forward:  # noqa: PT011
        forward(torch.zeros(1))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


# What imports what -----------------------------------------------------------------------------------------------


def imported(file: Path) -> set[str]:
    """The modules of this package that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{name.name}" for name in node.names}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return {name for name in found if name.startswith("ptq_exp.")}


def test_quantization_knows_the_graph_and_the_base_alone() -> None:
    allowed = ("ptq_exp.quantization.", "ptq_exp.base.", "ptq_exp.networks.graph.")
    for file in (ROOT / "ptq_exp" / "quantization").rglob("*.py"):
        assert all(name.startswith(allowed) for name in imported(file)), file
    below = [ROOT / "ptq_exp" / "networks" / "graph", ROOT / "ptq_exp" / "training"]
    for file in [file for folder in below for file in folder.rglob("*.py")]:
        assert not any(name.startswith("ptq_exp.quantization.") for name in imported(file)), file


def test_the_base_and_the_options_import_no_torch() -> None:
    names = [f"ptq_exp.base.{file.stem}" for file in (ROOT / "ptq_exp" / "base").glob("*.py")]
    code = f"import sys, {', '.join([*names, 'ptq_exp.quantization.options'])}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
