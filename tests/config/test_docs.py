"""Every command and every piece of code in the documents, as they are written there."""

import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FEW, ROOT, Outcome
from PIL import Image

from ptq_exp.base.errors import UserError
from ptq_exp.config import reference
from ptq_exp.networks import build_model
from ptq_exp.quantization.context import Calibration, Context
from ptq_exp.quantization.layers import quantized_layers
from ptq_exp.quantization.options import QuantConfig
from ptq_exp.quantization.quantize import quantize
from ptq_exp.quantization.ranges import ALPHA_RULES

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
LITTLE_LEARNING = ["quant.reconstruction.steps=2", "quant.calibration_images=32"]


def blocks(kind: str) -> Iterator[tuple[Path, str]]:
    """The fenced blocks of a kind, with their pages."""
    for page in PAGES:
        for block in re.findall(rf"```{kind}\n(.*?)```", page.read_text(), flags=re.DOTALL):
            yield page, block


INDENTED = [
    line for page in PAGES for line in re.findall(r"^ {4}((?:python|pip|make|mlflow) .*)", page.read_text(), re.M)
]
FENCED = [line for _, block in blocks("bash") for line in block.splitlines()]
LINES = {re.sub(r"\s+#.*", "", line).strip() for line in FENCED + INDENTED}
README = (ROOT / "README.md").read_text()
# Those of the README that learn nothing are run always, the others with -m slow.
JOBS = [
    pytest.param(line, marks=[] if line in README and "best" not in line else [pytest.mark.slow])
    for line in sorted(LINES)
    if line.startswith("python run.py")
]
OTHERS = sorted(line for line in LINES if line and not line.startswith("python run.py"))
CODE = [(page.relative_to(ROOT), block) for page, block in blocks("python")]


@pytest.fixture
def users_files(tmp_path: Path) -> None:
    """What the documents call the user's own: a checkpoint and a folder of images."""
    torch.save(build_model("resnet", 2, depth=20).state_dict(), tmp_path / "resnet20.th")
    (source,) = (block for _, block in CODE if "class SmallNet" in block)
    (tmp_path / "nets.py").write_text(source)
    torch.save(build_model("custom", 2, target=f"{tmp_path}/nets.py:SmallNet").state_dict(), tmp_path / "small.pt")
    preset = next(block for page, block in blocks("yaml") if page.name == "new-method.md" and "_self_" in block)
    (tmp_path / "own" / "quant").mkdir(parents=True)
    (tmp_path / "own" / "quant" / "mine.yaml").write_text(preset)
    for split in ("train", "test"):
        for label, colour in (("cat", 40), ("dog", 200)):
            folder = tmp_path / "images.zip" / split / label
            folder.mkdir(parents=True)
            for number in range(4):
                Image.new("RGB", (32, 32), (colour, 10 * number, 0)).save(folder / f"{number}.png")


@pytest.fixture
def median_rule() -> Iterator[None]:
    """The rule that a how-to page adds, as it writes it."""
    (code,) = (block for _, block in CODE if "quantization/rules/median.py" in block)
    exec(compile(code, "median.py", "exec"), {"__name__": "median"})
    yield
    del ALPHA_RULES["median"]


@pytest.mark.usefixtures("users_files", "median_rule")
@pytest.mark.parametrize("command", JOBS)
def test_a_documented_job_runs(cli: Callable[..., Outcome], command: str, tmp_path: Path) -> None:
    """On few images and one epoch."""
    arguments = shlex.split(command)[2:]
    given = " ".join(arguments)
    if launcher := re.search(r"hydra/launcher=([a-z]+)", given):  # test_launchers.py runs them
        pytest.importorskip(f"hydra_plugins.hydra_{launcher[1]}_launcher")
        one_job = [argument.split(",")[0] for argument in arguments if argument != "-m"]  # what --cfg can show
        outcome = cli(*one_job, "--cfg", "hydra")
        assert outcome.code == 0, outcome.err
        return
    small = [option for option in FEW if option.split("=")[0] not in given] + LITTLE_LEARNING
    arguments = [argument.replace("validation_images=1000", "validation_images=2") for argument in arguments]
    # A few images cannot confirm the margin of a real search.
    arguments = [re.sub(r"search\.max_drop=.*", "search.max_drop=70", argument) for argument in arguments]
    # The overrides of one command line must not be torn apart by a flag.
    flags = [argument for argument in arguments if argument.startswith("-")]
    if "tracking" in given and "tracking.uri" not in given:  # the default store lies in the working tree
        small.append(f"tracking.uri=sqlite:///{tmp_path}/mlflow.db")
    if "best" in given:
        small.append("quant.reconstruction.distill_steps=2")
    outcome = cli(*[a for a in arguments if a not in flags], *small, *flags)
    assert outcome.code == 0, outcome.err
    assert ("Groups and their options" if "--help" in flags else "95 % ") in outcome.out


