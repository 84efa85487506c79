"""`search=fewest` from the command line: its answer, what it leaves, and what becomes of it after a kill."""

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, Outcome
from stores import ALONE, all_runs

import ptq_exp
from ptq_exp.results.files import read_search

Cli = Callable[..., Outcome]
Process = Callable[..., "subprocess.Popen[str]"]
# 48 test images: a margin of 40 points is one that they can confirm.
MARGIN = ["search.max_drop=40", "search.mixed=false"]
SEARCH = [*TINY, "quant=mse", "search=fewest", "search.max_drop=40"]


def folder(tmp_path: Path) -> Path:
    return max(tmp_path.glob("outputs/*/*"), key=lambda path: path.stat().st_mtime)


def answer(tmp_path: Path) -> Any:
    return json.loads((folder(tmp_path) / "search.json").read_text())


def test_the_answer_is_a_sentence_and_a_network(cli: Cli, store: str, tmp_path: Path) -> None:
    found = cli(*SEARCH, f"tracking.uri={store}")
    assert found.code == 0, found.err
    last = "2-bit weights: "
    assert last in found.out
    assert "times smaller), top-1" in found.out
    assert "with 95 % confidence (margin 40)." in found.out
    record = read_search(folder(tmp_path))
    assert record is not None
    assert [entry.trial.bits for entry in record.trials] == [8, 6, 5, 4, 3, 2]
    assert record.best is not None
    result = record.best.result
    parent = next(run for run in all_runs(store) if run.info.run_name.startswith("search"))
    metrics = parent.data.metrics
    assert metrics["fewest_bits"] == 2
    assert metrics["fewest_bytes"] == result.size_bytes
    assert metrics["fewest_drop_limit"] == pytest.approx(record.best.limit)
    assert "fewest_act_bits" not in metrics
    assert parent.data.tags["mlflow.note.content"].startswith("**2-bit weights: ")
    children = [run for run in all_runs(store) if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    in_order = sorted(children, key=lambda run: run.info.start_time)
    assert [run.info.run_name.split()[0] for run in in_order] == ["w8", "w6", "w5", "w4", "w3", "w2"]
    kept = folder(tmp_path) / "sweep"
    assert ptq_exp.load(kept / "quantized_w2.safetensors").about["top1"] == pytest.approx(result.top1)
    page = (kept / "report.html").read_text()
    assert page.index("2-bit weights: ") < page.index("<table>")
    assert (kept / "search.png").stat().st_size > 10_000


def test_where_nothing_fits_a_layer_is_named(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ptq_exp.search import fewest

    monkeypatch.setattr(fewest, "drop_limit", lambda low, high, level: 99.0)
    found = cli(*SEARCH)
    assert found.code == 0, found.err
    assert "No width that was tried stays within 40 points" in found.out
    assert "Quantized alone, the weights of " in found.out
    assert answer(tmp_path)["chosen"] is None
    assert len(answer(tmp_path)["trials"]) == 1


def test_a_width_is_learned_briefly_before_it_is_learned_in_full(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ptq_exp.search import fewest

    limits = iter([99.0, 0.0, 99.0, 0.0])  # 4 bits: rounded, learned briefly; 2 bits: learned briefly, learned
    monkeypatch.setattr(fewest, "drop_limit", lambda low, high, level: next(limits))
    small = [
        "quant.calibration_images=32",
        "quant.reconstruction.batch_size=4",
        "quant.reconstruction.steps=60",
        "search.brief=0.9",
    ]
    found = cli(*TINY, "search=fewest", "quant=quick", "search.bits=[4,2]", *MARGIN, *small)
    assert found.code == 0, found.err
    assert found.out.count("brief learning") == 2
    assert "4 trials in" in found.out
    assert "3 of them with learning (2 briefly)" in found.out
    trials = answer(tmp_path)["trials"]
    assert [(entry["trial"]["bits"], entry["trial"]["how"]) for entry in trials] == [
        (4, "nearest"), (4, "learned briefly"), (2, "learned briefly"), (2, "learned"),
    ]  # fmt: skip


def test_too_few_images_for_the_margin_are_an_answer_before_any_trial(cli: Cli) -> None:
    found = cli(*TINY, "quant=mse", "search=fewest", "search.max_drop=1")
    assert found.code == 1
    assert "48 test images cannot confirm search.max_drop=1" in found.err
    assert "Trial 1" not in found.out


def test_few_images_for_the_margin_are_a_warning_before_the_first_trial(cli: Cli) -> None:
    found = cli(*TINY, "quant=mse", "search=fewest", "search.max_drop=7", "search.bits=[8]", "search.mixed=false")
    assert found.code == 0, found.err
    assert "48 test images are few for search.max_drop=7" in found.out
    assert found.out.index("few for") < found.out.index("Trial 1")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["search.max_drop=1"], "search.max_drop has no effect without search=fewest"),
        (["search=fewest", "quant.bits=4"], "search=fewest chooses quant.bits. search.bits holds"),
        (["search=fewest", "quant.act_bits=4", "search.over=[weights,activations]"], "chooses quant.act_bits"),
        (["search=fewest", "search.over=[activations]"], "needs one width of the weights"),
        (["search=fewest", "search.over=[weight]"], "Did you mean 'weights'?"),
        (["search=fewes"], "Did you mean 'fewest'?"),
        (["search=fewest", "search.max_dropp=2"], "Did you mean 'search.max_drop'?"),
    ],
)
def test_mistakes_get_an_answer(cli: Cli, words: list[str], message: str) -> None:
    found = cli(*TINY, *words)
    assert found.code == 1
    assert message in found.err


