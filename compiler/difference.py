"""Where two texts differ, in words: the first difference for an error, all of them for two prompts side by side.

Words are runs of letters and digits, single marks, and runs of white space; `difflib` aligns them (Ratcliff and
Obershelp's matching), with none of them taken for junk.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher
from typing import Any, Literal

WORD = re.compile(r"\w+|\s+|[^\w\s]")
AROUND = 30  # characters of context that an error shows
Part = tuple[Literal["same", "before", "after"], str]


def word_parts(before: str, after: str) -> list[Part]:
    """The two texts as parts that both have, that only `before` has, and that only `after` has, in order.

    >>> word_parts("Route the ticket.", "Sort the ticket.")
    [('before', 'Route'), ('after', 'Sort'), ('same', ' the ticket.')]
    """
    ours, theirs = WORD.findall(before), WORD.findall(after)
    found: list[Part] = []
    gone = new = ""
    blocks = SequenceMatcher(None, ours, theirs, autojunk=False).get_opcodes()
    for place, (kind, a, b, c, d) in enumerate(blocks):
        text = "".join(ours[a:b])
        between = kind == "equal" and text.isspace() and 0 < place < len(blocks) - 1
        if kind != "equal" or between:  # a lone space between changes would cut them into single words
            gone, new = gone + text, new + "".join(theirs[c:d])
            continue
        found += _changed(gone, new)
        gone = new = ""
        found.append(("same", text))
    return found + _changed(gone, new)


def _changed(gone: str, new: str) -> list[Part]:
    parts: list[Part] = [("before", gone), ("after", new)]
    return [part for part in parts if part[1]]


def shared(before: Sequence[Any], after: Sequence[Any]) -> int:
    """How many leading items two sequences, or characters two texts, have in common."""
    least = min(len(before), len(after))
    return next((place for place in range(least) if before[place] != after[place]), least)


def nearest_text(text: str, others: Iterable[str]) -> str | None:
    """Of other texts the one that begins and ends most like `text`; None when none begins or ends at all alike."""
    best, most = None, 0
    for other in others:
        head = shared(text, other)
        tail = shared(text[head:][::-1], other[head:][::-1])
        if head + tail > most:
            best, most = other, head + tail
    return best


def first_difference(before: str, after: str) -> str:
    """One sentence: where two texts begin to differ, and what stood there. The texts are not the same."""
    place = shared(before, after)
    line = before.count("\n", 0, place) + 1
    start = max(before.rfind("\n", 0, place) + 1, place - AROUND)
    start += len(before[start:place]) - len(before[start:place].lstrip())
    was, now = (_shown(text, start, place) for text in (before, after))
    return f"Its line {line} was {was} and is {now}."


def _shown(text: str, start: int, place: int) -> str:
    end = min((found for found in (text.find("\n", place), place + AROUND) if found >= 0), default=len(text))
    cut = text[start:end]
    return json.dumps(cut, ensure_ascii=False) if cut or end < len(text) else "at its end"


def pairs(before: Sequence[str], after: Sequence[str]) -> list[tuple[str | None, str | None]]:
    """Two lists of texts aligned: the same ones, changed ones, and those that only one list has (None beside them)."""
    found: list[tuple[str | None, str | None]] = []
    for _, a, b, c, d in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        ours, theirs = list(before[a:b]), list(after[c:d])
        length = max(len(ours), len(theirs))
        padded = ([*part, *[None] * (length - len(part))] for part in (ours, theirs))
        found += list(zip(*padded, strict=True))
    return found
