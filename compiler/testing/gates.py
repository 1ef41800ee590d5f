"""A gate: a metric's score over a file of examples has to be high enough, or no worse than a baseline's.

What is compared, and when a loss counts as one, is told in `baseline.py`. With `repeat`, every example is run so often,
with other seeds each time, and what is compared is the mean of its scores: the repeats of an example are alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import dspy

from ...errors import InputError
from ...metrics import Measurement, Metric, interval
from ...metrics.repeats import pool_repeats
from ...metrics.source import source_digest
from ..baseline import Baseline, could_go_unseen, gate, row_key, unique_keys, write_baseline
from ..evaluate import NoMeasurement, gold_fields, measured
from ..examples import Example
from ..judging import NoModel
from .answers import Answer
from .cases import Place
from .results import Result, Status


@dataclass(frozen=True)
class Gate:
    """A test of a file of examples. `baseline_path` is its baseline's file, `baseline` what is in it, once read."""

    name: str
    place: Place
    rows: tuple[Example, ...]
    metric: Metric
    at_least: float | None = None
    baseline_path: Path | None = None
    baseline: Baseline | None = None
    tolerance: float = 0.0
    seed: int = 0
    repeat: int = 1
    tags: tuple[str, ...] = ()

    @property
    def timed(self) -> bool:
        """It never looks at the time that an answer took."""
        return False

    def keys(self, program: dspy.Module) -> list[str]:
        """The rows' keys in a baseline: their inputs, and the labels that are compared."""
        gold = gold_fields(program)
        return unique_keys(
            row_key(row.inputs, {name: row.labels[name] for name in row.labels if gold is None or name in gold})
            for row in self.rows
        )

    def result(
        self, program: dspy.Module, answers: Sequence[Sequence[Answer]], *, update: Baseline | None = None
    ) -> Result:
        """How it ended, from the answers of each row's repeats.

        update: a baseline without rows, which is written with them instead of being compared with.
        """
        seconds = math.fsum(answer.seconds or 0.0 for runs in answers for answer in runs)
        failed = [answer.error for runs in answers for answer in runs if answer.error is not None]
        if failed:
            count = sum(any(answer.error is not None for answer in runs) for runs in answers)
            return self._ended("error", f"{count} of {len(answers)} examples failed: {failed[0]}", None, seconds)
        try:
            measurements = self._measurements(program, answers)
        except (NoMeasurement, NoModel) as error:
            return self._ended("error", error.message, None, seconds)
        rows = dict(zip(self.keys(program), measurements, strict=True))
        unread = sum(answer.unread is not None for runs in answers for answer in runs)
        lost = f"; {unread} answers could not be read" if unread > 1 else "; 1 answer could not be read" * unread
        if update is not None and self.baseline_path is not None:
            return self._updated(rows, update, lost, seconds)
        try:
            found = gate(
                self.metric,
                rows,
                at_least=self.at_least,
                baseline=self.baseline,
                tolerance=self.tolerance,
                seed=self.seed,
            )
        except InputError as error:
            return self._ended("error", str(error).replace("\n ", ""), None, seconds)
        status: Status = "pass" if found.passed else "fail"
        return self._ended(status, found.reason + lost, found.score.value, seconds, found.detectable)

    def _measurements(self, program: dspy.Module, answers: Sequence[Sequence[Answer]]) -> list[Measurement]:
        outcomes = [answer.outcome(row) for row, runs in zip(self.rows, answers, strict=True) for answer in runs]
        every = measured(program, outcomes, self.metric)
        return pool_repeats([every[first : first + self.repeat] for first in range(0, len(every), self.repeat)])

    def _updated(self, rows: dict[str, Measurement], update: Baseline, lost: str, seconds: float) -> Result:
        assert self.baseline_path is not None, "the caller has looked"
        digest = source_digest(self.metric)
        write_baseline(self.baseline_path, Baseline(self.metric.name, rows, update.program, update.target, digest))
        ordered = [rows[key] for key in sorted(rows)]
        score = interval(self.metric, ordered, self.seed)
        said = f"{self.metric.name} {score.value:.3f} [{score.low:.3f}, {score.high:.3f}]"
        count = f"{len(ordered):,} {'row' if len(ordered) == 1 else 'rows'}"
        passed = self.at_least is None or score.value >= self.at_least
        floor = "" if passed else f", which is less than {self.at_least:g}"
        reason = f"{said} on {count}{floor}{lost}; wrote the baseline {self.baseline_path.name}"
        detectable = could_go_unseen(self.metric, ordered)
        return self._ended("pass" if passed else "fail", reason, score.value, seconds, detectable)

    def _ended(
        self, status: Status, reason: str, score: float | None, seconds: float, detectable: float | None = None
    ) -> Result:
        return Result(
            name=self.name,
            status=status,
            reason=reason,
            score=score,
            checks=(),
            inputs={},
            outputs=None,
            seconds=seconds,
            tags=self.tags,
            path=self.place.path,
            line=self.place.line,
            kind="gate",
            detectable=detectable,
        )
