"""A compile, from a task to its result: baseline, demos, search, confirmation, test.

A run that was stopped is taken up by running all of this again over its journal: the same steps ask for the same
model calls, which are answered from the record up to where it ends. So resuming needs no code of its own, and ends in
the same bytes. The one thing that the record can't tell is what was decided by the clock, because a budget in seconds
ran short; `run.json` keeps how many candidates began and went on in each generation for that, and which was the last.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import dspy

from ..errors import InputError, RunError
from ..metrics.base import Metric
from ..metrics.statistics import Score, interval
from ..models.engine import Decoding, Turn
from ..models.lm import language_model
from ..models.target import Target
from ..optimizers.base import Budget, Candidate, Outcome, Row, Trial
from ..optimizers.context import StrategyContext
from ..optimizers.demos import Demo, pools, sets
from ..optimizers.foreign import is_foreign, run_teleprompter
from ..optimizers.headed import FORMATS as HEAD_FORMATS
from ..optimizers.headed import headed
from ..optimizers.instructions import instructions_for
from ..optimizers.joint import strategy_named
from ..optimizers.search import Search, SearchResult
from ..optimizers.space import FORMATS, PredictorSpace, Space, demo_counts, readouts_for
from ..programs.schema import SearchSpec
from ..programs.spans import copied_from
from ..programs.state import FormatChoice, PredictorState, ReadOut
from ..seeds import derive_seed
from ..signatures import choices, write
from .evaluator import Columns, ProgramEvaluator, candidate_of
from .journal import Clock, JournaledEngine
from .reference import reference_scores
from .run_folder import RunFolder

DEMO_SETS = 32
WIDTH = 12
START_TOKENS = 2000
NEAREST_POOL = 20  # examples from which on the nearest are worth looking for
NEAREST_TOKENS = 300
LONG = 0.95  # the share of a training set's answers that a span's greatest length leaves room for


@dataclass(frozen=True)
class Task:
    """Everything that decides a compile. `columns` maps predictor -> field -> the data's column of gold values."""

    name: str
    program: dspy.Module
    metric: Metric
    train: Sequence[Row]
    dev: Sequence[Row]
    test: Sequence[Row]
    target: Target
    columns: Columns
    budget: Budget
    seed: int = 0
    optimizer: str = "joint"
    search: SearchSpec = field(default_factory=SearchSpec)
    fingerprint: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


class Reporter(Protocol):
    """Who is told how a compile goes."""

    def begin(self, task: Task, folder: RunFolder, recorded: int) -> None:
        """The run begins in `folder`, which holds `recorded` model calls of its earlier lives."""

    def phase(self, name: str, share: float) -> None:
        """A phase begins: `baseline`, `demos`, `search`, `test`. `share` of the budget is spent."""

    def runs(self, done: int, seconds: float) -> None:
        """So many program runs are done, so many seconds into the run."""

    def trial(self, trial: Trial, share: float, seconds: float) -> None:
        """A trial is over; `trial.best` says whether it is the best so far."""


@dataclass(frozen=True)
class Compilation:
    """What a compile came to. Scores are by split, `dev` and `test` (where there is a test split).

    `unread`: how many test answers could not be read, of the baseline and of the compiled program; `reference`: the
    scores of TF-IDF and logistic regression on the same rows, by split, where they can be compared (`reference.py`).
    """

    task: Task
    result: SearchResult
    baseline: Mapping[str, Score]
    compiled: Mapping[str, Score]
    unread: Mapping[str, int]
    ledger: Mapping[str, Any]
    spent: Mapping[str, int]
    seconds: float
    folder: RunFolder
    reference: Mapping[str, Score] = field(default_factory=dict)

    @property
    def candidate(self) -> Candidate:
        """The parameters that were chosen."""
        return self.result.chosen.candidate


