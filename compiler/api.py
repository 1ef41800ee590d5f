"""The Python API: load, compile, evaluate.

>>> import cuecard
>>> program = cuecard.load("ticket_triage.yaml", target="smollm2-135m")
>>> program(ticket="I was charged twice").queue
'billing'
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import dspy

from ..errors import InputError, nearest
from ..metrics import Metric, Score, interval
from ..metrics import metric as metric_of
from ..models.lm import language_model
from ..models.target import DEFAULT_MODEL, Target
from ..models.target import target as open_target
from ..optimizers.base import Budget, Outcome, Row, Trial
from ..programs.graph import Graph, build
from ..programs.learned import apply_spec
from ..programs.predictor import adopt
from ..programs.schema import MetricSpec, SearchSpec, Spec
from ..programs.spec import load_spec
from ..programs.state import PredictorState
from .compiled import VERSIONS, Compiled, _version
from .data import Example, Examples, from_dspy, load_examples
from .evaluate import run_program
from .evaluator import candidate_of, predictors_of, same_names
from .pipeline import Compilation, Reporter, Task, run_task
from .run_folder import RUNS, fingerprint, open_run

Program: TypeAlias = dspy.Module
Data = str | PathLike[str] | Examples | Sequence[Any]
MetricLike = str | Mapping[str, Any] | Sequence[Any] | Callable[..., Any] | Metric

DEFAULT_METRIC_CALLS = 2000


class Silent:
    """A reporter that says nothing."""

    def phase(self, name: str, share: float) -> None:
        """See `Reporter.phase`."""

    def runs(self, done: int, seconds: float) -> None:
        """See `Reporter.runs`."""

    def trial(self, trial: Trial, share: float, seconds: float) -> None:
        """See `Reporter.trial`."""


def load(
    path: str | PathLike[str],
    *,
    program: Program | None = None,
    target: Target | str | None = None,
    allow_outside: bool = False,
) -> Program:
    """The program of a YAML spec or of a compiled file. Loading runs no code and opens no model but `target`.

    program: the Python program, for a file that was compiled from one; target: where it runs (a `Target`, or a model's
    name); without one, on the LM that DSPy is configured with. Raises `InputError`.
    """
    spec = load_spec(path, allow_outside=allow_outside)
    if program is not None:
        loaded = apply_spec(spec, program)
    elif spec.predictors and not spec.steps:
        raise InputError(
            "this file was compiled from a Python program, which it does not hold",
            path=path,
            hint="Give the program: cuecard.load(path, program=MyProgram()).",
        )
    else:
        loaded = build(spec)
    if target is not None:
        loaded.set_lm((target if isinstance(target, Target) else open_target(target)).lm)
    return loaded


def compile(
    program: Program | str | PathLike[str],
    *,
    trainset: Data = (),
    devset: Data = (),
    testset: Data = (),
    metric: MetricLike | None = None,
    target: Target | str | None = None,
    budget: Budget | Mapping[str, float] | None = None,
    seed: int = 0,
    search: SearchSpec | Mapping[str, Any] | None = None,
    optimizer: str = "joint",
    name: str | None = None,
    runs: str | PathLike[str] = RUNS,
    fresh: bool = False,
    reporter: Reporter | None = None,
) -> Compiled:
    """Compile a program: search for the prompts and settings with which the target does the task best.

    program: any `dspy.Module`, or the path of a YAML spec (see `compile_spec` for what is then read from it);
    trainset, devset, testset: lists of `dspy.Example`, `Examples`, or paths; without a devset, dev is split off the
    trainset; metric: a name, a mapping, a list, a `Metric` or a function `(example, prediction)`; target: default the
    pulled `smollm2-135m`; budget: `{"metric_calls": 2000, "seconds": 600}`, whichever comes first; search: the keys
    of the spec's `search`; runs: the folder of run folders; fresh: start anew even if an unfinished run could be
    resumed.

    Returns the compiled program, a callable `dspy.Module`; `.write(path)` keeps it. The baseline stays what it was
    where no candidate beats it by a paired test. Raises `InputError` for wrong input, `RunError` when the run fails;
    the same call resumes it then.

    >>> compiled = cuecard.compile(program, trainset=train, devset=dev, metric="exact_match", budget={"seconds": 300})
    >>> compiled(question="How tall is Ben Nevis?").label
    """
    if not isinstance(program, dspy.Module):
        given = {"trainset": trainset, "devset": devset, "testset": testset, "metric": metric, "search": search}
        superfluous = [key for key, value in given.items() if value not in (None, ())]
        if superfluous:
            raise InputError(f"{superfluous[0]} stands in the spec", hint="Change the spec, or load the program first.")
        from .from_spec import compile_spec

        return compile_spec(
            program,
            target=target,
            budget=_budget(budget) if budget else None,
            fresh=fresh,
            runs=runs,
            reporter=reporter,
        )
    if metric is None:
        raise InputError("a compile needs a metric", expected="metric='exact_match', a function, ...")
    adopted = program if isinstance(program, Graph) else adopt(program, PredictorState(format="dspy"))
    read_metric = metric_of(metric)
    train, dev = _examples(trainset, adopted), _examples(devset, adopted)
    if not dev:
        train, dev = split_dev(train, seed)
    task = Task(
        name=name or type(program).__name__.lower(),
        program=adopted,
        metric=read_metric,
        train=train,
        dev=dev,
        test=_examples(testset, adopted),
        target=_target(target),
        columns=same_names(adopted) if not isinstance(adopted, Graph) else adopted.columns,
        budget=_budget(budget),
        seed=seed,
        optimizer=optimizer,
        search=search if isinstance(search, SearchSpec) else SearchSpec.model_validate(dict(search or {})),
    )
    return compile_task(task, metric_source=_source_of(metric), runs=Path(runs), fresh=fresh, reporter=reporter)


def compile_task(
    task: Task,
    *,
    metric_source: Any,
    runs: Path,
    fresh: bool = False,
    reporter: Reporter | None = None,
    spec: Spec | None = None,
) -> Compiled:
    """Compile a task in its run folder, a new one or the unfinished one of the same fingerprint."""
    check_task(task)
    digest = fingerprint(_identity_of(task, metric_source))
    folder = open_run(runs, task.name, digest, fresh=fresh)
    marked = Task(**{**vars(task), "fingerprint": digest})
    return Compiled(run_task(marked, folder, reporter or Silent()), spec)


def check_task(task: Task) -> None:
    """Raise `InputError` for what would make a compile meaningless."""
    if not predictors_of(task.program):
        raise InputError("the program calls no model: it has no predictors")
    if not task.dev:
        raise InputError("a compile needs dev examples", hint="Give a devset, or a trainset of at least four rows.")


def _identity_of(task: Task, metric_source: Any) -> dict[str, Any]:
    predictors = predictors_of(task.program)
    return {
        "program": {name: _signature_text(part.signature) for name, part in predictors.items()},
        "shape": repr(type(task.program)),
        "states": {name: state.model_dump(mode="json") for name, state in candidate_of(task.program).states.items()},
        "metric": metric_source,
        "data": [[_row_text(row) for row in rows] for rows in (task.train, task.dev, task.test)],
        "target": task.target.engine.identity,
        "budget": [task.budget.metric_calls, task.budget.seconds],
        "seed": task.seed,
        "optimizer": task.optimizer,
        "search": task.search.model_dump(mode="json"),
        "columns": {name: dict(fields) for name, fields in task.columns.items()},
        "versions": {name: _version(name) for name in VERSIONS},
    }


def _signature_text(signature: type[dspy.Signature]) -> str:
    return repr({name: (repr(field.annotation), field.json_schema_extra) for name, field in signature.fields.items()})


def _row_text(row: Row) -> str:
    return repr((sorted(row.inputs.items()), sorted(row.labels.items())))


def _source_of(metric: Any) -> Any:
    """What stands for a metric in a run's fingerprint: its source code, where it is a function."""
    if callable(metric) and not isinstance(metric, Metric):
        try:
            return inspect.getsource(metric)
        except (OSError, TypeError):
            return repr(metric)
    return metric.name if isinstance(metric, Metric) else metric


