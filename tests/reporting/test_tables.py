"""The tables for papers and programs: what is in them, that LaTeX takes them, that MLflow alone gives them again."""

import csv
import io
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, Outcome
from example_records import job, result

from ptq_exp.base.errors import UserError
from ptq_exp.evaluation.paired import Correct
from ptq_exp.reporting.comparisons import compared, comparison_latex
from ptq_exp.reporting.tables import TableContent
from ptq_exp.reporting.tables.delimited import delimited
from ptq_exp.reporting.tables.latex import escaped, latex
from ptq_exp.results.records import Failure, JobRecord
from ptq_exp.results.series import as_series
from ptq_exp.runs.report import check_comparable, main

Cli = Callable[..., Outcome]
Runs = Callable[[str], dict[str, Any]]
HOSTILE = "quant.name=" + "".join(map(chr, range(33, 127))) + "äµ±ß漢\x07"


def measured(method: str, seed: int, bits: int, right: int, **changes: Any) -> JobRecord:
    """A job with the first `right` of 200 test images classified correctly."""
    correct = Correct.of((number < right for number in range(200)), "digits")
    row = replace(result(bits, right / 2, **changes), correct=correct)
    return job(row, overrides=f"quant={method} seed={seed}", method=(method,))


def jobs() -> list[JobRecord]:
    """`best` is significantly better at 4 bits; at 8 bits one image of 200 tells nothing."""
    return [
        measured(method, seed, bits, right + seed)
        for method, at_4, at_8 in (("best", 180, 180), ("mse", 150, 179))
        for seed in (0, 1, 2)
        for bits, right in ((4, at_4), (8, at_8))
    ]


def body(table: str) -> list[list[str]]:
    """The cells of every line of a LaTeX table, without comments and rules."""
    lines = [line for line in table.splitlines() if line.endswith(r" \\")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)&", line.removesuffix(r"\\"))] for line in lines]


def test_latex_has_units_and_the_significantly_best_in_bold() -> None:
    table = latex(TableContent("t", as_series(jobs())))
    assert body(table) == [
        ["method", "bits per", "top-1", "drop", "agreement", "size"],
        ["", "weight", r"(\%)", "(points)", r"(\%)", "(kB)"],
        ["float", "32", "$90.00$", "", "", "32.0"],
        ["best", "4", r"$\mathbf{90.50} \pm 0.50$", r"$-0.50 \pm 0.50$", r"$95.00 \pm 0.00$", "4.0"],
        ["mse", "4", r"$75.50 \pm 0.50$", r"$+14.50 \pm 0.50$", r"$95.00 \pm 0.00$", "4.0"],
        ["best", "8", r"$90.50 \pm 0.50$", r"$-0.50 \pm 0.50$", r"$95.00 \pm 0.00$", "8.0"],
        ["mse", "8", r"$90.00 \pm 0.50$", r"$+0.00 \pm 0.50$", r"$95.00 \pm 0.00$", "8.0"],
    ]
    rules = [line for line in table.splitlines() if line.endswith("rule")]
    assert rules == [r"\toprule", *[r"\midrule"] * 3, r"\bottomrule"]
    assert "over 3 seeds" in table
    unfolded = latex(TableContent("t", as_series(jobs()), unfold=True))
    assert len(body(unfolded)) == 3 + 12
    assert r"\mathbf" not in unfolded


def test_latex_of_one_method_is_plain_and_activations_have_a_column() -> None:
    one = [job(result(8, 89.0), result(4, 80.0)), job(result(2, 50.0, act_bits=4))]
    found = body(latex(TableContent("t", as_series(one))))
    assert found[0] == ["bits per", "activation", "top-1", "drop", "agreement", "size"]
    assert [line[:3] for line in found[2:]] == [
        ["32", "", "$90.00$"], ["2", "4", "$50.00$"], ["4", "32", "$80.00$"], ["8", "32", "$89.00$"],
    ]  # fmt: skip
    failed = latex(TableContent("t", as_series(one), [Failure("99", "seed=1", "no", "log")]))
    assert "% Failed: quant.bits=99 seed=1" in failed