def run_task(task: Task, folder: RunFolder, reporter: Reporter) -> Compilation:
    """Compile `task` in `folder`. Raises `InputError` and `RunError`; the run can be taken up again after either."""
    with folder:
        folder.begin()
        planned = folder.read().get("search")
        state: dict[str, Any] = {**_described(task), **({"search": planned} if planned else {})}
        folder.write({**state, "status": "running"})
        clock = Clock()
        engine = JournaledEngine(task.target.engine, folder.calls, clock)
        try:
            reporter.begin(task, folder, engine.recorded)
            _check_heads(task, engine)
            return _run(task, folder, reporter, clock, engine, state)
        except BaseException as error:
            status = "failed" if isinstance(error, Exception) else "interrupted"
            ended = {"ledger": asdict(engine.ledger), "seconds": round(clock.now(), 3)}
            with contextlib.suppress(RunError):  # the disk may be full, which `error` says already
                folder.write({**state, "status": status, "reason": str(error) or type(error).__name__, **ended})
            raise


def _run(
    task: Task, folder: RunFolder, reporter: Reporter, clock: Clock, engine: JournaledEngine, state: dict[str, Any]
) -> Compilation:
    lm = language_model(engine)
    evaluator = ProgramEvaluator(
        task.program,
        task.metric,
        lm,
        clock=clock,
        columns=task.columns,
        observer=lambda done: reporter.runs(done, clock.now()),
    )
    planned = state.get("search") or {"generations": []}
    schedule = list(planned["generations"])
    budget = Budget(trials=0) if "stopped_by" in planned else task.budget
    count = 0
    trials: list[Trial] = []

    def observe(trial: Trial) -> None:
        nonlocal count
        count += 1
        trials.append(trial)
        folder.append_trial(trial_line(trial, clock.now()))
        reporter.trial(trial, budget.share(evaluator, count), clock.now())

    reporter.phase("baseline", 0.0)
    baseline = candidate_of(task.program)
    generations: list[list[int]] = []

    def plan(number: int, alive: Sequence[int]) -> None:
        generations[number:] = [list(alive)]
        if number >= len(schedule) or len(alive) > len(schedule[number]):
            state["search"] = {"generations": [list(each) for each in generations]}
            folder.write({**state, "status": "running"})

    later = len(task.test)
    search = Search(
        evaluator, Space(()), task.dev, task.train, budget, task.seed, observe, WIDTH, schedule, plan, later
    )
    zero = search.baseline(baseline)
    reporter.phase("demos", budget.share(evaluator, count))
    told: dict[str, Any] = {}
    if is_foreign(task.optimizer):
        reporter.phase("search", budget.share(evaluator, count))
        result, told = _elsewhere(task, folder, search, zero, lm, planned)
    else:
        search.space = make_space(task, evaluator, engine)
        reporter.phase("search", budget.share(evaluator, count))
        context = StrategyContext(baseline, evaluator, task.train, lm, trials, task.budget, task.options)
        result = _searched(task, folder, search, zero, context)
    if "stopped_by" not in planned:
        state["search"] = {"generations": generations, "trials": result.trials, "stopped_by": result.stopped_by, **told}
    folder.write({**state, "status": "running"})
    result = _with_heads(task, search, result, engine)
    reporter.phase("test", 1.0)
    return _finish(task, folder, evaluator, engine, clock, result, state)


