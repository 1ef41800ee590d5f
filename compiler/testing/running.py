"""Running tests: every input of every test once, in as few batches as can be, and how the tests ended.

The rows of all tests of a program run side by side in one batch, equal ones once. The rows of cases that look at the
time (`latency`) run alone after them, one at a time, since in a batch nobody's time is his own. Repeats of a row draw
with seeds of their own. Answers can also come from a recording, without a model.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import dspy

from ...errors import InputError
from ...models.engine import Engine, GenerateRequest, Generation, ScoreRequest
from ...models.gather import Gatherer
from ...models.lm import bridge_of, language_model
from ...seeds import derive_seed
from ..baseline import Baseline, program_digest
from ..evaluate import Observer, run_program
from ..examples import Example
from ..from_spec import judge_models
from ..judging import Models
from ..label_choices import ChoiceReader
from .answers import Answer, Recorder, Recording, RunKey, uncalibrated
from .cases import Case
from .judged import ask_judges, open_judges
from .reading import Suite, Test
from .results import Report, Result, target_text

Runs = list[tuple[Example, int]]
"""Rows to run, each with which repeat of it, from 0."""


def run_tests(
    suite: Suite,
    lm: dspy.LM,
    *,
    target: str = "",
    observer: Observer | None = None,
    update_baseline: bool = False,
    recorder: Recorder | None = None,
    timed: bool = True,
) -> tuple[Result, ...]:
    """Run the tests of a suite; the results are in their order.

    target: the model's identity, for baselines and recordings; observer: told the number of finished runs;
    update_baseline: gates write their baselines instead of comparing with them; recorder: is told every answer; timed:
    whether the time of an answer says anything, which that of a replay does not. Raises `RunError` when the engine
    dies, `InputError` when a metric finds nothing to compare, and before anything runs for a judge's model that is not
    there.
    """
    models = judge_models(suite.spec)
    open_judges(suite.tests, lm, models)
    together, alone = runs_of(suite.tests)
    answers = _answers(suite.program, together, lm, observer, timed)
    for done, run in enumerate(alone, start=len(together) + 1):
        answers |= _answers(suite.program, [run], lm, None, timed)
        if observer is not None:
            observer(done)
    if recorder is not None:
        reader = ChoiceReader(suite.program)
        for row, repeat in together + alone:
            answer = answers[row.key, repeat]
            recorder.add(suite.spec.name, target, row, repeat, answer, reader.of(answer.outcome(row)))
    return _results(suite, answers, target, update_baseline, models, lm)


def rescore(suite: Suite, recording: Recording, *, update_baseline: bool = False) -> tuple[Result, ...]:
    """How the tests of a suite end on recorded outputs. A run that is not among them is an error of its test."""
    suite = replace(suite, program=uncalibrated(suite.program))
    found = recording.of(suite.spec.name, suite.program)
    together, alone = runs_of(suite.tests)
    answers = {
        (row.key, repeat): found.get((row.key, repeat)) or recording.missing(suite.spec.name, row.inputs)
        for row, repeat in together + alone
    }
    return _results(suite, answers, ", ".join(recording.targets), update_baseline, judge_models(suite.spec))


def run_report(
    suite: Suite, lm: dspy.LM, *, target: str = "", model: str = "", observer: Observer | None = None
) -> Report:
    """`run_tests`, as a report. `model`: the target's name, which the report tells with its identity."""
    started = time.perf_counter()
    results = run_tests(suite, lm, target=target, observer=observer)
    return Report(suite.spec.name, target_text(model, target), results, time.perf_counter() - started)


def runs_of(tests: Sequence[Test]) -> tuple[Runs, Runs]:
    """What tests need to run, equal runs once: in one batch, and each alone."""
    timed: dict[RunKey, tuple[Example, int]] = {}
    untimed: dict[RunKey, tuple[Example, int]] = {}
    for test in tests:
        for row in test.rows:
            for repeat in range(test.repeat):
                (timed if test.timed else untimed).setdefault((row.key, repeat), (row, repeat))
    return [run for key, run in untimed.items() if key not in timed], list(timed.values())


