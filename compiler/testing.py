"""A spec's tests: conditions on the outputs for given inputs, and floors for a metric over a file of examples.

The conditions have the names that promptfoo gives them: `equals`, `contains`, `icontains` (whatever the case),
`starts-with`, `regex` (found anywhere) and `is-json`, and each of them with `not-` before it. `equals` compares as the
metric `exact_match` does; the others look at the output's text. All inputs of all tests run in one batch, equal
ones once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal, TypeVar

import dspy

from ..errors import InputError, nearest
from ..metrics import Metric, interval
from ..metrics import metric as metric_of
from ..metrics.matching import ExactMatch
from ..metrics.values import as_text, plain
from ..optimizers.base import Outcome
from ..programs.graph import Graph
from ..programs.problems import KeyProblems, Keys
from ..programs.schema import AssertSpec, Spec, TestSpec
from ..signatures import check_value
from .evaluate import Observer, measured, run_program
from .examples import Example
from .from_spec import read_examples, spec_metric

Status = Literal["pass", "fail", "error"]
T = TypeVar("T")

SHOWN = 80  # characters of a value that a reason shows


def _is_json(found: Any, wanted: Any) -> bool:
    if not isinstance(found, str):
        return True  # a typed value always has a JSON form
    try:
        json.loads(found)
    except (ValueError, RecursionError):
        return False
    return True


HOLDS: Mapping[str, Callable[[Any, Any], bool]] = MappingProxyType(
    {
        "equals": lambda found, wanted: ExactMatch().compare([wanted], found).score == 1.0,
        "contains": lambda found, wanted: wanted in as_text(found),
        "icontains": lambda found, wanted: wanted.casefold() in as_text(found).casefold(),
        "starts-with": lambda found, wanted: as_text(found).startswith(wanted),
        "regex": lambda found, wanted: re.search(wanted, as_text(found)) is not None,
        "is-json": _is_json,
    }
)
NEGATION = "not-"
TYPES = (*HOLDS, *(NEGATION + name for name in HOLDS))


@dataclass(frozen=True)
class Verdict:
    """How a test ended, and why: what was found, and what was expected. `error`: it could not be run."""

    name: str
    status: Status
    reason: str = ""


@dataclass(frozen=True)
class Condition:
    """What an output has to be. `type` is a key of `HOLDS`."""

    type: str
    field: str
    value: Any = None
    negated: bool = False

    def failure(self, outputs: Mapping[str, Any]) -> str | None:
        """What was found and expected where the outputs do not meet the condition."""
        found = outputs[self.field]
        if HOLDS[self.type](found, self.value) is not self.negated:
            return None
        wanted = "" if self.type == "is-json" else f" {_shown(self.value)}"
        return f"{self.field}: found {_shown(found)}, expected {NEGATION if self.negated else ''}{self.type}{wanted}"


@dataclass(frozen=True)
class Case:
    """A test of one input: all conditions have to hold."""

    name: str
    rows: tuple[Example, ...]
    conditions: tuple[Condition, ...]

    def verdict(self, program: dspy.Module, outcomes: Sequence[Outcome]) -> Verdict:
        """The verdict on what the program made of `rows`."""
        outcome = outcomes[0]
        if outcome.error is not None:
            return Verdict(self.name, "error", outcome.error)
        if outcome.unread is not None:
            return Verdict(self.name, "fail", f"the answer could not be read: {outcome.unread}")
        failures = [condition.failure(outcome.prediction or {}) for condition in self.conditions]
        told = [failure for failure in failures if failure is not None]
        return Verdict(self.name, "fail" if told else "pass", "; ".join(told))


@dataclass(frozen=True)
class Floor:
    """A test of a file of examples: the metric's score has to be `at_least` that."""

    name: str
    rows: tuple[Example, ...]
    metric: Metric
    at_least: float

    def verdict(self, program: dspy.Module, outcomes: Sequence[Outcome]) -> Verdict:
        """The verdict on what the program made of `rows`."""
        failed = [outcome.error for outcome in outcomes if outcome.error is not None]
        if failed:
            return Verdict(self.name, "error", f"{len(failed)} of {len(outcomes)} examples failed: {failed[0]}")
        score = interval(self.metric, measured(program, outcomes, self.metric))
        unread = sum(outcome.unread is not None for outcome in outcomes)
        lost = f", {unread} answers unread" if unread else ""
        found = f"{self.metric.name} {score.value:.3f} [{score.low:.3f}, {score.high:.3f}] on {score.n} examples{lost}"
        passed = score.value >= self.at_least
        return Verdict(self.name, "pass" if passed else "fail", f"{found}, at least {self.at_least:g}")


Test = Case | Floor


def read_tests(spec: Spec, program: Graph, *, name: str | None = None, allow_code: bool = False) -> list[Test]:
    """The tests of a spec, checked, those whose names hold `name` only.

    Raises `InputError`, which lists everything that is wrong with the tests, and when there are none.
    """
    chosen = [(i, test) for i, test in enumerate(spec.tests) if name is None or name in test.name]
    if name is not None and not chosen:
        names = [test.name for test in spec.tests]
        near = nearest(name, names)
        raise InputError(f"no test is called {name!r}", path=spec.path, expected="part of a test's name", nearest=near)
    reader = _Reader(spec, program, KeyProblems(spec.path, lambda keys: spec.line(*keys)), allow_code)
    tests = [reader.test(index, test) for index, test in chosen]
    reader.problems.stop()
    return [test for test in tests if test is not None]


