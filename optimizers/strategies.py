"""Strategies that move the prompt alone, demos, instructions, or both; format and read-out stay as they are.

They are the methods of DSPy that a user may know by name, as restrictions of the joint space (`PromptSpace`), so that
they share its evaluation, racing, budget and resumption: labelled demos, bootstrapped demos (BootstrapFewShot and its
random search, Khattab et al. 2023, arXiv 2310.03714), demos nearest to the input (Liu et al. 2022, arXiv 2101.06804),
and instructions x demo sets by TPE (MIPROv2, Opsahl-Ong et al. 2024, arXiv 2406.11695). Those that rewrite
instructions as they go stand in `reflective.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ..errors import InputError
from ..programs.state import NearestDemos, PredictorState, ReadOut
from .base import Proposal, Strategy
from .context import StrategyContext
from .grounding import Ground
from .proposers import propose
from .sampled import OptunaStrategy, random_sampler, tpe_sampler
from .space import PredictorSpace, Space, Suggest

DIMENSIONS = ("instruction", "demos", "demo_set", "nearest")
LABELLED = 16  # demos of `labeled_few_shot`, as many as DSPy's shows
NEAR = 4  # demos of `knn_few_shot` where the space has none near
PROPOSED = 8


@dataclass(frozen=True)
class PromptPart(PredictorSpace):
    """The instructions and demos of one predictor. `base`, the program's own parameters, gives its format and read-out,
    and the demos of a point that draws none.
    """

    base: PredictorState = field(default_factory=PredictorState)

    def suggest(self, trial: Suggest) -> dict[str, Any]:
        """See `PredictorSpace.suggest`."""
        params: dict[str, Any] = {}

        def categorical(dimension: str, values: Sequence[int]) -> int:
            name = f"{self.name}.{dimension}"
            params[name] = trial.suggest_categorical(name, values) if len(values) > 1 else values[0]
            return int(params[name])

        categorical("instruction", range(len(self.instructions)))
        if categorical("demos", self.demo_counts):
            categorical("demo_set", range(len(self.demo_sets)))
        categorical("nearest", self.nearest_counts)
        return params

    def state(self, params: Mapping[str, Any]) -> PredictorState:
        """See `PredictorSpace.state`."""
        mine = {name: int(params.get(f"{self.name}.{name}", 0)) for name in DIMENSIONS}
        demos = self.demo_sets[mine["demo_set"]][: mine["demos"]] if mine["demos"] else self.base.demos
        near = NearestDemos(count=mine["nearest"], pool=self.pool) if mine["nearest"] else self.base.nearest
        changes = {"instructions": self.instructions[mine["instruction"]], "demos": demos, "nearest": near}
        return self.base.model_copy(update={**changes, "decoding": self.decoding})

    def calibration(self, params: Mapping[str, Any]) -> str | None:
        """None: the program's own calibration stays."""
        return None


@dataclass(frozen=True)
class PromptSpace(Space):
    """The instructions and demos of all predictors."""

    def starts(self) -> list[dict[str, Any]]:
        """None: there are no formats to try first."""
        return []


def prompt_space(space: Space, context: StrategyContext | None) -> PromptSpace:
    """`space` without what a prompt strategy leaves alone; the first instruction is the program's own."""
    parts = []
    for part in space.predictors:
        known = context.baseline.states.get(part.name) if context and context.baseline else None
        known = known or _unknown(part)
        own = known.instructions or part.instructions[0]
        instructions = tuple(dict.fromkeys((own, *part.instructions)))
        given = {field.name: getattr(part, field.name) for field in fields(PredictorSpace)}
        own_parts = {"instructions": instructions, "formats": (known.format,), "readouts": (known.readout.kind,)}
        parts.append(PromptPart(**{**given, **own_parts, "ranges": {}, "base": known}))
    return PromptSpace(tuple(parts))


def _unknown(part: PredictorSpace) -> PredictorState:
    """The parameters of a predictor of which only the space is known."""
    kinds = [readout for readout in part.readouts if "+" not in readout and readout != "span"]
    return PredictorState(format=part.formats[0], readout=ReadOut.model_validate({"kind": kinds[0]}))


def without_demos(space: Space, context: StrategyContext | None) -> PromptSpace:
    """The instructions of all predictors, whose demos are the program's own."""
    parts = parts_of(prompt_space(space, context))
    return PromptSpace(tuple(replace(p, demo_counts=(0,), demo_sets=(), nearest_counts=(0,)) for p in parts))


def parts_of(space: Space) -> tuple[PromptPart, ...]:
    """The predictors of a prompt space."""
    return tuple(part for part in space.predictors if isinstance(part, PromptPart))


class Listed:
    """Proposes points that are known beforehand, in order, and has nothing left after them."""

    def __init__(self, space: Space, points: Sequence[dict[str, Any]]) -> None:
        self.space = space
        self._points: Iterator[tuple[int, dict[str, Any]]] = iter(enumerate(points, start=1))

    def propose(self) -> Proposal | None:
        """See `Strategy.propose`."""
        key, params = next(self._points, (0, None))
        return None if params is None else Proposal(params, key)

    def observe(self, proposal: Proposal, value: float, best: bool) -> None:
        """See `Strategy.observe`. Nothing is learned from it."""


def plain_point(space: Space) -> dict[str, Any]:
    """The point without demos, with the program's own instructions."""
    return {f"{part.name}.{name}": 0 for part in space.predictors for name in ("instruction", "demos", "nearest")}


