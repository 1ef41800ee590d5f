"""Checking a judge on a program's examples, and how what was found is told: as lines of a table, and as plain data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import dspy

from ...errors import InputError, RunError, nearest
from ..evaluate import Answered, gold_fields, run_program
from ..examples import Example
from .bias import JudgeCheck, check_judge
from .grading import JudgeMetric


def check_on(
    judge: JudgeMetric,
    program: dspy.Module,
    rows: Sequence[Example],
    lm: dspy.LM,
    *,
    labels: str | None = None,
    seed: int = 0,
    observer: Callable[[int], None] | None = None,
) -> JudgeCheck:
    """Measure a judge on what the program answers to the rows or, with `labels`, on the answers that the rows hold.

    labels: the column of what people said of those; a judge that compares with a reference finds it in the column
    `reference` (`reference_FIELD`, of several outputs). Answers that failed count as failed verdicts. Raises
    `InputError`, and `RunError` when the engine dies.
    """
    if labels is not None:
        cases = [_held(judge, program, row) for row in rows]
        human = [_label(row, labels) for row in rows]
        with dspy.context(lm=lm):
            return check_judge(judge, cases, human=human, seed=seed)
    outcomes = run_program(program, rows, lm=lm, observer=observer)
    fields = gold_fields(program)
    cases = [
        Answered(outcome.row.inputs, _gold(outcome.row.labels, fields), outcome.prediction)
        for outcome in outcomes
        if outcome.prediction is not None and outcome.unread is None
    ]
    broken = [outcome.error for outcome in outcomes if outcome.error is not None]
    if not cases:
        raise RunError(f"none of {len(outcomes)} answers can be judged", hint=broken[0] if broken else None)
    with dspy.context(lm=lm):
        check = check_judge(judge, cases, seed=seed)
    return replace(
        check,
        failed=check.failed + len(broken),
        first_failure=check.first_failure or (broken[0] if broken else ""),
    )


def as_lines(check: JudgeCheck) -> list[tuple[str, ...]]:
    """A table: what was measured, the number, and what it is the number of."""
    lines: list[tuple[str, ...]] = []
    if check.position is not None:
        found = check.position
        lines += [
            ("position", _number(found.consistent), f"of {found.pairs:,} pairs: the same verdict in both orders"),
            ("", _number(found.first), "the one shown first, both times"),
            ("", _number(found.second), "the one shown second, both times"),
        ]
        if found.picked_first is not None:
            lines.append(("", _number(found.picked_first), "of all verdicts for the one shown first; 0.500 is no bias"))
    if check.length is not None:
        long = check.length
        change = f"{long.padded - long.plain:+.3f} [{long.low:+.3f}, {long.high:+.3f}]"
        same = "no score changed" if long.correlation is None else "correlation of score and words, within answers"
        lines += [
            ("length", change, f"what padding adds to the score of {long.answers:,} answers (it was {long.plain:.3f})"),
            ("", _number(long.correlation), same),
        ]
    if check.labels is not None:
        people = check.labels
        lines.append(("people", _number(people.accuracy), f"of {people.n:,} labels are the same"))
        lines.append(("", _number(people.kappa), "Cohen's kappa"))
        if people.weighted_kappa is not None:
            lines.append(("", _number(people.weighted_kappa), "Cohen's kappa, quadratic weights"))
        level = "nominal" if people.weighted_kappa is None else "ordinal"
        lines.append(("", _number(people.alpha), f"Krippendorff's alpha, {level}"))
    lines += [("unread", f"{check.unread:,}", "verdicts could not be read")] if check.unread else []
    lines += [("failed", f"{check.failed:,}", f"calls failed: {check.first_failure}")] if check.failed else []
    return lines


def plain(check: JudgeCheck) -> dict[str, Any]:
    """What was measured as JSON holds it: null for what cannot be told."""
    return {name: _finite(value) for name, value in asdict(check).items()}


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(each) for name, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.3f}"


def _gold(labels: Mapping[str, Any], fields: frozenset[str] | None) -> dict[str, Any]:
    return {name: value for name, value in labels.items() if fields is None or name in fields}


def _held(judge: JudgeMetric, program: dspy.Module, row: Example) -> Answered:
    """The row's own answer, with its reference where the judge sees one."""
    answer = _gold(row.labels, gold_fields(program))
    subject = judge.subject(Answered(row.inputs, answer, answer))
    if not subject.reference:
        return Answered(row.inputs, {}, answer)
    columns = {name: subject.reference_of(name) for name in subject.answers}
    return Answered(row.inputs, {name: _column(row, column) for name, column in columns.items()}, answer)


def _label(row: Example, column: str) -> Any:
    found = _column(row, column, "--labels")
    if found is None or found == "":
        raise InputError(f"example {row.id + 1} has no label", field="--labels", hint="Leave out rows without one.")
    return found


def _column(row: Example, column: str, field: str | None = None) -> Any:
    values = row.row
    if column not in values:
        near = nearest(column, values)
        expected = None if near else f"one of {', '.join(values)}"
        message = f"example {row.id + 1} has no column {column!r}"
        raise InputError(message, field=field, expected=expected, nearest=near)
    return values[column]
