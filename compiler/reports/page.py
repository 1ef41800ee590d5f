"""A report as one HTML page that needs nothing beside it: no script, no font, no image, no network.

It is filtered by status with radio buttons that style sheets can see (`:checked ~ main`), a test opens with `<details>`
and the colours follow the setting for light or dark. A content security policy forbids everything but the page's own
styles, so that even text that slipped through the escaping could not act.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from .detail import check_title, clipped, counts_text, diff, place_text, value_text
from .junit import clean
from .style import STYLE

if TYPE_CHECKING:
    from ..testing.results import Check, Report, Result

WORDS = {"fail": "failed", "error": "could not be run", "pass": "passed", "skip": "skipped"}
OPENED = 20  # so many failures are open from the start
MOST = 20_000  # characters of one value
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def as_html(report: Report) -> str:
    """The report as a page."""
    counts = {"fail": report.failed, "error": report.errors, "pass": report.passed, "skip": report.skipped}
    title = f"{report.name}: {counts_text(report.passed, report.failed, report.errors, report.skipped)}"
    verdict = "error" if report.errors else "fail" if report.failed else "pass"
    about = [part for part in (report.target, f"{len(report.results):,} tests", f"{report.seconds:.1f} s") if part]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f'<meta http-equiv="Content-Security-Policy" content="{_safe(POLICY)}">',
            f"<title>{_safe(title)}</title>",
            f"<style>\n{STYLE}</style>",
            "</head>",
            "<body>",
            f'<header class="{verdict}"><h1>{_safe(report.name)}</h1><p>{_safe(" · ".join(about))}</p></header>',
            _bar(counts),
            *_filters(counts, len(report.results)),
            "<main>",
            *_suites(report.results),
            "</main>",
            "</body>",
            "</html>",
            "",
        ]
    )


def _bar(counts: Mapping[str, int]) -> str:
    """The shares of each status, as a bar."""
    parts = [f'<i class="{name}" style="flex-grow:{count}"></i>' for name, count in counts.items() if count]
    return f'<div class="bar" aria-hidden="true">{"".join(parts)}</div>'


def _filters(counts: Mapping[str, int], total: int) -> Iterable[str]:
    """Radio buttons, which stand before what they filter, and their labels."""
    shown = {"all": total, **{name: count for name, count in counts.items() if count}}
    for name in shown:
        checked = " checked" if name == "all" else ""
        yield f'<input type="radio" name="show" id="show-{name}"{checked}>'
    labels = [
        f'<label for="show-{name}" class="{name}">{count:,} {WORDS.get(name, "all" if count != 1 else "test")}</label>'
        for name, count in shown.items()
    ]
    yield f'<nav aria-label="Show">{"".join(labels)}</nav>'


def _suites(results: Sequence[Result]) -> Iterable[str]:
    """The tests by the file they are written in, in order."""
    suites: dict[str, list[Result]] = {}
    for result in results:
        suites.setdefault(result.path, []).append(result)
    opened = 0
    for path, part in suites.items():
        statuses = " ".join(dict.fromkeys(result.status for result in part))
        yield f'<section class="{statuses}">'
        if path:
            yield f"<h2>{_safe(path)}</h2>"
        for result in part:
            bad = result.status in ("fail", "error")
            opened += bad
            yield _test(result, opened=bad and opened <= OPENED)
        yield "</section>"
    if not results:
        yield "<p>There are no tests in this report.</p>"


def _test(result: Result, *, opened: bool) -> str:
    facts = "" if result.score is None else f'<span class="score">{result.score:.3f}</span>'
    tags = "".join(f'<span class="tag">{_safe(tag)}</span>' for tag in result.tags)
    reason = f'<p class="reason">{_safe(result.reason)}</p>' if result.reason else ""
    body = [
        _values("Inputs", result.inputs),
        _values("Outputs", result.outputs or {}),
        _checks(result.checks),
        f'<p class="where">{_safe(_place(result))}</p>',
    ]
    return (
        f'<details class="test {result.status}"{" open" if opened else ""}>'
        f'<summary><span class="status">{WORDS[result.status] if result.status != "error" else "error"}</span>'
        f'<span class="name">{_safe(result.name)}{tags}</span>{facts}{reason}</summary>\n'
        f'<div class="body">{"".join(body)}</div></details>'
    )


def _place(result: Result) -> str:
    kind = "a gate" if result.kind == "gate" else "a case"
    where = place_text(result)
    seconds = f", {result.seconds:.3f} s" if result.seconds else ""
    return f"{kind}{f' in {where}' if where else ''}{seconds}"


def _values(title: str, values: Mapping[str, Any]) -> str:
    if not values:
        return ""
    rows = "".join(f"<dt>{_safe(name)}</dt><dd>{_block(value_text(value))}</dd>" for name, value in values.items())
    return f"<h3>{title}</h3><dl>{rows}</dl>"


def _checks(checks: Sequence[Check]) -> str:
    if not checks:
        return ""
    return f'<h3>Assertions</h3><ul class="checks">{"".join(map(_check, checks))}</ul>'


def _check(check: Check) -> str:
    status = "pass" if check.passed else "fail"
    weight = "" if check.weight == 1 else f", weight {check.weight:g}"
    head = (
        f'<p><span class="status">{WORDS[status]}</span> <b>{_safe(check_title(check))}</b> '
        f'<span class="score">{check.score:.3f}{weight}</span></p>'
    )
    lines = [] if check.passed else diff(check)
    if lines:
        return f'<li class="{status}">{head}{_diff(lines)}</li>'
    parts = (("found", check.found), ("expected", check.expected))
    rows = "".join(f"<dt>{name}</dt><dd>{_block(text)}</dd>" for name, text in parts if text)
    return f'<li class="{status}">{head}{f"<dl>{rows}</dl>" if rows else ""}</li>'


def _diff(lines: Sequence[str]) -> str:
    """A diff, what was expected marked as taken out and what was found as put in; the signs stay, for who sees no
    colour.
    """
    tags = {"-": "del", "+": "ins"}
    shown = [
        f"<{tags[line[0]]}>{_safe(line)}</{tags[line[0]]}>" if line[:1] in tags else f"<span>{_safe(line)}</span>"
        for line in lines
    ]
    return f'<p class="legend"><del>- expected</del> <ins>+ found</ins></p><pre class="diff">{"".join(shown)}</pre>'


def _block(text: str) -> str:
    return f"<pre>{_safe(clipped(text, MOST))}</pre>" if text else '<pre class="empty">(empty)</pre>'


def _safe(text: str) -> str:
    return escape(clean(text))