def test_special_characters_are_escaped() -> None:
    assert escaped("50 % of a_b & #1 {~}") == r"50 \% of a\_b \& \#1 \{\textasciitilde{}\}"
    assert escaped("漢\x07") == "??"


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="LaTeX is not installed")
def test_latex_compiles(tmp_path: Path) -> None:
    hostile = [job(result(4, act_bits=8), overrides=overrides) for overrides in (HOSTILE, "quant.bits=4")]
    content = TableContent(HOSTILE, as_series(hostile), [Failure("9", HOSTILE, HOSTILE, "log")])
    first, second = jobs()[:1], jobs()[-1:]
    tables = [latex(content), latex(TableContent("t", as_series(jobs())))]
    tables.append(comparison_latex(HOSTILE, compared(first, [replace(second[0], results=first[0].results)]).pairs))
    for number, table in enumerate(tables):
        (tmp_path / f"table{number}.tex").write_text(table)
    inputs = "".join(rf"\begin{{table}}\input{{table{number}}}\end{{table}}" for number in range(len(tables)))
    (tmp_path / "paper.tex").write_text(
        rf"\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}{inputs}\end{{document}}"
    )
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"],
        cwd=tmp_path, capture_output=True, text=True, errors="replace",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "paper.pdf").exists()


def test_csv_has_means_with_all_digits_or_each_job() -> None:
    found = list(csv.DictReader(io.StringIO(delimited(TableContent("t", as_series(jobs()))))))
    assert [(line["quant"], line["bits"], line["seeds"]) for line in found] == [
        ("best", "4", "3"), ("best", "8", "3"), ("mse", "4", "3"), ("mse", "8", "3"),
    ]  # fmt: skip
    assert [float(line["top1_mean"]) for line in found] == [90.5, 90.5, 75.5, 90.0]
    assert {float(line["top1_std"]) for line in found} == {0.5}
    assert found[0]["against_float"] == "lower"
    each = list(csv.DictReader(io.StringIO(delimited(TableContent("t", as_series(jobs()), unfold=True)))))
    assert [(line["quant"], line["seed"], line["bits"], float(line["top1"])) for line in each][:3] == [
        ("best", "0", "4", 90.0), ("best", "0", "8", 90.0), ("best", "1", "4", 90.5),
    ]  # fmt: skip
    assert len(each) == 12


def test_csv_keeps_digits_odd_values_and_failures() -> None:
    odd = 'data.root=my, "old" images'
    records = [job(result(4, 100 / 3), overrides=odd), job(result(4), overrides="data.root=b")]
    content = TableContent("t", as_series(records), [Failure("99", "data.root=c", "too many", "log")])
    first, second, failed = csv.DictReader(io.StringIO(delimited(content)))
    assert float(first["top1_mean"]) == 100 / 3
    assert (first["data.root"], first["top1_std"], second["data.root"]) == ('my, "old" images', "", "b")
    assert (failed["data.root"], failed["bits"], failed["error"], failed["top1_mean"]) == ("c", "99", "too many", "")


def test_the_same_setting_is_compared_whatever_else_its_sweep_contains() -> None:
    """A sweep of one method does not name it; beside a sweep of two methods it has to."""
    alone = [measured("mse", seed, 4, 100 + seed) for seed in (0, 1)]
    found = compared(alone, jobs())
    assert [(pair.first, pair.second, pair.verdict) for pair in found.pairs] == [
        ("A: quant=mse", "B: quant=mse", "worse")
    ]
    each = compared(alone, jobs(), unfold=True).pairs
    assert [(pair.first, pair.second) for pair in each] == [
        (f"A: quant=mse seed={seed}", f"B: quant=mse seed={seed}") for seed in (0, 1)
    ]
    nothing = compared(alone, [measured("mse", 0, 8, 100)])
    assert nothing.pairs == []
    assert "A was measured at 4 stored bits per weight and B at 8." in nothing.nothing


def printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], uri: str, *arguments: str
) -> tuple[int, str]:
    """The exit code of `python -m ptq_exp.report` and what it prints."""
    monkeypatch.setattr(sys, "argv", ["report", "--uri", uri, *arguments])
    capsys.readouterr()
    return main(), capsys.readouterr().out


