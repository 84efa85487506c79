"""The result table of a job or a sweep, and its conclusions."""

from ptq_exp.base.console import console, is_quiet
from ptq_exp.reporting import JobStart, Reporter
from ptq_exp.reporting.exports import ExportTable, exports_of_series, integer_sentences
from ptq_exp.reporting.search import WORDS, answer_cells, conclusions, explanation, trial_cells
from ptq_exp.reporting.table import ResultTable, rich_table
from ptq_exp.results.comparison import against_best, sentences
from ptq_exp.results.records import JobRecord, SearchRecord, SweepRecord
from ptq_exp.results.search import named_sentence, sentence
from ptq_exp.results.series import answers, as_series, coverage, coverage_of, rows_of, titled, with_labels


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
        if record.search is not None:
            self._search(record.search)
            return
        if record.searches:
            console.print(rich_table(answer_cells(record.searches), WORDS))
            console.print(*map(named_sentence, record.searches), sep="\n")
        series, failures = as_series(record.jobs), with_labels(record.jobs, record.failures)
        if record.jobs or failures:
            console.print(ResultTable(series, titled(record.name, record.jobs), failures))
        console.print(ExportTable(exports_of_series(series)))
        for failure in failures:
            console.print(str(failure))
        if not is_quiet():
            compared = sentences(against_best(rows_of(series)))
            console.print(*answers(series), *compared, *coverage_of(series), *integer_sentences(series), sep="\n")

    def _search(self, record: SearchRecord) -> None:
        """Print the trials of a search and its answer."""
        if self.alone:
            console.print(rich_table(trial_cells(record), WORDS))
            if not is_quiet():
                console.print(explanation(record), *conclusions(record), sep="\n")
        console.print(sentence(record))
