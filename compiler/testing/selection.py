"""Which tests run: by name, by tag, or those that failed last time.

What failed last time stands in `.cuecard/last-failed.json` of the working folder: pairs of a file of tests, as a path
from there, and a test's name. Only what ran changes it, so that the failures of other files stay noted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import InputError, RunError, nearest
from ...files import read_text, write_atomic
from .results import Result

if TYPE_CHECKING:
    from .reading import Suite, Test

LAST_FAILED = Path(".cuecard") / "last-failed.json"

Name = tuple[str, str]
"""A test: the file it is written in, from the working folder, and its name."""


def select(
    suites: Sequence[Suite],
    *,
    name: str | None = None,
    tags: tuple[str, ...] = (),
    failed: frozenset[Name] | None = None,
) -> list[Suite]:
    """The suites with the tests that are wanted; those that have none of them are left out.

    failed: what failed last time; None, or none of these tests, for all. Raises `InputError` when there are none.
    """
    every = [test for suite in suites for test in suite.tests]
    path = suites[0].path if len(suites) == 1 else None
    wanted = {id(test) for test in chosen(every, name=name, tags=tags, path=path)}
    if failed is not None:
        again = {id(test) for suite in suites for test in suite.tests if (place_of(suite.path), test.name) in failed}
        wanted = wanted & again or wanted
    kept = [replace(suite, tests=tuple(test for test in suite.tests if id(test) in wanted)) for suite in suites]
    return [suite for suite in kept if suite.tests]


def chosen(
    tests: Sequence[Test], *, name: str | None = None, tags: tuple[str, ...] = (), path: str | None = None
) -> list[Test]:
    """The tests whose names hold `name` and that have one of the `tags`. Raises `InputError` when there are none."""
    named = [test for test in tests if name is None or name in test.name]
    if name is not None and tests and not named:
        near = nearest(name, [test.name for test in tests])
        raise InputError(f"no test is called {name!r}", path=path, expected="part of a test's name", nearest=near)
    tagged = [test for test in named if not tags or set(tags) & set(test.tags)]
    if tags and named and not tagged:
        known = sorted({tag for test in tests for tag in test.tags})
        lost = next((tag for tag in tags if tag not in known), tags[0])
        expected = f"one of {', '.join(known)}" if known else "a test with tags"
        message = f"no test has the tag {lost!r}"
        raise InputError(message, path=path, expected=expected, nearest=nearest(lost, known))
    return tagged


def read_last_failed(path: Path = LAST_FAILED) -> frozenset[Name]:
    """What failed last time; nothing where that is not known. Raises `InputError` for a file that is something else."""
    if not path.is_file():
        return frozenset()
    try:
        data: Any = json.loads(read_text(path))
        return frozenset((str(file), str(name)) for file, name in data["failed"])
    except (ValueError, TypeError, KeyError) as error:
        hint = "Delete the file: it is written again by the next run."
        raise InputError(f"not a list of tests: {error}", path=path, hint=hint) from None


def write_last_failed(ran: Iterable[tuple[str, Result]], path: Path = LAST_FAILED) -> None:
    """Note which of the tests that ran (each with its file) failed or could not be run. Raises `RunError`."""
    before = set(read_last_failed(path))
    after = set(before)
    for file, result in ran:
        (after.add if result.status in ("fail", "error") else after.discard)((place_of(file), result.name))
    if after == before:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot be made: {error.strerror or error}", path=path.parent) from error
    write_atomic(path, json.dumps({"failed": sorted(after)}, indent=1, ensure_ascii=False) + "\n")


def place_of(path: str) -> str:
    """A file's path from the working folder, the same however it is written."""
    return Path(os.path.relpath(path)).as_posix()
