"""Regular expressions, contained texts and limits of length.

What is looked for stands in the metric's options, and then the gold values do not matter; or the gold values are what
is looked for, several references as always.
"""

from __future__ import annotations

import math
import re
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from ..errors import InputError
from .base import Measurement, Metric, Record, TextMetric
from .values import answers, as_text, tuple_of

_Texts = Annotated[tuple[str, ...], BeforeValidator(tuple_of)]


class _Sought(TextMetric):
    """A text metric whose references are those of its options, where there are some."""

    @property
    @abstractmethod
    def sought(self) -> tuple[str, ...]:
        """What the options look for; nothing when the gold values say it."""

    def measure(self, example: Record, prediction: Record) -> Measurement:
        """See `Metric.measure`."""
        if not self.sought:
            return super().measure(example, prediction)
        values = answers(example, prediction, self.fields, metric=self.name).values()
        return _mean(self.compare_text(self.sought, as_text(value)).score for value in values)

    def worst(self, example: Record) -> Measurement:
        """See `Metric.worst`."""
        return Measurement(self.low) if self.sought else super().worst(example)


@dataclass(frozen=True, kw_only=True)
class Regex(_Sought):
    r"""1 where the text matches a pattern, else 0.

    `pattern` is one regular expression of Python's `re` or a list of which one must match; without it the gold values
    are the patterns. `match: search` finds it anywhere, `start` at the beginning, `full` wants the whole text. A dot
    matches line breaks with `(?s)` in the pattern. An empty gold value matches the empty text alone.
    """

    name = "regex"
    fields: tuple[str, ...] = ()
    pattern: _Texts = ()
    match: Literal["search", "start", "full"] = "search"
    ignore_case: bool = False

    def __post_init__(self) -> None:
        for pattern in self.sought:
            self._compiled(pattern)

    @property
    def sought(self) -> tuple[str, ...]:
        """The option `pattern`."""
        return self.pattern

    def compare_text(self, gold: Sequence[str], prediction: str) -> Measurement:
        """See `TextMetric.compare_text`."""
        return Measurement(float(any(self._matches(pattern, prediction) for pattern in gold)))

    def _matches(self, pattern: str, text: str) -> bool:
        if not pattern:
            return not text
        compiled = self._compiled(pattern)
        how = {"search": compiled.search, "start": compiled.match, "full": compiled.fullmatch}[self.match]
        return how(text) is not None

    def _compiled(self, pattern: str) -> re.Pattern[str]:
        try:
            return re.compile(pattern, re.IGNORECASE if self.ignore_case else 0)
        except (re.error, OverflowError, RecursionError) as error:
            raise InputError(
                f"the pattern {pattern!r} of metric {self.name!r} is not a regular expression: {error}",
                hint="In YAML write it in single quotes, which leave backslashes as they are.",
            ) from None


@dataclass(frozen=True, kw_only=True)
class Contains(_Sought):
    """1 where the text contains what it should, else 0.

    `text` is one text or a list; without it the gold values are looked for. One of them is enough, all must be there
    with `mode: all`. An empty gold value is contained in the empty text alone.
    """

    name = "contains"
    fields: tuple[str, ...] = ()
    text: _Texts = ()
    mode: Literal["any", "all"] = "any"
    ignore_case: bool = False

    def __post_init__(self) -> None:
        if "" in self.text:
            raise InputError(f"metric {self.name!r} looks for an empty text", expected="a text to look for")

    @property
    def sought(self) -> tuple[str, ...]:
        """The option `text`."""
        return self.text

    def compare_text(self, gold: Sequence[str], prediction: str) -> Measurement:
        """See `TextMetric.compare_text`."""
        ours = self._key(prediction)
        found = [self._key(text) in ours if text else not ours for text in gold]
        return Measurement(float(any(found) if self.mode == "any" else all(found)))

    def _key(self, text: str) -> str:
        return text.casefold() if self.ignore_case else text


@dataclass(frozen=True, kw_only=True)
class Length(Metric):
    """1 where the text has at least `min` and at most `max` words, characters or lines, else 0; it needs no gold value.

    Words stand between white space; lines that hold nothing else are not counted. Values that are not text are measured
    as they are written.
    """

    name = "length"
    fields: tuple[str, ...] = ()
    min: Annotated[int, Field(ge=0)] | None = None
    max: Annotated[int, Field(ge=0)] | None = None
    unit: Literal["words", "characters", "lines"] = "words"

    def __post_init__(self) -> None:
        if self.min is None and self.max is None:
            raise InputError(f"metric {self.name!r} has no limit", expected="`min`, `max` or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise InputError(f"metric {self.name!r} wants {self.min} to {self.max} {self.unit}", expected="min <= max")

    def measure(self, example: Record, prediction: Record) -> Measurement:
        """See `Metric.measure`."""
        values = answers(example, prediction, self.fields, metric=self.name).values()
        return _mean(float(self._holds(as_text(value))) for value in values)

    def _holds(self, text: str) -> bool:
        if self.unit == "characters":
            count = len(text)
        elif self.unit == "words":
            count = len(text.split())
        else:
            count = sum(1 for line in text.splitlines() if line.strip())
        return (self.min or 0) <= count <= (math.inf if self.max is None else self.max)


def _mean(scores: Iterable[float]) -> Measurement:
    found = list(scores)
    return Measurement(math.fsum(found) / len(found))
