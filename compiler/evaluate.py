"""Evaluation: a program on examples, with batches that are full and outcomes that are kept apart.

Every example runs in a thread of its own; the threads announce themselves to the `Gatherer`, so that all their model
calls meet in one batch. DSPy's `Evaluate` is not used: it repeats slow calls and turns every exception into a score
of 0. Here an answer that can't be read counts as the metric's worst and says so; a call that failed, or a program
that broke, has no score at all; and what is not one example's affair (a dead engine, a metric that breaks) ends the
evaluation with its cause.

A metric that asks a model itself (a judge), or looks at how sure the program was, measures whole batches, after the
rows have run: see `BatchMetric`.
"""

from __future__ import annotations

import contextvars
import logging
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import dspy
from dspy.utils.exceptions import AdapterParseError

from ..errors import CuecardError, InputError, ReadError, RunError
from ..metrics.base import Measurement, Metric
from ..metrics.calibration import LabelChoice
from ..metrics.weighted import Weighted
from ..models.gather import RequestFailed
from ..models.lm import bridge_of
from ..optimizers.base import Outcome, Row, Step
from ..programs.graph import Graph
from ..programs.prompt import PromptTooLong
from ..programs.readout import recorded_choices
from ..programs.spans import recorded_copies
from .label_choices import ChoiceReader

logger = logging.getLogger("cuecard")

MOST_WORKERS = 256
ERROR_PARTS = ("path", "line", "field", "expected", "nearest", "hint")

Observer = Callable[[int], None]


class NoMeasurement(RunError):
    """A metric has no score for an example, and says why."""


@dataclass(frozen=True)
class Answered:
    """One answer that is measured: the row's inputs, the labels that are compared, and what the program gave.

    choices: by output field, what the program chose among labels to give it; none for an answer that is only recorded.
    """

    inputs: Mapping[str, Any]
    gold: Mapping[str, Any]
    prediction: Mapping[str, Any]
    choices: Mapping[str, LabelChoice] = field(default_factory=dict)


@runtime_checkable
class BatchMetric(Protocol):
    """A `Metric` that measures many answers at once, and sees their inputs and choices: one that asks a model itself.

    It is called once all rows have run, outside their threads, with the program's LM as DSPy's, so that its own model
    calls can fill batches.
    """

    def measure_all(self, cases: Sequence[Answered]) -> Sequence[Measurement | str]:
        """The measurement of each case, in order; a text, which says why, where there is none: never a score."""


@runtime_checkable
class OwnModel(Protocol):
    """A `Metric` that may name a model itself, which is opened before any row runs: it may not be there."""

    def open_model(self) -> None:
        """Open the model that it names; nothing where it names none. Raises `InputError`."""


def open_models(metric: Metric | None) -> None:
    """Open the models that a metric, or a part of it, names itself. Raises `InputError` for one that is not there."""
    for part in parts_of(metric):
        if isinstance(part, OwnModel):
            part.open_model()


def parts_of(metric: Metric | None) -> Iterator[Metric]:
    """The metric itself, then the parts of a weighted sum, at any depth."""
    if metric is not None:
        yield metric
    for part in metric.metrics if isinstance(metric, Weighted) else ():
        yield from parts_of(part)


def run_program(
    program: dspy.Module,
    rows: Sequence[Row],
    *,
    lm: dspy.LM,
    metric: Metric | None = None,
    observer: Observer | None = None,
) -> list[Outcome]:
    """Run `program` on every row; outcomes are in the rows' order, whatever the threads do.

    metric: measures each prediction; None for no measurement. observer: told the number of finished rows, from any
    thread. Raises `RunError` when the engine dies, and whatever `CuecardError` is not one example's own.
    """
    return run_programs([program], rows, lm=lm, metric=metric, observer=observer)[0]


