"""`simba`: the programs of a pool get a demo or a rule at a time, by what varies on small batches of train.

The method is DSPy's SIMBA (stochastic introspective mini-batch ascent, `dspy/teleprompt/simba.py` and `simba_utils.py`
of DSPy 3.4). A step draws a batch of train rows and, by a softmax of their scores, programs of the pool, which run the
batch under varied decoding. Rows are ranked by the gap between their best run and their worst. For each of the first
ones, a program of the pool, drawn likewise and with some of its demos dropped, gets either a demo (what its steps took
and gave in the best run) or a rule (the model is shown the best run and the worst, and its advice goes below the
instruction). These candidates race on dev like any other, in place of DSPy's scores on the batch and of its last look
at train, and enter the pool with the score that comes of it. The next step begins when all of them are known.

What else is not as there. One program is drawn for a run of the whole batch, not one for each row, so that rows share
prompts and the runs fill engine batches; the first has the program's own decoding, and what would come to the same is
run once. A batch leaves room in the budget for the race. Each step of the program is asked about by itself, in plain
text that a small model can write, and only where the two runs part. A best run with the metric's best score, and a
worst run with its worst, are not passed over for the batch's percentiles: most rows of a 0/1 metric share those. Where
a step comes to fewer candidates, the instructions that the space began with fill it.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from ..errors import InputError
from ..models.lm import bridge_of
from ..programs.state import PredictorState
from ..programs.votes import generates
from ..seeds import derive_seed
from .base import Candidate, Evaluator, Proposal, Row, Step, Strategy, spending
from .context import StrategyContext
from .demos import Demo
from .grounding import Ground, cut
from .proposals import echoes, sieve
from .proposers import Asking
from .proposers import asked as asked_of
from .rules import Change, Run, parted, read_rule, rule_prompt
from .space import Space
from .strategies import PromptPart, PromptSpace, parts_of, plain_point, prompt_space
from .wording import Signature, followed_below

DEMO, RULE = "demo", "rule"
TEMPERATURE = 1.0  # of all runs of a batch but the first, where the program's own is lower
FEWEST_ROWS = 4  # of a batch: with fewer there is little to rank
FRUITLESS = 3  # steps without a candidate after which there is nothing left to try
RULE_ASKING = Asking(max_tokens=128)
DROPPING = 3  # demos of which one is dropped on average, where none are added

States = dict[str, PredictorState]


@dataclass(frozen=True)
class SimbaOptions:
    """What can be set, by DSPy's names and with its defaults, but for max_steps, which is without end here.

    bsize: rows of a batch; num_candidates: how many programs run it, one less than the most candidates of a step;
    max_demos: of a predictor, 0 for rules alone; demo_input_field_maxlen: characters of a demo's input. The softmax is
    over scores from 0 to 1: temperature_for_sampling is that of the programs that run a batch,
    temperature_for_candidates of those that are changed.
    """

    bsize: int = 32
    num_candidates: int = 6
    max_steps: int | None = None
    max_demos: int = 4
    demo_input_field_maxlen: int = 100_000
    temperature_for_sampling: float = 0.2
    temperature_for_candidates: float = 0.2

    @classmethod
    def of(cls, context: StrategyContext) -> SimbaOptions:
        """The options of a context. Raises `InputError`."""
        given = context.options
        names = [field.name for field in fields(cls)]
        replace(context, options=dict.fromkeys(given, 1)).counts(**dict.fromkeys(names, 1))  # are there such options?
        for name, value in given.items():
            if name.startswith("temperature"):
                expected, fits = "a number above 0", type(value) in (int, float) and 0 < value < math.inf
            else:
                least = 0 if name == "max_demos" else 1
                expected, fits = f"a whole number of at least {least}", type(value) is int and value >= least
            if not fits:
                raise InputError(f"{name} is {value!r}", field="optimize.optimizer", expected=expected)
        return cls(**given)


@dataclass(frozen=True)
class ShownPart(PromptPart):
    """A prompt part whose points show the demos of their set, and else none: the program's own are a set, too."""

    def state(self, params: Mapping[str, Any]) -> PredictorState:
        """See `PredictorSpace.state`."""
        count = int(params.get(f"{self.name}.demos", 0))
        demos = self.demo_sets[int(params[f"{self.name}.demo_set"])][:count] if count else ()
        return super().state(params).model_copy(update={"demos": demos})