def _budget(budget: Budget | Mapping[str, float] | None) -> Budget:
    if isinstance(budget, Budget):
        return budget
    given = dict(budget or {})
    unknown = next((key for key in given if key not in ("metric_calls", "seconds")), None)
    if unknown is not None:
        raise InputError(
            f"unknown budget {unknown!r}",
            expected="metric_calls, seconds",
            nearest=nearest(unknown, ("metric_calls", "seconds")),
        )
    calls, seconds = given.get("metric_calls"), given.get("seconds")
    if calls is None and seconds is None:
        calls = DEFAULT_METRIC_CALLS
    return Budget(None if calls is None else int(calls), seconds)


def _target(target: Target | str | None) -> Target:
    return target if isinstance(target, Target) else open_target(target or DEFAULT_MODEL)


def _examples(data: Data, program: Program) -> Examples:
    """The examples of a Python program: which fields are inputs is what `dspy.Example.with_inputs` says."""
    if isinstance(data, Examples):
        return data
    if isinstance(data, str | os.PathLike):
        inputs, outputs, extra = field_types_of(program)
        return load_examples(Path(data), inputs=inputs, outputs=outputs, extra=extra)
    return from_dspy(list(data))


def field_types_of(program: Program) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Inputs, outputs and the fields between them of a program, for reading a file of examples.

    Of a Python program with several predictors, nothing says which are which.
    """
    if isinstance(program, Graph):
        return program.input_types, program.output_types, program.label_types
    predictors = predictors_of(program)
    if len(predictors) != 1:
        raise InputError(
            "a file of examples does not say which fields are the inputs of a Python program",
            hint="Give a list of dspy.Example(...).with_inputs(...).",
        )
    signature = next(iter(predictors.values())).signature
    return (
        {name: field.annotation for name, field in signature.input_fields.items()},
        {name: field.annotation for name, field in signature.output_fields.items() if name != "reasoning"},
        {},
    )


def split_dev(train: Examples, seed: int) -> tuple[Examples, Examples]:
    """A trainset in two halves, train and dev."""
    from .data import split

    if len(train) < 4:
        return train, train[:0]
    return split(train, seed, (0.5, 0.5))  # type: ignore[return-value]


@dataclass(frozen=True)
class Evaluation:
    """A program's score on examples. `unread`: answers that could not be read, which count as the metric's worst;
    `failed`: examples whose call failed, which have no score and are not in `score.n`."""

    score: Score
    outcomes: tuple[Outcome, ...]

    @property
    def unread(self) -> int:
        """How many answers could not be read."""
        return sum(outcome.unread is not None for outcome in self.outcomes)

    @property
    def failed(self) -> int:
        """How many calls failed."""
        return sum(outcome.error is not None for outcome in self.outcomes)


def evaluate(
    program: Program,
    examples: Data,
    metric: MetricLike,
    *,
    target: Target | str | None = None,
    seed: int = 0,
    observer: Callable[[int], None] | None = None,
) -> Evaluation:
    """Score a program on examples. See `compile` for the arguments; `seed` is the bootstrap interval's.

    Raises `InputError` when every call failed, since there is nothing to score then.

    >>> cuecard.evaluate(program, dev, "exact_match").score
    Score(value=0.61, low=0.54, high=0.67, n=200)
    """
    lm = language_model(_target(target).engine)
    program = adopt(program, PredictorState(format="dspy"))
    for predictor in predictors_of(program).values():
        predictor.lm = None
    rows = _examples(examples, program)
    read_metric = metric_of(metric)
    outcomes = run_program(program, rows, lm=lm, metric=read_metric, observer=observer)
    measured = [outcome.measurement for outcome in outcomes if outcome.measurement is not None]
    if not measured:
        failed = next((outcome.error for outcome in outcomes if outcome.error), "there are no examples")
        raise InputError(f"no example has a score: {failed}")
    return Evaluation(interval(read_metric, measured, seed), tuple(outcomes))


__all__ = [
    "Budget",
    "Compilation",
    "Compiled",
    "Evaluation",
    "Example",
    "Examples",
    "MetricSpec",
    "Silent",
    "Target",
    "Task",
    "compile",
    "compile_task",
    "evaluate",
    "load",
]
