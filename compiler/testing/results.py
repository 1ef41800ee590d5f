"""How tests end: what was checked of an output, the result of one test, and the report of all of them.

These are the values that every way of telling results (a table, JSON, JUnit, a page) is made from. A `Check` is one
assertion on one output, a `Result` one case or gate, a `Report` everything that ran. A failure (`fail`) says that the
program is not good enough; an error (`error`) says that it could not be found out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Status = Literal["pass", "fail", "error", "skip"]


@dataclass(frozen=True)
class Check:
    """One assertion on one output.

    - `type`: the assertion as it was written, such as `not-contains`; `field`: the output it looked at, "" where it
      looked at none (`latency`, `tokens`, an `assert-set`).
    - `score`: how well it held, 0 to 1; `weight`: how much that counts among the checks of its test.
    - `reason`: what was found and what was expected, "" when it passed; `found` and `expected`: the two as text.
    """

    type: str
    field: str
    passed: bool
    score: float
    weight: float
    reason: str
    found: str
    expected: str


@dataclass(frozen=True)
class Result:
    """How one test ended.

    - `reason`: what failed, why it could not be run or was skipped; of a gate also what was measured when it passed.
    - `score`: of a case the weighted mean of its checks, of a gate the metric's score; None where there is none.
    - `inputs` and `outputs`: of a case what it was given and what the program made of it; of a gate empty and None.
    - `seconds`: the time its calls took; `path` and `line`: where the test is written.
    - `detectable`: of a gate the smallest true difference that its rows would show four times in five; else None.
    """

    name: str
    status: Status
    reason: str
    score: float | None
    checks: tuple[Check, ...]
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any] | None
    seconds: float
    tags: tuple[str, ...]
    path: str
    line: int | None
    kind: Literal["case", "gate"]
    detectable: float | None = None


@dataclass(frozen=True)
class Report:
    """All results of one run of tests, in the order in which the tests are written.

    `name` is what was tested, `target` the model that answered as `target_text` writes it (several with commas),
    `seconds` the time of the whole run.
    """

    name: str
    target: str
    results: tuple[Result, ...]
    seconds: float

    @property
    def passed(self) -> int:
        """How many tests passed."""
        return self._count("pass")

    @property
    def failed(self) -> int:
        """How many tests failed."""
        return self._count("fail")

    @property
    def errors(self) -> int:
        """How many tests could not be run."""
        return self._count("error")

    @property
    def skipped(self) -> int:
        """How many tests were skipped."""
        return self._count("skip")

    @property
    def exit_code(self) -> int:
        """3 where a test could not be run, 1 where one failed, 0 otherwise. (2 is bad input, which is raised.)"""
        return 3 if self.errors else 1 if self.failed else 0

    def _count(self, status: Status) -> int:
        return sum(result.status == status for result in self.results)


def target_text(name: str, identity: str) -> str:
    """A model in a report, whether it answered now or when its answers were recorded: `NAME (IDENTITY)`.

    The identity alone where the name is not known, as in a recording of an older version.
    """
    return f"{name} ({identity})" if name else identity
