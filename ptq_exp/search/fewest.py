"""`search=fewest`: the smallest network within a margin of the float network's top-1.

The axes are searched one after the other, each from wide to narrow until the first failure: one width for all weights,
one for all activations, and mixed precision below the width found for the weights. At each width the cheap network
comes first: rounding to nearest, then brief learning, then full learning; calibrated activations before learned ones.
A way that failed once is not tried at narrower widths.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

from ptq_exp.base.errors import UserError
from ptq_exp.quantization.grids import stored_bits
from ptq_exp.quantization.learning import learns
from ptq_exp.quantization.options import QuantConfig
from ptq_exp.quantization.steps import check_method
from ptq_exp.results.records import BRIEF, CALIBRATED, LEARNED, NEAREST, BitWidthResult, Trial, TrialResult
from ptq_exp.results.search import light
from ptq_exp.search.options import ACTIVATIONS, MIXED, WEIGHTS, SearchOptions
from ptq_exp.search.statistics import drop_limit, level_of

LAST_STEPS = 8  # or down to nothing, below the last width
BRIEF_IMAGES = 1024
LEAST_BRIEF_STEPS = 50  # per unit
MIXED_STEPS = 4  # mean widths between two widths for all weights


@dataclass
class Fewest:
    """A search in progress. `measure` quantizes and evaluates a trial."""

    options: SearchOptions
    quant: QuantConfig
    measure: Callable[[Trial], BitWidthResult]
    trials: list[TrialResult] = field(default_factory=list)
    chosen: int | None = None  # the index of the last trial that passed

    @property
    def both(self) -> bool:
        """Whether weights and activations are searched."""
        return {WEIGHTS, ACTIVATIONS} <= set(self.options.over)

    @cached_property
    def level(self) -> float:
        """The confidence of each test."""
        learning = self.quant.rounding != "nearest"
        ways = {WEIGHTS: 1 + learning + self.briefly, ACTIVATIONS: 1 + learning}
        return level_of(self.options.confidence, sum(ways[axis] for axis in set(self.options.over)) + self.mixed)

    @property
    def briefly(self) -> bool:
        """Whether weights are learned briefly first. A few steps would only cost time."""
        steps = self.options.brief * self.quant.reconstruction.steps
        return self.quant.rounding != "nearest" and steps >= LEAST_BRIEF_STEPS

    @cached_property
    def mixed(self) -> bool:
        """Whether mixed precision is searched, too."""
        return WEIGHTS in self.options.over and self.options.mixed and not mixed_obstacle(self.quant)

    @property
    def best(self) -> TrialResult | None:
        """The narrowest network that passed so far."""
        return None if self.chosen is None else self.trials[self.chosen]

    def run(self) -> None:
        """Search all axes."""
        if WEIGHTS in self.options.over:
            act_bits = None if self.both else self.quant.act_bits
            margin = self.options.max_drop * (1 - self.options.reserve * self.both)
            self._walk([Trial(WEIGHTS, bits, act_bits) for bits in weight_widths(self.options, self.quant)], margin)
            if self.best is None:
                return
        if ACTIVATIONS in self.options.over:
            bits = self.best.trial.bits if self.best else self.quant.bit_widths()[0]
            self._walk([Trial(ACTIVATIONS, bits, width) for width in self.options.act_bits], self.options.max_drop)
        if self.mixed:
            self._walk(list(self._mixed()), self.options.max_drop)

    def _walk(self, trials: list[Trial], margin: float) -> None:
        """Try one axis, from wide to narrow, until no way of making the network passes."""
        failed: set[str] = set()
        for trial in trials:
            for how in [way for way in self._ways(trial) if way not in failed]:
                if self._attempt(replace(trial, how=how), margin):
                    break
                failed.add(how)
            else:
                return

    def _ways(self, trial: Trial) -> list[str]:
        """How to make the network of a trial, the cheap ways first. Without learning there is only one way."""
        smallest = min(self.quant.mixed_candidates) if trial.axis == MIXED else trial.bits
        if self.quant.rounding == "nearest" or not learns(replace(self.quant, act_bits=trial.act_bits), smallest):
            return [NEAREST]
        if trial.axis == MIXED:
            return [LEARNED]
        if trial.axis == WEIGHTS:
            return [NEAREST, *([BRIEF] if self.briefly else []), LEARNED]
        learned_weights = self.best is not None and self.best.trial.how != NEAREST
        return [CALIBRATED if learned_weights else NEAREST, LEARNED]

    def _attempt(self, trial: Trial, margin: float) -> bool:
        started = time.monotonic()
        result = self.measure(trial)
        limit = drop_limit(result.top1_drop_ci_low, result.top1_drop_ci_high, self.level)
        self.trials.append(TrialResult(trial, margin, limit, light(result), time.monotonic() - started))
        if self.trials[-1].passed:
            self.chosen = len(self.trials) - 1
        return self.trials[-1].passed

    def _mixed(self) -> Iterator[Trial]:
        """Mean widths below the width that was found, in quarters of the distance to the next narrower one.

        Below the last width, the steps are eighths of it.
        """
        best = self.best
        assert best is not None
        narrower = [bits for bits in self.options.widths if bits < best.trial.bits]
        stored, least = self._stored(best.trial.bits), min(map(self._stored, candidates(self.quant)))
        step = (stored - self._stored(narrower[0])) / MIXED_STEPS if narrower else stored / LAST_STEPS
        mean = stored
        while mean > least:
            mean = max(mean - step, least)
            yield Trial(MIXED, best.trial.bits, best.trial.act_bits, mean_bits=mean)

    def _stored(self, bits: float) -> float:
        return stored_bits(bits, self.quant.sign_bit, self.quant.grid)


def quant_of(trial: Trial, quant: QuantConfig, brief: float = 1.0) -> QuantConfig:
    """The method of a trial, a change of the method that is searched. `brief` is the share of its steps if the network
    is learned briefly."""
    method = replace(quant, bits=trial.bits, act_bits=trial.act_bits, mixed=False, mean_bits=None, size_budget=None)
    if trial.how == NEAREST and quant.rounding != "nearest":
        method = replace(method, rounding="nearest", reconstruction=replace(quant.reconstruction, distill_steps=0))
    if trial.how == BRIEF:
        # The rounding variables travel the same distance in fewer steps. Distillation needs more steps to be a gain.
        how = quant.reconstruction
        learning = replace(how, steps=round(brief * how.steps), lr=how.lr / brief, distill_steps=0)
        method = replace(
            method, reconstruction=learning, calibration_images=min(quant.calibration_images, BRIEF_IMAGES)
        )
    if trial.how == CALIBRATED:
        method = replace(method, act_learned=False)
    if trial.mean_bits is not None:
        method = replace(method, mixed=True, mean_bits=trial.mean_bits, mixed_candidates=candidates(quant))
    return method


def weight_widths(options: SearchOptions, quant: QuantConfig) -> list[int]:
    """The widths of `search.bits` that the grid supports."""
    return [bits for bits in options.widths if not _refused(replace(quant, bits=bits, mixed=False))]


def candidates(quant: QuantConfig) -> list[float]:
    """The widths of `quant.mixed_candidates` that the grid supports."""
    return [
        bits for bits in quant.mixed_candidates
        if not _refused(replace(quant, bits=4, mixed=True, mixed_candidates=[bits]))
    ]  # fmt: skip


def mixed_obstacle(quant: QuantConfig) -> str:
    """Why mixed precision is not available for a method; empty if it is."""
    return _refused(replace(quant, bits=4, mixed=True, mixed_candidates=candidates(quant) or quant.mixed_candidates))


def _refused(quant: QuantConfig) -> str:
    try:
        check_method(quant)
    except UserError as error:
        return str(error)
    return ""
