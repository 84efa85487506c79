"""The result table of a job or a sweep, and its conclusions."""

from ptq_exp.base.console import console, is_quiet
from ptq_exp.reporting import JobStart, Reporter
from ptq_exp.reporting.exports import ExportTable, exports_of_series, integer_sentences
from ptq_exp.reporting.table import ResultTable
from ptq_exp.results.comparison import against_best, sentences
from ptq_exp.results.records import JobRecord, SweepRecord
from ptq_exp.results.series import answers, as_series, coverage, rows_of, titled, with_labels


class Terminal(Reporter):
    """Prints to the shared console. In a sweep, only the sweep prints a table, not its jobs."""

    alone = True

    def job_begins(self, start: JobStart) -> None:
        self.alone = start.alone

    def job(self, record: JobRecord) -> None:
        """Print the table of a single job and its conclusions."""
        if not self.alone:
            return
        series = {"": list(record.results)}
        console.print(ResultTable(series, record.title))
        console.print(ExportTable(exports_of_series(series)))
        if not is_quiet():
            console.print(*answers(series), *coverage(record.results), *integer_sentences(series), sep="\n")

    def sweep(self, record: SweepRecord) -> None:
        """Print the table, the reasons of failures, the fewest bits of each series, and the best one at each width."""
        series, failures = as_series(record.jobs), with_labels(record.jobs, record.failures)
        if record.jobs or failures:
            console.print(ResultTable(series, titled(record.name, record.jobs), failures))
        console.print(ExportTable(exports_of_series(series)))
        for failure in failures:
            console.print(str(failure))
        if not is_quiet():
            results = [result for job in record.jobs for result in job.results]
            compared = sentences(against_best(rows_of(series)))
            for sentence in [*answers(series), *compared, *coverage(results), *integer_sentences(series)]:
                console.print(sentence)
