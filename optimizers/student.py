"""A program as one of DSPy's optimizers gets it: every run of it goes through the search's own evaluator.

So it has the same prompts, record and count of program runs as in any search, and an answer that can't be read is the
metric's worst. Runs are made one after another, so that the same seed gives the same program; where the optimizer walks
through a data set in order, the rows ahead are run in growing batches.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import dspy
import numpy as np

from ..errors import CuecardError
from ..programs.formats.fields import present
from ..programs.predictor import Predictor
from ..programs.state import PredictorState
from ..seeds import derive_seed
from .base import Budget, Candidate, Evaluator, Outcome, Row, spending

AHEAD = 64  # most rows that are run ahead of the one asked for


class Ended(BaseException):
    """The optimizer is to stop. No `Exception`: DSPy takes those for an example's own."""

    def __init__(self, reason: str, error: CuecardError | None = None) -> None:
        super().__init__(reason)
        self.reason, self.error = reason, error


class Answer(dspy.Prediction):
    """What a student gave, with the outcome that it comes from."""

    _outcome: Outcome | None = None


@dataclass
class Tried:
    """One candidate and what it scored, by row."""

    candidate: Candidate
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    failed: str | None = None


class Watch:
    """Runs students on the evaluator, keeps what they scored, and says when the budget is spent.

    until: the number of steps after which an earlier life of the run was stopped by the clock or the user; None where
    it was not; asked: told the number of steps, it says why the user wants an end, if he does.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        sets: Sequence[Sequence[Row]],
        baseline: Candidate,
        budget: Budget,
        until: int | None,
        asked: Callable[[int], str | None] = lambda ticks: None,
    ) -> None:
        self.evaluator, self.baseline, self.budget, self.until = evaluator, baseline, budget, until
        self.asked = asked
        self.rows = [row for rows in sets for row in rows]
        ends = np.cumsum([len(rows) for rows in sets]).tolist()
        self._end = [end for end, rows in zip(ends, sets, strict=True) for _ in rows]
        self._places: dict[str, int] = {}
        for place, row in enumerate(self.rows):
            self._places.setdefault(_key(row.inputs), place)
        self.examples = [dspy.Example({**as_demo(row), **row.inputs}).with_inputs(*row.inputs) for row in self.rows]
        self.tried: dict[str, Tried] = {}
        self.ticks = 0
        self._known: dict[tuple[str, int], Outcome] = {}
        self._last: tuple[str, int] = ("", -1)
        self._block = 1
        self._screen = sys.stdout, sys.stderr  # what DSPy prints goes elsewhere, and how far the run is does not

    def __deepcopy__(self, memo: object) -> Watch:
        return self

    def tick(self) -> None:
        """One step. Raises `Ended` when the budget does not allow for it."""
        if self.until is not None and self.ticks >= self.until:
            raise Ended("seconds")
        limits = self.budget if self.until is None else replace(self.budget, seconds=None)
        reached = limits.spent_on(self.evaluator, 0) or self.asked(self.ticks)
        if reached is not None:
            raise Ended(reached)
        self.ticks += 1

    def outcome(self, candidate: Candidate, inputs: Mapping[str, Any], drawn: Candidate) -> Outcome:
        """A program run. `drawn`: the candidate with the sampling that DSPy asked for just now."""
        digest, place = drawn.digest, self._places.get(_key(inputs))
        if place is None:
            self.tick()
            return self._run(drawn, [_Unknown(dict(inputs))])[0]
        if (digest, place) not in self._known:
            self.tick()
            ahead = self._ahead(digest, place)
            rows = [self.rows[each] for each in ahead]
            for each, outcome in zip(ahead, self._run(drawn, rows), strict=True):
                self._known[digest, each] = outcome
        self._last = digest, place
        outcome = self._known[digest, place]
        tried = self.tried.setdefault(candidate.digest, Tried(candidate))
        if outcome.error is not None:
            tried.failed = outcome.error
        elif outcome.measurement is not None and drawn is candidate:
            tried.outcomes[place] = outcome
        return outcome

    def _ahead(self, digest: str, place: int) -> list[int]:
        """The row asked for, and those after it when the rows before it were asked for as well, in growing numbers."""
        self._block = min(2 * self._block, AHEAD) if self._last == (digest, place - 1) else 1
        count = max(1, min(self._block, int(self._runs_left())))
        places = range(place, min(place + count, self._end[place]))
        return [each for each in places if (digest, each) not in self._known]

    def _runs_left(self) -> float:
        """How many runs the budget has left, at the cost of those so far; the clock is not asked."""
        spent = spending(self.evaluator)
        costs = {name: spent[name] / max(1, self.evaluator.spent) for name in self.budget.limits if name != "seconds"}
        left = [(self.budget.limits[name] - spent[name]) / cost for name, cost in costs.items() if cost]
        return min([AHEAD, *left])

    def _run(self, candidate: Candidate, rows: Sequence[Row]) -> list[Outcome]:
        try:
            with contextlib.redirect_stdout(self._screen[0]), contextlib.redirect_stderr(self._screen[1]):
                return self.evaluator.run(candidate, rows)
        except CuecardError as error:  # a dead engine, a metric that breaks: no example's own affair
            raise Ended("crashed", error) from error

    def complete(self, rows: Sequence[Row]) -> list[tuple[Candidate, list[Outcome]]]:
        """The candidates that ran on all of `rows`, the last of the sets, without a failure, with their outcomes."""
        last = range(len(self.rows) - len(rows), len(self.rows))
        return [
            (tried.candidate, [tried.outcomes[place] for place in last])
            for tried in self.tried.values()
            if tried.failed is None and all(place in tried.outcomes for place in last)
        ]

    def best(self) -> Candidate:
        """The candidate with the largest sum of leads over the mean score of the rows it ran on."""
        means: dict[int, list[float]] = {}
        for tried in self.tried.values():
            for place, outcome in tried.outcomes.items():
                means.setdefault(place, []).append(_score(outcome))

        def lead(tried: Tried) -> float:
            scores = ((_score(outcome), means[place]) for place, outcome in tried.outcomes.items())
            return sum(score - sum(known) / len(known) for score, known in scores)

        sound = [tried for tried in self.tried.values() if tried.failed is None and tried.outcomes]
        found = max(sound, key=lead, default=None)
        return self.baseline if found is None or lead(found) <= 0 else found.candidate


def _score(outcome: Outcome) -> float:
    assert outcome.measurement is not None, "only measured ones are kept"
    return outcome.measurement.score


@dataclass(frozen=True)
class _Unknown:
    """A row that stands in none of the sets."""

    inputs: Mapping[str, Any]
    labels: Mapping[str, Any] = field(default_factory=dict)
    id: int = -1


class Student(dspy.Module):
    """The program as an optimizer of DSPy gets it."""

    def __init__(self, program: dspy.Module, watch: Watch) -> None:
        super().__init__()
        self.program, self.watch = program, watch

    def forward(self, **inputs: Any) -> Answer:
        """Run the program on the evaluator; its steps go into DSPy's trace."""
        candidate = candidate_of(self.program, self.watch.baseline)
        steps = dict(self.program.named_predictors())
        own = next((part.lm for part in steps.values() if part.lm is not None), None)
        outcome = self.watch.outcome(candidate, inputs, _drawn(candidate, own or dspy.settings.lm))
        if outcome.error is not None:
            raise RuntimeError(outcome.error)
        trace = dspy.settings.trace
        for step in outcome.steps if trace is not None else ():
            trace.append((steps[step.predictor], dict(step.inputs), dspy.Prediction(**step.outputs)))
        answer = Answer(**(outcome.prediction or {}))
        answer._outcome = outcome
        return answer


