"""The plan of a compile: what would be searched and what it would cost, without a search and without a run's folder.

The space is built and the first generation drawn as a compile does it. Where a compile runs the program on train to
make demos, or has a model write instructions, this only counts what it would run; the points that come of it are not
known then. The program as written runs on a few rows of dev: their seconds give the time of everything else, by what a
run costs next to others (`Pacer.weight`: its own tokens, and an answer's).
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import CuecardError, RunError
from ..models.engine import Ledger
from ..models.lm import language_model
from ..optimizers.base import LIMITS, Candidate, Outcome, Row, Trial, spending
from ..optimizers.context import StrategyContext
from ..optimizers.dimensions import Dimension, dimensions_of, size_of
from ..optimizers.foreign import is_foreign
from ..optimizers.joint import strategy_named
from ..optimizers.pacing import ANSWER_TOKENS, EVEN, PACED, WEIGHED
from ..optimizers.racing import Racer
from ..optimizers.search import Search, key_of
from ..optimizers.space import PredictorSpace, Space, demo_counts
from .api import check_task
from .evaluator import ProgramEvaluator, candidate_of
from .journal import Clock, JournaledEngine
from .pipeline import WIDTH, check_heads, keep_back
from .task import Task
from .task_space import DEMO_SETS, NEAREST_POOL, grows_after, make_space, proposals_for

MEASURED = 16  # rows of dev that are timed
WRITERS = ("copro", "mipro", "gepa", "simba")  # strategies that ask the model for instructions


@dataclass(frozen=True)
class Pace:
    """What one run of the program as written costs, as the mean over `rows`; `own_tokens`, the prompt tokens that no
    other row shares, are those of the rendered prompts.
    """

    rows: int
    seconds: float
    model_calls: float
    prompt_tokens: float
    own_tokens: float
    generated_tokens: float


@dataclass(frozen=True)
class PlannedPredictor:
    """The dimensions of a predictor, and how many points they make (None: a range without steps is among them)."""

    name: str
    dimensions: tuple[Dimension, ...]
    size: int | None


@dataclass(frozen=True)
class PlannedCandidate:
    """A point of the first generation. Its prompt tokens are means over a few rows; `problem`: why there are none."""

    params: Mapping[str, Any]
    prompt_tokens: float | None = None
    own_tokens: float | None = None
    problem: str | None = None


@dataclass(frozen=True)
class CompilePlan:
    """See the module.

    unrendered: predictors whose inputs no row holds: their prompts are in no candidate's tokens. bootstrapped: those
    whose demos the program has to make on train, in `bootstrap_runs` runs. proposals: how many instructions a model is
    asked for. first: the first generation; exact: whether it is that of the compile. generation_runs: the most program
    runs that it makes; runs, candidates: about how many the budget allows for after the baseline and the demos, by the
    limit `limited_by`. seconds: by phase, and in `total`.
    """

    predictors: tuple[PlannedPredictor, ...]
    size: int | None
    unrendered: tuple[str, ...]
    bootstrapped: tuple[str, ...]
    bootstrap_runs: int
    proposals: int
    pace: Pace
    first: tuple[PlannedCandidate, ...]
    exact: bool
    generation_runs: int
    runs: int
    candidates: int
    limited_by: str | None
    seconds: Mapping[str, float]

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


class DryEvaluator(ProgramEvaluator):
    """Runs nothing: it counts the runs, and what they cost at the pace that was measured."""

    pace: Pace

    def run_many(self, candidates: Sequence[Candidate], rows: Sequence[Row]) -> list[list[Outcome]]:
        """See `Evaluator.run_many`. There are no outcomes."""
        self._spent += len(candidates) * len(rows)
        return [[] for _ in candidates]

    @property
    def ledger(self) -> Ledger:
        """See `Evaluator.ledger`."""
        pace, runs = self.pace, self.spent
        counts = {"calls": pace.model_calls, "prompt_tokens": pace.prompt_tokens}
        counts["generated_tokens"] = pace.generated_tokens
        return Ledger(**{name: round(each * runs) for name, each in counts.items()}, seconds=pace.seconds * runs)

    def elapsed(self) -> float:
        """See `Evaluator.elapsed`."""
        return self.pace.seconds * self.spent


def plan_compile(task: Task) -> CompilePlan:
    """The plan of a task. Raises `InputError` for what a compile refuses, `RunError` where the program can't run."""
    check_task(task)
    with tempfile.TemporaryDirectory(prefix="cuecard-") as folder:
        clock = Clock()
        engine = JournaledEngine(task.target.engine, Path(folder) / "calls.jsonl", clock)
        check_heads(task, engine)
        lm = language_model(engine)
        pace = measured(task, ProgramEvaluator(task.program, task.metric, lm, clock=clock, columns=task.columns))
        dry = DryEvaluator(task.program, task.metric, lm, columns=task.columns)
        dry.pace = pace
        return _planned(task, dry, engine)


