"""Records on disk: what is written is what is read, whatever the numbers; version 1 is read as well."""

import json
import math
from dataclasses import replace
from pathlib import Path

from example_records import job, layer, result

from ptq_exp.base.files import digest
from ptq_exp.results.files import read_job, read_sweep, write_failure, write_job, write_sweep
from ptq_exp.results.records import Failure


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    layers = (layer(sqnr_db=math.inf, output_sqnr_db=-math.inf, act_bits=4, act_alpha=0.25), layer(layer="conv2"))
    record = job(
        result(3, 81.25, layers=layers), result(1, act_bits=4, loss=0.1 + 0.2),
        params={"quant.bits": [3, 1], "data.root": None, "seed": 0}, defaults={"quant.bits": [4, 8]},
        history=({"lr": 0.1, "train_loss": 2.5},), command=("quant.bits=[3,1]",), method=("best", "layers=conv"),
        register="digits", folder=tmp_path,
    )  # fmt: skip
    write_job(record)
    assert read_job(tmp_path) == record
    assert "Infinity" not in (tmp_path / "results.json").read_text()  # which is no JSON


def test_a_record_knows_neither_its_folder_nor_whether_it_was_logged(tmp_path: Path) -> None:
    record = job(result(), folder=tmp_path / "a")
    write_job(record)
    content = json.loads((tmp_path / "a" / "results.json").read_text())
    assert content["version"] == 2
    assert not {"folder", "uploaded", "logged", "run_id"} & content.keys()
    (tmp_path / "a").rename(tmp_path / "b")
    assert read_job(tmp_path / "b") == replace(record, folder=tmp_path / "b")


def test_a_record_of_another_version_is_not_misread(tmp_path: Path) -> None:
    write_job(job(result(), folder=tmp_path))
    file = tmp_path / "results.json"
    content = json.loads(file.read_text()) | {"version": 3}
    del content["sha256"]
    file.write_text(json.dumps(content | {"sha256": digest(content)}))
    assert read_job(tmp_path) is None


def test_a_record_of_the_first_edition_is_read(tmp_path: Path) -> None:
    """As version 0.1.0 wrote it: rows, and points instead of a history."""
    row = {
        "bits": 4, "act_bits": None, "top1": 97.8, "top1_ci_low": 95.7, "top1_ci_high": 98.9, "chance": 10.0,
        "top1_float": 99.45, "top1_float_ci_low": 98.0, "top1_float_ci_high": 99.9, "top1_drop": 1.65,
        "top1_drop_ci_low": -0.05, "top1_drop_ci_high": 3.32, "top5": 100.0, "agreement": 97.8, "loss": 0.1,
        "loss_float": 0.05, "bits_mean": 5.0, "size_bytes": 184_100, "size_bytes_float": 1_096_232,
        "quantize_seconds": 0.1, "evaluate_seconds": 0.2, "diagnosis": "No significant loss.",
    }  # fmt: skip
    content = {
        "title": "resnet20 on digits: notebook", "method": ["notebook"], "overrides": "", "command": ["quant.bits=4"],
        "job": "f" * 64, "run_id": "1", "started": 5, "ended": 6, "uploaded": True, "rows": [row],
        "run": {"uri": "sqlite:///m.db", "experiment": "ptq_exp", "name": "w4 notebook", "parent": None},
        "params": {"quant.bits": 4}, "tags": {"hardware": "CPU"}, "versions": {"Python": "3.11"}, "register": None,
        "points": [[0, {"top1": 97.8}], [1, {"train_loss": 2.0, "train_top1": 20.0}]],
        "layers": {"4": [{"layer": "conv1", "bits": 5.0}]},
        "dataset": {"name": "digits", "fingerprint": "a", "source": "scikit-learn", "profile": {"classes": 10}},
    }  # fmt: skip
    (tmp_path / "results.json").write_text(json.dumps(content | {"sha256": digest(content)}))
    record = read_job(tmp_path)
    assert record is not None
    assert (record.name, record.key, record.results[0].top1, record.results[0].bits_mean) == (
        "w4 notebook", "f" * 64, 97.8, 5.0,
    )  # fmt: skip
    assert record.history == ({"train_loss": 2.0, "train_top1": 20.0},)
    assert record.dataset is not None
    assert record.dataset.name == "digits"


def test_a_sweep_is_what_its_jobs_left(tmp_path: Path) -> None:
    write_sweep(tmp_path, "sweep quant.bits=4,8", ["quant.bits=4,8"])
    first, second = (job(result(bits), folder=tmp_path / str(n)) for n, bits in enumerate((4, 8)))
    write_job(first)
    failure = Failure("99", "", "99 is not a bit width", str(tmp_path / "2" / "run.log"))
    write_failure(failure)
    # The second is known to this process, and not on disk.
    (tmp_path / "1").mkdir()
    sweep = read_sweep(tmp_path, {tmp_path / "1": second})
    assert sweep.jobs == (first, second)
    assert sweep.failures == (failure,)
    assert (sweep.name, sweep.command) == ("sweep quant.bits=4,8", ("quant.bits=4,8",))
