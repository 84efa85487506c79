"""What a person reads while a job runs: progress as lines, quiet on request, words for what the numbers say."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, Outcome, mostly_slow, quantize

from ptq_exp.base import console
from ptq_exp.data.loader import Normalizer
from ptq_exp.evaluation.accuracy import evaluate
from ptq_exp.networks import build_model
from ptq_exp.quantization.options import QuantConfig

Cli = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def _loud_again() -> Iterator[None]:
    yield
    console.set_quiet(False)


@pytest.mark.parametrize("arguments", mostly_slow([["quant.bits=4"], ["quant.bits=4,8", "-m"]]))
def test_quiet_leaves_the_table_and_a_whole_log(cli: Cli, arguments: list[str], tmp_path: Path) -> None:
    outcome = cli(*TINY, "quiet=true", *arguments)
    assert outcome.code == 0
    lines = [line for line in outcome.out.splitlines() if line.strip()]
    assert "against float" in outcome.out
    lines = [line for line in lines if not line.endswith(" left")]  # of a stage that takes long on a busy machine
    assert not [line for line in lines[1:] if line[0] not in "┏┃┡│└"], outcome.out  # the first is the table's title
    log = next(tmp_path.glob("outputs/**/run.log")).read_text()
    assert "of the predictions unchanged" in log


def test_quiet_hides_no_error_and_no_warning(cli: Cli) -> None:
    outcome = cli(*TINY, "quiet=true", "quant.bits=99")
    assert outcome.code == 1
    assert "quant.bits=99" in outcome.err
    console.set_quiet(True)
    handler = console.Handler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    with console.console.capture() as shown:
        for level, text in ((logging.INFO, "only news"), (logging.WARNING, "a warning")):
            handler.handle(logging.LogRecord("ptq_exp", level, "", 0, text, None, None))
    assert shown.get() == "a warning\n"


def test_quiet_must_be_true_or_false(cli: Cli) -> None:
    outcome = cli(*TINY, "quiet=perhaps")
    assert outcome.code == 1
    assert "quiet" in outcome.err


def test_a_single_job_says_how_few_bits_it_takes_and_where_its_report_is(cli: Cli, tmp_path: Path) -> None:
    outcome = cli(*TINY, "quant.bits=[4,16]")
    assert "The float network is no better than guessing (10 %)" in outcome.out  # after one epoch
    (report,) = tmp_path.glob("outputs/*/*/artifacts/report.html")
    assert str(report.relative_to(tmp_path)) in outcome.out


def test_without_a_terminal_progress_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with caplog.at_level(logging.INFO, "ptq_exp"), console.progress("Working", 100) as advance:
        for _ in range(100):
            now[0] += 1
            advance()
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == "Working: 10 %, about 90 s left"
    assert 3 < len(said) < 10
    with caplog.at_level(logging.INFO, "ptq_exp"), console.progress("Quick", 5) as advance:
        advance(5)
    assert "Quick" not in caplog.text


def test_what_was_done_before_does_not_count_as_speed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with caplog.at_level(logging.INFO, "ptq_exp"), console.progress("Training", 100) as advance:
        advance(80)  # taken up again
        now[0] = 10.0
        advance(10)
    assert [record.getMessage() for record in caplog.records] == ["Training: 90 %, about 10 s left"]


def test_evaluation_and_calibration_tell_how_far_they_are() -> None:
    model, images = build_model("resnet", 10, depth=8).eval(), torch.zeros(70, 3, 32, 32, dtype=torch.uint8)
    done: list[int] = []
    labels = torch.zeros(70, dtype=torch.int64)
    evaluate(model, images, labels, Normalizer((0.5,) * 3, (0.5,) * 3, torch.device("cpu")), done.append)
    assert sum(done) == 70
    assert len(done) > 2
    told: dict[str, list[int]] = {}

    class Bar:
        def __init__(self, description: str, steps: int):
            self.told = told.setdefault(description, [steps])

        def __enter__(self) -> Any:
            return lambda: self.told.append(1)

        def __exit__(self, *_: object) -> None:
            pass

    quantize(model, QuantConfig(act_bits=4), 4, torch.randn(300, 3, 32, 32), progress=Bar)
    steps, *ticks = told["Calibrating activations"]
    assert steps == sum(ticks) == 4
