"""How this package tells an error: where it stands, and what was found, cut to a readable length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

from ..errors import InputError, nearest

SHOWN_CHARACTERS = 80
SHOWN_LABELS = 8


def clip(text: str) -> str:
    """`text` as one quoted line of at most about 80 characters."""
    return repr(_cut(text))


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 3] + "..."


def show(value: Any) -> str:
    """`value` for a message: text in quotes, the rest as Python writes it, followed by its type."""
    if isinstance(value, str):
        return clip(value)
    return f"{_cut(repr(value))} ({type(value).__name__})"


def one_of(labels: Sequence[str], limit: int | None = SHOWN_LABELS) -> str:
    """`one of: a, b, c`; past `limit` labels the rest is a count."""
    if limit is None or len(labels) <= limit:
        return "one of: " + ", ".join(labels)
    return "one of: " + ", ".join(labels[:limit]) + f", ... ({len(labels)} in all)"


def nearest_label(text: str, labels: Sequence[str]) -> str | None:
    """The label closest to `text`, whatever its case, or None when none is close."""
    by_case = {label.casefold(): label for label in reversed(labels)}
    found = nearest(text.strip().casefold(), by_case)
    return None if found is None else by_case[found]


@dataclass(frozen=True)
class Where:
    """A place in what the user gave: a file, a line, and a field, each of which may be unknown."""

    path: str | PathLike[str] | None = None
    line: int | None = None
    field: str | None = None

    def at(self, name: str) -> Where:
        """The place of `name` inside this one."""
        return replace(self, field=name if self.field is None else f"{self.field}.{name}")

    def error(
        self, message: str, *, expected: str | None = None, nearest: str | None = None, hint: str | None = None
    ) -> InputError:
        """The error to raise here."""
        return InputError(
            message, path=self.path, line=self.line, field=self.field, expected=expected, nearest=nearest, hint=hint
        )
