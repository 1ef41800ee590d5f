"""JUnit XML, as the servers of continuous integration read it.

There is no standard; what is written here is the common subset that Jenkins' `xunit` schema (junit-10.xsd), GitLab and
the report actions of GitHub agree on: `testsuites/testsuite/testcase` with `classname`, `name`, `time`, `file`, `line`,
and one of `failure`, `error` and `skipped`. A suite is a file of tests. No time stamp is written.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from .detail import clipped, detail, suite_name

if TYPE_CHECKING:
    from ..testing.results import Report, Result

ILLEGAL = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0, section 2.2, production 2
MESSAGE = 1_000
BODY = 20_000


def as_junit(report: Report) -> str:
    """The report as JUnit XML."""
    root = ElementTree.Element("testsuites", {"name": clean(report.name), **_totals(report.results, report.seconds)})
    suites: dict[str, list[Result]] = {}
    for result in report.results:
        suites.setdefault(result.path, []).append(result)
    for path, results in suites.items():
        seconds = math.fsum(result.seconds for result in results)
        about = {"name": clean(path or report.name), **_totals(results, seconds)}
        suite = ElementTree.SubElement(root, "testsuite", about)
        properties = ElementTree.SubElement(suite, "properties")
        ElementTree.SubElement(properties, "property", name="target", value=clean(report.target))
        for result in results:
            _add(suite, result, report.name)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def clean(text: str) -> str:
    """Text without the characters that no XML can hold, not even escaped: each is the replacement character."""
    return ILLEGAL.sub("\ufffd", text)


def _totals(results: Sequence[Result], seconds: float) -> dict[str, str]:
    counts = {"tests": len(results)}
    for name, status in (("failures", "fail"), ("errors", "error"), ("skipped", "skip")):
        counts[name] = sum(result.status == status for result in results)
    return {**{name: str(count) for name, count in counts.items()}, "time": _time(seconds)}


def _add(suite: ElementTree.Element, result: Result, program: str) -> None:
    case = ElementTree.SubElement(
        suite,
        "testcase",
        classname=clean(suite_name(result.path or program)),
        name=clean(result.name),
        time=_time(result.seconds),
    )
    if result.path:
        case.set("file", clean(result.path))
    if result.line is not None:
        case.set("line", str(result.line))
    message = clean(clipped(result.reason, MESSAGE))
    if result.status == "skip":
        ElementTree.SubElement(case, "skipped", message=message)
    elif result.status == "pass":
        if result.reason:
            ElementTree.SubElement(case, "system-out").text = clean(result.reason)
    else:
        tag = "failure" if result.status == "fail" else "error"
        told = ElementTree.SubElement(case, tag, message=message, type=_type(result))
        told.text = clean(clipped(detail(result), BODY))


def _type(result: Result) -> str:
    """The kind of trouble: the assertion that failed first, `gate`, or that there was nothing to judge."""
    if result.status == "error":
        return "error"
    return next((check.type for check in result.checks if not check.passed), result.kind)


def _time(seconds: float) -> str:
    return f"{seconds:.3f}"
