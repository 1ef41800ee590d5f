"""The search: candidates race each other and the incumbent on the same dev examples; the winner must beat the baseline.

The uncompiled program is trial 0 and the first incumbent. Candidates come in generations that run side by side, so
that their calls fill the same batches, on growing blocks of dev, in an order of the generation's own (in one order for
all, an incumbent that was lucky on the first block would turn everything away). After each block go those of which a
paired test says that they are worse than the incumbent (racing, Maron and Moore 1994), and then the worse half of the
others (successive halving, Jamieson and Talwalkar 2016). One that reaches the end of dev with a better score becomes
the incumbent. A dropped candidate's score on all of dev is estimated by the incumbent's plus the mean paired
difference, which the strategy learns from. In the end the incumbent is compared with the baseline on all of dev by a
paired test that counts how many candidates it is the best of (`selection.py`), and the baseline is kept if the test is
not passed.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import CuecardError, RunError
from ..metrics.base import Measurement, Metric
from ..metrics.statistics import PairedResult, losing, paired_test
from ..seeds import derive_seed
from .base import Budget, Candidate, Evaluator, Outcome, Proposal, Row, Strategy, Trial
from .calibrate import BATCH_ROWS, calibrate
from .selection import best_of_many
from .space import Space

FIRST_BLOCK = 32  # of a candidate that races alone
FIRST_RUNG = 16  # of a generation: all of it is seen so far
DROP_LEVEL = 0.15
ACCEPT_LEVEL = 0.05
RACE_RESAMPLES = 500
ANSWER_TOKENS = 60.0  # about what an answer costs, in prompt tokens
WEIGHED = 4  # rows whose prompts tell what a candidate's runs cost
MOST_DUPLICATES = 200

Observer = Callable[[Trial], None]


@dataclass(frozen=True)
class SearchResult:
    """The outcome. `best` is the last incumbent, `verdict` its paired comparison with the baseline (None when the
    baseline was never beaten), `accepted` whether it passed; `chosen` is `best` then, else the baseline.

    `prompt_only` is what would have been chosen without heads, where they were.

    The verdict's `p_value` is that of the best of all candidates that ran on all of dev; its other numbers are the
    pair's own.
    """

    baseline: Trial
    best: Trial
    verdict: PairedResult | None
    accepted: bool
    trials: int
    stopped_by: str
    prompt_only: Trial | None = None

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
class _Racer:
    """A candidate on its way through dev."""

    number: int
    proposal: Proposal
    candidate: Candidate
    key: str
    measurements: tuple[Measurement, ...] = ()
    unread: int = 0
    gap: float = 0.0
    weight: float = 1.0

    def trial(self, metric: Metric, status: str, estimate: float | None, reason: str | None = None) -> Trial:
        """What is known of it now."""
        score = metric.aggregate(self.measurements) if self.measurements else None
        return Trial(self.number, self.proposal.params, self.candidate, status, len(self.measurements), score, estimate,
                     self.unread, reason, False, self.measurements)  # fmt: skip


@dataclass
class Search:
    """One search over one space. `calibration_rows` are labelled rows that dev does not hold.

    width: how many candidates race side by side; schedule: the generations of an earlier life of this search, which
    are followed before the budget is asked again: each the number of candidates that began it and how many were left
    after each of its blocks; planned: told of a generation before it begins and after each block; later: how many rows
    the baseline and the winner will each run on after the search, whose seconds are kept back.
    """

    evaluator: Evaluator
    space: Space
    dev: Sequence[Row]
    calibration_rows: Sequence[Row]
    budget: Budget
    seed: int
    observer: Observer
    width: int = 1
    schedule: Sequence[Sequence[int]] = ()
    planned: Callable[[int, Sequence[int]], None] = lambda generation, numbers: None
    later: int = 0

    def __post_init__(self) -> None:
        self.order = list(self.dev)
        random.Random(derive_seed(self.seed, "dev")).shuffle(self.order)
        self.rows = list(self.calibration_rows)
        random.Random(derive_seed(self.seed, "calibration")).shuffle(self.rows)
        self._pace: dict[int, float] = {}  # trial -> seconds a row, in the last block that it ran

    def baseline(self, candidate: Candidate) -> Trial:
        """Run the baseline on all of dev. Raises `RunError` when a call fails: nothing could be compared with it."""
        began = self.evaluator.elapsed()
        outcomes = self.evaluator.run(candidate, self.order)
        self._pace[0] = (self.evaluator.elapsed() - began) / max(1, len(self.order))
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
        metric = self.evaluator.metric
        best = baseline
        seen = {_key(baseline.candidate, {}): baseline.estimate or 0.0}
        complete: list[Trial] = []
        number, generation, pace = 1, 0, self._first_pace()
        while True:
            width, stopped_by = self._next_width(generation, number, pace, best)
            if not width:
                break
            before = self._spent()
            racers, twins = self._draw(strategy, width, number, seen)
            if not racers:
                stopped_by = "exhausted"
                break
            self.planned(generation, [width])
            for trial, racer in zip(self._race(racers, best, generation), racers, strict=True):
                if trial.status == "complete":
                    complete.append(trial)
                    if self._better(trial, best):
                        trial = replace(trial, best=True)
                        best = trial
                value = metric.low if trial.estimate is None else trial.estimate
                seen[racer.key] = value
                strategy.observe(racer.proposal, value, trial.best)
                self.observer(trial)
            for twin, key in twins:
                strategy.observe(twin, seen[key], best=False)
            calls, seconds = (now - then for now, then in zip(self._spent(), before, strict=True))
            ratio = max(1.0, calls / self._most_calls(len(racers)))  # more than one where there are calibrations
            pace = ratio, ratio * seconds / calls
            number, generation = number + len(racers), generation + 1
        return self._confirm(baseline, best, complete, number, stopped_by)

    def challenge(self, result: SearchResult, candidate: Candidate, params: Mapping[str, Any]) -> SearchResult:
        """The result when one more candidate, made without a look at dev, runs on all of dev against the chosen one.

        Its test against the baseline counts as one of two (Bonferroni).
        """
        metric, number = self.evaluator.metric, result.trials
        trial = self._ran(number, params, candidate, self.evaluator.run(candidate, self.order))
        result = replace(result, trials=number + 1, prompt_only=result.chosen)
        if trial.status == "complete" and self._better(trial, result.chosen):
            seed = derive_seed(self.seed, "challenge") % 2**32
            verdict = paired_test(metric, trial.measurements, result.baseline.measurements, seed=seed)
            p_value = min(1.0, 2 * verdict.p_value)
            accepted = verdict.difference > 0 and p_value < ACCEPT_LEVEL
            if accepted:
                trial = replace(trial, best=True)
                result = replace(result, best=trial, verdict=replace(verdict, p_value=p_value), accepted=True)
        self.observer(trial)
        return result

    def settle(
        self, baseline: Trial, found: Candidate, known: Sequence[tuple[Candidate, Sequence[Outcome]]], stopped_by: str
    ) -> SearchResult:
        """The result of a search that was made elsewhere and chose `found`, which must beat the baseline like any.

        known: the candidates that ran on all of dev there, with their outcomes in the order of `order`.
        """
        ran = {candidate.digest: (candidate, outcomes) for candidate, outcomes in known}
        ran.setdefault(found.digest, (found, ()))
        ran.pop(baseline.candidate.digest, None)
        best, complete = baseline, []
        for number, (candidate, given) in enumerate(ran.values(), start=1):
            trial = self._ran(number, {}, candidate, given or self.evaluator.run(candidate, self.order))
            if trial.status == "complete":
                complete.append(trial)
                if candidate.digest == found.digest and self._better(trial, baseline):
                    best = trial = replace(trial, best=True)
            self.observer(trial)
        return self._confirm(baseline, best, complete, 1 + len(ran), stopped_by)

    def _ran(self, number: int, params: Mapping[str, Any], candidate: Candidate, outcomes: Sequence[Outcome]) -> Trial:
        """The trial of a candidate that ran on all of dev outside a race."""
        metric = self.evaluator.metric
        racer = _Racer(number, Proposal(params, number), candidate, candidate.digest, _measurements(outcomes))
        racer.unread = sum(outcome.unread is not None for outcome in outcomes)
        failed = next((outcome.error for outcome in outcomes if outcome.error), None)
        score = None if failed else metric.aggregate(racer.measurements)
        return racer.trial(metric, "failed" if failed else "complete", score, failed)

    def _spent(self) -> tuple[float, float]:
        return self.evaluator.spent, self.evaluator.elapsed()

    def _first_pace(self) -> tuple[float, float]:
        """`pace` before anything has raced: what calibrations cost is added, and seconds are not known."""
        calibrated = any("+" in readout for part in self.space.predictors for readout in part.readouts)
        extra = self.width * min(BATCH_ROWS, len(self.rows)) if calibrated else 0
        return 1.0 + extra / self._most_calls(self.width), 0.0

    def _next_width(self, generation: int, trials: int, pace: tuple[float, float], best: Trial) -> tuple[int, str]:
        """How many candidates race next, and, when it is none, what stopped the search.

        pace: metric calls and seconds that the last generation took for each run which nobody's losing would have
        spared it. The last generations are as narrow as the rest of the budget asks for.
        """
        if generation < len(self.schedule):
            return self.schedule[generation][0], ""
        reached = self.budget.spent_on(self.evaluator, trials)
        if reached is not None:
            return 0, reached
        width = self.width if self.budget.trials is None else min(self.width, self.budget.trials - trials)
        seconds = self.budget.seconds
        if seconds is not None:
            seconds -= self.later * self._later_pace(best, 0.0)
        left = [
            math.inf if limit is None else limit - spent
            for limit, spent in zip((self.budget.metric_calls, seconds), self._spent(), strict=True)
        ]
        if left[1] <= 0 or pace[1] * self._most_calls(1) > left[1]:
            return 0, "seconds"
        while width > 1 and any(each * self._most_calls(width) > rest for each, rest in zip(pace, left, strict=True)):
            width -= 1
        return width, ""

    def _affordable(self, ranked: Sequence[_Racer], ends: Sequence[int], best: Trial) -> int:
        """How many of the racers, the best first, can run on to the end of dev in the seconds that are left.

        One at least where nothing has beaten the baseline yet: else the seconds that were spent would be for nothing.
        ends: where the block that was just run ends, and those to come.
        """
        if self.budget.seconds is None or not ranked:
            return len(ranked)
        paces = [self._pace[racer.number] for racer in ranked]
        left = self.budget.seconds - self.evaluator.elapsed() - self.later * self._later_pace(best, paces[0])
        blocks = [after - before for before, after in itertools.pairwise(ends)]

        def seconds(alive: int) -> float:
            return sum(size * sum(paces[: math.ceil(alive / 2**place)]) for place, size in enumerate(blocks))

        fewest = 1 if best.number == 0 else 0
        return next((alive for alive in range(len(ranked), fewest, -1) if seconds(alive) <= left), fewest)

    def _weight(self, candidate: Candidate) -> float:
        """What a run of a candidate costs, next to others: the tokens that no other row shares, and the answer's."""
        if self.budget.seconds is None:
            return 1.0
        with contextlib.suppress(CuecardError):  # a prompt that is too long: its run will say so
            return ANSWER_TOKENS + self.evaluator.own_tokens(candidate, self.order[:WEIGHED])
        return ANSWER_TOKENS

    def _later_pace(self, best: Trial, pace: float) -> float:
        """Seconds a row of what comes after the search: the baseline and the winner, which may be as slow as `pace`."""
        return self._pace[0] + max(pace, self._pace.get(best.number, 0.0))

    def _most_calls(self, width: int) -> int:
        """How many program runs a generation makes when nobody is dropped for losing."""
        calls, start = 0, 0
        alive = width
        for end in self._rungs(width):
            calls, start, alive = calls + alive * (end - start), end, math.ceil(alive / 2)
        return calls

    def _rungs(self, width: int) -> list[int]:
        return blocks(len(self.order), FIRST_BLOCK if width == 1 else FIRST_RUNG)

    def _draw(
        self, strategy: Strategy, width: int, number: int, seen: Mapping[str, float]
    ) -> tuple[list[_Racer], list[tuple[Proposal, str]]]:
        """Up to `width` candidates that have not run yet, and the proposals that come to the same as one of them, each
        with its key.

        What has run before, the strategy is told again.
        """
        racers: list[_Racer] = []
        twins: list[tuple[Proposal, str]] = []
        drawn: set[str] = set()
        repeated = 0
        while len(racers) < width and repeated <= MOST_DUPLICATES:
            proposal = strategy.propose()
            if proposal is None:
                break
            self.space = getattr(strategy, "space", self.space)  # a strategy may have grown it
            candidate = Candidate(self.space.states(proposal.params))
            key = _key(candidate, self.space.calibrations(proposal.params))
            repeated += key in seen or key in drawn
            if key in seen:
                strategy.observe(proposal, seen[key], best=False)
            elif key in drawn:
                twins.append((proposal, key))
            else:
                drawn.add(key)
                racers.append(_Racer(number + len(racers), proposal, candidate, key))
        return racers, twins

    def _race(self, racers: Sequence[_Racer], incumbent: Trial, generation: int) -> list[Trial]:
        """Run a generation; one trial per racer, in their order."""
        metric, total = self.evaluator.metric, len(self.order)
        for racer in racers:
            if methods := self.space.calibrations(racer.proposal.params):
                racer.candidate = calibrate(self.evaluator, racer.candidate, methods, self.rows)
            racer.weight = self._weight(racer.candidate)
        order = list(range(total))
        random.Random(derive_seed(self.seed, "order", generation)).shuffle(order)
        theirs = [incumbent.measurements[place] for place in order]
        trials: dict[int, Trial] = {}
        numbers = [len(racers)]

        def drop(racer: _Racer) -> None:
            estimate = max(metric.low, (incumbent.score or 0.0) + racer.gap)
            trials[racer.number] = racer.trial(metric, "dropped", estimate)

        alive, start = list(racers), 0
        rungs = self._rungs(len(racers))
        for rung, end in enumerate(rungs):
            if not alive:
                break
            rows = [self.order[place] for place in order[start:end]]
            began = self.evaluator.elapsed()
            outcomes = self.evaluator.run_many([racer.candidate for racer in alive], rows)
            seconds = self.evaluator.elapsed() - began
            every = len(rows) * sum(racer.weight for racer in alive)
            self._pace |= {racer.number: seconds * racer.weight / every for racer in alive}
            going = []
            for racer, mine in zip(alive, outcomes, strict=True):
                failed = next((outcome.error for outcome in mine if outcome.error), None)
                if failed is not None:
                    trials[racer.number] = racer.trial(metric, "failed", None, failed)
                    continue
                racer.measurements += _measurements(mine)
                racer.unread += sum(outcome.unread is not None for outcome in mine)
                racer.gap = metric.aggregate(racer.measurements) - metric.aggregate(theirs[:end])
                if end < total and is_losing(metric, racer.measurements, theirs[:end]):
                    drop(racer)
                else:
                    going.append(racer)
            alive, start = going, end
            if end < total:
                ranked = sorted(going, key=lambda racer: (-racer.gap, racer.number))
                known = self.schedule[generation][rung + 1 :] if generation < len(self.schedule) else ()
                half = ranked[: math.ceil(len(going) / 2)]
                left = known[0] if known else self._affordable(half, rungs[rung:], incumbent)
                for racer in ranked[left:]:
                    drop(racer)
                alive = [racer for racer in going if racer.number not in trials]
                numbers.append(len(alive))
                self.planned(generation, numbers)
        for racer in alive:
            by_place = dict(zip(order, racer.measurements, strict=True))
            racer.measurements = tuple(by_place[place] for place in range(total))
            trials[racer.number] = racer.trial(metric, "complete", metric.aggregate(racer.measurements))
        return [trials[racer.number] for racer in racers]

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
