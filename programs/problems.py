"""Collecting every error of an input before the first is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from os import PathLike
from typing import Any

from ..errors import InputError

Keys = tuple[str | int, ...]


def dotted(keys: Iterable[str | int]) -> str:
    """A key path as people write it: `tests[0].assert[1].field`."""
    text = ""
    for key in keys:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else key
    return text


class InputErrors(InputError):
    """Several input errors in one: `errors` holds those listed, `more` counts the rest."""

    def __init__(self, errors: Sequence[InputError], more: int = 0) -> None:
        lines = [str(error) for error in errors]
        if more:
            lines.append(f"... and {more} more")
        super().__init__("\n".join(lines))
        self.errors = tuple(errors)
        self.more = more


class Problems:
    """What is wrong with one file. `add` notes an error, `stop` raises all that were noted, in the order of lines."""

    def __init__(self, path: str | PathLike[str] | None = None, limit: int | None = None) -> None:
        """`limit`: the most errors that the message lists; the rest are counted."""
        self.path = path
        self.limit = limit
        self._errors: list[InputError] = []

    def __len__(self) -> int:
        return len(self._errors)

    @property
    def errors(self) -> tuple[InputError, ...]:
        """What was noted so far."""
        return tuple(self._errors)

    def add(
        self,
        message: str,
        *,
        line: int | None = None,
        field: str | None = None,
        expected: str | None = None,
        nearest: str | None = None,
        hint: str | None = None,
    ) -> None:
        """Note an error of this file."""
        parts = {"line": line, "field": field, "expected": expected, "nearest": nearest, "hint": hint}
        self.note(InputError(message, path=self.path, **parts))  # type: ignore[arg-type]

    def note(self, error: InputError) -> None:
        """Note an error that was raised elsewhere (all of them, when it holds several)."""
        self._errors.extend(error.errors if isinstance(error, InputErrors) else [error])

    def stop(self) -> None:
        """Raise the error if one was noted, `InputErrors` if several were; do nothing if none was."""
        ordered = sorted(self._errors, key=lambda error: error.line or 0)
        if len(ordered) == 1:
            raise ordered[0]
        if ordered:
            shown = ordered[: self.limit]
            raise InputErrors(shown, more=len(ordered) - len(shown))


class KeyProblems(Problems):
    """What is wrong with a file whose parts have key paths.

    `dropped` holds the key paths that were found wrong as such. Nothing more is said about them, nor about what is
    inside: it would only follow from the first error.
    """

    def __init__(self, path: str | PathLike[str] | None, line_of: Callable[[Keys], int | None]) -> None:
        """`line_of` gives the line of a key path."""
        super().__init__(path)
        self.line_of = line_of
        self.dropped: set[Keys] = set()

    def knows(self, keys: Keys) -> bool:
        """Whether this key path, or one that it is inside of, was dropped."""
        return any(keys[:end] in self.dropped for end in range(1, len(keys) + 1))

    def at(self, keys: Keys, message: str, **parts: Any) -> None:
        """Note an error of what stands at `keys`; `parts` as for `add`."""
        if not self.knows(keys):
            self.add(message, line=self.line_of(keys), field=dotted(keys), **parts)

    def raised_at(self, keys: Keys, error: InputError) -> None:
        """Note an error that was raised for the value at `keys`."""
        inner = (error.field or "").removeprefix(str(keys[-1])).lstrip(".")
        message = f"{inner}: {error.message}" if inner else error.message
        self.at(keys, message, expected=error.expected, nearest=error.nearest, hint=error.hint)
