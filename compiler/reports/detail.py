"""What there is to say of one result, as text: why it ended so, what was given, what came, and how the two differ."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .data import plain_values

if TYPE_CHECKING:
    from ..testing.results import Check, Result

COMPARED = ("equals", "levenshtein", "rouge-n", "rouge-l", "bleu", "chrf", "similar")
"""The assertions whose `expected` is what the output should have been like, so that a diff with it says something."""

LONG = 72
SLACK = 40  # characters that are not worth a cut
SENTENCE = re.compile(r"(?<=[.!?;])\s+")
ENDINGS = (".tests.yaml", ".tests.yml", ".yaml", ".yml")


def detail(result: Result) -> str:
    """Everything that helps to understand how a test ended; its first line is the reason."""
    lines = [result.reason] if result.reason else []
    for title, values in (("inputs", result.inputs), ("outputs", result.outputs or {})):
        if values:
            lines += ["", f"{title}:", *_indented(values_text(values))]
    for check in result.checks:
        if not check.passed:
            lines += ["", check_title(check) + ":", *_indented(check_text(check))]
    return "\n".join(lines).strip("\n")


def check_title(check: Check) -> str:
    """Which check it was: `queue equals`."""
    return f"{check.field} {check.type}" if check.field else check.type


def check_text(check: Check) -> str:
    """What a check found and expected; for long text, how they differ."""
    lines = diff(check)
    if lines:
        return "\n".join(["- expected", "+ found", *lines])
    parts = (("found", check.found), ("expected", check.expected))
    return values_text({name: text for name, text in parts if text})


def diff(check: Check) -> list[str]:
    """A unified diff from what was expected to what was found; nothing where the two are short or not alike in kind.

    Sentences of long lines stand on lines of their own, so that a change of one shows as a change of one.
    """
    found, expected = check.found, check.expected
    worth = "\n" in found + expected or max(len(found), len(expected)) > LONG
    if not (worth and found and expected and check.type in COMPARED):
        return []
    return list(difflib.unified_diff(_pieces(expected), _pieces(found), n=2, lineterm=""))[2:]


def values_text(values: Mapping[str, Any]) -> str:
    """Named values, each on a line or, where it has several, below its name."""
    lines: list[str] = []
    for name, value in values.items():
        text = value_text(value)
        lines += [f"{name}: {text}"] if "\n" not in text else [f"{name}:", *_indented(text)]
    return "\n".join(lines)


def value_text(value: Any) -> str:
    """A value as people read it: text as it is, anything else as JSON."""
    plain = plain_values({"": value})[""]
    return plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False)


def place_text(result: Result) -> str:
    """Where a test is written: `triage.tests.yaml:4`."""
    return result.path if result.line is None else f"{result.path}:{result.line}"


def suite_name(path: str) -> str:
    """A file of tests as a dotted name, as other test runners give it: `prompts.triage`."""
    cut = next((path.removesuffix(ending) for ending in ENDINGS if path.endswith(ending)), path)
    parts = [part for part in re.split(r"[\\/]", cut) if part not in ("", ".", "..")]
    return ".".join(parts) or "cuecard"


def counts_text(passed: int, failed: int, errors: int, skipped: int) -> str:
    """The totals in words: `2 passed, 1 failed`."""
    counts = ((passed, "passed"), (failed, "failed"), (errors, "could not be run"), (skipped, "skipped"))
    return ", ".join(f"{count} {word}" for count, word in counts if count) or "no tests"


def clipped(text: str, most: int) -> str:
    """Text of about `most` characters, which says so where it was cut."""
    if len(text) <= most + SLACK:
        return text
    return f"{text[:most].rstrip()} … ({len(text) - most:,} more characters)"


def _pieces(text: str) -> list[str]:
    return [piece for line in text.splitlines() for piece in (SENTENCE.split(line) if len(line) > LONG else [line])]


def _indented(text: str) -> list[str]:
    return [f"  {line}".rstrip() for line in text.splitlines()]