def run_tests(tests: Sequence[Test], program: Graph, lm: dspy.LM, *, observer: Observer | None = None) -> list[Verdict]:
    """Run tests in one batch; the verdicts are in their order. Raises `RunError` when the engine dies."""
    distinct = inputs_of(tests)
    found = dict(
        zip((row.key for row in distinct), run_program(program, distinct, lm=lm, observer=observer), strict=True)
    )
    return [test.verdict(program, [replace(found[row.key], row=row) for row in test.rows]) for test in tests]


def inputs_of(tests: Sequence[Test]) -> list[Example]:
    """The rows that tests need to run: those with equal inputs once."""
    return list({row.key: row for test in tests for row in test.rows}.values())


@dataclass(frozen=True)
class _Reader:
    """Reads tests; what is wrong with them is noted in `problems`."""

    spec: Spec
    program: Graph
    problems: KeyProblems
    allow_code: bool

    def test(self, index: int, test: TestSpec) -> Test | None:
        keys: Keys = ("tests", index)
        return self._case(test, keys) if test.inputs is not None else self._floor(test, keys)

    def _case(self, test: TestSpec, keys: Keys) -> Case:
        given, types = test.inputs or {}, self.program.input_types
        inputs = {name: check_value(value, types[name], field=name) for name, value in given.items()}
        conditions = [
            self._condition(condition, (*keys, "assert", place))
            for place, condition in enumerate(test.conditions or ())
        ]
        return Case(test.name, (Example(inputs, {}, 0),), tuple(each for each in conditions if each is not None))

    def _condition(self, condition: AssertSpec, keys: Keys) -> Condition | None:
        if condition.type not in TYPES:
            near = nearest(condition.type, TYPES)
            expected = None if near else f"one of {', '.join(HOLDS)}, or not- and one of them"
            message = f"there is no condition {condition.type!r}"
            self.problems.at((*keys, "type"), message, expected=expected, nearest=near)
            return None
        for key in ("threshold", "options"):
            if key in condition.model_fields_set:
                self.problems.at((*keys, key), f"{condition.type!r} takes no {key}")
        kind = condition.type.removeprefix(NEGATION)
        field = condition.field or self._only_output(keys)
        if field is None:
            return None
        value = self._value(condition, kind, field, keys)
        return Condition(kind, field, value, condition.type.startswith(NEGATION))

    def _only_output(self, keys: Keys) -> str | None:
        outputs = list(self.program.output_types)
        if len(outputs) != 1:
            self.problems.at(keys, "the key 'field' is missing", expected=f"one of {', '.join(outputs)}")
            return None
        return outputs[0]

    def _value(self, condition: AssertSpec, kind: str, field: str, keys: Keys) -> Any:
        """The value to compare with; what is wrong with it is noted."""
        given = "value" in condition.model_fields_set
        if (kind == "is-json") is given:
            message = "'is-json' takes no value" if given else "the key 'value' is missing"
            self.problems.at((*keys, "value") if given else keys, message)
        elif kind == "equals":
            return self._typed(condition.value, field, (*keys, "value"))
        elif given and not isinstance(condition.value, str):
            found = _shown(condition.value)
            self.problems.at((*keys, "value"), f"found {found}", expected="text", hint="Put it in quotes.")
        elif kind == "regex":
            try:
                re.compile(condition.value)
            except re.error as error:
                self.problems.at((*keys, "value"), f"not a regular expression: {error}")
        return condition.value

    def _typed(self, value: Any, field: str, keys: Keys) -> Any:
        types = {**self.program.label_types, **self.program.output_types}
        try:
            return check_value(value, types.get(field, Any), field=field)
        except InputError as error:
            self.problems.at(keys, error.message, expected=error.expected, nearest=error.nearest, hint=error.hint)
            return None

    def _floor(self, test: TestSpec, keys: Keys) -> Floor | None:
        if test.baseline is not None:
            hint = "Use at_least for now."
            self.problems.at((*keys, "baseline"), "comparing with a baseline file is not supported yet", hint=hint)
            return None
        metric = self._noting(lambda: self._metric(test, keys))
        rows = self._noting(lambda: read_examples(self.spec.folder / str(test.data), self.program))
        at_least = test.at_least if test.at_least is not None else 0.0
        if metric is None or rows is None:
            return None
        if not metric.low <= at_least <= metric.high:
            expected = f"{metric.low:g} to {metric.high:g}, the range of {metric.name}"
            self.problems.at((*keys, "at_least"), f"found {at_least:g}", expected=expected)
        return Floor(test.name, rows.items, metric, at_least)

    def _metric(self, test: TestSpec, keys: Keys) -> Metric | None:
        if test.metric is None:
            metric = spec_metric(self.spec, allow_code=self.allow_code)
            if metric is None:
                self.problems.at(keys, "the key 'metric' is missing", expected="it here, or for the whole spec")
            return metric
        given = test.model_dump(mode="json", exclude_unset=True)["metric"]
        line = self.spec.line(*keys, "metric")
        return metric_of(given, allow_code=self.allow_code, path=self.spec.path, line=line, folder=self.spec.folder)

    def _noting(self, step: Callable[[], T]) -> T | None:
        try:
            return step()
        except InputError as error:
            self.problems.note(error)
            return None


def _shown(value: Any) -> str:
    text = json.dumps(plain(value), ensure_ascii=False, default=str)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
