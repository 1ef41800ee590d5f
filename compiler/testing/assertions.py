"""Assertions: a rule on an output, or on what the answer cost, with its weight; and sets of them that count as one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...metrics.values import as_text
from .answers import Answer
from .kinds import NEGATION, SET
from .results import Check
from .rules import Rule, Verdict, shown


@dataclass(frozen=True)
class Assertion:
    """One assertion on the output `field` ("": on none, or on all of them)."""

    type: str
    field: str
    rule: Rule
    weight: float = 1.0

    @property
    def negated(self) -> bool:
        """Whether it is a `not-` one."""
        return self.type.startswith(NEGATION)

    @property
    def timed(self) -> bool:
        """Whether it looks at the time that the answer took."""
        return self.type.removeprefix(NEGATION) == "latency"

    def check(self, answer: Answer) -> Check:
        """What is to be said of an answer that has outputs. Raises `Unjudged`."""
        outputs = answer.outputs or {}
        output = outputs[self.field] if self.field else outputs
        verdict = self.rule.judge(output, answer)
        passed = verdict.passed is not self.negated or self.weight == 0
        score = 1.0 - verdict.score if self.negated else verdict.score
        found = as_text(output) if self.field else verdict.measured
        reason = "" if passed else self._reason(output, verdict)
        return Check(self.type, self.field, passed, score, self.weight, reason, found, self.rule.expected)

    def _reason(self, output: Any, verdict: Verdict) -> str:
        found = shown(output) if self.field else verdict.measured or shown(output)
        measured = f" ({verdict.measured})" if self.field and verdict.measured else ""
        words = f" {self.rule.words}" if self.rule.words else ""
        where = f"{self.field}: " if self.field else ""
        return f"{where}found {found}{measured}, expected {self.type}{words}"


@dataclass(frozen=True)
class AssertionSet:
    """Several assertions that count as one: all have to pass or, with a threshold, their weighted mean to reach it."""

    parts: tuple[Assertion | AssertionSet, ...]
    threshold: float | None = None
    weight: float = 1.0

    @property
    def timed(self) -> bool:
        """Whether one of them looks at the time that the answer took."""
        return any(part.timed for part in self.parts)

    def check(self, answer: Answer) -> Check:
        """What is to be said of an answer that has outputs. Raises `Unjudged`."""
        checks = [part.check(answer) for part in self.parts]
        score = weighted_score(checks)
        passed = holds(checks, self.threshold) or self.weight == 0
        wanted = "all" if self.threshold is None else f"a score of at least {self.threshold:g}"
        reason = "" if passed else f"{SET}: {failures(checks, self.threshold)}"
        found = f"{sum(check.passed for check in checks)} of {len(checks)} passed"
        return Check(SET, "", passed, 0.0 if score is None else score, self.weight, reason, found, wanted)


def weighted_score(checks: Sequence[Check]) -> float | None:
    """The mean of the checks' scores by their weights; None where nothing has weight."""
    weight = math.fsum(check.weight for check in checks)
    return math.fsum(check.score * check.weight for check in checks) / weight if weight else None


def holds(checks: Sequence[Check], threshold: float | None) -> bool:
    """promptfoo's rule: all pass or, with a threshold, the weighted mean of the scores reaches it."""
    if threshold is None:
        return all(check.passed for check in checks)
    score = weighted_score(checks)
    return score is not None and score >= threshold - 1e-9


def failures(checks: Sequence[Check], threshold: float | None) -> str:
    """The reasons of the checks that failed and, with a threshold, the score that missed it."""
    told = "; ".join(check.reason for check in checks if check.reason)
    if threshold is None:
        return told
    missed = f"scored {weighted_score(checks) or 0.0:.3f}, expected at least {threshold:g}"
    return f"{missed}: {told}" if told else missed
