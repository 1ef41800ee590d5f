"""What a rule is: the judgement behind an assertion, what it is made from, and how values are told."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...metrics.values import plain
from .answers import Answer

SHOWN = 80  # characters of a value that a reason shows


class Unjudged(Exception):
    """An assertion could not be judged: what it needs is not there, or its code broke. It is no failure."""


class Untimed(Unjudged):
    """An assertion looks at the time of an answer that was not made now, but replayed."""


@dataclass(frozen=True)
class Verdict:
    """What a rule says of an output. `measured` is what it measured, where that is not the output itself."""

    passed: bool
    score: float
    measured: str = ""


@dataclass(frozen=True)
class Rule:
    """An assertion's type with what it was given.

    `judge` takes the output and the whole answer; `expected` is what is wanted as text, and `words` how a reason says
    it after the type's name.
    """

    judge: Callable[[Any, Answer], Verdict]
    expected: str = ""
    words: str = ""


@dataclass(frozen=True)
class Given:
    """What an assertion was given, from which its rule is made.

    `value` is None where there is none, `has_value` tells the two apart; `typed` reads a value by the output's type;
    `folder` is where `module:function` is looked for; `inputs` are the program's.
    """

    type: str
    value: Any = None
    has_value: bool = False
    threshold: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    typed: Callable[[Any], Any] = lambda value: value
    allow_code: bool = False
    allow_outside: bool = False
    folder: Path = Path()
    inputs: tuple[str, ...] = ()

    def wrong(self, key: str, message: str, **parts: Any) -> InputError:
        """An error of what stands at `key` ("": of the whole assertion)."""
        return InputError(message, field=key or None, **parts)


def shown(value: Any) -> str:
    """A value as a reason shows it: JSON, cut where it is long."""
    text = json.dumps(plain(value), ensure_ascii=False, default=str)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def text_of(given: Given) -> str:
    """The value as a text. Raises `InputError`."""
    if not isinstance(given.value, str):
        found = shown(given.value)
        raise given.wrong("value", f"found {found}", expected="text", hint="Put it in quotes.")
    return given.value


def texts_of(given: Given) -> tuple[str, ...]:
    """A list of texts, or one text with commas between them."""
    value = [part.strip() for part in given.value.split(",")] if isinstance(given.value, str) else given.value
    if not isinstance(value, list) or not value or not all(isinstance(part, str) and part for part in value):
        raise given.wrong("value", f"found {shown(given.value)}", expected="a list of texts, such as [yes, sure]")
    return tuple(value)


def yes(passed: bool, measured: str = "") -> Verdict:
    """The verdict of a rule that only holds or does not."""
    return Verdict(passed, float(passed), measured)
