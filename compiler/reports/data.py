"""A report as JSON, whole, or as JSON Lines with one test a line.

Neither holds a time: the same tests on the same answers are the same bytes. Typed values stand as JSON has them, bytes
as base64, and numbers that JSON lacks (infinity) as text.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..testing.results import Report, Result

SURROGATE = re.compile("[\ud800-\udfff]")


def report_data(report: Report) -> dict[str, Any]:
    """The report as JSON holds it."""
    totals = {"passed": report.passed, "failed": report.failed, "errors": report.errors, "skipped": report.skipped}
    return {"name": report.name, "target": report.target, **totals, "tests": list(map(test_data, report.results))}


def test_data(result: Result) -> dict[str, Any]:
    """One test as JSON holds it."""
    return {
        "name": result.name,
        "status": result.status,
        "reason": result.reason,
        "kind": result.kind,
        "score": _finite(result.score),
        "detectable": _finite(result.detectable),
        "tags": list(result.tags),
        "inputs": plain_values(result.inputs),
        "outputs": None if result.outputs is None else plain_values(result.outputs),
        "checks": [{**vars(check), "score": _finite(check.score)} for check in result.checks],
        "path": result.path,
        "line": result.line,
    }


def as_json(report: Report) -> str:
    """The report as one JSON object."""
    return _dumped(report_data(report), indent=2) + "\n"


def as_jsonl(report: Report) -> str:
    """The tests of the report, one JSON object a line, each with what was tested and on which model."""
    about = {"program": report.name, "target": report.target}
    return "".join(_dumped({**about, **test_data(result)}) + "\n" for result in report.results)


def plain_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Typed values as JSON holds them."""
    from pydantic_core import to_jsonable_python

    plain: dict[str, Any] = to_jsonable_python(dict(values), bytes_mode="base64", inf_nan_mode="strings")
    return plain


def _finite(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None


def _dumped(data: Any, *, indent: int | None = None) -> str:
    """JSON that can be written as UTF-8, which half a surrogate pair cannot."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, indent=indent)
    return SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
