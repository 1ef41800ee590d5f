"""`cuecard test`: a spec's regression tests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from ...errors import InputError
from .common import (
    AllowCode,
    AllowOutside,
    AsJson,
    DeviceName,
    DtypeName,
    ModelName,
    ProgramFile,
    open_program,
    open_target,
)
from .progress import counting
from .screen import columns, say, say_json

if TYPE_CHECKING:
    from ..testing import Status, Verdict

EXAMPLE = """\
\b
Example:
  $ cuecard test ticket_triage.compiled.yaml
  pass  a double charge goes to billing
  fail  a lost parcel goes to shipping   queue: found "account", expected equals "shipping"
  pass  quality holds on the test split  exact_match 0.583 [0.494, 0.668] on 120 examples, at least 0.5
  2 passed, 1 failed
"""

STYLES = {"pass": "green", "fail": "red", "error": "magenta"}
Named = Annotated[str | None, typer.Option("-k", metavar="NAME", help="Only the tests whose names hold this text.")]


def test(
    program: ProgramFile,
    name: Named = None,
    model: ModelName = None,
    device: DeviceName = None,
    dtype: DtypeName = None,
    allow_outside: AllowOutside = False,
    allow_code: AllowCode = False,
    as_json: AsJson = False,
) -> int:
    """Run the tests that a spec lists: conditions on outputs, and floors for a metric.

    The exit code is 0 when all pass, 1 when one fails, 3 when one could not be run.
    """
    from ..testing import inputs_of, read_tests, run_tests

    spec, graph = open_program(program, allow_outside=allow_outside)
    tests = read_tests(spec, graph, name=name, allow_code=allow_code)
    if not tests:
        raise InputError("there are no `tests:`", path=spec.path)
    target = open_target(spec, model, device, dtype)
    with counting("testing", len(inputs_of(tests))) as observer:
        verdicts = run_tests(tests, graph, target.lm, observer=observer)
    counts: Counter[Status] = Counter(verdict.status for verdict in verdicts)
    if as_json:
        totals = {"passed": counts["pass"], "failed": counts["fail"], "errors": counts["error"]}
        told = [{"name": each.name, "status": each.status, "reason": each.reason} for each in verdicts]
        say_json({**totals, "tests": told}, indent=2)
    else:
        _table(verdicts, counts)
    return 3 if counts["error"] else 1 if counts["fail"] else 0


def _table(verdicts: Sequence[Verdict], counts: Counter[Status]) -> None:
    rows = [(verdict.status, verdict.name, verdict.reason) for verdict in verdicts]
    for verdict, line in zip(verdicts, columns(rows), strict=True):
        say(line, STYLES[verdict.status] if verdict.status != "pass" else None)
    words: dict[Status, str] = {"pass": "passed", "fail": "failed", "error": "could not be run"}
    say(", ".join(f"{counts[status]} {word}" for status, word in words.items() if counts[status]))