def _results(
    suite: Suite,
    answers: Mapping[RunKey, Answer],
    target: str,
    update_baseline: bool,
    models: Models,
    lm: dspy.LM | None = None,
) -> tuple[Result, ...]:
    """How the tests end. `lm`: what judges run on that name no model of their own; None where there is none."""
    update = Baseline("", {}, program_digest(suite.spec), target) if update_baseline else None
    lost = ask_judges(suite.program, suite.tests, answers, lm, models)
    with dspy.context(lm=lm):
        return tuple(
            _result(suite, test, {**answers, **lost[place]} if place in lost else answers, update)
            for place, test in enumerate(suite.tests)
        )


def _result(suite: Suite, test: Test, answers: Mapping[RunKey, Answer], update: Baseline | None) -> Result:
    by_row = [[answers[row.key, repeat] for repeat in range(test.repeat)] for row in test.rows]
    if isinstance(test, Case):
        return test.result(by_row[0])
    return test.result(suite.program, by_row, update=update)


def _answers(
    program: dspy.Module, runs: Runs, lm: dspy.LM, observer: Observer | None, timed: bool
) -> dict[RunKey, Answer]:
    """The answer of each run, all of them in one batch."""
    if not runs:
        return {}
    bridge = bridge_of(lm)
    if bridge is None:
        raise InputError("tests need a Cuecard target", hint="Use cuecard.target(...).")
    meter = Meter(bridge.engine, [repeat for _, repeat in runs])
    metered = language_model(bridge.engine, bridge.defaults)
    own = bridge_of(metered)
    assert own is not None, "it was just made"
    own.gatherer = meter
    outcomes = run_program(program, [row for row, _ in runs], lm=metered, observer=observer)
    return {
        (row.key, repeat): Answer(
            inputs=row.inputs,
            outputs=outcome.prediction if outcome.unread is None and outcome.error is None else None,
            unread=outcome.unread,
            error=outcome.error,
            seconds=meter.of(place).seconds if timed else None,
            tokens=meter.of(place).tokens,
            choices=outcome.choices,
        )
        for place, ((row, repeat), outcome) in enumerate(zip(runs, outcomes, strict=True))
    }


@dataclass
class Spent:
    """What the calls of one row cost so far."""

    seconds: float = 0.0
    tokens: int = 0


class Meter(Gatherer):
    """A gatherer that counts what each row's calls cost, and gives the repeats of a row seeds of their own."""

    def __init__(self, engine: Engine, repeats: Sequence[int]) -> None:
        super().__init__(engine)
        self.repeats = tuple(repeats)
        self.spent: dict[int, Spent] = {}

    def of(self, place: int) -> Spent:
        """What the row at this place cost."""
        return self.spent.get(place, Spent())

    def _call(self, request: Any) -> Any:
        place = self.item
        if place is None:
            return super()._call(request)
        started = time.perf_counter()
        result = super()._call(_reseeded(request, self.repeats[place]))
        spent = self.spent.setdefault(place, Spent())  # only the row's own thread touches it
        spent.seconds += time.perf_counter() - started
        spent.tokens += len(request.prompt) + _made(request, result)
        return result


def _reseeded(request: Any, repeat: int) -> Any:
    if repeat == 0 or not isinstance(request, GenerateRequest) or request.decoding.temperature == 0:
        return request
    seed = derive_seed(request.decoding.seed, "repeat", repeat)
    return replace(request, decoding=request.decoding.model_copy(update={"seed": seed}))


def _made(request: Any, result: Any) -> int:
    """The tokens that were generated, or scored as labels."""
    if isinstance(result, Generation):
        return sum(len(sample.tokens) for sample in result.samples)
    return sum(map(len, request.continuations)) if isinstance(request, ScoreRequest) else 0
