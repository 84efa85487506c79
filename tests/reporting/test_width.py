"""Terminals of 60 to 140 columns, seen in a real pseudo-terminal."""

import os
import re
import sys
from pathlib import Path

import pytest
from conftest import ROOT, TINY
from example_records import result
from pseudo_terminal import shown

from ptq_exp.reporting.table import LAYOUTS, broken, table_cells
from ptq_exp.results.records import BitWidthResult, Failure

WIDTHS = (60, 80, 100, 140)
PATH = os.pathsep.join(map(str, [ROOT, ROOT / "tests", ROOT / "tests" / "reporting"]))
DRIVER = """
from ptq_exp.base.console import console, progress
from ptq_exp.results.series import answers
from ptq_exp.reporting.table import ResultTable
from test_width import FAILURES, SERIES
for name, series in SERIES.items():
    failures = FAILURES if name == "many" else []
    console.print("=" * 10 + name)
    console.print(ResultTable(series, "sweep quant=notebook,best quant.reconstruction.distill_steps=100,250", failures))
    for sentence in answers(series):
        console.print(sentence)
"""


def row(
    bits: int, stored: float, top1: float, drop: tuple[float, float], act_bits: int | None = None
) -> BitWidthResult:
    return result(
        bits, top1, bits_mean=stored, act_bits=act_bits, top1_ci_low=top1 - 1.37, top1_ci_high=top1 + 0.61,
        top1_float=98.45, top1_float_ci_low=97.02, top1_float_ci_high=99.16, top1_drop=98.45 - top1,
        top1_drop_ci_low=drop[0], top1_drop_ci_high=drop[1], agreement=96.87, size_bytes=46_031 * bits,
        size_bytes_float=1_096_232,
    )  # fmt: skip


PLAIN = [row(2, 2, 9.71, (86.64, 91.27)), row(4, 4, 97.83, (-0.05, 3.32)), row(8, 8, 98.45, (-0.76, 0.77))]
SIGNED = [row(2, 3, 9.71, (86.64, 91.27), 8), row(4, 5, 97.83, (-0.05, 3.32), 8), row(3, 3.97, 90.12, (7.13, 9.46), 8)]
SERIES: dict[str, dict[str, list[BitWidthResult]]] = {
    "one": {"": PLAIN},
    "signed": {"": SIGNED},
    "two": {"quant=notebook": SIGNED, "quant=best": PLAIN},
    "many": {
        "quant=notebook quant.reconstruction.distill_steps=100": SIGNED,
        "quant=best quant.alpha_multiplier=2.1875 data.root=a/very/long/path/without/blanks/to/images-1024.zip": PLAIN,
    },
}
FAILURES = [Failure(bits="99", overrides="quant=best", error="e", log="l")]


def numbers(found: BitWidthResult) -> set[str]:
    """Those of a row that a table of every width shows."""
    return {
        f"{found.top1:.2f}", f"{found.top1_float:.2f}", f"{found.top1_drop:+.2f}",
        f"{found.top1_drop_ci_low:+.2f}", f"{found.top1_drop_ci_high:+.2f}",
    }  # fmt: skip


@pytest.fixture(scope="module")
def screens(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[str]]:
    """What the driver shows in terminals of all widths."""
    folder = tmp_path_factory.mktemp("screens")
    found = {width: shown([sys.executable, "-c", DRIVER], width, folder, PYTHONPATH=PATH) for width in WIDTHS}
    assert [code for code, _ in found.values()] == [0] * len(WIDTHS), found
    return {width: lines for width, (_, lines) in found.items()}


@pytest.mark.parametrize("width", WIDTHS)
def test_every_number_is_whole_and_no_line_is_too_long(screens: dict[int, list[str]], width: int) -> None:
    assert [line for line in screens[width] if len(line) > width and not broken_on_purpose(line)] == []
    parts = "\n".join(screens[width]).split("=" * 10)[1:]
    assert len(parts) == len(SERIES)
    for part, (name, series) in zip(parts, SERIES.items(), strict=True):
        assert "…" not in part
        words = set(re.split(r"[\s│┃()]+", part))
        for label, rows in series.items():
            for found in rows:
                assert numbers(found) <= words, (name, numbers(found) - words)
                assert {f"{found.bits_mean:g}", str(found.bits)} <= {word.lstrip("w") for word in words}
            for number in re.findall(r"(?<==)[\d.]+", label):
                assert re.search(rf"(?<![\d.]){re.escape(number)}(?![\d.])", part), number
    assert "failed" in parts[-1]


def broken_on_purpose(line: str) -> bool:
    """Nothing is cut out of one word that is longer than the line: the terminal wraps it, and it can be copied."""
    return len(line.split()) == 1


