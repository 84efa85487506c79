"""The figures over all bit widths of a job and over all jobs of a sweep, from their records. Imports no torch."""

from ptq_exp.base.background import draw
from ptq_exp.reporting import plots
from ptq_exp.results.layers import heat_maps, layer_tables
from ptq_exp.results.records import JobRecord, SweepRecord
from ptq_exp.results.series import as_series, seed_groups


def draw_job(record: JobRecord) -> None:
    """Draw the figures over all bit widths of a job, and of its training if there was one."""
    folder, name = record.artifacts, " ".join(record.method)
    if len(record.results) > 1:
        series = {name: list(record.results)}
        draw(plots.accuracy_against_bits, series, folder / "accuracy_against_bits.png", record.title)
        draw(plots.accuracy_against_size, series, folder / "accuracy_against_size.png", record.title)
        layers = {result.bits: result.layers for result in record.results}
        draw(plots.layer_heat_map, layers, record.title, folder / "layers.png")
    if record.history:
        title = f"Training of {record.title.partition(': ')[0]}"
        draw(plots.training_curves, record.history, title, folder / "training.png")


def draw_sweep(record: SweepRecord) -> None:
    """Draw the figures over all jobs of a sweep."""
    if not record.jobs:
        return
    if record.search is not None and record.search.trials:
        plots.search_trials(record.search, record.figures / "search.png")
        return
    folder, method = record.figures, " ".join(record.jobs[0].method)
    series = {label or method: results for label, results in seed_groups(as_series(record.jobs)).items()}
    subject = _subject(record)
    plots.accuracy_against_bits(series, folder / "accuracy_against_bits.png", f"{subject}: accuracy against bits")
    plots.accuracy_against_size(series, folder / "accuracy_against_size.png", f"{subject}: accuracy against size")
    tables = layer_tables(record.jobs)
    for label, name in heat_maps(record.jobs).items():
        title = f"{subject}: {label}" if label else record.jobs[0].title
        plots.layer_heat_map(tables[label], title, folder / f"{name}.png")


def _subject(record: SweepRecord) -> str:
    """The network and the data of a sweep: `ResNet-20 on CIFAR-10`, or how many there are."""
    found = {job.title.partition(": ")[0] for job in record.jobs}
    return found.pop() if len(found) == 1 else f"{len(found)} networks"
