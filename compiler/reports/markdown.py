"""A report as a short comment in Markdown, for a pull request or the summary of a workflow (GitHub's flavour).

Failures come first, then what could not be run, then the gates with what they measured; what passed is counted. The
comment stays under 65,536 characters, GitHub's limit: long values are cut, and past `MOST` characters rows are counted
instead of shown. Values stand in `<code>`, where no name is turned into a mention and no `#1` into a link, with every
character that means something in Markdown as an entity, so that they cannot end a cell or become a link or an image.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from .detail import check_title, clipped, counts_text, place_text
from .junit import clean

if TYPE_CHECKING:
    from ..testing.results import Report, Result

CELL = 240
MOST = 40_000
SPECIAL = re.compile(r"[\\`*_{}\[\]|~@#$:]|(?<=www)\.")
SYMBOLS = {"pass": "✓", "fail": "✗", "error": "!", "skip": "-"}


def as_markdown(report: Report) -> str:
    """The report as a comment."""
    verdict = "error" if report.errors else "fail" if report.failed else "pass"
    counts = counts_text(report.passed, report.failed, report.errors, report.skipped)
    parts = [f"### {SYMBOLS[verdict]} {_plain(report.name)}: {counts}"]
    if report.target:
        parts.append(f"on {_code(report.target)}")
    cases = [result for result in report.results if result.kind == "case"]
    room = MOST
    for title, head, rows in (
        ("Failed", ("Test", "Checked", "Found", "Expected"), [row for case in cases for row in _failures(case)]),
        ("Could not be run", ("Test", "Why"), [_told(result) for result in report.results if result.status == "error"]),
        ("Gates", ("", "Gate", "Score", "Measured"), [_gate(result) for result in report.results if _judged(result)]),
        ("Skipped", ("Test", "Why"), [_told(result) for result in report.results if result.status == "skip"]),
    ):
        if rows:
            table, room = _table(head, rows, room)
            parts += [f"**{title}**", table]
    return "\n\n".join(parts) + "\n"


def _failures(result: Result) -> list[Sequence[str]]:
    """A row for each check that failed; one that tells the reason where there is none."""
    if result.status != "fail":
        return []
    failed = [check for check in result.checks if not check.passed]
    if not failed:
        return [(_where(result), "", _code(result.reason), "")]
    places = [_where(result), *("" for _ in failed[1:])]
    return [
        (place, _code(check_title(check)), _code(check.found), _code(check.expected))
        for place, check in zip(places, failed, strict=True)
    ]


def _told(result: Result) -> Sequence[str]:
    return (_where(result), _code(result.reason))


def _judged(result: Result) -> bool:
    return result.kind == "gate" and result.status in ("pass", "fail")


def _gate(result: Result) -> Sequence[str]:
    score = "" if result.score is None else f"{result.score:.3f}"
    return (SYMBOLS[result.status], _where(result), score, _code(result.reason))


def _where(result: Result) -> str:
    place = place_text(result)
    return _plain(result.name) + (f"<br><sub>{_code(place)}</sub>" if place else "")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], room: int) -> tuple[str, int]:
    """A table of as many rows as there is room for, with a line that counts the others, and the room that is left."""
    lines = [_row(head), _row(["---"] * len(head))]
    left = 0
    for row in rows:
        line = _row(row)
        if left or len(line) > room:
            left += 1
        else:
            lines.append(line)
            room -= len(line)
    more = f"\n\n… and {left:,} more" if left else ""
    return ("\n".join(lines) if len(lines) > 2 else "") + more, room


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _code(text: str) -> str:
    """A value, literally, on one line."""
    escaped = _escaped(clipped(text, CELL))
    return f"<code>{escaped}</code>" if escaped else ""


def _plain(text: str) -> str:
    """Text of the report's own; an `@` in it is kept from becoming a mention."""
    return _escaped(clipped(text, CELL)).replace("&#64;", "&#64;&#8203;").replace("&#35;", "&#35;&#8203;")


def _escaped(text: str) -> str:
    flat = " ".join(clean(text).split())
    return SPECIAL.sub(lambda found: f"&#{ord(found[0])};", html.escape(flat, quote=False))
