"""Types with a finite set of values: what each value is called, and which one a text means."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, EnumMeta
from typing import Any, get_args

from ..errors import InputError
from .messages import clip, nearest_label, one_of
from .types import shape, type_name

# Signs that may stand around a label without being part of it. Those that change a meaning ("-1", "C#", "5%") do not.
AROUND = " \t\r\n;:!?\"'`()[]{}<>*_\u201c\u201d\u2018\u2019"
NEGATION = re.compile(r"\b(?:no|not|never|neither|nor|cannot|without|except)\b|n['\u2019]t\b")


def label_text(value: Any) -> str:
    """The text of one value of a finite type: `true`, `3`, `billing`; an Enum's member goes by its value."""
    if isinstance(value, Enum):
        return label_text(value.value) if isinstance(value.value, str | int | float) else value.name
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else repr(value)


def values(type_: Any) -> tuple[Any, ...] | None:
    """The values of a finite type, in the order of its declaration, None last; None when the type is not finite."""
    taken = shape(type_)
    if taken.kind == "bool":
        found: tuple[Any, ...] = (True, False)
    elif isinstance(taken.inner, EnumMeta):
        found = tuple(taken.inner)
    elif taken.kind == "labels":
        found = get_args(taken.inner)
    else:
        return None
    return (*found, None) if taken.optional else found


def choices(type_: Any) -> tuple[str, ...] | None:
    """The texts of a finite type's values, as `write` writes them; None when the type is not finite.

    Literal, Enum and bool are finite, and so is each of them with None, whose text is `null`.

    >>> choices(bool)
    ('true', 'false')
    """
    found = values(type_)
    return None if found is None else tuple(label_text(value) for value in found)


def choice_value(type_: Any, label: str) -> Any:
    """The value that `choices` calls `label`. Raises InputError for anything else."""
    labels = choices(type_)
    if labels is None:
        raise InputError(f"found the type {type_name(type_)}", expected="a Literal, an Enum or bool")
    if label not in labels:
        raise InputError(f"found {clip(label)}", expected=one_of(labels), nearest=nearest_label(label, labels))
    return (values(type_) or ())[labels.index(label)]


@dataclass(frozen=True)
class Match:
    """The labels that a text may mean: one if it is clear. `negated`: the text also denies something."""

    labels: tuple[str, ...]
    negated: bool = False


def match_label(text: str, labels: Sequence[str]) -> Match:
    """Which of `labels` a text means.

    Tried in this order, first on the text, then on its first line: the label itself; the label in another case; the
    label within punctuation, or with other word separators. Then the labels that occur in the text as whole words, of
    which there must be exactly one, in a text that denies nothing: "not billing" does not mean billing.
    """
    first_line = text.strip().partition("\n")[0].strip()
    for candidate in (text, text.strip()):
        if candidate in labels:
            return Match((candidate,))
    for candidate in dict.fromkeys((text.strip(), first_line)):
        if candidate in labels:
            return Match((candidate,))
        for same in (str.casefold, _bare):
            wanted = same(candidate)
            hits = tuple(label for label in labels if wanted and same(label) == wanted)
            if hits:
                return Match(hits)
    return _mentioned(text, labels)


def _bare(text: str) -> str:
    """`text` without the punctuation around it, its words parted by single spaces, in one case."""
    inside = text.strip(AROUND).rstrip(AROUND + ".,")
    return re.sub(r"(?<=[^\W_])[\s_-]+(?=[^\W_])", " ", inside).casefold()


def _mentioned(text: str, labels: Sequence[str]) -> Match:
    """The labels that occur in `text` as whole words; of two at one place the longer."""
    longest_first = sorted(labels, key=len, reverse=True)
    words = "|".join(re.escape(label) for label in longest_first)
    # Inside a compound ("non-toxic"), a number ("2.5"), a share ("5%") or a pair ("3/5") a label is another word.
    found = re.compile(rf"(?<![\w/-])(?<!\d[.,])(?:{words})(?![\w/%-]|[.,]\d|['\u2019]\w)", re.IGNORECASE)
    hits: list[str] = []
    for match in found.finditer(text):
        exact = [label for label in labels if label == match[0]]
        hits += exact or [label for label in labels if label.casefold() == match[0].casefold()]
    rest = found.sub(" ", text).casefold()
    return Match(tuple(dict.fromkeys(hits)), negated=NEGATION.search(rest) is not None)