def run_programs(
    programs: Sequence[dspy.Module],
    rows: Sequence[Row],
    *,
    lm: dspy.LM,
    metric: Metric | None = None,
    observer: Observer | None = None,
) -> list[list[Outcome]]:
    """`run_program` for several programs at once, whose model calls meet in the same batches: outcomes by program."""
    bridge = bridge_of(lm)
    if bridge is None:
        raise InputError("evaluation needs a Cuecard target", hint="Use cuecard.target(...).")
    names = {id(part): name for program in programs for name, part in program.named_predictors()}
    jobs = [(program, row) for program in programs for row in rows]
    outcomes: list[Outcome | None] = [None] * len(jobs)
    queue = iter(enumerate(jobs))
    lock = threading.Lock()
    broken: list[BaseException] = []
    inside = bridge.gatherer.item is not None  # called in a run's own thread, which would wait for itself
    count = 0 if inside else min(len(jobs), MOST_WORKERS)
    ready = threading.Barrier(count) if count else None
    finished = 0
    together = metric is not None and in_batches(metric)
    alone = None if together else metric
    with dspy.context(lm=lm):
        open_models(metric)

    def work() -> None:
        nonlocal finished
        with bridge.gatherer.worker():
            if ready is not None:
                ready.wait()
            while not broken:
                with lock:
                    place, job = next(queue, (None, None))
                if place is None or job is None:
                    return
                bridge.gatherer.working_on(place)
                try:
                    outcomes[place] = _one(*job, alone, names)
                except BaseException as error:
                    broken.append(error)
                    return
                with lock:
                    finished += 1
                if observer is not None:
                    observer(finished)

    with dspy.context(lm=lm, trace=[], callbacks=[]):
        if inside:
            outcomes = [_one(*job, alone, names) for job in jobs]
        threads = [
            threading.Thread(target=contextvars.copy_context().run, args=(work,), daemon=True) for _ in range(count)
        ]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except BaseException as interrupted:
            broken.append(interrupted)
            raise
    if broken:  # an interrupt goes before what it made of the other rows' calls
        raise next((error for error in broken if not isinstance(error, Exception)), broken[0])
    done = [outcome for outcome in outcomes if outcome is not None]
    if together and metric is not None:
        with dspy.context(lm=lm):
            done = _measured_together(metric, [program for program, _ in jobs], done)
    return [done[first * len(rows) : (first + 1) * len(rows)] for first in range(len(programs))]


def gold_fields(program: dspy.Module) -> frozenset[str] | None:
    """The labels that a program's outputs are compared with; None: all of them."""
    return frozenset(program.output_types) if isinstance(program, Graph) else None


def measured(program: dspy.Module, outcomes: Sequence[Outcome], metric: Metric) -> list[Measurement]:
    """What `metric` says of outcomes that are there already; those whose call failed have no measurement.

    Raises `NoMeasurement` where a `BatchMetric` gives a reason in place of a measurement, and as `measured_again`.
    """
    told = measured_again(program, outcomes, metric)
    lost = next((new for new, old in zip(told, outcomes, strict=True) if new.error and not old.error), None)
    if lost is not None:
        raise NoMeasurement(f"example {lost.row.id + 1} has no score by {metric.name!r}: {lost.error}")
    return [outcome.measurement for outcome in told if outcome.measurement is not None]


def measured_again(program: dspy.Module, outcomes: Sequence[Outcome], metric: Metric) -> list[Outcome]:
    """Outcomes that are there already with the measurements of `metric`. One that it has none for counts as failed.

    A `BatchMetric` runs on the LM of DSPy's context. Raises `RunError` when the metric breaks.
    """
    if in_batches(metric):
        return _measured_together(metric, [program] * len(outcomes), outcomes)
    gold = gold_fields(program)
    found: list[Outcome] = []
    for outcome in outcomes:
        labels, measurement = _gold(outcome.row, gold), None
        if outcome.unread is not None:
            measurement = metric.worst(labels)
        elif outcome.prediction is not None:
            measurement = _measure(metric, outcome.row, labels, outcome.prediction)
        found.append(replace(outcome, measurement=measurement))
    return found


def in_batches(metric: Metric) -> bool:
    """Whether a metric measures whole batches, or has a part that does."""
    return any(isinstance(part, BatchMetric) for part in parts_of(metric))