def _searched(task: Task, folder: RunFolder, search: Search, zero: Trial, context: StrategyContext) -> SearchResult:
    """The search, with Optuna's study in the run's folder. Raises `RunError` when that can't be written."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    factory = strategy_named(task.optimizer)
    try:
        strategy = factory(search.space, seed=task.seed, baseline=zero.score, storage=folder.study_url, context=context)
        return search.run(zero, strategy)
    except (StorageInternalError, SQLAlchemyError) as error:
        reason = str(error.__cause__ or error).partition("\n")[0]
        raise RunError(
            f"can't write the study: {reason}", path=folder.study, hint="Make room and start again."
        ) from error


def _elsewhere(
    task: Task, folder: RunFolder, search: Search, zero: Trial, lm: dspy.LM, planned: Mapping[str, Any]
) -> tuple[SearchResult, dict[str, Any]]:
    """The search by one of DSPy's optimizers, what it says on the screen kept in the run's folder; and what `run.json`
    tells of it: its number of steps, and why it broke, if it did.
    """
    with (folder.path / "optimizer.log").open("w", encoding="utf-8") as log:
        found = run_teleprompter(
            task.optimizer,
            task.options,
            task.program,
            search.evaluator,
            lm,
            train=task.train,
            dev=search.order,
            baseline=zero.candidate,
            budget=task.budget,
            seed=task.seed,
            log=log,
            until=planned.get("steps") if planned.get("stopped_by") == "seconds" else None,
        )
    result = search.settle(zero, found.candidate, found.complete, found.stopped_by)
    return result, {"steps": found.ticks, **({"reason": found.reason} if found.reason else {})}


def _check_heads(task: Task, engine: JournaledEngine) -> None:
    """Raise `InputError` where heads are asked for and the target can't give what they read."""
    if "head" in task.search.readouts and not engine.layers:
        raise InputError(
            f"the read-out 'head' needs hidden states, which {task.target.description.name!r} does not give",
            field="optimize.search.readouts",
            expected="a model held in process whose prompts can share prefixes",
            hint="Leave 'head' out of the read-outs, or compile for another model.",
        )


def _with_heads(task: Task, search: Search, result: SearchResult, engine: JournaledEngine) -> SearchResult:
    """The result with heads tried on top of what was chosen, where the spec asks for them.

    Not by default: a program with a head runs on this model alone, and is no prompt to read or to take elsewhere.
    """
    if "head" not in task.search.readouts or not task.train:
        return result
    known = search_formats(task.search, engine)
    formats = [choice for choice in HEAD_FORMATS if choice in known] or list(known[:1])
    candidate, fits = headed(
        search.evaluator, result.chosen.candidate, task.train, stem=task.name, formats=formats, seed=task.seed
    )
    params = {
        f"{name}.{field}.head": {"layer": fit.head.layer, "pooling": fit.head.pooling, "strength": fit.strength,
                                 "accuracy": round(fit.accuracy, 4), "loss": round(fit.loss, 4)}
        for name, fields in fits.items()
        for field, fit in fields.items()
    }  # fmt: skip
    return search.challenge(result, candidate, params) if fits else result


def _finish(
    task: Task,
    folder: RunFolder,
    evaluator: ProgramEvaluator,
    engine: JournaledEngine,
    clock: Clock,
    result: SearchResult,
    state: dict[str, Any],
) -> Compilation:
    seed = derive_seed(task.seed, "interval") % 2**32
    spent = {"metric_calls": evaluator.spent, "trials": result.trials}
    before = {"dev": interval(task.metric, result.baseline.measurements, seed)}
    after = {"dev": interval(task.metric, result.chosen.measurements, seed)}
    unread = {}
    for name, trial, scores in (("baseline", result.baseline, before), ("compiled", result.chosen, after)):
        if task.test:
            outcomes = evaluator.run(trial.candidate, task.test)
            scores["test"] = interval(task.metric, _measured(outcomes, name), seed)
            unread[name] = sum(outcome.unread is not None for outcome in outcomes)
    splits = {"dev": task.dev, "test": task.test}
    reference = reference_scores(
        task.program, task.metric, task.columns, task.train, splits, seed=task.seed, interval_seed=seed
    )
    ledger = asdict(engine.ledger)
    compilation = Compilation(task, result, before, after, unread, ledger, spent, clock.now(), folder, reference)
    folder.write({**state, **_outcome(compilation)})
    return compilation


