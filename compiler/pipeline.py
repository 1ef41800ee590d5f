"""A compile, from a task to its result: baseline, demos, search, confirmation, test.

A run that was stopped is taken up by running all of this again over its journal: the same steps ask for the same
model calls, which are answered from the record up to where it ends. So resuming needs no code of its own, and ends in
the same bytes. What the record can't tell is what was decided by the clock, because a budget in seconds ran short, or
by the user, who wanted an end: `run.json` keeps how many candidates began and went on in each generation for that, and
which was the last (`stopping.py`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import dspy

from ..errors import InputError, RunError
from ..metrics.statistics import interval
from ..models.lm import language_model
from ..optimizers.base import Budget, Candidate, Outcome, Trial, spending
from ..optimizers.context import StrategyContext
from ..optimizers.foreign import is_foreign, run_teleprompter
from ..optimizers.headed import FORMATS as HEAD_FORMATS
from ..optimizers.headed import headed, with_matrices
from ..optimizers.heads import Fitted
from ..optimizers.joint import strategy_named
from ..optimizers.search import Search, SearchResult
from ..optimizers.space import Space
from ..optimizers.voted import with_votes
from ..seeds import derive_seed
from .baseline import write_baseline
from .dev_scores import dev_scores
from .evaluator import ProgramEvaluator, candidate_of
from .journal import Clock, JournaledEngine
from .reference import reference_scores
from .run_folder import RunFolder
from .run_record import described, outcome_of, trial_line
from .stopping import Decisions, forget_interrupt
from .task import Compilation, Reporter, Task
from .task_space import make_space, search_formats

WIDTH = 12


def run_task(task: Task, folder: RunFolder, reporter: Reporter) -> Compilation:
    """Compile `task` in `folder`. Raises `InputError` and `RunError`; the run can be taken up again after either."""
    with folder:
        folder.begin()
        planned = folder.read().get("search")
        state: dict[str, Any] = {**described(task), **({"search": planned} if planned else {})}
        folder.write({**state, "status": "running"})
        clock = Clock()
        engine = JournaledEngine(task.target.engine, folder.calls, clock)
        try:
            reporter.begin(task, folder, engine.recorded)
            check_heads(task, engine)
            return _run(task, folder, reporter, clock, engine, state)
        except BaseException as error:
            status = "failed" if isinstance(error, Exception) else "interrupted"
            if isinstance(error, KeyboardInterrupt):
                forget_interrupt(state)
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
    decisions = Decisions(folder, state, lambda reason: reporter.stopping(reason))
    budget = Budget(trials=0) if decisions.over else task.budget
    count = 0
    trials: list[Trial] = []

    def observe(trial: Trial) -> None:
        nonlocal count
        count += 1
        trials.append(trial)
        folder.append_trial(trial_line(trial, clock.now()))
        reporter.trial(trial, task.budget.share(evaluator, count), clock.now())

    reporter.phase("baseline", 0.0)
    baseline = candidate_of(task.program)
    search = Search(
        evaluator,
        Space(()),
        task.dev,
        task.train,
        budget,
        task.seed,
        observe,
        WIDTH,
        decisions.schedule,
        decisions.plan,
        later=len(task.test),
        rules=task.stop,
        asked=decisions.asked,
        rule=task.choose,
    )
    zero = search.baseline(baseline)
    reporter.phase("demos", task.budget.share(evaluator, count))
    told: dict[str, Any] = {}
    if is_foreign(task.optimizer):
        reporter.phase("search", task.budget.share(evaluator, count))
        with decisions.listening():
            result, told = _elsewhere(task, folder, search, zero, lm, decisions)
    else:
        proposer = _proposer(task, folder, clock)
        search.space, dropped = make_space(
            task, evaluator, engine, lm if proposer is None else language_model(proposer)
        )
        if task.search.instructions.asked:
            told["proposals"] = {"dropped": dropped, **({"ledger": asdict(proposer.ledger)} if proposer else {})}
        reporter.phase("search", task.budget.share(evaluator, count))
        context = StrategyContext(
            baseline, evaluator, task.train, lm, trials, task.budget, task.options, task.description
        )
        with decisions.listening():
            result = _searched(task, folder, search, zero, context)
    voting = _can_vote(task, search, result) if decisions.over is None else bool(decisions.known.get("votes"))
    told |= {"votes": voting} if task.search.votes else {}
    result = replace(result, stopped_by=decisions.ended(result.trials, result.stopped_by, told))
    result = _with_votes(task, search, result) if voting else result
    result = _with_heads(task, search, result, engine)
    reporter.phase("test", 1.0)
    return _finish(task, folder, evaluator, engine, clock, result, state)


def _can_vote(task: Task, search: Search, result: SearchResult) -> bool:
    """Whether votes are asked for, and the budget has room for them."""
    votes = task.search.votes
    return votes is not None and search.affords(result.chosen, votes)


def _with_votes(task: Task, search: Search, result: SearchResult) -> SearchResult:
    """The result with votes tried on top of what was chosen, where anything is generated."""
    votes = task.search.votes or 1
    candidate = with_votes(search.evaluator, result.chosen.candidate, votes)
    return result if candidate is None else search.challenge(result, candidate, {"votes": votes}, prompts=True)


def _proposer(task: Task, folder: RunFolder, clock: Clock) -> JournaledEngine | None:
    """The engine that is asked for instructions, where it is not the target's; it has a journal of its own."""
    if task.proposer is None:
        return None
    return JournaledEngine(task.proposer.engine, folder.path / "proposer.jsonl", clock)


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
    task: Task, folder: RunFolder, search: Search, zero: Trial, lm: dspy.LM, decisions: Decisions
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
            until=decisions.until,
            asked=decisions.asked,
        )
    result = search.settle(zero, found.candidate, found.complete, found.stopped_by)
    return result, {"steps": found.ticks, **({"reason": found.reason} if found.reason else {})}