def _shown(space: PromptSpace) -> list[dict[str, Any]]:
    """The point that shows all of the first demo set; none where no predictor has one."""
    point = plain_point(space)
    for part in space.predictors:
        if part.demo_sets:
            point |= {f"{part.name}.demos": len(part.demo_sets[0]), f"{part.name}.demo_set": 0}
    return [point] if any(part.demo_sets for part in space.predictors) else []


def labeled_few_shot(
    space: Space, *, seed: int, baseline: float, storage: Any = None, context: StrategyContext | None = None
) -> Strategy:
    """One candidate: the first `k` demos. Option: k (16)."""
    k = (context or StrategyContext()).counts(k=LABELLED)["k"]
    prompts = prompt_space(space, context)
    parts = []
    for part in parts_of(prompts):
        pool = part.pool or (part.demo_sets[0] if part.demo_sets else ())
        first = (pool[:k],) if pool else ()
        parts.append(replace(part, demo_sets=first, demo_counts=(0, len(pool[:k]))))
    prompts = PromptSpace(tuple(parts))
    return Listed(prompts, _shown(prompts))


def bootstrap_few_shot(
    space: Space, *, seed: int, baseline: float, storage: Any = None, context: StrategyContext | None = None
) -> Strategy:
    """One candidate: as many demos as the space allows, drawn at random of those that are labelled or that the program
    made itself.
    """
    (context or StrategyContext()).counts()
    prompts = prompt_space(space, context)
    parts = [replace(p, demo_sets=tuple(s[: p.demo_counts[-1]] for s in p.demo_sets)) for p in parts_of(prompts)]
    prompts = PromptSpace(tuple(parts))
    return Listed(prompts, _shown(prompts))


def bootstrap_random(
    space: Space, *, seed: int, baseline: float, storage: Any = None, context: StrategyContext | None = None
) -> Strategy:
    """Random demo sets of random sizes, the program's own instructions."""
    (context or StrategyContext()).counts()
    parts = []
    for part in parts_of(prompt_space(space, context)):
        sizes = tuple(count for count in part.demo_counts if count) if part.demo_sets else (0,)
        parts.append(replace(part, instructions=part.instructions[:1], nearest_counts=(0,), demo_counts=sizes or (0,)))
    prompts = PromptSpace(tuple(parts))
    return OptunaStrategy(prompts, random_sampler, seed=seed, baseline=baseline, storage=storage)


def knn_few_shot(
    space: Space, *, seed: int, baseline: float, storage: Any = None, context: StrategyContext | None = None
) -> Strategy:
    """Demos nearest to the input: one candidate for each number of them, the most first. Option: k, the only number."""
    given = (context or StrategyContext()).counts(k=NEAR)["k"]
    asked = context is not None and "k" in context.options
    prompts = prompt_space(space, context)
    most = max((len(part.nearest_counts) for part in prompts.predictors if part.pool), default=0)
    points = []
    for place in range(1 if asked else most):
        point = plain_point(prompts)
        for part in prompts.predictors:
            counts = [count for count in part.nearest_counts[::-1] if count] or [NEAR]
            count = given if asked else counts[min(place, len(counts) - 1)]
            if part.pool and any(input_.annotation is str for input_ in part.signature.input_fields.values()):
                point[f"{part.name}.nearest"] = min(count, len(part.pool))
        if point not in points and any(key.endswith(".nearest") and value for key, value in point.items()):
            points.append(point)
    return Listed(prompts, points)


def mipro(
    space: Space, *, seed: int, baseline: float, storage: Any = None, context: StrategyContext | None = None
) -> Strategy:
    """Instructions x demo sets by TPE. Option: proposed (8), how many instructions the model is asked for at first."""
    context = context or StrategyContext()
    count = context.counts(proposed=PROPOSED)["proposed"]
    prompts = prompt_space(space, context)
    for part in parts_of(prompts):
        prompts = grown(prompts, part.name, proposed(prompts, part.name, count, seed, context))
    prompts = PromptSpace(tuple(replace(part, nearest_counts=(0,)) for part in parts_of(prompts)))
    return OptunaStrategy(prompts, tpe_sampler, seed=seed, baseline=baseline, storage=storage)


def proposed(
    space: Space, name: str, count: int, seed: int, context: StrategyContext, **grounds: Any
) -> tuple[str, ...]:
    """Instructions that the model writes for a predictor; none without one. `grounds`: more of `Ground`."""
    if context.lm is None:
        return ()
    part = part_named(space, name)
    signatures = {each.name: each.signature for each in space.predictors}
    rows = part.pool or tuple(demo for demos in part.demo_sets[:1] for demo in demos)
    ground = Ground(signatures, name, rows=rows, description=context.description, **grounds)
    return propose(context.lm, ground, count, seed=seed).instructions


def part_named(space: Space, name: str) -> PredictorSpace:
    """A predictor's part of the space."""
    found = next((part for part in space.predictors if part.name == name), None)
    if found is None:
        raise InputError(f"the space has no predictor {name!r}")
    return found


def grown(space: PromptSpace, name: str, instructions: Sequence[str]) -> PromptSpace:
    """`space` with more instructions for a predictor; those that it has keep their numbers."""
    parts = []
    for part in parts_of(space):
        if part.name == name:
            part = replace(part, instructions=tuple(dict.fromkeys((*part.instructions, *instructions))))
        parts.append(part)
    return PromptSpace(tuple(parts))