def _measured(outcomes: Sequence[Outcome], name: str) -> list[Any]:
    failed = [outcome.error for outcome in outcomes if outcome.error]
    if failed:
        raise RunError(
            f"the {name} program failed on {len(failed)} of {len(outcomes)} test examples",
            hint=f"The first failure: {failed[0]}",
        )
    return [outcome.measurement for outcome in outcomes]


def make_space(task: Task, evaluator: ProgramEvaluator, engine: JournaledEngine) -> Space:
    """The space of a task: demo pools are gathered, which may run the program on train."""
    low, high = task.search.demos
    found: Mapping[str, list[Demo]] = {name: [] for name in evaluator.signatures}
    if high and task.train:
        found = pools(evaluator, bootstrap_candidate(task.program, scores=engine.can_score), task.train)
    parts = []
    for name, signature in evaluator.signatures.items():
        pool = found[name]
        state = candidate_of(task.program).states[name]
        readouts = None if task.search.readouts == "auto" else task.search.readouts
        calibrations: tuple[str, ...] | None = None if task.search.calibrations == "auto" else task.search.calibrations
        if not task.train:  # nothing to calibrate on but the content-free input
            calibrations = tuple(m for m in calibrations or ("none", "contextual") if m in ("none", "contextual"))
        counts = demo_counts(low, high, len(pool))
        sources = copied_from(signature, pool)
        parts.append(
            PredictorSpace(
                name,
                signature,
                instructions_for(signature, task.search.instructions),
                counts,
                sets(pool, DEMO_SETS, high, seed=task.seed, name=name) if pool else (),
                search_formats(task.search, engine),
                readouts_for(signature, readouts, calibrations, copied=bool(sources), scores=engine.can_score),
                search_decoding(signature, state.decoding, pool, engine),
                task.search.decoding,
                start_count(counts, pool, engine),
                sources,
                longest_span(signature, pool, engine) if sources else None,
                tuple(pool),
                nearest_counts(task.search.nearest, signature, pool, engine),
            )
        )
    return Space(tuple(parts))


def longest_span(signature: type[dspy.Signature], pool: Sequence[Demo], engine: JournaledEngine) -> int:
    """The most tokens of a span: what nearly all of the demos' outputs stay within, and one for a space before."""
    lengths = sorted(
        len(engine.tokenizer.encode(str(demo[name])))
        for demo in pool
        for name in signature.output_fields
        if name in demo
    )
    return 1 + lengths[int(LONG * (len(lengths) - 1))]


def nearest_counts(
    span: tuple[int, int], signature: type[dspy.Signature], pool: Sequence[Demo], engine: JournaledEngine
) -> tuple[int, ...]:
    """How many demos nearest to the input may be shown: a call of its own pays for each, so long ones are few."""
    low, high = span
    if len(pool) < NEAREST_POOL or not any(field.annotation is str for field in signature.input_fields.values()):
        return (0,)
    counts = demo_counts(low, high, len(pool))
    mean = mean_tokens(pool, engine)
    return tuple(count for count in counts if count == low or count * mean <= NEAREST_TOKENS)


def mean_tokens(pool: Sequence[Demo], engine: JournaledEngine) -> float:
    """How long a demo is, without a format's scaffolding."""
    return sum(len(engine.tokenizer.encode(" ".join(map(str, demo.values())))) for demo in pool) / len(pool)


def start_count(counts: Sequence[int], pool: Sequence[Demo], engine: JournaledEngine) -> int:
    """How many demos the first points show: as many as make about `START_TOKENS` tokens, since long ones cost time."""
    if not pool:
        return counts[-1]
    mean = mean_tokens(pool, engine)
    return max((count for count in counts if count * mean <= START_TOKENS), default=counts[0])


def search_formats(search: SearchSpec, engine: JournaledEngine) -> tuple[FormatChoice, ...]:
    """The formats that are searched. A model without a chat template has only those without one."""
    if search.formats != "auto":
        return search.formats
    try:
        engine.tokenizer.chat([Turn("user", "")])
    except InputError:
        return ("completion",)
    return FORMATS


