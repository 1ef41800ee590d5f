"""Strategies that write instructions as they go, one predictor after the other: `copro` and `gepa`.

`copro` asks for a round of instructions, is told how they fared, and asks again with the best of them shown (coordinate
ascent over the predictors; COPRO in Khattab et al. 2023, arXiv 2310.03714, after OPRO, arXiv 2309.03409). `gepa` draws
a program of the Pareto pool (those that are best on some dev example), runs it on a few rows of train, and has the
model improve one predictor's instruction by what went wrong there (Agrawal et al. 2025, arXiv 2507.19457).

Both grow the space: `space` is the one that the last point stands in. What a model's answers leave nothing of is filled
from the instructions that the space began with, so that both also run without a model.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from ..seeds import derive_seed
from .base import Candidate, Proposal, Strategy, Trial
from .context import StrategyContext
from .grounding import Attempt, Ground, misses_of
from .proposers import pareto_parent, reflect
from .space import Space
from .strategies import PromptSpace, grown, parts_of, plain_point, proposed, without_demos

BREADTH = 8  # instructions of one round
MINIBATCH = 8  # rows of train that a parent is looked at on
PARENTS = 4  # that are improved at once
FRUITLESS = 6  # rounds without a new instruction after which there is nothing left to try


class Rewriter:
    """Rounds of new instructions for one predictor at a time. A subclass says what a round is."""

    def __init__(self, space: PromptSpace, seed: int, context: StrategyContext) -> None:
        self.space = space
        self.context = context
        self.seed = seed
        self.round = 0
        self.known = {part.name: part.instructions for part in parts_of(space)}
        self._queue: list[dict[str, Any]] = []
        self._asked = 0

    def propose(self) -> Proposal | None:
        """See `Strategy.propose`."""
        fruitless = 0
        while not self._queue and fruitless < FRUITLESS:
            name = self.space.predictors[self.round % len(self.space.predictors)].name
            self._queue = self.points(name)
            self.round += 1
            fruitless += 1
        if not self._queue:
            return None
        self._asked += 1
        return Proposal(self._queue.pop(0), self._asked)

    def points(self, name: str) -> list[dict[str, Any]]:
        """The next points, with new instructions for the predictor `name`."""
        raise NotImplementedError

    def observe(self, proposal: Proposal, value: float, best: bool) -> None:
        """See `Strategy.observe`."""
        raise NotImplementedError

    def added(self, name: str, texts: Sequence[str], point: dict[str, Any]) -> list[dict[str, Any]]:
        """`point` with each of the instructions that the space did not have."""
        before = len(self._instructions(name))
        self.space = grown(self.space, name, texts)
        after = len(self._instructions(name))
        return [{**point, f"{name}.instruction": place} for place in range(before, after)]

    def text(self, name: str, params: Mapping[str, Any]) -> str:
        """The instruction of a point."""
        return self._instructions(name)[int(params.get(f"{name}.instruction", 0))]

    def _instructions(self, name: str) -> tuple[str, ...]:
        return next(part.instructions for part in self.space.predictors if part.name == name)


class Copro(Rewriter):
    """See the module. `breadth`: instructions of one round, `depth`: rounds for each predictor, without end if None."""

    def __init__(
        self, space: PromptSpace, seed: int, context: StrategyContext, baseline: float, breadth: int, depth: int | None
    ) -> None:
        super().__init__(space, seed, context)
        self.breadth, self.depth = breadth, depth
        self.best, self.value = plain_point(space), baseline
        own = {name: texts[0] for name, texts in self.known.items()}
        self.attempts = {name: {text: baseline} for name, text in own.items()}

    def points(self, name: str) -> list[dict[str, Any]]:
        """The catalogue and the model's first proposals; then what the model makes of those and their scores."""
        turn = self.round // len(self.space.predictors)
        if self.depth is not None and turn >= self.depth:
            return []
        attempts = tuple(Attempt(text, value) for text, value in self.attempts[name].items())
        seed = derive_seed(self.seed, "copro", self.round)
        texts = proposed(self.space, name, self.breadth, seed, self.context, attempts=attempts)
        fresh = self.added(name, texts, self.best)
        if turn:
            return fresh
        begun = [{**self.best, f"{name}.instruction": place} for place in range(1, len(self.known[name]))]
        return (fresh + begun)[: self.breadth] if self.context.lm else begun

    def observe(self, proposal: Proposal, value: float, best: bool) -> None:
        """See `Strategy.observe`."""
        for name, attempts in self.attempts.items():
            text = self.text(name, proposal.params)
            attempts[text] = max(value, attempts.get(text, value))
        if best and value >= self.value:
            self.best, self.value = dict(proposal.params), value


