"""The time left of a whole job and of its sweep, estimated from the share of the learning that is done.

A job learns once for each of its bit widths. Its stages (a layer, a block, the distillation) take known shares of the
work. Stages that are restored from the store take no time and do not count as speed.
"""

import time

Span = tuple[float, float]  # the begin and the end of a stage, as shares of the learning of one bit width


class Outlook:
    """The estimates of one process, whose jobs run one after the other."""

    def __init__(self) -> None:
        self.sweep_begins(1)

    def sweep_begins(self, jobs: int) -> None:
        """A sweep of so many jobs begins in this process."""
        self.jobs, self.begun, self.seconds = jobs, 0, list[float]()
        self.widths, self.width, self.share = 0, 0, 0.0
        self.covered = self.spent = 0.0
        self.started: float | None = None

    def job_begins(self, learning_widths: int) -> None:
        """A job begins, which learns at so many bit widths."""
        self.job_ends()
        if self.begun >= self.jobs:  # another job in the same process, such as the next trial of a search
            self.sweep_begins(1)
        self.begun, self.started = self.begun + 1, time.monotonic()
        self.widths, self.width, self.share = learning_widths, -1, 0.0

    def job_ends(self) -> None:
        """The job has ended. Does nothing if none has begun."""
        if self.started is not None:
            self.seconds.append(time.monotonic() - self.started)
        self.started = None

    def job_skipped(self) -> None:
        """A job of the sweep was found finished."""
        self.begun += 1

    def width_begins(self) -> None:
        """The learning of the job's next bit width begins."""
        self.width, self.share = self.width + 1, 0.0

    def advance(self, share: float, seconds: float) -> None:
        """Another share of the learning of this bit width took so many seconds."""
        self.share, self.covered, self.spent = self.share + share, self.covered + share, self.spent + seconds

    def stage_begins(self, share: float) -> None:
        """A stage begins at this share. What lies before it is done."""
        self.share = share

    def job_left(self) -> float | None:
        """The seconds that this job's learning still takes, or None if that is unknown."""
        if self.started is None or self.width < 0 or not self.covered:
            return None
        return max(0.0, self.widths - self.width - self.share) * self.spent / self.covered

    def sweep_left(self) -> float | None:
        """The same for all jobs, as if the others took as long as those so far."""
        later = self.jobs - self.begun
        left = self.job_left()
        if self.started is None or self.jobs < 2 or (left is None and not self.seconds):
            return None
        elapsed = time.monotonic() - self.started
        if left is None:
            left = max(0.0, sum(self.seconds) / len(self.seconds) - elapsed)
        known = [*self.seconds, elapsed + left]
        return left + later * sum(known) / len(known)

    def __str__(self) -> str:
        """`job 12 min, sweep 1.4 h`, as far as it is known."""
        found = {"job": self.job_left(), "sweep": self.sweep_left()}
        return ", ".join(f"{name} {short(seconds)}" for name, seconds in found.items() if seconds is not None)


def short(seconds: float) -> str:
    """A duration in few letters: `40 s`, `12 min`, `1.4 h`."""
    if seconds >= 2 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"


outlook = Outlook()