def bootstrap_candidate(program: dspy.Module, *, scores: bool = True) -> Candidate:
    """The parameters under which train is run to gather demos: the ones whose answers a small model gets right in
    form. `scores`: whether the target can score a given text.
    """
    states = {}
    for name, state in candidate_of(program).states.items():
        predictor = dict(program.named_predictors())[name]
        labels = any(choices(output.annotation) for output in predictor.signature.output_fields.values())
        readout = ReadOut(kind="choice" if labels and scores else "text")
        states[name] = state.model_copy(update={"format": "completion", "readout": readout})
    return Candidate(states)


def search_decoding(
    signature: type[dspy.Signature], decoding: Decoding, pool: Sequence[Demo], engine: JournaledEngine
) -> Decoding:
    """The decoding settings of the search: `max_tokens` from the demos' own outputs, unless the user has set it.

    Half as much again as the longest, and room for a format's scaffolding.
    """
    if "max_tokens" in decoding.model_fields_set or not pool:
        return decoding
    outputs = signature.output_fields

    def length(demo: Demo) -> int:
        texts = [write(demo[name], field.annotation) for name, field in outputs.items() if name in demo]
        return sum(len(engine.tokenizer.encode(text)) for text in texts)

    longest = max(length(demo) for demo in pool)
    room = math.ceil(1.5 * longest) + 12 + 8 * len(outputs)
    return decoding.model_copy(update={"max_tokens": room})


def trial_line(trial: Trial, seconds: float) -> dict[str, Any]:
    """A trial as a line of `trials.jsonl`. `scores`, where it is complete, follow dev in a fixed order."""
    return {
        "trial": trial.number,
        "status": trial.status,
        "params": dict(trial.params),
        "candidate": trial.candidate.digest,
        "examples": trial.examples,
        "score": trial.score,
        "estimate": trial.estimate,
        "unread": trial.unread,
        "best": trial.best,
        **({"reason": trial.reason} if trial.reason else {}),
        **({"scores": [round(m.score, 6) for m in trial.measurements]} if trial.status == "complete" else {}),
        "states": {name: _short(state) for name, state in trial.candidate.states.items()},
        "seconds": round(seconds, 3),
    }


def _short(state: PredictorState) -> dict[str, Any]:
    """A predictor's parameters, its demos counted only (their set and number stand in the trial's params)."""
    counts = {"demos": len(state.demos), "nearest": state.nearest.count if state.nearest else 0}
    return {**state.model_dump(mode="json", exclude={"demos", "nearest"}), **counts}


def _described(task: Task) -> dict[str, Any]:
    return {
        "name": task.name,
        "seed": task.seed,
        "target": asdict(task.target.description),
        "metric": task.metric.name,
        "optimizer": task.optimizer,
        **({"options": dict(task.options)} if task.options else {}),
        "budget": {name: limit for name, limit in asdict(task.budget).items() if name != "trials" or limit},
        "examples": {"train": len(task.train), "dev": len(task.dev), "test": len(task.test)},
        "fingerprint": task.fingerprint,
    }


def _outcome(compilation: Compilation) -> dict[str, Any]:
    result = compilation.result
    return {
        "status": "finished",
        "kept": "candidate" if result.accepted else "baseline",
        "trial": result.chosen.number,
        "baseline": {split: score.as_dict() for split, score in compilation.baseline.items()},
        "compiled": {split: score.as_dict() for split, score in compilation.compiled.items()},
        "paired": result.verdict.as_dict() if result.verdict is not None else None,
        "unread": dict(compilation.unread),
        "reference": {split: score.as_dict() for split, score in compilation.reference.items()},
        "spent": dict(compilation.spent),
        "ledger": dict(compilation.ledger),
        "seconds": round(compilation.seconds, 3),
    }
