"""Where a span stands in its text: beside the words of the other inputs, or made of them itself.

An answer to a question stands in the text where the question's words do, and seldom has them in itself. That is the
oldest way to find one (the sliding window with word distances of Richardson et al. 2013, "MCTest", and a baseline of
SQuAD, arXiv 1606.05250), and just what small models are weak at: they know what an answer looks like, and not which of
several is asked for. So it is one more thing that a span is chosen by, see `spans.py`. It takes no call.

Words are runs of letters and digits, whatever their case. Each counts by how rare it is in the text: by one over the
number of times that it stands there.

Measured on SmolLM2-135M, SQuAD questions, F1. Five prompts of four demos, 150 rows: .409 without, .430 when only what
a span is made of counts, .463 when only its place does; with both, at 2, 4, 6, 9 and 13 nats, .461, .494, .510, .520
and .521. One prompt of eight demos, 160 other rows: .386 without it, then .480, .533, .568, .570 and .567.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

WINDOW = 20  # words; what is farther from a span is not beside it
OWN = 0.5  # what being made of the others' words takes away, where standing among them all gives 1

_WORD = re.compile(r"\w+")


def beside(spans: Sequence[str | None], sources: Sequence[str], others: Sequence[str]) -> tuple[float, ...]:
    """For each span of `sources` how much it stands beside the words of `others`, less how much it is made of them.

    Between -`OWN` and 1; 0 for null, and for all where the others have no words, or none that the sources have. Of the
    places where a span stands in the sources the best counts.
    """
    asked = {word for text in others for word in _words(text)}
    texts = [_words(text) for text in sources]
    counts = Counter(word for text in texts for word in text)
    whole = sum(1 / counts[word] for word in asked if counts[word])
    if not whole:
        return (0.0,) * len(spans)
    places = [_places(text, asked) for text in texts]
    found = []
    for span in spans:
        words = _words(span or "")
        weights = [(1 / max(1, counts[word]), word in asked) for word in words]
        own = sum(weight for weight, there in weights if there) / (sum(weight for weight, _ in weights) or 1.0)
        near = (
            sum(closeness / counts[word] for word, closeness in _around(first, first + len(words) - 1, places[number]))
            for number, text in enumerate(texts)
            for first in _occurrences(words, text)
        )
        found.append(max(near, default=0.0) / whole - OWN * own)
    return tuple(found)


def _words(text: str) -> list[str]:
    return [word.casefold() for word in _WORD.findall(text)]


def _places(text: Sequence[str], asked: set[str]) -> dict[str, list[int]]:
    """Where the words that are asked for stand in a text."""
    places: dict[str, list[int]] = {}
    for place, word in enumerate(text):
        if word in asked:
            places.setdefault(word, []).append(place)
    return places


def _occurrences(words: Sequence[str], text: Sequence[str]) -> Iterator[int]:
    """Where `words` stand in a text, one after the other."""
    for first in range(len(text) - len(words) + 1) if words else ():
        if text[first] == words[0] and list(text[first : first + len(words)]) == list(words):
            yield first


def _around(first: int, last: int, places: dict[str, list[int]]) -> Iterator[tuple[str, float]]:
    """The words that stand outside of `first` to `last`, each with how close its nearest place is: 1 for next to it
    (nearly), 0 from `WINDOW` words on.
    """
    for word, where in places.items():
        distances = [first - place if place < first else place - last for place in where if not first <= place <= last]
        if distances and min(distances) < WINDOW:
            yield word, 1 - min(distances) / WINDOW
