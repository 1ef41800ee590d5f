"""The judges of tests, asked together: those of all cases and gates in one batch a model, before the tests end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import dspy

from ...metrics import Metric
from ...models.lm import bridge_of
from ...programs.graph import Graph
from ..evaluate import Answered, gold_fields, open_models
from ..judging import AskingMetric, Models, NoJudgement, asking_in, grade_all
from .answers import Answer, RunKey
from .assertions import Assertion, AssertionSet
from .cases import Case
from .gates import Gate
from .judge_rule import JudgeRule

Lost = Mapping[int, Mapping[RunKey, Answer]]
"""Runs of gates, by the test's place, that a judge gave no verdict on: as answers that failed."""


def open_judges(tests: Sequence[Case | Gate], lm: dspy.LM, models: Models) -> None:
    """Open the models that judges, and other metrics of gates, name themselves. Raises `InputError`."""
    with dspy.context(lm=lm):
        for test in tests:
            for metric in _metrics(test):
                for judge in asking_in(metric):
                    judge.models = models
                open_models(metric)


def ask_judges(
    program: Graph,
    tests: Sequence[Case | Gate],
    answers: Mapping[RunKey, Answer],
    lm: dspy.LM | None,
    models: Models,
) -> Lost:
    """Ask all judges of the tests, which know their verdicts from then on; those that have no model are left out."""
    asked = []
    for place, test in enumerate(tests):
        for row in test.rows:
            for repeat in range(test.repeat):
                key = (row.key, repeat)
                if answers[key].outputs is not None:
                    asked += [(place, key, *each) for each in _questions(program, test, row, answers[key])]
    for _, _, judge, _ in asked:
        judge.models = models
    there = [each for each in asked if each[2].model is not None or bridge_of(lm) is not None]
    with dspy.context(lm=lm):
        said = grade_all([(judge, case) for _, _, judge, case in there])
    lost: dict[int, dict[RunKey, Answer]] = {}
    for (place, key, _, _), grade in zip(there, said, strict=True):
        if isinstance(grade, NoJudgement) and isinstance(tests[place], Gate):
            lost.setdefault(place, {})[key] = Answer(answers[key].inputs, error=str(grade))
    for place, key, judge, _ in asked:
        if judge.model is None and bridge_of(lm) is None and isinstance(tests[place], Gate):
            lost.setdefault(place, {})[key] = Answer(
                answers[key].inputs, error=f"the judge {judge.name!r} has no model to run on"
            )
    return lost


def _metrics(test: Case | Gate) -> list[Metric]:
    """What a test measures with: a gate's metric, or the judges of a case's assertions."""
    if isinstance(test, Gate):
        return [test.metric]
    return [each.rule.metric for each in _flat(test.assertions) if isinstance(each.rule, JudgeRule)]


def _questions(program: Graph, test: Case | Gate, row: Any, answer: Answer) -> Iterator[tuple[AskingMetric, Answered]]:
    outputs = answer.outputs or {}
    if isinstance(test, Case):
        for assertion in _flat(test.assertions):
            if isinstance(assertion.rule, JudgeRule):
                yield assertion.rule.metric, assertion.rule.case(outputs[assertion.field], answer)
        return
    fields = gold_fields(program)
    gold = {name: value for name, value in row.labels.items() if fields is None or name in fields}
    for judge in asking_in(test.metric):
        yield judge, Answered(row.inputs, gold, outputs)


def _flat(parts: Sequence[Assertion | AssertionSet]) -> Iterator[Assertion]:
    for part in parts:
        if isinstance(part, Assertion):
            yield part
        else:
            yield from _flat(part.parts)