def test_more_is_shown_where_there_is_room(screens: dict[int, list[str]]) -> None:
    def part(width: int, name: str) -> str:
        return "\n".join(screens[width]).split("=" * 10)[1 + list(SERIES).index(name)]

    assert "95 % CI of the drop" in part(140, "one")
    for width in (80, 100, 140):
        assert "distinguishable" in part(width, "one")  # the verdict in words
        assert "1096.2" in part(width, "one")
        assert "96.46 – 98.44" in part(width, "one")
    assert ["96.87" in part(width, "one") for width in WIDTHS] == [False, True, True, True]  # the first to go
    assert "≈ not distinguishable" in " ".join(part(60, "one").split())
    assert "184.1" in part(60, "one")


def test_columns_go_in_the_stated_order() -> None:
    tables = [table_cells(SERIES["two"], [], layout) for layout in LAYOUTS]
    shown_in = [" | ".join([*table.headings, *(cell for line in table.lines for cell in line)]) for table in tables]
    words = ["95 % CI of the drop", "96.87", "1096.2", "lower", "97.02", "184.1", "quant=best"]
    assert [next(n for n, text in enumerate(shown_in) if word not in text) for word in words] == list(range(1, 8))


def test_a_column_goes_before_a_series_name_is_torn_apart(tmp_path: Path) -> None:
    """The intervals move below their values rather than that `quant.alpha_rule=percentile` is broken at its dot."""
    code = DRIVER.replace(
        "SERIES.items()", "{'a': {'quant.alpha_rule=percentile': PLAIN, 'quant.alpha_rule=std': PLAIN}}.items()"
    )
    code = code.replace("import FAILURES, SERIES", "import FAILURES, PLAIN")
    exit_code, lines = shown([sys.executable, "-c", code], 140, tmp_path, PYTHONPATH=PATH)
    assert exit_code == 0, lines
    assert len([line for line in lines if line.startswith("│ quant.alpha_rule=percentile │")]) == 4


def test_a_label_is_broken_between_its_words_and_never_in_a_number() -> None:
    label = "quant=best quant.alpha_multiplier=2.1875 seed=12"
    for width in range(10, 60):
        lines = broken(label, width).split("\n")
        anywhere = "".join("[ \n]" if letter == " " else f"{re.escape(letter)}\n?" for letter in label)
        assert re.fullmatch(anywhere, "\n".join(lines)), lines  # no blank is lost, no letter either
        assert any("2.1875" in line for line in lines)
        assert max(map(len, lines)) <= max(width, len("multiplier="))


@pytest.mark.slow
def test_a_real_job_at_80_columns(tmp_path: Path, cache: Path) -> None:
    few = [*TINY, "quant.bits=3,6", "-m", "tracking=none", f"cache_dir={cache}"]
    code, lines = shown([sys.executable, str(ROOT / "run.py"), *few], 80, tmp_path)
    assert code == 0, lines
    assert [line for line in lines if len(line.rstrip()) > 80 and not broken_on_purpose(line)] == []
    table = [line for line in lines if line.startswith("│")]
    assert "…" not in "".join(table)
    assert len([line for line in table if re.search(r"[+-]\d+\.\d\d – [+-]\d+\.\d\d", line)]) == 2


def test_a_long_error_is_wrapped_between_words(tmp_path: Path) -> None:
    code, lines = shown([sys.executable, str(ROOT / "run.py"), "quant.bitz=4"], 60, tmp_path)
    assert code == 1
    assert len(lines) > 4
    assert max(map(len, lines)) <= 60
    assert "'quant.bits'" in " ".join(lines)


@pytest.mark.parametrize("columns", [60, 80, 140])
def test_a_progress_bar_shows_all_its_text(columns: int, tmp_path: Path) -> None:
    code = (
        "import time\nfrom ptq_exp.base.console import progress\n"
        "with progress('Training 20 epochs', 10, loss='loss  -', accuracy='-') as advance:\n"
        "    advance(5, loss='loss 0.123', accuracy='test 99.45 % (best 99.50)')\n    time.sleep(0.3)\n"
    )
    code_, lines = shown([sys.executable, "-c", code], columns, tmp_path, PYTHONPATH=str(ROOT))
    assert code_ == 0, lines
    assert max(len(line.rstrip()) for line in lines) <= columns
    whole = [line for line in lines if line.startswith("Training 20 epochs ━") and "best 99.50" in line]
    assert bool(whole) == (columns >= 80)  # all in one line
    said = " ".join(" ".join(lines).split())
    for text in ("Training 20 epochs", "loss 0.123", "test 99.45 % (best 99.50)", "50%", "left"):
        assert text in said
