"""Outputs stand behind one protocol: a tracker of somebody's own is one class in one file and one name in a list."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import TINY, Outcome

from ptq_exp import reporting
from ptq_exp.reporting import Reporter
from ptq_exp.results.files import to_json
from ptq_exp.results.records import JobRecord, SweepRecord

Cli = Callable[..., Outcome]


class JsonLines(Reporter):
    """Appends a line for every job and every sweep to a file."""

    file = Path("results.jsonl")

    def job(self, record: JobRecord) -> None:
        """A line for a job."""
        self._write({"job": record.name, "results": to_json(record.results)})

    def sweep(self, record: SweepRecord) -> None:
        """A line for a sweep: its table and its failures."""
        table = [[result.bits, result.top1] for job in record.jobs for result in job.results]
        self._write({"sweep": record.name, "table": table, "failures": to_json(record.failures)})

    def _write(self, line: dict[str, object]) -> None:
        with self.file.open("a") as file:
            file.write(json.dumps(line) + "\n")


def test_a_tracker_of_ones_own_sees_jobs_table_and_failures(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporting, "REPORTERS", [*reporting.REPORTERS, "test_protocol:JsonLines"])
    assert cli(*TINY, "quant.bits=3,99,6", "-m").code == 1  # 99 bits are refused
    first, second, sweep = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert (first["job"], second["job"]) == ("w3 notebook resnet20 digits", "w6 notebook resnet20 digits")
    assert sweep["sweep"] == "sweep quant.bits=3,99,6"
    measured = [[3, first["results"][0]["top1"]], [6, second["results"][0]["top1"]]]
    assert sweep["table"] == measured
    (failure,) = sweep["failures"]
    assert failure["bits"] == "99"
    assert "99 is not a bit width" in failure["error"]


@pytest.mark.slow
def test_an_output_that_fails_does_not_keep_the_next_from_its_work(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["test_protocol:Broken", "test_protocol:JsonLines"]
    monkeypatch.setattr(reporting, "REPORTERS", [*reporting.REPORTERS, *names])
    outcome = cli(*TINY, "quant.bits=3,6", "-m")
    assert outcome.code == 1
    assert "this output is broken" in outcome.err
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 3


class Broken(JsonLines):
    """Reports jobs like the other, elsewhere, and no sweep."""

    file = Path("other.jsonl")

    def sweep(self, record: SweepRecord) -> None:
        """Fail."""
        raise OSError("this output is broken")
