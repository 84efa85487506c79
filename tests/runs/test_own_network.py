"""A network of the user's, through whole jobs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FEW, Outcome

import ptq_exp
from ptq_exp.base.errors import UserError
from ptq_exp.runs.shared import _shared

Cli = Callable[..., Outcome]
NETS = """
import torch
from torch import nn

class Net(nn.Module):
    '''Grey images, `view` behind a convolution, an addition of its own, a tuple as output.'''

    def __init__(self, num_classes=10, width=4):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.scale = nn.Parameter(torch.ones(width, 1, 1))
        self.fc = nn.Linear(width * 1024, num_classes)

    def forward(self, x):
        x = nn.functional.silu(self.bn1(self.conv1(x)))
        x = x + self.scale * self.bn2(self.conv2(x))
        return self.fc(x.view(x.size(0), -1)), x
"""
METHOD = ["quant=mse", "quant.layers=all", "quant.fold_batch_norm=true", "quant.act_bits=8", "quant.act_coverage=all",
          "quant.act_zero_point=true", "quant.calibration_images=32"]  # fmt: skip


@pytest.fixture
def nets(tmp_path: Path) -> Path:
    path = tmp_path / "nets.py"
    path.write_text(NETS)
    return path


def job(cli: Cli, nets: Path, folder: str, *more: str) -> Outcome:
    return cli(
        "model=custom", f"model.target={nets}:Net", *FEW, "quant.bits=8", *METHOD, f"output_dir={nets.parent / folder}",
        *more,
    )  # fmt: skip


def test_it_trains_is_found_again_resumed_and_loaded(cli: Cli, nets: Path, tmp_path: Path) -> None:
    cache = f"cache_dir={tmp_path / 'cache'}"
    first = job(cli, nets, "first", cache)
    assert first.code == 0, first.err
    assert "trained in the store" in first.err + first.out
    assert "Float: scale (no layer of its own)." in first.out
    _shared.clear()  # as in a process of its own
    again = job(cli, nets, "second", cache)
    assert "found in the store" in again.err + again.out
    resumed = job(cli, nets, "third", cache, "resume=true")
    assert resumed.code == 0
    assert "Calibrating" not in resumed.err + resumed.out
    file = tmp_path / "first" / "artifacts" / "quantized_w8.safetensors"
    network = ptq_exp.load(file)
    logits = network(torch.randint(0, 256, (2, 1, 32, 32), dtype=torch.uint8))
    assert logits.shape == (2, 10)
    nets.write_text(NETS + "\n# edited")
    with pytest.raises(UserError, match="network=Net"):
        ptq_exp.load(file)
    names: dict[str, Any] = {}
    exec(NETS, names)
    given = ptq_exp.load(file, network=names["Net"]())
    assert torch.equal(given(torch.zeros(2, 1, 32, 32)), network(torch.zeros(2, 1, 32, 32)))
    edited = job(cli, nets, "fourth", cache)
    assert "trained in the store" in edited.err + edited.out


def test_its_checkpoint_and_one_yaml(cli: Cli, nets: Path, tmp_path: Path) -> None:
    names: dict[str, Any] = {}
    exec(NETS, names)
    torch.manual_seed(3)
    state = {f"module.{key}": value for key, value in names["Net"](width=6).state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "mine.pt")
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "mine.yaml").write_text(
        f"name: mine\narchitecture: custom\ntarget: {nets}:Net\nargs: {{width: 6}}\n"
    )
    outcome = cli(
        f"hydra.searchpath=[file://{tmp_path}/conf]", "model=mine", f"checkpoint={tmp_path}/mine.pt", *FEW, *METHOD,
        "quant.bits=4", f"output_dir={tmp_path}/out",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert "mine on digits" in outcome.out
    assert "The weights fit by name" in outcome.err + outcome.out


def test_mistakes_end_before_anything_is_computed(cli: Cli, nets: Path) -> None:
    wrong = job(cli, nets, "out", "+model.args.widht=3")
    assert wrong.code == 1
    assert "widht" in wrong.err
    assert "num_classes=10, width=4" in wrong.err
    assert not (nets.parent / "out").exists() or "Traceback" not in wrong.err
    known = cli(f"checkpoint={nets}", *FEW)
    assert known.code == 1


def test_another_number_of_outputs_is_said(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "seven.py").write_text(
        "from torch import nn\ndef seven():\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 7))\n"
    )
    outcome = cli("model=custom", f"model.target={tmp_path}/seven.py:seven", *FEW)
    assert outcome.code == 1
    assert "(1, 7) for one image, but digits has 10 classes" in outcome.err