def check_heads(task: Task, engine: JournaledEngine) -> None:
    """Raise `InputError` where heads or matrices are asked for and the target can't give what they read."""
    if "matrix" in task.search.calibrations and not engine.can_score:
        raise InputError(
            f"a matrix reads the labels' log-likelihoods, which {task.target.description.name!r} does not give",
            field="optimize.search.calibrations",
            hint="Leave 'matrix' out of the calibrations, or compile for another model.",
        )
    if "head" in task.search.readouts and not engine.layers:
        raise InputError(
            f"the read-out 'head' needs hidden states, which {task.target.description.name!r} does not give",
            field="optimize.search.readouts",
            expected="a model held in process whose prompts can share prefixes",
            hint="Leave 'head' out of the read-outs, or compile for another model.",
        )


def _with_heads(task: Task, search: Search, result: SearchResult, engine: JournaledEngine) -> SearchResult:
    """The result with matrices and heads tried on top of what was chosen, where the spec asks for them.

    Not by default: such a program runs on this model alone, and is no prompt to read or to take elsewhere.
    """
    if not task.train:
        return result
    candidate, evaluator = result.chosen.candidate, search.evaluator
    if "matrix" in task.search.calibrations:
        made = with_matrices(evaluator, candidate, task.train, stem=task.name, seed=task.seed)
        result = _challenged(search, result, *made)
    if "head" in task.search.readouts:
        known = search_formats(task.search, engine)
        formats = [choice for choice in HEAD_FORMATS if choice in known] or list(known[:1])
        made = headed(evaluator, candidate, task.train, stem=task.name, formats=formats, seed=task.seed)
        result = _challenged(search, result, *made)
    return result


def _challenged(
    search: Search, result: SearchResult, candidate: Candidate, fits: Mapping[str, Mapping[str, Fitted]]
) -> SearchResult:
    params = {}
    for name, fields in fits.items():
        for field, fit in fields.items():
            told: dict[str, Any] = {
                "strength": fit.strength,
                "accuracy": round(fit.accuracy, 4),
                "loss": round(fit.loss, 4),
            }
            if fit.head.layer is None:
                params[f"{name}.{field}.matrix"] = told
            else:
                params[f"{name}.{field}.head"] = {"layer": fit.head.layer, "pooling": fit.head.pooling, **told}
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
    used = spending(evaluator)
    counted: dict[str, int] = {
        name: int(used[name]) for name in ("model_calls", "tokens") if name in task.budget.limits
    }
    spent = {"metric_calls": evaluator.spent, "trials": result.trials, **counted}
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
    write_baseline(folder.scores, dev_scores(task, result))
    folder.write({**state, **outcome_of(compilation)})
    return compilation


def _measured(outcomes: Sequence[Outcome], name: str) -> list[Any]:
    failed = [outcome.error for outcome in outcomes if outcome.error]
    if failed:
        raise RunError(
            f"the {name} program failed on {len(failed)} of {len(outcomes)} test examples",
            hint=f"The first failure: {failed[0]}",
        )
    return [outcome.measurement for outcome in outcomes]