class Simba:
    """See the module. `dropped`: reason -> how many rules were dropped for it."""

    def __init__(
        self, space: PromptSpace, seed: int, context: StrategyContext, baseline: float, options: SimbaOptions
    ) -> None:
        self.seed, self.context, self.options = seed, context, options
        self.most = {part.name: min(options.max_demos, part.demo_counts[-1]) for part in space.predictors}
        own = {part.name: part.state(plain_point(space)) for part in space.predictors}
        bare = {"demo_sets": (), "demo_counts": (0,), "nearest_counts": (0,)}
        parts = [{known.name: getattr(part, known.name) for known in fields(part)} for part in parts_of(space)]
        self.space = PromptSpace(tuple(ShownPart(**{**part, **bare}) for part in parts))
        zero = self._point(own)
        self.pool: list[tuple[dict[str, Any], float]] = [(zero, baseline)]
        self.dropped: Counter[str] = Counter()
        self.steps = 0
        self._known = [zero]
        self._begun = [
            {**zero, f"{part.name}.instruction": place}
            for place in range(1, max((len(part.instructions) for part in space.predictors), default=0))
            for part in space.predictors
            if place < len(part.instructions)
        ]
        self._queue: list[dict[str, Any]] = []
        self._out: set[int] = set()
        self._asked = 0
        self._rows: list[Row] = []

    def propose(self) -> Proposal | None:
        """See `Strategy.propose`. None also where the next step waits for points that are out."""
        fruitless = 0
        while not self._queue and not self._out and fruitless < FRUITLESS:
            if self.options.max_steps is not None and self.steps >= self.options.max_steps:
                break
            self._queue = self._step()
            self.steps += 1
            fruitless += 1
        if not self._queue:
            return None
        self._asked += 1
        self._out.add(self._asked)
        return Proposal(self._queue.pop(0), self._asked)

    def observe(self, proposal: Proposal, value: float, best: bool) -> None:
        """See `Strategy.observe`. The point enters the pool."""
        self._out.discard(proposal.key)
        self.pool.append((dict(proposal.params), value))

    # ---- a step

    def _step(self) -> list[dict[str, Any]]:
        """The points of the next step: changed programs, then instructions that the space began with."""
        found = [self._point(states) for states in self._changed()]
        room = self.options.num_candidates + 1 - len(found)
        found += self._begun[:room]
        self._begun = self._begun[room:]
        fresh = [point for place, point in enumerate(found) if point not in (*self._known, *found[:place])]
        self._known += fresh
        return fresh

    def _point(self, states: Mapping[str, PredictorState]) -> dict[str, Any]:
        """The point of a program; the space grows by what it does not have."""
        point: dict[str, Any] = {}
        parts = []
        for part in parts_of(self.space):
            text, demos = states[part.name].instructions or "", states[part.name].demos
            texts = part.instructions if text in part.instructions else (*part.instructions, text)
            sets = part.demo_sets if not demos or demos in part.demo_sets else (*part.demo_sets, demos)
            counts = tuple(sorted({*part.demo_counts, len(demos)}))
            parts.append(replace(part, instructions=texts, demo_sets=sets, demo_counts=counts))
            values = {"instruction": texts.index(text), "demos": len(demos), "nearest": 0}
            values |= {"demo_set": sets.index(demos)} if demos else {}
            point |= {f"{part.name}.{name}": value for name, value in values.items()}
        self.space = PromptSpace(tuple(parts))
        return point

    def _changed(self) -> list[States]:
        """The programs that a batch leads to."""
        evaluator, options = self.context.evaluator, self.options
        ways = [DEMO] if any(self.most.values()) else []
        ways += [] if self.context.lm is None else [RULE]
        count, width = self._sizes()
        if evaluator is None or not ways or not count:
            return []
        generator = random.Random(derive_seed(self.seed, "simba", self.steps))
        drops = np.random.default_rng(derive_seed(self.seed, "drops", self.steps))
        batch = self._batch(count)
        runs = self._runs(evaluator, batch, width, generator)
        scores = [run.score for each in runs for run in each]
        low, high = (float(np.percentile(scores or [0.0], share)) for share in (10, 90))
        changes: list[Change] = []
        for each in sorted(runs, key=_spread, reverse=True):
            if len(changes) > options.num_candidates:
                break
            source = self._drawn(generator, options.temperature_for_candidates)
            change = Change(self._shortened(source, generator, drops), generator.choice(ways), each[0], each[-1])
            poor = change.good.score <= low and change.good.score < evaluator.metric.high
            fine = change.bad.score >= high and change.bad.score > evaluator.metric.low
            if change.good.outcome.unread is None and not poor and not (change.way == RULE and fine):
                changes.append(change)
        advised = iter(self._advised(evaluator, [change for change in changes if change.way == RULE], batch))
        made = [next(advised) if change.way == RULE else self._shown(change) for change in changes]
        return [new for new, change in zip(made, changes, strict=True) if new != change.states]

    def _sizes(self) -> tuple[int, int]:
        """How many rows the next batch has, and how many programs run it; no rows where the budget has no room.

        A step's candidates may each take as much again as the batch does. The clock has no say: a search that is taken
        up again must draw the same batch.
        """
        evaluator, wanted = self.context.evaluator, self.options.num_candidates
        most = min(self.options.bsize, len(self.context.rows))
        if evaluator is None or not most:
            return 0, 0
        left, spent = self.context.runs_left, spending(evaluator)
        for name in ("model_calls", "tokens"):
            if name in self.context.budget.limits and spent[name]:
                rest = self.context.budget.limits[name] - spent[name]
                left = min(left, rest * evaluator.spent / spent[name])
        allowed = max(0.0, min(wanted * most, left / (wanted + 2)))
        width = int(min(wanted, allowed // min(FEWEST_ROWS, most)))
        return (int(min(most, allowed // width)), width) if width >= min(2, wanted) else (0, 0)

    def _batch(self, count: int) -> list[Row]:
        """The next rows of train, which is shuffled anew where too few are left."""
        if len(self._rows) < count:
            self._rows = list(self.context.rows)
            random.Random(derive_seed(self.seed, "rows", self.steps)).shuffle(self._rows)
        batch, self._rows = self._rows[:count], self._rows[count:]
        return batch

    def _runs(
        self, evaluator: Evaluator, batch: Sequence[Row], width: int, generator: random.Random
    ) -> list[list[Run]]:
        """For each row that has one, its runs with a score, the best first."""
        drawn = [self._drawn(generator, self.options.temperature_for_sampling) for _ in range(width)]
        varied = [Candidate(self._varied(params, place)) for place, params in enumerate(drawn)]
        different = {candidate.digest: candidate for candidate in varied}
        found = []
        for each in zip(*evaluator.run_many(list(different.values()), batch), strict=True):
            runs = [Run(outcome, outcome.measurement.score) for outcome in each if outcome.measurement is not None]
            found.append(sorted(runs, key=lambda run: -run.score))
        return [runs for runs in found if runs]

    def _drawn(self, generator: random.Random, temperature: float) -> dict[str, Any]:
        """One of the best programs of the pool and the first one, by the softmax of their scores."""
        top = sorted(range(len(self.pool)), key=lambda place: -self.pool[place][1])[: self.options.num_candidates]
        if 0 not in top:
            top[-1] = 0
        values = [self.pool[place][1] for place in top]
        metric = None if self.context.evaluator is None else self.context.evaluator.metric
        scale = temperature * (1.0 if metric is None else metric.high - metric.low)
        weights = [math.exp((value - max(values)) / scale) for value in values]
        return self.pool[generator.choices(top, weights)[0]][0]

    def _varied(self, params: Mapping[str, Any], place: int) -> States:
        """A program as it runs in this place: in the first as ever, in others what it generates is drawn."""
        found = self.space.states(params)
        for part in self.space.predictors if place else ():
            state = found[part.name]
            if generates(part.signature, state.readout.kind, state.readout.heads):
                seed = derive_seed(self.seed, "run", self.steps, place)
                drawn = {"temperature": max(state.decoding.temperature, TEMPERATURE), "seed": seed}
                alone = state.readout.model_copy(update={"votes": None})
                changes = {"readout": alone, "decoding": state.decoding.model_copy(update=drawn)}
                found[part.name] = state.model_copy(update=changes)
        return found

    # ---- what is changed

    def _shortened(self, params: Mapping[str, Any], generator: random.Random, drops: np.random.Generator) -> States:
        """A program without some of its demos, at the same places for all predictors; one goes at least where there are
        as many as may be.
        """
        states = self.space.states(params)
        count = max(len(state.demos) for state in states.values())
        full = self.options.max_demos or DROPPING
        drawn = max(int(drops.poisson(count / full)), int(count >= full))
        gone = {generator.randrange(count) for _ in range(min(drawn, count))}
        kept = {name: [demo for n, demo in enumerate(state.demos) if n not in gone] for name, state in states.items()}
        return {name: state.model_copy(update={"demos": tuple(kept[name])}) for name, state in states.items()}

    def _shown(self, change: Change) -> States:
        """The program with one demo more for each predictor, from the best run's own calls; none that it has."""
        found = dict(change.states)
        for part in parts_of(self.space):
            step, demos = change.good.step(part.name), found[part.name].demos
            if step is None or not self.most[part.name]:
                continue
            demo = self._demo(part.signature, step)
            most = max(self.most[part.name], len(part.base.demos))
            if demo not in demos:
                found[part.name] = found[part.name].model_copy(update={"demos": (*demos, demo)[-most:]})
        return found

    def _demo(self, signature: Signature, step: Step) -> Demo:
        """A predictor's call as a demo; texts that are too long are cut."""
        limit = self.options.demo_input_field_maxlen
        values = {name: value for name, value in {**step.inputs, **step.outputs}.items() if name in signature.fields}
        long = [name for name in step.inputs if isinstance(values.get(name), str) and len(values[name]) > limit]
        return {**values, **{name: cut(values[name], limit) for name in long}}

    def _advised(self, evaluator: Evaluator, changes: Sequence[Change], batch: Sequence[Row]) -> list[States]:
        """Each change's program with the model's rules, as far as they can be used. All are asked for at once."""
        lm = self.context.lm
        found = [dict(change.states) for change in changes]
        if lm is None:
            return found
        signatures = {part.name: part.signature for part in self.space.predictors}
        columns = {name: evaluator.columns(name) for name in signatures}
        asked = []
        for place, change in enumerate(changes):
            for name, miss in parted(change, signatures, columns):
                ground = Ground(signatures, name, description=self.context.description)
                asked.append((place, name, rule_prompt(ground, change, miss)))
        answers = asked_of(lm, [prompt for _, _, prompt in asked], bridge_of(lm), RULE_ASKING)
        for (place, name, prompt), answer in zip(asked, answers, strict=True):
            now = found[place][name].instructions or ""
            judge = sieve(signatures[name], [_gold(row, columns[name]) for row in batch], [now])
            rule, dropped = read_rule(answer, now, judge, echoes(prompt, [now, self.context.description]))
            self.dropped.update(dropped)
            if rule is not None:
                longer = {"instructions": followed_below(now, rule)}
                found[place][name] = found[place][name].model_copy(update=longer)
        return found


def _spread(runs: Sequence[Run]) -> tuple[float, float, float]:
    """How much the runs of a row vary, those with the best scores first: the gap to the worst, then to the mean."""
    best, scores = runs[0].score, [run.score for run in runs]
    return best - runs[-1].score, best, best - sum(scores) / len(scores)


def _gold(row: Row, columns: Mapping[str, str]) -> dict[str, Any]:
    """What the row holds of a predictor's fields."""
    values = {**row.inputs, **row.labels}
    return {name: values[column] for name, column in columns.items() if column in values}


def simba(
    space: Space, *, seed: int, baseline: float, storage: Any = None, context: StrategyContext | None = None
) -> Strategy:
    """Demos and rules by what varies on batches of train. Options: `SimbaOptions`."""
    context = context or StrategyContext()
    return Simba(prompt_space(space, context), seed, context, baseline, SimbaOptions.of(context))
