"""A compile, from a task to its result: baseline, demos, search, confirmation, test.

A run that was stopped is taken up by running all of this again over its journal: the same steps ask for the same
model calls, which are answered from the record up to where it ends. So resuming needs no code of its own, and ends in
the same bytes. What the record can't tell is what was decided by the clock, because a budget in seconds ran short, or
by the user, who wanted an end: `run.json` keeps how many candidates began and went on in each generation for that, and
which was the last (`stopping.py`), and what was tried after it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import dspy

from ..errors import InputError, RunError
from ..metrics.statistics import interval
from ..models.lm import language_model
from ..optimizers.base import Budget, Candidate, Outcome, Trial, spending
from ..optimizers.challenges import challenged, ways_after
from ..optimizers.context import StrategyContext
from ..optimizers.foreign import is_foreign, run_teleprompter
from ..optimizers.headed import FORMATS as HEAD_FORMATS
from ..optimizers.joint import strategy_named
from ..optimizers.pacing import WEIGHED, Way, afforded, kept_back
from ..optimizers.recalibrate import METHODS
from ..optimizers.refit import dearer
from ..optimizers.search import Search, SearchResult
from ..optimizers.shared import SharedStudy
from ..optimizers.space import Space
from ..programs.heads import check_target
from ..programs.state import CHOOSING, FormatChoice
from ..seeds import derive_seed
from .baseline import write_baseline
from .dev_scores import dev_scores
from .evaluator import ProgramEvaluator, candidate_of
from .journal import Clock, JournaledEngine
from .reference import constant_scores, reference_scores
from .run_folder import RunFolder
from .run_record import described, outcome_of, trial_line
from .stopping import Decisions, forget_interrupt
from .task import Compilation, Reporter, Task
from .task_space import grows_after, make_space, search_formats

WIDTH = 12
FEWEST_RUNS = 4  # of dev, that a search has calls for, before any are kept back for calibrations
FEWEST_TO_REFIT = 6  # before a whole run of dev is kept back
TAKING_WHAT_IS_LEFT = ("refit", "recalibrate")  # what is not asked for, and not missed where there is no room


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
        count += trial.place is None
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
    if is_foreign(task.optimizer):
        reporter.phase("search", task.budget.share(evaluator, count))
        keep_back(task, search, engine)
        with decisions.listening():
            result, told = _elsewhere(task, folder, search, zero, lm, decisions)
    else:
        proposer = _proposer(task, folder, clock)
        search.space, told = _space(task, evaluator, engine, lm, proposer)
        reporter.phase("search", task.budget.share(evaluator, count))
        keep_back(task, search, engine)
        about = (task.train, lm, trials, task.budget, task.options, task.description)
        with decisions.listening():
            result, more = _searched(task, folder, search, zero, StrategyContext(baseline, evaluator, *about), state)
        told |= more
    tried = _affordable(task, search, result, engine, decisions.known)
    told |= {name: asdict(way) if way and way.rows else bool(way) for name, way in tried.items()}
    stopped_by = decisions.ended(result.trials, result.stopped_by, told)
    left_out = tuple(name for name, way in tried.items() if way is None and name not in TAKING_WHAT_IS_LEFT)
    result = replace(result, stopped_by=stopped_by, left_out=left_out)
    result = _challenged(task, search, result, engine, tried)
    reporter.phase("test", 1.0)
    return _finish(task, folder, evaluator, engine, clock, result, state)


def _space(
    task: Task, evaluator: ProgramEvaluator, engine: JournaledEngine, lm: dspy.LM, proposer: JournaledEngine | None
) -> tuple[Space, dict[str, Any]]:
    """The search's space; and what `run.json` tells of the instructions that a model was asked for, if one was."""
    space, dropped = make_space(task, evaluator, engine, lm if proposer is None else language_model(proposer))
    if not task.search.instructions.asked:
        return space, {}
    return space, {"proposals": {"dropped": dropped, **({"ledger": asdict(proposer.ledger)} if proposer else {})}}


def _room(task: Task, search: Search) -> float:
    """The metric calls that the budget has left."""
    limit = task.budget.metric_calls
    return math.inf if limit is None else max(0, limit - search.evaluator.spent)


def _ways_after(
    task: Task, search: Search, engine: JournaledEngine, candidate: Candidate | None = None, *, refits: bool = False
) -> dict[str, list[Way]]:
    """How votes, matrices and heads can be tried, see `ways_after`: heads first, where there is no room for all."""
    formats = len(_head_formats(task, engine))
    written = candidate_of(task.program)
    found: set[str] = {state.readout.kind for state in (candidate or written).states.values()}
    found |= {readout.partition("+")[0] for part in search.space.predictors for readout in part.readouts}
    # The result of an optimizer of DSPy's stays what it made.
    chooses = bool(found & {*CHOOSING, "span"}) and not is_foreign(task.optimizer)
    about: dict[str, Any] = {"chooses": chooses, "refits": refits, "seed": task.seed}
    return ways_after(search.evaluator, task.search, task.train, task.dev, formats, candidate, **about)


def keep_back(task: Task, search: Search, engine: JournaledEngine) -> None:
    """Let the search keep back metric calls for what is tried after it, and what else that costs for the refit.

    Those of the refit only where there is a candidate of the channel, which is never tried with dev's rows before.
    """
    if grows_after(task.search, search.space):
        search.pacer.tried = len(task.dev)
    if task.budget.metric_calls is not None:
        ways, room = _ways_after(task, search, engine), _room(task, search)
        if room < FEWEST_RUNS * len(task.dev):
            ways.pop("recalibrate", None)
        search.pacer.kept = kept_back(ways, room)
        joins = task.search.refit and any(search.space.most_per_label.values())
        if joins and room >= FEWEST_TO_REFIT * len(task.dev):
            search.refit = len(task.dev)