def test_a_sweep_leaves_all_tables_and_mlflow_alone_gives_them_again(
    cli: Cli, store: str, runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    swept = ["quant=notebook,signed", "quant.bits=[3,4]", "quant.calibration_seed=0,1"]
    outcome = cli(*TINY, *swept, f"tracking.uri={store}", "-m")
    assert outcome.code == 0, outcome.err
    (folder,) = tmp_path.glob("outputs/*/*/sweep")
    parent = next(run for name, run in runs(store).items() if name.startswith("sweep"))
    logged = Path(parent.info.artifact_uri.removeprefix("file://"))
    for name in ("table.csv", "table.md", "table.tex"):
        assert (logged / name).read_text() == (folder / name).read_text()
    kept = {name: (folder / f"table.{name}").read_text() for name in ("csv", "tex", "md")}

    def report(*arguments: str) -> str:
        code, out = printed(monkeypatch, capsys, store, *arguments)
        assert code == 0
        return out

    with monkeypatch.context() as patched:  # its folder is enough: MLflow, which takes seconds to import, is not used
        patched.setitem(sys.modules, "mlflow", None)
        assert report(str(folder.parent), "--format", "csv") == kept["csv"]
        differences = report("--compare", *[str(folder.parent / job) for job in "02"], "--format", "csv")
        assert "A: quant=notebook,B: quant=signed" in differences
        assert printed(monkeypatch, capsys, store, str(tmp_path))[0] == 1  # no run's folder
    shutil.rmtree(tmp_path / "outputs")
    assert report(parent.info.run_id, "--format", "csv") == kept["csv"]
    assert report("--format", "latex") == kept["tex"]  # the newest run, when none is named
    assert report("--format", "markdown").strip() in kept["md"]
    table = outcome.out[outcome.out.index("┏") : outcome.out.index("┘")]
    assert table in report("--format", "text")
    each = list(csv.DictReader(io.StringIO(report("--format", "csv", "--seeds"))))
    assert len(each) == 2 * len(list(csv.DictReader(io.StringIO(kept["csv"])))) == 8
    target = tmp_path / "mine.tex"
    assert f"Written: {target}" in report("--format", "latex", "--output", str(target))
    assert target.read_text() == kept["tex"]
    assert not (tmp_path / "report.html").exists()


@pytest.mark.slow
def test_two_runs_are_compared_in_every_format(
    cli: Cli, store: str, runs: Runs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for method, bits in (("notebook", 3), ("signed", 4)):
        assert cli(*TINY, f"quant={method}", f"quant.bits={bits}", f"tracking.uri={store}").code == 0
    ids = [run.info.run_id for run in runs(store).values()]

    def report(form: str) -> str:
        code, out = printed(monkeypatch, capsys, store, "--compare", *ids, "--format", form)
        assert code == 0
        return out

    (line,) = csv.DictReader(io.StringIO(report("csv")))
    top1 = [run.data.metrics["top1"] for run in runs(store).values()]
    assert float(line["difference"]) == pytest.approx(top1[0] - top1[1])
    assert float(line["ci_low"]) <= float(line["difference"]) <= float(line["ci_high"])
    for form in ("text", "markdown"):
        assert f"{float(line['difference']):+.2f}" in report(form)
        assert "A: " in report(form)
    assert r"\toprule" in report("latex")


def test_an_empty_store_is_answered_in_a_sentence(
    store: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["report", "--uri", store, "--format", "csv"])
    assert main() == 1
    assert "contains no finished run" in capsys.readouterr().err


def test_sweeps_of_different_images_are_not_compared() -> None:
    first, second = jobs()[0], jobs()[1]
    assert first.dataset
    other = replace(second, dataset=replace(first.dataset, name="cifar10"))
    check_comparable(first, second, "a", "b")
    with pytest.raises(UserError, match=f"a has those of {first.dataset.name}, b has those of cifar10"):
        check_comparable(first, other, "a", "b")


def test_a_comparison_does_not_name_what_changes_no_result() -> None:
    ours = replace(measured("best", 0, 4, 180), overrides="quant=best cache_dir=/tmp/a tracking=none")
    theirs = replace(measured("best", 0, 4, 150), overrides="quant=best tracking.uri=sqlite:///b.db threads=2")
    (pair,) = compared([ours], [theirs]).pairs
    assert (pair.first, pair.second) == ("A: best", "B: best")
