"""The errors a user can meet, and how each is told.

Two kinds leave the command line: `InputError` (what the user gave is wrong; exit code 2) and `RunError` (the run itself
failed; exit code 3). Both are told the same way: where, what was found, what was expected, the nearest valid name, and
what to do next. Nothing else should reach a user; anything else is a defect of ours.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from os import PathLike, fspath


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """The valid name closest to `name`, or None when nothing is close (difflib ratio below 0.6)."""
    matches = difflib.get_close_matches(name, sorted(valid), n=1)
    return matches[0] if matches else None


class CuecardError(Exception):
    """Base of every error that Cuecard raises on purpose.

    The parts are kept as attributes, so that tools can use them; `str()` is the whole message for a person.
    """

    def __init__(
        self,
        message: str,
        *,
        path: str | PathLike[str] | None = None,
        line: int | None = None,
        field: str | None = None,
        expected: str | None = None,
        nearest: str | None = None,
        hint: str | None = None,
    ) -> None:
        self.message = message
        self.path = None if path is None else fspath(path)
        self.line = line
        self.field = field
        self.expected = expected
        self.nearest = nearest
        self.hint = hint
        super().__init__(self._render())

    def _render(self) -> str:
        where = "" if self.path is None else self.path if self.line is None else f"{self.path}:{self.line}"
        head = ": ".join(part for part in (where, self.field, self.message) if part)
        if self.expected:
            head += f"; expected {self.expected}"
        if self.nearest:
            head += f" (did you mean {self.nearest!r}?)"
        return head + (f"\n  {self.hint}" if self.hint else "")


class InputError(CuecardError):
    """What the user gave is wrong: a spec, a row, a file, an option. Exit code 2."""


class RunError(CuecardError):
    """The run failed although the input was right: the engine died, the disk is full. Exit code 3."""


class ReadError(CuecardError):
    """A model's text could not be read as the value its signature asks for. Says precisely why."""