def _affordable(
    task: Task, search: Search, result: SearchResult, engine: JournaledEngine, known: Mapping[str, Any]
) -> dict[str, Way | None]:
    """How `head`, `matrix` and `votes` are tried on top of what was chosen, None for what the budget has no room for.

    known: what an earlier life of the run has decided, where it came that far: the clock may have had a say in it.
    """
    refit = search.to_refit(result) if task.search.refit else None
    ways = _ways_after(task, search, engine, result.chosen.candidate, refits=refit is not None)
    voting = "votes" in ways and search.affords(result.chosen, task.search.votes or 1)
    ways |= {} if voting or "votes" not in ways else {"votes": []}
    if refit is not None:
        trial, grown = refit
        on_dev = dearer(search.evaluator, trial.candidate, grown, search.dev[:WEIGHED])
        if not search.affords(trial, 1 + ((task.search.votes or 1) if voting else 0), on_dev):
            ways["refit"] = []
    return {name: way if known.get(name, True) else None for name, way in afforded(ways, _room(task, search)).items()}


def _challenged(
    task: Task, search: Search, result: SearchResult, engine: JournaledEngine, ways: Mapping[str, Way | None]
) -> SearchResult:
    about: dict[str, Any] = {"stem": task.name, "target": engine.identity, "seed": task.seed}
    formats = _head_formats(task, engine)
    calibrations = METHODS if task.search.calibrations == "auto" else task.search.calibrations
    wanted: dict[str, Any] = {"votes": task.search.votes, "calibrations": calibrations}
    return challenged(search, result, task.train, ways, formats=formats, **wanted, **about)


def _proposer(task: Task, folder: RunFolder, clock: Clock) -> JournaledEngine | None:
    """The engine that is asked for instructions, where it is not the target's; it has a journal of its own."""
    if task.proposer is None:
        return None
    return JournaledEngine(task.proposer.engine, folder.path / "proposer.jsonl", clock)


def _searched(
    task: Task, folder: RunFolder, search: Search, zero: Trial, context: StrategyContext, state: dict[str, Any]
) -> tuple[SearchResult, dict[str, Any]]:
    """The search, with Optuna's study in the run's folder; and what `run.json` tells of what the model wrote for it
    that was of no use: reason -> how many. What it had of a study that is shared with other processes is added to
    `state`. Raises `RunError` when the study can't be written.
    """
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    factory = strategy_named(task.optimizer)
    made: dict[str, Any] = {"seed": task.seed, "baseline": zero.score, "context": context}
    try:
        with _shared(task, folder, search) as shared:
            strategy = factory(search.space, **made, storage=folder.study_url if shared is None else shared)
            result = search.run(zero, strategy)
    except (StorageInternalError, SQLAlchemyError) as error:
        reason = str(error.__cause__ or error).partition("\n")[0]
        raise RunError(
            f"can't write the study: {reason}", path=folder.study, hint="Make room and start again."
        ) from error
    if shared is not None:
        about = {"process": shared.place, "others": result.others, "left_out": shared.left_out}
        state["study"] = {**state["study"], **about}
    dropped = dict(sorted(getattr(strategy, "dropped", {}).items()))
    return result, {"strategy": {"dropped": dropped}} if dropped else {}


def _shared(task: Task, folder: RunFolder, search: Search) -> contextlib.AbstractContextManager[SharedStudy | None]:
    """The study that the task shares with other processes, if it does."""
    if task.study is None:
        return contextlib.nullcontext()
    parts: dict[str, Any] = {"record": folder.heard, "local": folder.study_url, "metric": task.metric}
    return SharedStudy(task.study, task.name, task.study_of, **parts, rows=len(task.dev))


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
            budget=_without_kept(task.budget, search.pacer.kept and search.pacer.kept + len(task.dev)),
            seed=task.seed,
            log=log,
            until=decisions.until,
            asked=decisions.asked,
        )
    result = search.settle(zero, found.candidate, found.complete, found.stopped_by)
    return result, {"steps": found.ticks, **({"reason": found.reason} if found.reason else {})}


def _without_kept(budget: Budget, kept: int) -> Budget:
    """The budget of an optimizer that knows nothing of what is kept back, nor of the run on dev that settles it."""
    if budget.metric_calls is None or not kept:
        return budget
    return replace(budget, metric_calls=max(0, budget.metric_calls - kept))


def check_heads(task: Task, engine: JournaledEngine) -> None:
    """Raise `InputError` where heads or matrices are asked for and the target can't give what they read, or where the
    program has heads that were fitted on another target.
    """
    check_target([state.readout for state in candidate_of(task.program).states.values()], engine)
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


def _head_formats(task: Task, engine: JournaledEngine) -> list[FormatChoice]:
    """The formats of the prompt that a head may read."""
    known = search_formats(task.search, engine)
    return [choice for choice in HEAD_FORMATS if choice in known] or list(known[:1])


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
    trials = result.trials - result.others
    spent = {"metric_calls": evaluator.spent + result.read, "trials": trials, **counted}
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
    constant = constant_scores(task.program, task.metric, task.train, splits, interval_seed=seed)
    ledger = asdict(engine.ledger)
    compilation = Compilation(
        task, result, before, after, unread, ledger, spent, clock.now(), folder, reference, constant
    )
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
