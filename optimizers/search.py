"""The search: candidates race each other and the incumbent on the same dev examples; the winner must beat the baseline.

The uncompiled program is trial 0 and the first incumbent. Candidates come in generations (`racing.py`), as wide as what
is left of the budget allows (`pacing.py`). One that reaches the end of dev with a better score becomes the incumbent;
the strategy learns from every candidate's score, or what it would have been on all of dev. In the end the incumbent is
compared with the baseline on all of dev by a paired test that counts how many candidates it is the best of
(`selection.py`), and the baseline is kept if the test is not passed.

Where the study is shared with other processes (`shared.py`), what they have run is taken in before each generation:
their best is the one to beat here, too, and in the end all that ran on all of dev count, whoever ran them.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import CuecardError, RunError
from ..metrics.statistics import PairedResult, paired_test
from ..seeds import derive_seed
from .base import Budget, Candidate, Evaluator, Outcome, Proposal, Row, Sharing, Strategy, Trial
from .calibrate import BIAS_ROWS
from .front import FrontRule, Point, front
from .pacing import EVEN, FIRST_RUNG, WEIGHED, Pacer
from .racing import ROUGH_BLOCKS, ROUGH_ROWS, Planned, Race, Racer
from .recalibrate import Known
from .refit import by_label, changed, hopeful, to_refit
from .selection import best_of_many
from .space import Space
from .stopping import Asked, StopRules

ACCEPT_LEVEL = 0.05
MOST_DUPLICATES = 200

Observer = Callable[[Trial], None]


@dataclass(frozen=True)
class SearchResult:
    """The outcome. `best` is the last incumbent, `verdict` its paired comparison with the baseline (None when the
    baseline was never beaten), `accepted` whether it passed; `chosen` is `best` then, else the baseline.

    `prompt_only` is what would have been chosen without heads, where they were. `front`: of all that ran on all of dev,
    the baseline included, those that no other beats on both score and prompt length. `left_out`: what was asked for on
    top of the search and not tried, since the budget had no room for it; `read`: how many prompts heads were fitted on
    outside of the program's runs, a metric call each; `others`: how many of the trials other processes of a shared
    study ran. `dev`: the examples of dev, as the measurements of trials that ran on all of them are ordered;
    `complete`: those trials, but for the baseline; `by_label`: the best with a prompt for each label, dropped or not.

    The verdict's `p_value` counts all candidates that ran on all of dev; its other numbers are the pair's own. Under a
    rule that asks for a score and for short prompts, a baseline that has the score gives way to a shorter program that
    has it as well.
    """

    baseline: Trial
    best: Trial
    verdict: PairedResult | None
    accepted: bool
    trials: int
    stopped_by: str
    prompt_only: Trial | None = None
    front: tuple[Point, ...] = ()
    dev: Sequence[Row] = field(default=(), repr=False)
    left_out: tuple[str, ...] = ()
    read: int = 0
    others: int = 0
    complete: tuple[Trial, ...] = field(default=(), repr=False)
    by_label: Trial | None = field(default=None, repr=False)

    @property
    def chosen(self) -> Trial:
        """What the compiled program is."""
        return self.best if self.accepted else self.baseline


@dataclass
class Standing:
    """How a search stands: the best trial; by a point's key (`key_of`) its score, or what it would be on all of dev,
    and its trial where it ran on all of it; the number of the next trial; how many of those before it `others` ran; and
    the best with a prompt for each label, dropped or not.
    """

    best: Trial
    seen: dict[str, float]
    complete: dict[str, Trial] = field(default_factory=dict)
    number: int = 1
    others: int = 0
    by_label: Trial | None = None


@dataclass
class Search:
    """One search over one space. `calibration_rows` are labelled rows that dev does not hold.

    width: how many candidates race side by side; schedule: the generations of an earlier life of this search, which
    are followed before the budget is asked again: each the number of candidates that began it and how many were left
    after each of its blocks; planned: told of a generation before it begins and after each block; later: how many rows
    the baseline and the winner will each run on after the search, whose costs are kept back; rules: when it ends before
    its budget; asked: whether the user wants it to end, asked before each generation and after each block; first_rung:
    the rows after which a generation is judged for the first time; rule: which of the programs is taken; refit: how
    many metric calls are kept back, on top of what the pacer keeps, where there are candidates with a prompt for each
    label, and the best of those that ran is not far behind.
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
    planned: Planned = lambda generation, numbers: None
    later: int = 0
    rules: StopRules = field(default_factory=StopRules)
    asked: Asked = lambda: None
    first_rung: int = FIRST_RUNG
    rule: FrontRule = field(default_factory=FrontRule)
    refit: int = 0

    def __post_init__(self) -> None:
        self.order = list(self.dev)
        random.Random(derive_seed(self.seed, "dev")).shuffle(self.order)
        self.rows = list(self.calibration_rows)
        random.Random(derive_seed(self.seed, "calibration")).shuffle(self.rows)
        self._challenges = 0
        self._changed: set[str] = set()  # predictors that are given other inputs than a row has
        self.ran: dict[str, Sequence[Outcome]] = {}  # by digest, of those that ran on all of dev
        self.pacer = Pacer(self.evaluator, self.budget, self.order, self.later, self.first_rung)

    def baseline(self, candidate: Candidate) -> Trial:
        """Run the baseline on all of dev. Raises `RunError` when a call fails: nothing could be compared with it."""
        before = self.pacer.spent
        outcomes = self.evaluator.run(candidate, self.order)
        self.pacer.learn({0: EVEN}, max(1, len(self.order)), before)
        failed = [outcome.error for outcome in outcomes if outcome.error]
        if failed:
            raise RunError(
                f"the uncompiled program failed on {len(failed)} of {len(outcomes)} dev examples",
                hint=f"The first failure: {failed[0]}",
            )
        trial = replace(self._ran(0, {}, candidate, outcomes), best=True)
        self.observer(trial)
        return trial

    def run(self, baseline: Trial, strategy: Strategy) -> SearchResult:
        """Propose, race and keep the best until the budget is spent or the strategy has nothing left."""
        metric, share = self.evaluator.metric, strategy.share if isinstance(strategy, Sharing) else None
        stand = Standing(baseline, {key_of(baseline.candidate, {}): baseline.estimate or 0.0})
        generation, costs = 0, self.first_costs(baseline, strategy)
        kept = self.pacer.kept
        least = costs["metric_calls"] if kept else 0.0  # calibrations of late generations may cost more
        about = (self.evaluator, self.order, self.rows, self.seed, self.pacer, self.schedule, self.planned, self.asked)
        race = Race(*about, fair=self._fair)
        while True:
            self._hear(strategy, stand, baseline)
            number, best = stand.number, stand.best
            ahead = stand.by_label is None or hopeful(metric, stand.by_label, best)
            self.pacer.kept = kept + (self.refit if ahead else 0)
            width, stopped_by = self.next_width(generation, number, costs, best, stand.others)
            if not width:
                break
            before = self.pacer.spent
            known = generation < len(self.schedule)
            full = None if known else self.pacer.filler(costs, baseline.candidate, best.number)
            racers, twins, filled = self.draw(strategy, width, number, stand.seen, full)
            begun = len(racers) if filled else width  # a draw that found too few does so again
            self.planned(generation, [begun])
            if not racers:
                stopped_by = "exhausted"
                break
            for trial, racer in zip(race.run(racers, best, generation, begun), racers, strict=True):
                trial = self._stand(stand, trial, racer.key)
                if trial.status == "complete":
                    self._see(trial.candidate, racer.outcomes)
                value = metric.low if trial.estimate is None else trial.estimate
                stand.seen[racer.key] = value
                strategy.observe(racer.proposal, value, trial.best)
                self.observer(trial)
                if share is not None:
                    share(trial)
            for twin, key in twins:
                strategy.observe(twin, stand.seen[key], best=False)
            costs = self.pacer.costs(len(racers), before)
            costs["metric_calls"] = max(costs["metric_calls"], least)
            generation += 1
        result = self._confirm(baseline, stand.best, list(stand.complete.values()), stand.number, stopped_by)
        return replace(result, others=stand.others, by_label=stand.by_label)

    def _fair(self, candidate: Candidate, outcomes: Sequence[Outcome] = ()) -> Candidate:
        """The candidate, with near demos from train alone where a row of dev could be shown its own answer: under
        predictors that were given other inputs than its rows have, in these `outcomes` or before.
        """
        states = {}
        for part in self.space.predictors:
            state = candidate.states.get(part.name)
            if not part.held or state is None or state.nearest is None or len(state.nearest.pool) == len(part.pool):
                continue
            if part.name in self._changed or changed(self.evaluator, part.name, outcomes):
                self._changed.add(part.name)
                alone = state.nearest.model_copy(update={"pool": part.pool})
                states[part.name] = state.model_copy(update={"nearest": alone})
        return Candidate({**candidate.states, **states}) if states else candidate

    def _stand(self, stand: Standing, trial: Trial, key: str) -> Trial:
        """Count a trial that is over: one that ran on all of dev and is better than the best becomes the best."""
        stand.number += 1
        if by_label(trial.candidate) and trial.estimate is not None:
            known = None if stand.by_label is None else stand.by_label.estimate
            if known is None or trial.estimate > known:
                stand.by_label = trial
        if trial.status == "complete":
            stand.complete[key] = trial
            if self._better(trial, stand.best):
                trial = stand.best = replace(trial, best=True)
        return trial

    def _hear(self, strategy: Strategy, stand: Standing, baseline: Trial) -> None:
        """Take in what other processes have run, where the study is shared, as trials of numbers of our own: what is
        known here need not run, and the best of all is the one to beat, if the rule allows it.
        """
        if not isinstance(strategy, Sharing):
            return
        self.space = getattr(strategy, "space", self.space)
        for proposal, trial in strategy.others():
            key = key_of(Candidate(self.space.states(proposal.params)), self.space.calibrations(proposal.params))
            known = stand.complete if trial.status == "complete" else stand.seen
            if not self._allowed(trial.candidate):
                strategy.observe(proposal, self.evaluator.metric.low, best=False)
            elif key in known:
                strategy.observe(proposal, stand.seen[key], best=False)
            else:
                trial = replace(trial, number=stand.number, candidate=self._fair(trial.candidate))
                self.pacer.paces[trial.number] = self._pace(trial.candidate, baseline.candidate)
                trial = self._stand(stand, trial, key)
                stand.others += 1
                stand.seen[key] = value = trial.estimate or 0.0
                strategy.observe(proposal, value, trial.best)
                self.observer(trial)

    def _pace(self, candidate: Candidate, baseline: Candidate) -> dict[str, float]:
        """What a row of a candidate costs that nothing here has timed, by what one of the baseline's did."""
        ours, theirs = self.pacer.weight(candidate), self.pacer.weight(baseline)
        return {name: each * ours[name] / theirs[name] for name, each in self.pacer.paces.get(0, EVEN).items()}

    def affords(self, trial: Trial, times: int, on_dev: float = 1.0) -> bool:
        """Whether a program that costs so many times what a trial's does can run on all of dev, and be the winner."""
        return self.pacer.affords(trial.number, times, on_dev)

    def to_refit(self, result: SearchResult) -> tuple[Trial, Candidate] | None:
        """The trial of a result whose demos dev's rows may join, and what it becomes, see `refit.to_refit`."""
        written, most = result.baseline.candidate, self.space.most_per_label
        return to_refit(self.evaluator, result.chosen, result.by_label, self.dev, written, most)

    def challenge(
        self,
        result: SearchResult,
        candidate: Candidate,
        params: Mapping[str, Any],
        *,
        prompts: bool = False,
        unfair: Callable[[Sequence[Outcome]], str | None] = lambda outcomes: None,
        run: Callable[[Evaluator, Sequence[Row]], Sequence[Outcome]] | None = None,
    ) -> SearchResult:
        """The result when one more candidate, made of the chosen one, runs on all of dev against it.

        Its test against the baseline counts as one of all that were: the search's, and the challenges' (Bonferroni).
        prompts: whether the candidate is prompts alone, which the rule then has to allow; unfair: why its outcomes on
        dev can't be trusted, if they can't; run: how it is run on dev, where that is not all of it at once.
        """
        metric, number = self.evaluator.metric, result.trials
        tokens = self._tokens(candidate)
        if prompts and not self.rule.allows(tokens):
            return result
        outcomes = self.evaluator.run(candidate, self.order) if run is None else run(self.evaluator, self.order)
        trial = self._ran(number, params, candidate, outcomes)
        if trial.status == "complete" and (reason := unfair(outcomes)):
            trial = replace(trial, status="failed", reason=reason)
        if trial.status == "complete":
            point = Point(number, trial.score or 0.0, round(tokens, 1))
            result = replace(result, front=front([*result.front, point]))
        self._challenges += 1
        result = replace(result, trials=number + 1)
        result = replace(result, complete=(*result.complete, trial)) if trial.status == "complete" else result
        if not prompts:
            result = replace(result, prompt_only=result.prompt_only or result.chosen)
        if trial.status == "complete" and self._better(trial, result.chosen):
            seed = derive_seed(self.seed, "challenge") % 2**32
            verdict = paired_test(metric, trial.measurements, result.baseline.measurements, seed=seed)
            p_value = min(1.0, (1 + self._challenges) * verdict.p_value)
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
        racer = Racer(number, Proposal(params, number), candidate, candidate.digest, outcomes=tuple(outcomes))
        self._see(candidate, outcomes)
        return racer.ended(self.evaluator.metric)

    def _see(self, candidate: Candidate, outcomes: Sequence[Outcome]) -> None:
        """Keep what became of dev's rows under a candidate that ran on all of them."""
        self.ran[candidate.digest] = tuple(outcomes)

    def known(self, result: SearchResult) -> list[Known]:
        """What ran on all of dev in this process without a failure, the chosen one first."""
        trials = {trial.candidate.digest: trial for trial in (result.chosen, result.baseline, *result.complete)}
        return [(trial, self.ran[digest]) for digest, trial in trials.items() if digest in self.ran]

    def next_width(
        self, generation: int, trials: int, costs: Mapping[str, float], best: Trial, others: int = 0
    ) -> tuple[int, str]:
        """How many candidates race next, and, when it is none, what stopped the search. others: how many of the trials
        this process has not run.
        """
        if generation < len(self.schedule):
            return self.schedule[generation][0], ""
        stopped_by = self.asked() or self.rules.reached(best, trials)
        if stopped_by is not None:
            return 0, stopped_by
        room = self.rules.room(best, trials)
        most = self.width if room is None else min(self.width, room)
        return self.pacer.width(most, trials - others, costs, best.number)

    def first_costs(self, baseline: Trial, strategy: Strategy) -> dict[str, float]:
        """What a run costs before anything has raced: what calibrations cost is added, and seconds are not known."""
        methods = {readout.partition("+")[2] for part in self.space.predictors for readout in part.readouts}
        ends, again, fresh = self.pacer.ends(self.width), 0.0, 0.0
        if "batch" in methods:
            again = ends[0]  # half of the first block is answered otherwise, and less of those after it
        elif "bias" in methods:
            again = ends[min(ROUGH_BLOCKS, len(ends)) - 1] / 4  # of the quarter that is left after two blocks
            fresh = min(ROUGH_ROWS + BIAS_ROWS / 4, len(self.rows))
        space = getattr(strategy, "space", self.space)
        weighed = self.budget.tokens is not None or self.budget.model_calls is not None
        starts = space.starts() if space.predictors and weighed else []
        first = [Candidate(space.states(point)) for point in starts]
        part = self.width / self.pacer.most_calls(self.width)
        return self.pacer.first_costs((fresh + again) * part, fresh * part, baseline.candidate, first)

    def draw(
        self,
        strategy: Strategy,
        width: int,
        number: int,
        seen: Mapping[str, float],
        full: Callable[[Candidate], bool] | None = None,
    ) -> tuple[list[Racer], list[tuple[Proposal, str]], bool]:
        """Up to `width` candidates that have not run yet, the proposals that come to the same as one of them, each with
        its key, and whether `full` ended the draw.

        What has run before, the strategy is told again; what the rule does not allow, as the worst. full: whether there
        is no room for one more after a candidate.
        """
        racers: list[Racer] = []
        twins: list[tuple[Proposal, str]] = []
        drawn: set[str] = set()
        repeated = 0
        while len(racers) < width and repeated <= MOST_DUPLICATES:
            proposal = strategy.propose()
            if proposal is None:
                break
            self.space = getattr(strategy, "space", self.space)  # a strategy may have grown it
            candidate = Candidate(self.space.states(proposal.params))
            methods = self.space.calibrations(proposal.params)
            key = key_of(candidate, methods)
            allowed = self._allowed(candidate)
            repeated += key in seen or key in drawn or not allowed
            if not allowed:
                strategy.observe(proposal, self.evaluator.metric.low, best=False)
            elif key in seen:
                strategy.observe(proposal, seen[key], best=False)
            elif key in drawn:
                twins.append((proposal, key))
            else:
                drawn.add(key)
                racers.append(Racer(number + len(racers), proposal, self._fair(candidate), key, methods))
                if full is not None and full(candidate):
                    return racers, twins, True
        return racers, twins, False

    def _allowed(self, candidate: Candidate) -> bool:
        """Whether the rule would take a candidate with prompts as long as these."""
        return self.rule.at_most_tokens is None or self.rule.allows(self._tokens(candidate))

    def _better(self, trial: Trial, incumbent: Trial) -> bool:
        """Higher on dev; at the same score, the cheaper prompt."""
        ours, theirs = trial.score or 0.0, incumbent.score or 0.0
        if ours != theirs:
            return ours > theirs
        return self._tokens(trial.candidate) < self._tokens(incumbent.candidate)

    def _tokens(self, candidate: Candidate) -> float:
        """The mean length of a candidate's prompts, on the first rows; none where one is too long to be sent."""
        with contextlib.suppress(CuecardError):
            return self.evaluator.prompt_tokens(candidate, self.order[:WEIGHED])
        return math.inf

    def _confirm(
        self, baseline: Trial, best: Trial, complete: Sequence[Trial], trials: int, stopped_by: str
    ) -> SearchResult:
        there = {trial.number: trial for trial in (baseline, *complete)}
        points = [
            Point(number, trial.score or 0.0, round(self._tokens(trial.candidate), 1))
            for number, trial in there.items()
        ]
        found = front(points)
        picked = self.rule.pick(points) if self.rule != FrontRule() else None
        best = best if picked is None else there[picked.trial]
        result = SearchResult(
            baseline, best, None, False, trials, stopped_by, front=found, dev=self.order, complete=tuple(complete)
        )
        if best is baseline:
            return result
        metric, seed = self.evaluator.metric, derive_seed(self.seed, "confirm") % 2**32
        verdict = paired_test(metric, best.measurements, baseline.measurements, seed=seed)
        raced = [trial.measurements for trial in complete]
        chance = best_of_many(metric, raced, baseline.measurements, seed=seed, of=best.measurements)
        p_value = max(verdict.p_value, chance)
        enough = self.rule.at_least is not None and (baseline.score or 0.0) >= self.rule.at_least
        accepted = enough or (verdict.difference > 0 and p_value < ACCEPT_LEVEL)
        return replace(result, verdict=replace(verdict, p_value=p_value), accepted=accepted)


def key_of(candidate: Candidate, calibrations: Mapping[str, str]) -> str:
    """What two points share that come to the same program: parameters, and how they are to be calibrated."""
    return candidate.digest + str(sorted(calibrations.items()))