class Gepa(Rewriter):
    """See the module. `minibatch`: rows of train for one reflection, `parents`: how many are improved at once."""

    def __init__(self, space: PromptSpace, seed: int, context: StrategyContext, minibatch: int, parents: int) -> None:
        super().__init__(space, seed, context)
        self.minibatch, self.parents = minibatch, parents
        self._params: dict[str, dict[str, Any]] = {}

    def points(self, name: str) -> list[dict[str, Any]]:
        """Children of several parents, each by what it failed on; at first also the space's own instructions."""
        made = [point for parent in self._parents() for point in self._children(name, parent)]
        if self.round < len(self.space.predictors):
            start = plain_point(self.space)
            made += [{**start, f"{name}.instruction": place} for place in range(1, len(self.known[name]))]
        return made

    def observe(self, proposal: Proposal, value: float, best: bool) -> None:
        """See `Strategy.observe`. Which examples a point did well on is read from the trials."""

    def _parents(self) -> list[dict[str, Any]]:
        generator = random.Random(derive_seed(self.seed, "parents", self.round))
        pool = self._pool()
        if not pool:
            return [plain_point(self.space)]
        scores = [[measurement.score for measurement in trial.measurements] for trial in pool]
        drawn = [pool[pareto_parent(scores, generator)] for _ in range(self.parents)]
        found = {trial.number: dict(trial.params) or plain_point(self.space) for trial in drawn}
        return [found[number] for number in sorted(found)]

    def _pool(self) -> list[Trial]:
        """The trials that ran on all of dev, the baseline's first."""
        return [trial for trial in self.context.trials if trial.status == "complete" and trial.measurements]

    def _children(self, name: str, parent: dict[str, Any]) -> list[dict[str, Any]]:
        evaluator, lm = self.context.evaluator, self.context.lm
        count = min(self.minibatch, len(self.context.rows))
        if evaluator is None or lm is None or not count or self.context.runs_left < 4 * count:
            return []
        text = self.text(name, parent)
        seed = derive_seed(self.seed, "reflect", self.round, text)
        rows = random.Random(seed).sample(list(self.context.rows), count)
        outcomes = evaluator.run(Candidate(self.space.states(parent)), rows)
        signatures = {part.name: part.signature for part in self.space.predictors}
        misses = misses_of(outcomes, name, signatures[name], evaluator.columns(name), below=evaluator.metric.high)
        ground = Ground(signatures, name, misses=misses, description=self.context.description)
        return self.added(name, reflect(lm, ground, text, seed=seed).instructions, parent)


def copro(
    space: Space, *, seed: int, baseline: float, storage: Any = None, context: StrategyContext | None = None
) -> Strategy:
    """Instructions by coordinate ascent. Options: breadth (8), depth (rounds for each predictor; without end)."""
    context = context or StrategyContext()
    given = context.counts(breadth=BREADTH, depth=1)
    depth = given["depth"] if "depth" in context.options else None
    return Copro(without_demos(space, context), seed, context, baseline, given["breadth"], depth)


def gepa(
    space: Space, *, seed: int, baseline: float, storage: Any = None, context: StrategyContext | None = None
) -> Strategy:
    """Instructions by reflection on failures. Options: minibatch (8), parents (4)."""
    context = context or StrategyContext()
    given = context.counts(minibatch=MINIBATCH, parents=PARENTS)
    return Gepa(without_demos(space, context), seed, context, given["minibatch"], given["parents"])
