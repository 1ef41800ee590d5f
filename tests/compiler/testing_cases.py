"""A program that routes tickets on a fake engine, and specs with tests for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fakes import FakeEngine, fake_target

from cuecard.compiler.testing import Result, Suite, read_suite, run_tests

from .cli_cases import tickets, write_rows

HEAD = """\
signature: "ticket -> queue: Literal['billing', 'technical', 'account']"
format: completion
metric: exact_match
"""


def answer(prompt: str, *_: Any) -> str:
    """The queue that the last ticket names; "row 2" is answered wrong."""
    last = prompt.rpartition("Ticket:")[2]
    if "mumble" in last:
        return " mumble\n"
    named = [queue for queue in ("billing", "technical", "account") if queue in last]
    return " technical\n" if "row 2" in last else f" {named[0]}\n"


def engine() -> FakeEngine:
    made = FakeEngine(answer)
    made.failure = lambda request: "too hot" if "break" in made.tokenizer.text(request.prompt) else None
    return made


def suite_of(folder: Path, tests: str, head: str = HEAD, **options: Any) -> Suite:
    """The suite of a spec with these tests, beside six rows of data."""
    path = folder / "spec.yaml"
    path.write_text(f"{head}tests:\n{tests}", encoding="utf-8")
    write_rows(folder / "rows.jsonl", tickets("row", 6))
    return read_suite(path, **options)


def results(suite: Suite, on: FakeEngine | None = None, **options: Any) -> dict[str, Result]:
    """How the tests of a suite end, by name."""
    return {result.name: result for result in run_tests(suite, fake_target(on or engine()).lm, **options)}


FREE = "signature: question -> answer\nformat: completion\nmetric: exact_match\n"


def says(text: str) -> FakeEngine:
    """An engine that always gives this text."""
    return FakeEngine(lambda prompt, *_: f" {text}\n")
