"""The search: candidates race the incumbent on the same dev examples, and the winner must beat the baseline.

The uncompiled program is trial 0 and the first incumbent. Each candidate then runs on growing blocks of dev, in an
order of its own (in one order for all, an incumbent that was lucky on the first block would turn everything away),
and is dropped as soon as a paired test says that it is worse than the incumbent (racing, Maron and Moore 1994). One
that reaches the end of dev with a better score becomes the incumbent. A dropped candidate's score on all of dev is
estimated by the incumbent's plus the mean paired difference, which the strategy learns from. In the end the incumbent
is compared with the baseline on all of dev by a paired test that counts how many candidates it is the best of
(`selection.py`), and the baseline is kept if the test is not passed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..errors import RunError
from ..metrics.base import Measurement, Metric
from ..metrics.statistics import PairedResult, losing, paired_test
from ..seeds import derive_seed
from .base import Budget, Candidate, Evaluator, Outcome, Proposal, Row, Strategy, Trial
from .calibrate import calibrate
from .selection import best_of_many
from .space import Space

FIRST_BLOCK = 32
DROP_LEVEL = 0.15
ACCEPT_LEVEL = 0.05
RACE_RESAMPLES = 500
MOST_DUPLICATES = 200

Observer = Callable[[Trial], None]


@dataclass(frozen=True)
class SearchResult:
    """The outcome. `best` is the last incumbent, `verdict` its paired comparison with the baseline (None when the
    baseline was never beaten), `accepted` whether it passed; `chosen` is `best` then, else the baseline.

    The verdict's `p_value` is that of the best of all candidates that ran on all of dev; its other numbers are the
    pair's own.
    """

    baseline: Trial
    best: Trial
    verdict: PairedResult | None
    accepted: bool
    trials: int
    stopped_by: str

    @property
    def chosen(self) -> Trial:
        """What the compiled program is."""
        return self.best if self.accepted else self.baseline


def blocks(total: int, first: int = FIRST_BLOCK) -> list[int]:
    """The growing numbers of examples after which a candidate is judged: 32, 64, 128, ..., total."""
    ends = []
    size = first
    while size < total:
        ends.append(size)
        size *= 2
    return [*ends, total]


@dataclass
class Search:
    """One search over one space. `calibration_rows` are labelled rows that dev does not hold."""

    evaluator: Evaluator
    space: Space
    dev: Sequence[Row]
    calibration_rows: Sequence[Row]
    budget: Budget
    seed: int
    observer: Observer

    def __post_init__(self) -> None:
        self.order = list(self.dev)
        random.Random(derive_seed(self.seed, "dev")).shuffle(self.order)
        self.rows = list(self.calibration_rows)
        random.Random(derive_seed(self.seed, "calibration")).shuffle(self.rows)

    def baseline(self, candidate: Candidate) -> Trial:
        """Run the baseline on all of dev. Raises `RunError` when a call fails: nothing could be compared with it."""
        outcomes = self.evaluator.run(candidate, self.order)
        failed = [outcome.error for outcome in outcomes if outcome.error]
        if failed:
            raise RunError(
                f"the uncompiled program failed on {len(failed)} of {len(outcomes)} dev examples",
                hint=f"The first failure: {failed[0]}",
            )
        measurements = _measurements(outcomes)
        score = self.evaluator.metric.aggregate(measurements)
        unread = sum(outcome.unread is not None for outcome in outcomes)
        trial = Trial(0, {}, candidate, "complete", len(outcomes), score, score, unread, None, True, measurements)
        self.observer(trial)
        return trial

    def run(self, baseline: Trial, strategy: Strategy) -> SearchResult:
        """Propose, race and keep the best until the budget is spent or the strategy has nothing left."""
        best, number, duplicates = baseline, 0, 0
        seen = {_key(baseline.candidate, {}): baseline.estimate or 0.0}
        complete: list[Trial] = []
        stopped_by = "exhausted"
        while True:
            reached = self.budget.spent_on(self.evaluator, number + 1)
            if reached is not None:
                stopped_by = reached
                break
            proposal = strategy.propose()
            if proposal is None or duplicates > MOST_DUPLICATES:
                break
            candidate = Candidate(self.space.states(proposal.params))
            key = _key(candidate, self.space.calibrations(proposal.params))
            if key in seen:
                duplicates += 1
                strategy.observe(proposal, seen[key], best=False)
                continue
            number, duplicates = number + 1, 0
            trial = self._race(number, proposal, candidate, best)
            if trial.status == "complete":
                complete.append(trial)
                if self._better(trial, best):
                    trial = replace(trial, best=True)
                    best = trial
            seen[key] = self.evaluator.metric.low if trial.estimate is None else trial.estimate
            strategy.observe(proposal, seen[key], trial.best)
            self.observer(trial)
        return self._confirm(baseline, best, complete, number + 1, stopped_by)

    def _race(self, number: int, proposal: Proposal, candidate: Candidate, incumbent: Trial) -> Trial:
        methods = self.space.calibrations(proposal.params)
        if methods:
            candidate = calibrate(self.evaluator, candidate, methods, self.rows)
        metric = self.evaluator.metric
        order = list(range(len(self.order)))
        random.Random(derive_seed(self.seed, "order", number)).shuffle(order)
        theirs = [incumbent.measurements[place] for place in order]
        measurements: tuple[Measurement, ...] = ()
        unread = 0

        def trial(status: str, estimate: float | None, reason: str | None = None) -> Trial:
            score = metric.aggregate(measurements) if measurements else None
            return Trial(number, proposal.params, candidate, status, len(measurements), score, estimate, unread, reason,
                         False, measurements)  # fmt: skip

        start = 0
        for end in blocks(len(self.order)):
            outcomes = self.evaluator.run(candidate, [self.order[place] for place in order[start:end]])
            failed = next((outcome.error for outcome in outcomes if outcome.error), None)
            if failed is not None:
                return trial("failed", None, failed)
            measurements += _measurements(outcomes)
            unread += sum(outcome.unread is not None for outcome in outcomes)
            if end < len(self.order) and is_losing(metric, measurements, theirs[:end]):
                gap = metric.aggregate(measurements) - metric.aggregate(theirs[:end])
                return trial("dropped", max(metric.low, (incumbent.score or 0.0) + gap))
            start = end
        by_place = dict(zip(order, measurements, strict=True))
        measurements = tuple(by_place[place] for place in range(len(order)))
        return trial("complete", metric.aggregate(measurements))

    def _better(self, trial: Trial, incumbent: Trial) -> bool:
        """Higher on dev; at the same score, the cheaper prompt."""
        ours, theirs = trial.score or 0.0, incumbent.score or 0.0
        if ours != theirs:
            return ours > theirs
        sample = self.order[:4]
        tokens = self.evaluator.prompt_tokens
        return tokens(trial.candidate, sample) < tokens(incumbent.candidate, sample)

    def _confirm(
        self, baseline: Trial, best: Trial, complete: Sequence[Trial], trials: int, stopped_by: str
    ) -> SearchResult:
        if best is baseline:
            return SearchResult(baseline, best, None, False, trials, stopped_by)
        metric, seed = self.evaluator.metric, derive_seed(self.seed, "confirm") % 2**32
        verdict = paired_test(metric, best.measurements, baseline.measurements, seed=seed)
        raced = [trial.measurements for trial in complete]
        p_value = max(verdict.p_value, best_of_many(metric, raced, baseline.measurements, seed=seed))
        accepted = verdict.difference > 0 and p_value < ACCEPT_LEVEL
        return SearchResult(baseline, best, replace(verdict, p_value=p_value), accepted, trials, stopped_by)


def _key(candidate: Candidate, calibrations: Mapping[str, str]) -> str:
    """What two points share that come to the same program: parameters, and how they are to be calibrated."""
    return candidate.digest + str(sorted(calibrations.items()))


def is_losing(metric: Metric, ours: Sequence[Measurement], theirs: Sequence[Measurement]) -> bool:
    """Whether a candidate does worse than the incumbent on the same examples, by a paired test at `DROP_LEVEL`.

    For a corpus metric (BLEU) the test resamples its statistics: sentence scores rank candidates differently.
    """
    if metric.width:
        return paired_test(metric, theirs, ours, resamples=RACE_RESAMPLES).p_value < DROP_LEVEL
    scores = [np.array([measurement.score for measurement in side]) for side in (ours, theirs)]
    return losing(scores[0], scores[1], level=DROP_LEVEL)


def _measurements(outcomes: Sequence[Outcome]) -> tuple[Measurement, ...]:
    return tuple(outcome.measurement for outcome in outcomes if outcome.measurement is not None)
