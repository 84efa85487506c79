"""The report: one file that says everything, and the same again from MLflow alone."""

import base64
import io
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, TINY, Outcome
from example_records import job, result
from PIL import Image

from ptq_exp.base.errors import UserError
from ptq_exp.evaluation.paired import Correct
from ptq_exp.reporting.html import REPORT_FILE
from ptq_exp.reporting.html.comparison import comparison
from ptq_exp.reporting.html.content import Results, repeat_command, report
from ptq_exp.results.files import write_job, write_sweep
from ptq_exp.results.records import DatasetSummary, Failure
from ptq_exp.runs.report import kept, main

Cli = Callable[..., Outcome]
Runs = Callable[[str], dict[str, Any]]


class Page(HTMLParser):
    """Tables as lists of cells, images, text, and everything that would be fetched from elsewhere."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.images: list[bytes] = []
        self.fetched: list[str] = []
        self.open: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self.tags: list[str] = []
        self.feed(content)
        self.close()
        assert self.open == [], f"never closed: {self.open}"
        self.fetched += re.findall(r"(?:url\(|@import)[^;]*", content)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        self.ids += [value or "" for name, value in attributes if name == "id"]
        for name, value in attributes:
            if name in ("src", "href", "data", "srcset"):
                start, _, content = (value or "").partition("base64,")
                if tag == "a":
                    self.links.append(value or "")
                    continue
                assert start in ("data:image/png;", "data:image/svg+xml;"), f"<{tag} {name}={value!r:.60}>"
                self.images.append(base64.b64decode(content, validate=True))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data


def artifacts(run: Any) -> Path:
    return Path(run.info.artifact_uri.removeprefix("file://"))


def rebuilt(monkeypatch: pytest.MonkeyPatch, target: Path, uri: str, *arguments: str) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["report", "--uri", uri, "--output", str(target), *arguments])
    return main(), target.read_text() if target.exists() else ""


def test_a_sweep_has_a_report_that_mlflow_alone_gives_again(
    cli: Cli, store: str, runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = cli(*TINY, "quant.bits=3,6,99", f"tracking.uri={store}", "-m")
    assert outcome.code == 1  # 99 bits are refused
    parent = next(run for name, run in runs(store).items() if name.startswith("sweep"))
    logged = Page((artifacts(parent) / REPORT_FILE).read_text())
    assert logged.fetched == []
    assert {"link", "iframe"}.isdisjoint(logged.tags)
    assert logged.tags.count("script") == 1  # the page's own
    assert len(logged.images) > 5
    for content in logged.images:
        if content.lstrip().startswith(b"<"):
            assert "SVG" in content[:200].decode() or "<svg" in content[:400].decode()
            assert b"<text" in content  # text that can be searched, not outlines
            continue
        with Image.open(io.BytesIO(content)) as figure:
            figure.load()
            assert figure.format == "PNG"
    table = logged.tables[0]
    assert [line[0].split("\n") for line in table[1:]] == [["float"], ["4", "(3)"], ["7", "(6)"], ["(99)"]]
    assert "against\nfloat" in table[0]
    assert table[-1][1] == "failed"
    assert "How few bits can ResNet-8 on digits take" in logged.text
    assert {link[1:] for link in logged.links if link.startswith("#")} <= set(logged.ids)
    assert any(link.endswith(f"/#/runs/{parent.info.run_id}") for link in logged.links)
    assert sum(line[:1] == ["conv1"] for table in logged.tables for line in table) == 2  # each layer at both widths
    assert "quant.bits=99" in logged.text
    assert "python run.py " in logged.text
    assert " data=digits data.train_limit=64 " in logged.text
    assert "quant.bits=3,6,99" in logged.text
    assert " -m" in logged.text
    settings = next(table for table in logged.tables if table[0] == ["key", "default", "value"])
    assert ["quant.bits", "[4, 8]", "3, 6"] in settings
    assert ["data.name", "auto", "digits"] in settings
    assert not [line for line in settings if line[0] in ("seed", "optimizer.nesterov", "output_dir")]
    assert not [line for line in settings if line[1] == line[2]]
    assert "torch" in logged.text
    assert "SHA-256" in logged.text

    for folder in tmp_path.glob("outputs"):
        folder.rename(tmp_path / "elsewhere")
    code, content = rebuilt(monkeypatch, tmp_path / "again.html", store, "--parent", parent.info.run_id)
    assert code == 0
    again = Page(content)
    assert again.tables == logged.tables
    assert again.images == logged.images


def test_a_run_of_several_bit_widths_has_one_too(
    cli: Cli, store: str, runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli(*TINY, "quant.bits=[3,6]", f"tracking.uri={store}").code == 0
    (run,) = runs(store).values()
    logged = Page((artifacts(run) / REPORT_FILE).read_text())
    assert [line[0].split("\n") for line in logged.tables[0][1:]] == [["float"], ["4", "(3)"], ["7", "(6)"]]
    code, content = rebuilt(monkeypatch, tmp_path / "again.html", store, "--parent", run.info.run_id)
    assert code == 0
    assert Page(content).tables == logged.tables


@pytest.mark.slow
def test_two_sweeps_side_by_side(
    cli: Cli, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for method, bits in (("notebook", "3,5"), ("signed", "4,5")):
        assert cli(*TINY, f"quant={method}", f"quant.bits={bits}", f"tracking.uri={store}", "-m").code == 0
    ids = [run.info.run_id for run in all_runs(store) if is_parent(run)]
    capsys.readouterr()
    code, content = rebuilt(monkeypatch, tmp_path / "two.html", store, "--compare", *ids)
    assert code == 0
    both = Page(content)
    stored = {tuple(line[0].split()[0] for line in table[1:]) for table in both.tables[1:3]}
    assert stored == {("float", "4", "6"), ("float", "4", "5")}  # sign extra, included
    (pair,) = both.tables[0][1:]
    accuracies = {
        run.data.tags["digest"]: run.data.metrics["top1"]
        for run in all_runs(store)
        if run.data.metrics.get("bits_mean") == 4
    }
    assert (pair[0], {name[3:] for name in pair[1:3]}) == ("4", {"quant=notebook", "quant=signed"})
    low, high = map(float, pair[4].split(" – "))
    assert low <= float(pair[3]) <= high
    assert abs(float(pair[3])) == pytest.approx(abs(max(accuracies.values()) - min(accuracies.values())), abs=0.006)
    assert pair[5] in ("better", "worse", "not distinguishable")
    printed = capsys.readouterr().out
    assert pair[3] in printed  # the terminal shows the same comparison
    differ = {line[0]: set(line[1:]) for line in both.tables[3]}
    assert differ["quant.sign_bit"] == {"extra", "included"}
    assert "data.name" not in differ
    assert len(both.images) == 2
    assert "different images" not in content
    other = cli(*TINY, "quant.bits=3", "data.train_limit=63", f"tracking.uri={store}", "-m")
    assert other.code == 0, other.err
    newest = next(run.info.run_id for run in all_runs(store) if is_parent(run) and run.info.run_id not in ids)
    assert "different images" in rebuilt(monkeypatch, tmp_path / "two.html", store, "--compare", ids[0], newest)[1]


def all_runs(uri: str) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("ptq_exp")
    return list(client.search_runs([experiment.experiment_id]))


def is_parent(run: Any) -> bool:
    return "mlflow.parentRunId" not in run.data.tags


@pytest.mark.slow
def test_a_report_of_an_older_version_is_rebuilt_from_its_jobs(
    cli: Cli, store: str, runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli(*TINY, "quant.bits=3,6", f"tracking.uri={store}", "-m").code == 0
    parent = next(run for run in all_runs(store) if is_parent(run))
    for name in ("summary.json", REPORT_FILE):
        (artifacts(parent) / name).unlink()
    code, content = rebuilt(monkeypatch, tmp_path / "old.html", store, "--parent", parent.info.run_id)
    assert code == 0
    assert [line[0].split("\n") for line in Page(content).tables[0][1:]] == [["float"], ["4", "(3)"], ["7", "(6)"]]


@pytest.mark.parametrize(
    ("uri", "said"),
    [("{store}", "There is no run nothing"), ("sqlite:///nowhere/x.db", "does not exist"),
     ("http://me:secret@127.0.0.1:9", "http://me:***@127.0.0.1:9 cannot be read")],
)  # fmt: skip
def test_what_cannot_be_reported_is_said(
    store: str, uri: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _ = rebuilt(monkeypatch, tmp_path / "no.html", uri.format(store=store), "--parent", "nothing")
    captured = capsys.readouterr()
    assert code == 1
    assert said in captured.err
    assert "secret" not in captured.err
    assert not (tmp_path / "no.html").exists()


def test_the_folder_of_a_day_is_no_run_but_names_one(tmp_path: Path) -> None:
    for hour in ("09", "10"):
        write_sweep(tmp_path / hour, f"sweep at {hour}", [])
        write_job(job(result(4), folder=tmp_path / hour / "0"))
    with pytest.raises(UserError, match=f"The last of the 2 runs below it is {tmp_path / '10'}\\."):
        kept(tmp_path)


def test_a_mistake_on_the_command_line_gets_the_nearest_spelling() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ptq_exp.report", "--format", "latx"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "Did you mean 'latex'?" in done.stderr


def test_help_answers() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ptq_exp.report", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "--compare" in done.stdout


def test_seeds_unfold_and_methods_are_compared() -> None:
    jobs = tuple(
        job(
            replace(result(4, 50.0 + seed), correct=Correct.of((n < right for n in range(100)), "images")),
            overrides=f"quant={method} seed={seed}", method=(method,), command=("seed=0,1",),
        )
        for method, right in (("a", 50), ("b", 90)) for seed in (0, 1)
    )  # fmt: skip
    results = Results("t", jobs, ("seed=0,1",))
    content = report(results, {})
    page = Page(content)
    folded, unfolded, pairs = page.tables[:3]
    assert [[cell.partition("\n")[0] for cell in line[:3]] for line in folded[1:]] == [
        ["quant=a", "float", "90.00"], ["quant=a", "4", "50.50 ± 0.71"], ["quant=b", "4", "50.50 ± 0.71"],
    ]  # fmt: skip
    assert [line[0] for line in unfolded[2:]] == [
        "quant=a seed=0",
        "quant=a seed=1",
        "quant=b seed=0",
        "quant=b seed=1",
    ]
    assert "± is the sample standard deviation over 2 seeds" in page.text
    assert [cell for line in pairs[1:] for cell in line[:3]] == ["4", "quant=a", "quant=b"]
    assert '<details id="seeds">' in content
    assert '<details id="seeds" open>' in report(results, {}, unfold=True)
    assert "Each seed" not in Page(report(Results("t", jobs[:1], (), sweep=False), {})).text


HOSTILE = "<script>alert(1)</script>\"'&"


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts" / f"{HOSTILE.replace('/', '')}.png").write_bytes(b"x")
    one = job(
        result(bits_mean=5.0, diagnosis=HOSTILE), title=HOSTILE, overrides=f"data.root={HOSTILE}",
        params={"data.used": HOSTILE, HOSTILE: 1}, defaults={HOSTILE: HOSTILE}, tags={"hardware": HOSTILE},
        versions={HOSTILE: HOSTILE}, dataset=DatasetSummary(HOSTILE, HOSTILE, HOSTILE, {HOSTILE: 3}), folder=tmp_path,
    )  # fmt: skip
    other = replace(one, overrides="data.root=b", folder=tmp_path / "b")
    failure = Failure(bits=HOSTILE, overrides=HOSTILE, error=HOSTILE, log="")
    results = Results(HOSTILE, (one, other), (f"data.root={HOSTILE}",), [failure])
    found = Page(report(results, {f"{HOSTILE}.png": b"x"}))
    assert found.tags.count("script") == 1  # the page's own
    assert found.text.count(HOSTILE) >= 8
    assert Page(comparison(results, results)).tags.count("script") == 1


def test_the_command_is_quoted_and_names_the_data_found() -> None:
    one = job(params={"data.name": "auto", "data.used": "digits"})
    results = Results("t", (one,), ("data=auto", "quant.bits=[2, 4]", "data.root=my data"), sweep=False)
    assert repeat_command(results) == "python run.py 'quant.bits=[2, 4]' 'data.root=my data' data=digits"