def test_several_networks_end_in_one_table(cli: Cli, store: str, tmp_path: Path) -> None:
    found = cli(*SEARCH, "search.bits=[8,4]", "search.mixed=false", "seed=0,1", f"tracking.uri={store}", "-m")
    assert found.code == 0, found.err
    assert "seed=0: 4-bit weights: " in found.out
    assert "seed=1: 4-bit weights: " in found.out
    assert "most cautious" in found.out
    runs = {run.info.run_id: run for run in all_runs(store)}
    assert len(runs) == 1 + 2 * (1 + 2)  # the sweep, two searches, two trials each
    searches = [run for run in runs.values() if "fewest_bits" in run.data.metrics]
    (outer,) = {run.data.tags["mlflow.parentRunId"] for run in searches}
    assert "| seed=0 |" in runs[outer].data.tags["mlflow.note.content"]
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    report = folder(tmp_path) / "sweep" / "report.html"
    assert "most cautious seed" in report.read_text()


def test_a_search_that_was_killed_goes_on_where_it_was(process: Process, tmp_path: Path, store: str) -> None:
    words = [*SEARCH, f"tracking.uri={store}", "resume=true"]
    first = process(*words, **ALONE)
    while len(list(tmp_path.glob("outputs/*/*/*/results.json"))) < 2:
        assert first.poll() is None
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    second, _ = process(*words, **ALONE).communicate(timeout=300)
    assert "2-bit weights: " in second
    assert second.count("already finished, not run again") >= 2
    parents = [run for run in all_runs(store) if run.info.run_name.startswith("search")]
    assert [run.info.status for run in parents] == ["FINISHED"]


def test_the_found_network_is_exported(cli: Cli, tmp_path: Path) -> None:
    found = cli(*SEARCH, "search.bits=[8,4]", "search.mixed=false", "export=packed")
    assert found.code == 0, found.err
    exports = answer(tmp_path)["exports"]
    assert exports[0]["format"] == "packed"
    assert exports[0]["agreement"] == 100
    assert exports[0]["top1"] == pytest.approx(answer(tmp_path)["trials"][1]["result"]["top1"])
    assert not list(folder(tmp_path).glob("*/artifacts/*.onnx"))


def test_activations_that_are_calibrated_afterwards_reuse_the_learned_weights(cli: Cli, tmp_path: Path) -> None:
    """With act_learned=false, weights are learned once for all widths of the activations."""
    words = [*TINY, "quant=brecq", "quant.reconstruction.steps=5", "quant.calibration_images=32", "quant.bits=2"]
    learned = [cli(*words), cli(*words, "quant.act_bits=6", "quant.act_learned=false")]
    assert [found.code for found in learned] == [0, 0]
    networks = [ptq_exp.load(path) for path in sorted(tmp_path.glob("outputs/*/*/artifacts/quantized_w2.safetensors"))]
    first, second = (dict(network.network.named_buffers()) for network in networks)
    codes = [name for name in first if name.endswith("codes")]
    assert codes
    assert all(first[name].equal(second[name]) for name in codes)
    assert any("activation" in name for name in second)