def _measured_together(metric: Metric, programs: Sequence[dspy.Module], outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The outcomes, measured in one batch. A row for which the metric has no measurement counts as failed."""
    each = {id(program): program for program in programs}
    known = {key: (gold_fields(program), ChoiceReader(program)) for key, program in each.items()}
    about = [known[id(program)] for program in programs]
    golds = [_gold(outcome.row, fields) for outcome, (fields, _) in zip(outcomes, about, strict=True)]
    places = [place for place, outcome in enumerate(outcomes) if outcome.prediction is not None]
    rows = [outcomes[place].row for place in places]
    cases = [
        Answered(o.row.inputs, golds[place], o.prediction or {}, about[place][1].of(o))
        for place in places
        for o in [outcomes[place]]
    ]
    found = dict(zip(places, _measure_all(metric, rows, cases), strict=True))
    told: list[Outcome] = []
    for place, outcome in enumerate(outcomes):
        measurement = found.get(place)
        if outcome.unread is not None:
            told.append(replace(outcome, measurement=metric.worst(golds[place])))
        elif isinstance(measurement, str):
            told.append(replace(outcome, prediction=None, measurement=None, error=measurement))
        else:
            told.append(replace(outcome, measurement=measurement))
    return told


def _measure_all(metric: Metric, rows: Sequence[Row], cases: Sequence[Answered]) -> list[Measurement | str]:
    if isinstance(metric, BatchMetric):
        return list(metric.measure_all(cases)) if cases else []
    if isinstance(metric, Weighted) and in_batches(metric):
        parts = [_measure_all(part, rows, cases) for part in metric.metrics]
        return [_combined(metric, each) for each in zip(*parts, strict=True)]
    return [_measure(metric, row, case.gold, case.prediction) for row, case in zip(rows, cases, strict=True)]


def _combined(metric: Weighted, parts: Sequence[Measurement | str]) -> Measurement | str:
    """What the parts of a weighted sum make of one case; the first reason why one has no measurement."""
    there = [part for part in parts if isinstance(part, Measurement)]
    if len(there) < len(parts):
        return next(part for part in parts if isinstance(part, str))
    score = math.fsum(weight * part.score for weight, part in zip(metric.weights, there, strict=True))
    return Measurement(score, tuple(number for part in there for number in part.row) if metric.width else ())


def _one(program: dspy.Module, row: Row, metric: Metric | None, names: Mapping[int, str]) -> Outcome:
    trace: list[Any] = []
    gold = gold_fields(program)
    with dspy.context(trace=trace), recorded_choices() as choices, recorded_copies() as copies:
        try:
            prediction = program(**row.inputs)
            values = _values(prediction)
        except (ReadError, AdapterParseError) as error:
            worst = metric.worst(_gold(row, gold)) if metric is not None else None
            return Outcome(row, worst, None, unread=_line(error), steps=_steps(trace, names))
        except Exception as error:
            return _failed(row, error)
    measurement = None if metric is None else _measure(metric, row, _gold(row, gold), prediction)
    made = tuple((names[choice.predictor], choice) for choice in choices if choice.predictor in names)
    copied = tuple((names[copy.predictor], copy) for copy in copies if copy.predictor in names)
    return Outcome(row, measurement, values, None, None, _steps(trace, names), made, copied)


def _values(prediction: Any) -> dict[str, Any]:
    """The fields that a program gave."""
    if not isinstance(prediction, dspy.Prediction | Mapping):
        raise TypeError(f"it gave a {type(prediction).__name__}, and not a dspy.Prediction")
    return dict(prediction.items())


def _failed(row: Row, error: Exception) -> Outcome:
    """What became of a row whose program raised `error`. Raises what is not this row's own affair.

    DSPy's own calls of the LM wrap our errors in theirs.
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, InputError | RunError):
        cause = cause.__cause__
    if isinstance(cause, RequestFailed | PromptTooLong):
        return Outcome(row, error=_line(cause))
    if cause is not None:
        raise cause
    logger.debug("the program broke on example %s", row.id + 1, exc_info=error)
    return Outcome(row, error=f"the program broke: {type(error).__name__}: {_line(error)}")


def _gold(row: Row, fields: frozenset[str] | None) -> dict[str, Any]:
    """The labels that are compared: those of the program's outputs, without the labels of fields between its nodes."""
    return {name: value for name, value in row.labels.items() if fields is None or name in fields}


def _measure(metric: Metric, row: Row, gold: Mapping[str, Any], prediction: Any) -> Measurement:
    number = row.id + 1
    try:
        return metric.measure(gold, prediction)
    except InputError as error:
        parts: dict[str, Any] = {name: getattr(error, name) for name in ERROR_PARTS}
        raise InputError(f"{error.message}, on example {number}", **parts) from error
    except CuecardError:
        raise
    except Exception as error:
        raise RunError(
            f"the metric {metric.name!r} broke on example {number}: {type(error).__name__}: {error}",
            hint="A metric must give a number for every prediction.",
        ) from error


def _steps(trace: Sequence[Any], names: Mapping[int, str]) -> tuple[Step, ...]:
    return tuple(
        Step(names[id(predictor)], dict(inputs), dict(prediction.items()))
        for predictor, inputs, prediction in trace
        if id(predictor) in names
    )


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