def measured(task: Task, evaluator: ProgramEvaluator) -> Pace:
    """The cost of a few runs of the program as written, after one that is not counted: it pays for what is set up."""
    baseline, rows = candidate_of(task.program), list(task.dev[: MEASURED + 1])
    first, rest = rows[:1], rows[1:] or rows
    outcomes = evaluator.run(baseline, first) if rows[1:] else []
    before, began = evaluator.ledger, evaluator.elapsed()
    outcomes += evaluator.run(baseline, rest)
    seconds, cost = evaluator.elapsed() - began, evaluator.ledger - before
    failed = [outcome.error for outcome in outcomes if outcome.error]
    if failed:
        raise RunError("the program as written fails on dev", hint=f"The first failure: {failed[0]}")
    each = {
        "model_calls": cost.calls,
        "prompt_tokens": cost.prompt_tokens,
        "generated_tokens": cost.generated_tokens,
        "seconds": seconds,
    }
    means = {name: number / len(rest) for name, number in each.items()}
    return Pace(rows=len(rest), own_tokens=evaluator.own_tokens(baseline, rest), **means)


def _planned(task: Task, dry: DryEvaluator, engine: JournaledEngine) -> CompilePlan:
    search = Search(
        dry, Space(()), task.dev, task.train, task.budget, task.seed, lambda trial: None, WIDTH,
        later=len(task.test), rules=task.stop, rule=task.choose,
    )  # fmt: skip
    dry.run(candidate_of(task.program), task.dev)
    search.pacer.learn({0: EVEN}, len(task.dev), dict.fromkeys(LIMITS, 0.0))
    shown: tuple[PlannedPredictor, ...] = ()
    bootstrapped: tuple[str, ...] = ()
    racers: list[Racer] = []
    width, extra = 0, 1.0
    foreign, wanted = is_foreign(task.optimizer), task.search.instructions
    if not foreign:
        search.space = _space(task, dry, engine)
    keep_back(task, search, engine)
    if not foreign:
        if dry.spent > len(task.dev):
            bootstrapped = tuple(part.name for part in search.space.predictors if not part.pool)
        racers, width, extra = _first(task, search)
        shown = tuple(_shown(part, task, part.name in bootstrapped) for part in search.space.predictors)
    first = tuple(_candidate(dry, racer, task.dev[:WEIGHED]) for racer in racers)
    costs = _costs(dry.pace, first)
    each = extra * search.pacer.most_calls(WIDTH) / WIDTH
    runs, limited_by = _allowed(task, dry, costs, each, search.pacer.kept + search.refit)
    runs = runs if width or foreign else 0  # not even one candidate fits
    generation = math.ceil(extra * search.pacer.most_calls(len(first))) if first else 0
    candidates = 0 if foreign else int(runs / each)
    if first and len(first) < width and not bootstrapped and task.optimizer not in WRITERS:  # there are no more
        runs, candidates = min(runs, generation), len(first)
    sizes = [part.size for part in shown]
    return CompilePlan(
        predictors=shown,
        size=None if foreign or None in sizes else math.prod(size for size in sizes if size is not None),
        unrendered=_unrendered(dry, task.dev[0]),
        bootstrapped=bootstrapped,
        bootstrap_runs=dry.spent - len(task.dev),
        proposals=0 if foreign else sum(proposals_for(wanted, name) for name in dry.signatures),
        pace=dry.pace,
        first=first,
        exact=not (
            bootstrapped or wanted.asked or foreign or task.optimizer in WRITERS or "tokens" in task.budget.limits
        ),
        generation_runs=generation,
        runs=runs,
        candidates=candidates,
        limited_by=limited_by,
        seconds=_seconds(task, dry, runs, _after(task, search), costs["seconds"]),
    )


def _first(task: Task, search: Search) -> tuple[list[Racer], int, float]:
    """The first generation, how many it may hold, and what each of its runs counts with its calibrations; the search's
    space becomes the strategy's own, where it has one.
    """
    baseline = candidate_of(task.program)
    zero = Trial(0, {}, baseline, "complete", len(task.dev), None, None, best=True)
    context = StrategyContext(baseline, None, task.train, None, [zero], task.budget, task.options, task.description)
    factory = strategy_named(task.optimizer)
    strategy = factory(search.space, seed=task.seed, baseline=task.metric.low, storage=None, context=context)
    search.space = getattr(strategy, "space", search.space)
    costs = search.first_costs(zero, strategy)
    width, _ = search.next_width(0, 1, costs, zero)
    full = search.pacer.filler(costs, baseline, 0)
    racers, _, filled = search.draw(strategy, width, 1, {key_of(baseline, {}): 0.0}, full)
    return racers, len(racers) if filled else width, costs["metric_calls"]