@pytest.mark.parametrize("command", OTHERS)
def test_another_documented_command_exists(command: str) -> None:
    """What is installed, served or measured by them takes too long here: they must be spelt as the tools want them."""
    words = shlex.split(command)
    if words[0] == "make":
        assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text()
    elif words[0] == "source":
        assert words[1:] == [".venv/bin/activate"]
        assert "\nVENV := .venv\n" in (ROOT / "Makefile").read_text() or " .venv" in (ROOT / "Makefile").read_text()
    elif words[:2] == ["pip", "install"]:
        extra = re.search(r"\.\[(\w+)\]", command)
        assert extra is None or f"\n{extra[1]} = [" in (ROOT / "pyproject.toml").read_text()
    elif words[:2] == ["python", "-m"]:
        done = subprocess.run([sys.executable, "-m", words[2], "--help"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        known = set(re.findall(r"--[\w-]+", done.stdout))
        assert {word.split("=")[0] for word in words if word.startswith("--")} <= known
    else:
        tool = shutil.which(words[0], path=str(Path(sys.executable).parent)) or shutil.which(words[0])
        assert tool, f"{words[0]} is not there"


@pytest.mark.parametrize(("page", "code"), CODE, ids=[str(page) for page, _ in CODE])
def test_documented_code_runs(
    page: Path, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if "quantization/rules/" in code:
        pytest.skip("runs in the commands below it")
    if "quantization/steps/" in code:
        pytest.skip("test_the_documented_step_runs runs it")
    if page.name in ("export.md", "packed-format.md"):
        pytest.skip("needs files: tests/export runs it")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "code.py").write_text(code)
    runpy.run_path("code.py", run_name="__main__")
    assert capsys.readouterr().out


def test_the_documented_step_runs() -> None:
    (source,) = (block for _, block in CODE if "quantization/steps/" in block)
    names: dict[str, Any] = {"__name__": "scale_biases"}
    exec(compile(source, "scale_biases.py", "exec"), names)
    step = names["ScaleBiases"]()
    options = QuantConfig(fold_batch_norm=True)
    options.bias_factor = 2.0  # type: ignore[attr-defined]  # the field that the page adds
    calibration = Calibration(torch.randn(2, 3, 32, 32))
    quantized = quantize(build_model("resnet", 2, depth=8).eval(), options, 4, calibration)
    context = Context(options, 4, calibration, quantized.reference)
    context.network = quantized.network
    layers = quantized_layers(context.network).values()
    before = [layer.bias.clone() for layer in layers if layer.bias is not None]
    step.check(options)
    step.run(context)
    assert before
    for bias, layer in zip(before, layers, strict=True):
        assert torch.equal(layer.bias, 2 * bias)
    options.fold_batch_norm = False
    with pytest.raises(UserError, match="without folding there are no biases"):
        step.check(options)


def test_the_documented_preset_inherits(cli: Callable[..., Outcome], tmp_path: Path) -> None:
    (preset,) = (block for _, block in blocks("yaml") if "defaults: [best" in block)
    (tmp_path / "own" / "quant").mkdir(parents=True)
    (tmp_path / "own" / "quant" / "mine.yaml").write_text(preset)
    shown = ["--cfg", "job", "--package", "quant"]
    mine = cli(f"hydra.searchpath=[file://{tmp_path}/own]", "quant=mine", *shown)
    same = cli("quant=best", "quant.bits=[3,4]", "quant.reconstruction.distill_steps=500", *shown)
    assert mine.code == 0, mine.err
    assert mine.out == same.out
    assert "distill_lr: 0.0025" in mine.out


def test_the_configuration_reference_is_up_to_date() -> None:
    assert reference.PAGE.read_text() == reference.page(), "run: python -m ptq_exp.config.reference"


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_links_between_documents_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        assert "://" in target or (page.parent / target).exists(), target


def test_shell_completion_completes(tmp_path: Path) -> None:
    """As Bash asks for it, by the line that was typed so far."""
    line = "python run.py quant=no"
    done = subprocess.run(
        [sys.executable, "run.py", "-sc", "query=bash"], cwd=ROOT, capture_output=True, text=True,
        env={"PATH": "/usr/bin:/bin", "COMP_LINE": line, "COMP_POINT": str(len(line))},
    )  # fmt: skip
    assert "quant=notebook" in done.stdout.split()
