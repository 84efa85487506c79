"""Several seeds are one line of the table: their mean and sample standard deviation, and one verdict."""

import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import TINY, Outcome
from example_records import job, result

from ptq_exp.reporting.tables import TableContent
from ptq_exp.reporting.tables.markdown import markdown
from ptq_exp.results.records import JobRecord
from ptq_exp.results.series import answers, as_series, rows_of, seed_note

Cli = Callable[..., Outcome]
TOP1 = {("a", 2): (70.0, 71.0, 75.0), ("a", 4): (89.0, 89.5, 90.0), ("b", 2): (80.0, 80.0, 80.0), ("b", 4): (88.0,)}


def jobs() -> list[JobRecord]:
    """Two methods at two bit widths with three seeds, of which one job of `b` failed twice."""
    return [
        job(
            result(bits, top1, top1_drop_ci_low=89.0 - top1, top1_drop_ci_high=91.0 - top1, top1_float=90.0 + seed),
            overrides=f"quant.alpha_rule={method} seed={seed}",
        )
        for (method, bits), values in TOP1.items() for seed, top1 in enumerate(values)
    ]  # fmt: skip


def test_a_line_has_the_mean_and_the_sample_standard_deviation_of_its_seeds() -> None:
    rows = rows_of(as_series(jobs()))
    assert list(rows) == ["quant.alpha_rule=a", "quant.alpha_rule=b"]
    for (method, bits), values in TOP1.items():
        (row,) = [row for row in rows[f"quant.alpha_rule={method}"] if row.mean.bits == bits]
        assert row.mean.top1 == pytest.approx(statistics.mean(values))
        assert row.seeds == tuple(f"seed={seed}" for seed in range(len(values)))
        assert row.std("top1") == (pytest.approx(statistics.stdev(values)) if len(values) > 1 else None)
    two = rows["quant.alpha_rule=a"][0]
    assert (two.mean.top1_drop_ci_low, two.mean.top1_drop_ci_high) == pytest.approx((17.0, 19.0))
    assert seed_note(rows).startswith("± is the sample standard deviation over 1 to 3 seeds.")


def test_the_table_folds_seeds_and_unfolds_them() -> None:
    folded = markdown(TableContent("t", as_series(jobs())))
    assert "| quant.alpha_rule=a | float | 91.00 ± 1.00 |" in folded
    assert (
        "| quant.alpha_rule=a | 2 | 72.00 ± 2.65 | 70.00 – 74.00 | +18.00 ± 2.65 | +17.00 – +19.00 | lower |" in folded
    )
    assert "| quant.alpha_rule=b | 2 | 80.00 ± 0.00 |" in folded
    assert "| quant.alpha_rule=b | 4 | 88.00 |" in folded
    assert "seed=" not in folded
    unfolded = markdown(TableContent("t", as_series(jobs()), unfold=True))
    assert "±" not in unfolded
    assert unfolded.count("| quant.alpha_rule=a seed=2 |") == 3  # float, 2 and 4 bits
    assert "| quant.alpha_rule=a seed=2 | 2 | 75.00 |" in unfolded


def test_the_verdict_is_on_the_mean_over_seeds() -> None:
    def at(*intervals: tuple[float, float]) -> str:
        found = [
            job(result(4, 89.0, top1_drop_ci_low=low, top1_drop_ci_high=high), overrides=f"seed={seed}")
            for seed, (low, high) in enumerate(intervals)
        ]
        (sentence,) = answers(as_series(found))
        return sentence

    assert "4 (the 95 % CI of the drop reaches 2.00 points)" in at((-1, 1), (-1, 2), (0.5, 3))
    assert "The only bit width tried (4) loses" in at((-0.5, 1), (1, 3), (0.5, 3))


def test_calibration_seeds_are_seeds_and_the_same_job_twice_is_not() -> None:
    drawn = [job(result(4, 80.0 + seed), overrides=f"quant.calibration_seed={seed}") for seed in (0, 1)]
    ((row,),) = rows_of(as_series(drawn)).values()
    assert row.mean.top1 == 80.5
    twice = [job(result(4, 80.0)), job(result(4, 80.0), result(8, 90.0))]
    assert [row.mean.bits for row in rows_of(as_series(twice))[""]] == [4, 4, 8]


def test_a_sweep_over_seeds_has_one_line_per_bit_width(cli: Cli, tmp_path: Path) -> None:
    outcome = cli(*TINY, "quant.bits=[2,6]", "quant.calibration_seed=0,1", "-m")
    assert outcome.code == 0, outcome.err
    lines = [line for line in outcome.out.splitlines() if "±" in line and line.startswith("│")]
    assert [line.split()[1] for line in lines] == ["3", "7"]  # the float network is the same
    assert "over 2 seeds" in outcome.out
    (table,) = tmp_path.glob("outputs/*/*/sweep/table.md")
    assert [line.split(" | ")[0] for line in table.read_text().splitlines() if line.startswith("| ")][2:] == [
        "| float", "| 3", "| 7",
    ]  # fmt: skip