def _space(task: Task, dry: DryEvaluator, engine: JournaledEngine) -> Space:
    """The space of the task, without what a model would have to be asked for."""
    wanted = task.search.instructions.model_copy(update={"proposals": 0, "proposer": None})
    search = task.search.model_copy(update={"instructions": wanted})
    return make_space(replace(task, search=search), dry, engine, lambda prompt, **settings: ())[0]


def _shown(part: PredictorSpace, task: Task, bootstrapped: bool) -> PlannedPredictor:
    """A predictor's dimensions. Demos that are not made yet count as if every row of train gave one."""
    if bootstrapped:
        count = len(task.train)
        near = demo_counts(*task.search.nearest, count) if count >= NEAREST_POOL else part.nearest_counts
        counts = demo_counts(*task.search.demos, count)
        part = replace(part, demo_counts=counts, demo_sets=((),) * DEMO_SETS, nearest_counts=near)
    return PlannedPredictor(part.name, tuple(dimensions_of(part)), size_of(part))


def _candidate(dry: DryEvaluator, racer: Racer, rows: Sequence[Row]) -> PlannedCandidate:
    params, candidate = racer.proposal.params, racer.candidate
    try:
        return PlannedCandidate(params, dry.prompt_tokens(candidate, rows), dry.own_tokens(candidate, rows))
    except CuecardError as error:  # a prompt that is too long
        return PlannedCandidate(params, problem=str(error))


def _costs(pace: Pace, first: Sequence[PlannedCandidate]) -> dict[str, float]:
    """What a run of a candidate costs, by `LIMITS`, at the pace of the program as written."""
    prompts = [each.prompt_tokens for each in first if each.prompt_tokens is not None] or [pace.prompt_tokens]
    own = [each.own_tokens for each in first if each.own_tokens is not None] or [pace.own_tokens]
    weight = (ANSWER_TOKENS + sum(own) / len(own)) / (ANSWER_TOKENS + pace.own_tokens)
    tokens = max(pace.prompt_tokens, sum(prompts) / len(prompts)) + pace.generated_tokens
    return {
        "metric_calls": 1.0,
        "model_calls": pace.model_calls,
        "tokens": tokens,
        "seconds": weight * pace.seconds,
    }


def _allowed(
    task: Task, dry: DryEvaluator, costs: Mapping[str, float], each: float, kept: int
) -> tuple[int, str | None]:
    """About how many program runs the search can make, each candidate taking so many, and which limit says so.

    kept: the metric calls that it keeps back for what is tried after it.
    """
    spent = spending(dry)
    runs = {} if task.budget.trials is None else {"trials": (task.budget.trials - 1) * each}
    for name, limit in task.budget.limits.items():
        own = {"metric_calls": 0.0, **_as_written(dry.pace)}[name]
        later = len(task.test) * (own + costs[name]) if name in PACED else float(kept)
        runs[name] = max(0.0, limit - spent[name] - later) / max(costs[name], 1e-9)
    limited_by = min(runs, key=lambda name: runs[name], default=None)
    return (0 if limited_by is None else int(runs[limited_by])), limited_by


def _as_written(pace: Pace) -> dict[str, float]:
    """What a run of the program as written costs, by `PACED`."""
    tokens = pace.prompt_tokens + pace.generated_tokens
    return {"model_calls": pace.model_calls, "tokens": tokens, "seconds": pace.seconds}


def _after(task: Task, search: Search) -> int:
    """The most program runs of what is tried after the search, as far as they are known: see `challenges.py`."""
    return search.pacer.kept + (len(task.dev) if grows_after(task.search, search.space) else 0)


def _seconds(task: Task, dry: DryEvaluator, runs: int, after: int, each: float) -> dict[str, float]:
    found = {
        "baseline": dry.pace.seconds * len(task.dev),
        "demos": dry.pace.seconds * (dry.spent - len(task.dev)),
        "search": each * runs,
        "after": each * after,
        "test": (dry.pace.seconds + each) * len(task.test),
    }
    return {name: round(seconds, 3) for name, seconds in {**found, "total": sum(found.values())}.items()}


def _unrendered(dry: DryEvaluator, row: Row) -> tuple[str, ...]:
    """The predictors whose inputs the row does not hold."""
    held = {**row.inputs, **row.labels}
    return tuple(
        name
        for name, signature in dry.signatures.items()
        if any(held.get(dry.columns(name).get(field, "")) is None for field in signature.input_fields)
    )