def _drawn(candidate: Candidate, lm: Any) -> Candidate:
    """`candidate` with the temperature that DSPy has set on the LM to draw another answer, if it has."""
    settings = getattr(lm, "kwargs", None) or {}
    temperature, rollout = settings.get("temperature"), settings.get("rollout_id")
    if not temperature or rollout is None:
        return candidate
    states = {}
    for name, state in candidate.states.items():
        seed = derive_seed(state.decoding.seed, "rollout", rollout)
        decoding = state.decoding.model_copy(update={"temperature": float(temperature), "seed": seed})
        states[name] = state.model_copy(update={"decoding": decoding})
    return Candidate(states)


def candidate_of(program: dspy.Module, baseline: Candidate) -> Candidate:
    """`baseline` with the instructions and demos of `program`."""
    states = {}
    for name, part in program.named_predictors():
        if isinstance(part, Predictor) and name in baseline.states:
            states[name] = _state(part, baseline.states[name])
    return Candidate({**baseline.states, **states})


def _state(part: Predictor, base: PredictorState) -> PredictorState:
    signature = part.signature
    demos = []
    for demo in part.demos:
        known = {name: demo[name] for name in present(signature.fields, demo)}
        if any(name in known for name in signature.output_fields):
            demos.append(known)
    return base.model_copy(update={"instructions": signature.instructions, "demos": tuple(demos)})


def as_demo(row: Row) -> dict[str, Any]:
    """A row's labels as a demo shows them: of several references the first."""
    make = getattr(row, "demo", None)
    return dict(make()) if make is not None else dict(row.labels)


def _key(values: Mapping[str, Any]) -> str:
    return repr(sorted(values.items()))
