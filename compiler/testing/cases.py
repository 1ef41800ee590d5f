"""A case: inputs, and assertions on what the program makes of them.

It passes when all assertions pass or, with a `threshold`, when the weighted mean of their scores reaches it, which is
promptfoo's rule. With `repeat`, the program runs so often on the same inputs, each time with other seeds, and the
assertions of all runs count together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ..examples import Example
from .answers import Answer
from .assertions import Assertion, AssertionSet, failures, holds, weighted_score
from .results import Check, Result, Status
from .rules import Unjudged, Untimed


@dataclass(frozen=True)
class Place:
    """Where a test is written."""

    path: str
    line: int | None = None


@dataclass(frozen=True)
class Case:
    """A test of one input."""

    name: str
    place: Place
    inputs: Mapping[str, Any]
    assertions: tuple[Assertion | AssertionSet, ...]
    threshold: float | None = None
    repeat: int = 1
    tags: tuple[str, ...] = ()

    @cached_property
    def rows(self) -> tuple[Example, ...]:
        """What has to be run."""
        return (Example(self.inputs, {}, 0),)

    @property
    def timed(self) -> bool:
        """Whether it looks at the time that an answer took, for which nothing else must run beside it."""
        return any(assertion.timed for assertion in self.assertions)

    def result(self, answers: Sequence[Answer]) -> Result:
        """How it ended, from the answer of each repeat."""
        runs = [self._run(answer) for answer in answers]
        worst = min(range(len(runs)), key=lambda place: (_ORDER.index(runs[place].status), place))
        checks = [check for run in runs for check in run.checks]
        status: Status = runs[worst].status
        scores = [run.score for run in runs if run.score is not None]
        score = math.fsum(scores) / len(scores) if scores and status != "error" else None
        told = [self._told(place, run.reason) for place, run in enumerate(runs) if run.reason]
        if self.threshold is not None and len(runs) > 1 and status != "error" and score is not None:
            status = "pass" if score >= self.threshold - 1e-9 else "fail"
            told = [] if status == "pass" else [f"scored {score:.3f}, expected at least {self.threshold:g}", *told]
        seconds = math.fsum(answer.seconds or 0.0 for answer in answers)
        reason = "; ".join(told)
        return replace(runs[worst], status=status, reason=reason, score=score, checks=tuple(checks), seconds=seconds)

    def _told(self, place: int, reason: str) -> str:
        return reason if self.repeat == 1 else f"run {place + 1} of {self.repeat}: {reason}"

    def _run(self, answer: Answer) -> Result:
        """How one run ended."""
        if answer.error is not None:
            return self._ended("error", answer.error)
        if answer.unread is not None:
            return self._ended("fail", f"the answer could not be read: {answer.unread}", 0.0)
        checks: list[Check] = []
        untimed = ""
        for assertion in self.assertions:
            try:
                checks.append(assertion.check(answer))
            except Untimed as error:
                untimed = str(error)
            except Unjudged as error:
                return self._ended("error", str(error), None, checks, answer.outputs)
        if untimed and all(check.passed for check in checks):
            return self._ended("skip", untimed, None, checks, answer.outputs)
        passed = holds(checks, self.threshold)
        reason = "" if passed else failures(checks, self.threshold)
        return self._ended("pass" if passed else "fail", reason, weighted_score(checks), checks, answer.outputs)

    def _ended(
        self,
        status: Status,
        reason: str,
        score: float | None = None,
        checks: Sequence[Check] = (),
        outputs: Mapping[str, Any] | None = None,
    ) -> Result:
        return Result(
            name=self.name,
            status=status,
            reason=reason,
            score=score,
            checks=tuple(checks),
            inputs=self.inputs,
            outputs=outputs,
            seconds=0.0,
            tags=self.tags,
            path=self.place.path,
            line=self.place.line,
            kind="case",
        )


_ORDER: tuple[Status, ...] = ("error", "fail", "skip", "pass")
