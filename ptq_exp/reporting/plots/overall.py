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
        draw(plots.training_curves, record.history, "Training of the float network", folder / "training.png")


def draw_sweep(record: SweepRecord) -> None:
    """Draw the figures over all jobs of a sweep."""
    if not record.jobs:
        return
    if record.search is not None and record.search.trials:
        plots.search_trials(record.search, record.figures / "search.png")
        return
    folder, method = record.figures, " ".join(record.jobs[0].method)
    series = {label or method: results for label, results in seed_groups(as_series(record.jobs)).items()}
    plots.accuracy_against_bits(series, folder / "accuracy_against_bits.png")
    plots.accuracy_against_size(series, folder / "accuracy_against_size.png")
    tables = layer_tables(record.jobs)
    for label, name in heat_maps(record.jobs).items():
        plots.layer_heat_map(tables[label], label or record.jobs[0].title, folder / f"{name}.png")
