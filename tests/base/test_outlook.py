"""The time left of a job and of its sweep."""

import pytest

from ptq_exp.base import console, outlook
from ptq_exp.base.outlook import Outlook, short


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(outlook.time, "monotonic", lambda: now[0])
    return now


def test_a_job_takes_as_long_as_its_widths_and_a_sweep_as_its_jobs(clock: list[float]) -> None:
    found = Outlook()
    found.sweep_begins(4)
    found.job_begins(2)
    found.width_begins()
    assert str(found) == ""  # nothing is known yet
    found.stage_begins(0.0)
    clock[0] += 60
    found.advance(0.5, 60)
    assert found.job_left() == pytest.approx(180)  # half of the first width took a minute
    assert found.sweep_left() == pytest.approx(180 + 3 * 240)
    assert str(found) == "job 3 min, sweep 15 min"
    found.stage_begins(0.75)  # restored from the store: it took no time
    assert found.job_left() == pytest.approx(150)
    found.width_begins()
    assert found.job_left() == pytest.approx(120)
    clock[0] += 180
    found.job_ends()
    found.job_skipped()  # with resume=true
    found.job_begins(0)  # nothing to learn: it takes as long as the others until it has ended
    assert found.sweep_left() == pytest.approx(240 + 240)


def test_a_single_job_has_no_sweep(clock: list[float]) -> None:
    found = Outlook()
    found.job_begins(1)
    found.width_begins()
    found.advance(0.1, 720)
    assert str(found) == "job 108 min"
    assert [short(seconds) for seconds in (40, 720, 3 * 3600)] == ["40 s", "12 min", "3.0 h"]


def test_quiet_shows_a_line_per_stage_and_is_never_silent_for_two_minutes(
    monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    monkeypatch.setattr(console.time, "monotonic", lambda: clock[0])
    console.set_quiet(True)
    times: list[float] = []
    monkeypatch.setattr(console.console, "print", lambda *_: times.append(clock[0]))
    begin, console._shown["last"] = clock[0], clock[0]
    try:
        for description, steps in [("Training 5 epochs", 600), *((f"Reconstructing {n}", 30) for n in range(20))]:
            with console.progress(description, steps) as advance:
                for _ in range(steps):
                    clock[0] += 1
                    advance()
    finally:
        console.set_quiet(False)
    assert times[0] - begin < 10  # the training
    assert any(600 < when - begin < 610 for when in times)  # the first unit
    assert max(b - a for a, b in zip(times, [*times[1:], clock[0]], strict=True)) < 120
    assert len(times) < 20
