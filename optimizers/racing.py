"""One generation of candidates on its way through dev.

They run side by side, so that their calls fill the same batches, on growing blocks of dev, in an order of the
generation's own (in one order for all, an incumbent that was lucky on the first block would turn everything away).
After each block go those of which a paired test says that they are worse than the incumbent (racing, Maron and Moore
1994), and then the worse half of the others (successive halving, Jamieson and Talwalkar 2016). A dropped candidate's
score on all of dev is estimated by the incumbent's plus the mean paired difference.

A batch calibration is taken from what a candidate has seen of dev, without its labels, and taken anew after each block:
the rows that are answered otherwise then are run again, for which the model has nothing new to compute. A bias takes
labelled rows of its own, more than the first blocks have. So it is fitted on a few rows at first, and on all that it
needs for those who are left after two blocks; who reaches the end runs those blocks again.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..metrics.base import Measurement, Metric
from ..metrics.statistics import losing, paired_test
from ..seeds import derive_seed
from .base import Candidate, Evaluator, Outcome, Proposal, Row, Trial
from .calibrate import BIAS_ROWS, by_batch, calibrate, overtaken
from .pacing import Pacer, fewest_left
from .stopping import Asked

DROP_LEVEL = 0.15
RACE_RESAMPLES = 500
ROUGH_ROWS = 16  # that a fitted calibration has at first
ROUGH_BLOCKS = 2  # that are run with such a calibration

Planned = Callable[[int, Sequence[int]], None]


@dataclass
class Racer:
    """A candidate in a race. methods: how it is calibrated, by predictor; rough: on a few rows as yet; stale: it ran on
    its first blocks with calibrations that were fitted again since.
    """

    number: int
    proposal: Proposal
    candidate: Candidate
    key: str
    methods: Mapping[str, str] = field(default_factory=dict)
    rough: bool = False
    stale: bool = False
    outcomes: tuple[Outcome, ...] = ()
    gap: float = 0.0

    @property
    def before(self) -> dict[str, str]:
        """The calibrations that are there before it runs."""
        return {name: method for name, method in self.methods.items() if method != "batch"}

    @property
    def measurements(self) -> tuple[Measurement, ...]:
        """One for each example that it ran on."""
        return measurements_of(self.outcomes)

    def trial(self, metric: Metric, status: str, estimate: float | None, reason: str | None = None) -> Trial:
        """What is known of it now."""
        measured = self.measurements
        score = metric.aggregate(measured) if measured else None
        unread = sum(outcome.unread is not None for outcome in self.outcomes)
        return Trial(self.number, self.proposal.params, self.candidate, status, len(measured), score, estimate, unread,
                     reason, False, measured)  # fmt: skip

    def ended(self, metric: Metric) -> Trial:
        """The trial of one that ran on all of dev; failed where a call has."""
        failed = failure(self.outcomes)
        score = None if failed else metric.aggregate(self.measurements)
        return self.trial(metric, "failed" if failed else "complete", score, failed)


@dataclass
class Race:
    """What the generations of a search share. dev: in the order of the baseline's measurements; rows: labelled rows to
    calibrate on; schedule: the generations of an earlier life, each the number of candidates that began it and how many
    were left after each of its blocks; planned: told after each block; asked: whether the user wants it to end.
    """

    evaluator: Evaluator
    dev: Sequence[Row]
    rows: Sequence[Row]
    seed: int
    pacer: Pacer
    schedule: Sequence[Sequence[int]]
    planned: Planned
    asked: Asked = lambda: None
    fair: Callable[[Candidate, Sequence[Outcome]], Candidate] = lambda candidate, outcomes: candidate

    def run(self, racers: Sequence[Racer], incumbent: Trial, generation: int, begun: int | None = None) -> list[Trial]:
        """One trial per racer, in their order. begun: as how many the generation is written down."""
        metric, total = self.evaluator.metric, len(self.dev)
        order = list(range(total))
        random.Random(derive_seed(self.seed, "order", generation)).shuffle(order)
        theirs = [incumbent.measurements[place] for place in order]
        ends = self.pacer.ends(len(racers))
        for racer in racers:
            self._calibrate(racer, few=len(racers) > 1 and len(ends) > ROUGH_BLOCKS)
        weights = {racer.number: self.pacer.weight(racer.candidate) for racer in racers}
        trials: dict[int, Trial] = {}

        def drop(racer: Racer) -> None:
            estimate = min(metric.high, max(metric.low, (incumbent.score or 0.0) + racer.gap))
            trials[racer.number] = racer.trial(metric, "dropped", estimate)

        numbers = [len(racers) if begun is None else begun]
        alive, start = list(racers), 0
        for rung, end in enumerate(ends):
            if not alive:
                break
            blocked = self._block(alive, order[start:end], weights)
            going = []
            for racer, mine in zip(alive, blocked, strict=True):
                fair = self.fair(racer.candidate, mine)
                if fair is not racer.candidate:
                    racer.candidate, racer.outcomes = fair, ()
                    mine = self.evaluator.run(fair, [self.dev[place] for place in order[:end]])
                failed = failure(mine)
                if failed is None:
                    racer.outcomes += tuple(mine)
                    self._settle(racer)
                    failed = failure(racer.outcomes)
                if failed is not None:
                    trials[racer.number] = racer.trial(metric, "failed", None, failed)
                    continue
                racer.gap = metric.aggregate(racer.measurements) - metric.aggregate(theirs[:end])
                if end < total and is_losing(metric, racer.measurements, theirs[:end]):
                    drop(racer)
                else:
                    going.append(racer)
            alive, start = going, end
            if end < total:
                ranked = sorted(going, key=lambda racer: (-racer.gap, racer.number))[: math.ceil(len(going) / 2)]
                left = self._left(ranked, ends[rung:], generation, rung, incumbent)
                kept = {racer.number for racer in ranked[:left]}
                for racer in going:
                    if racer.number not in kept:
                        drop(racer)
                alive = [racer for racer in going if racer.number in kept]
                numbers.append(len(alive))
                self.planned(generation, numbers)
                for racer in alive if rung + 1 == ROUGH_BLOCKS else ():
                    self._calibrate(racer)
        self._again(alive, order[: ends[min(ROUGH_BLOCKS, len(ends)) - 1]])
        for racer in alive:
            by_place = dict(zip(order, racer.outcomes, strict=True))
            racer.outcomes = tuple(by_place[place] for place in range(total))
            trials[racer.number] = racer.ended(metric)
        return [trials[racer.number] for racer in racers]

    def _block(
        self, alive: Sequence[Racer], places: Sequence[int], weights: Mapping[int, Mapping[str, float]]
    ) -> list[list[Outcome]]:
        """The racers' outcomes on the next rows, whose costs the pacer learns."""
        before = self.pacer.spent
        outcomes = self.evaluator.run_many([racer.candidate for racer in alive], [self.dev[place] for place in places])
        self.pacer.learn({racer.number: weights[racer.number] for racer in alive}, len(places), before)
        return outcomes

    def _left(self, ranked: Sequence[Racer], ends: Sequence[int], generation: int, rung: int, incumbent: Trial) -> int:
        """How many of the racers go on: as the schedule says, or as many as the budget allows, or as few as can be
        where the user wants an end.
        """
        known = self.schedule[generation][rung + 1 :] if generation < len(self.schedule) else ()
        if known:
            return known[0]
        refits = [self._refit(racer) for racer in ranked]
        delay = ROUGH_BLOCKS - 1 - rung
        left = self.pacer.affordable([racer.number for racer in ranked], ends, incumbent.number, refits, delay)
        return left if self.asked() is None else min(left, fewest_left(incumbent.number))

    def _refit(self, racer: Racer) -> int:
        """How many rows the calibrations of a racer will take yet."""
        if not racer.rough:
            return 0
        return min(BIAS_ROWS, len(self.rows)) - ROUGH_ROWS

    def _calibrate(self, racer: Racer, *, few: bool = False) -> None:
        """Fit a racer's calibrations: all before its first block, on a `few` rows; a bias once more after."""
        if racer.outcomes and not racer.rough:
            return
        methods = {name: way for name, way in racer.before.items() if not racer.outcomes or way == "bias"}
        if methods:
            limit = ROUGH_ROWS if few else None
            racer.candidate = calibrate(self.evaluator, racer.candidate, methods, self.rows, limit=limit)
        racer.stale = racer.rough
        racer.rough = few and len(self.rows) > ROUGH_ROWS and "bias" in methods.values()

    def _settle(self, racer: Racer) -> None:
        """A racer's batch calibrations by all that it has run on, and the rows that are answered otherwise then."""
        names = [name for name, method in racer.methods.items() if method == "batch"]
        if not names:
            return
        racer.candidate = by_batch(self.evaluator, racer.candidate, names, racer.outcomes, self.rows)
        places = overtaken(racer.candidate, names, racer.outcomes)
        if places:
            again = self.evaluator.run(racer.candidate, [racer.outcomes[place].row for place in places])
            now = dict(zip(places, again, strict=True))
            racer.outcomes = tuple(now.get(place, outcome) for place, outcome in enumerate(racer.outcomes))

    def _again(self, racers: Sequence[Racer], places: Sequence[int]) -> None:
        """The first blocks once more, for those whose calibrations were fitted again after them."""
        stale = [racer for racer in racers if racer.stale]
        if not stale:
            return
        rows = [self.dev[place] for place in places]
        for racer, mine in zip(stale, self.evaluator.run_many([r.candidate for r in stale], rows), strict=True):
            racer.outcomes = (*mine, *racer.outcomes[len(rows) :])


def failure(outcomes: Sequence[Outcome]) -> str | None:
    """Why the first call failed that has."""
    return next((outcome.error for outcome in outcomes if outcome.error), None)


def measurements_of(outcomes: Sequence[Outcome]) -> tuple[Measurement, ...]:
    """The measurements of those that have one."""
    return tuple(outcome.measurement for outcome in outcomes if outcome.measurement is not None)


def is_losing(metric: Metric, ours: Sequence[Measurement], theirs: Sequence[Measurement]) -> bool:
    """Whether a candidate does worse than the incumbent on the same examples, by a paired test at `DROP_LEVEL`.

    For a corpus metric (BLEU) the test resamples its statistics: sentence scores rank candidates differently.
    """
    if metric.width:
        return paired_test(metric, theirs, ours, resamples=RACE_RESAMPLES).p_value < DROP_LEVEL
    scores = [np.array([measurement.score for measurement in side]) for side in (ours, theirs)]
    return losing(scores[0], scores[1], level=DROP_LEVEL)
