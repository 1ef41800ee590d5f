"""Similarity by edit distance (Levenshtein, 1966): how much of the longer text need not be touched.

The distance is computed with bit vectors as long as one text, one step a symbol of the other: Myers, "A fast bit-vector
algorithm for approximate string matching" (JACM 46, 1999), in the form of Hyyrö, "A bit-vector algorithm for computing
Levenshtein and Damerau edit distances" (Nordic Journal of Computing 10, 2003). Python's integers hold vectors of any
length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .base import Measurement, TextMetric


def distance(a: Sequence[str], b: Sequence[str]) -> int:
    """How many symbols must at least be inserted, deleted or replaced to make `b` of `a`."""
    if not a:
        return len(b)
    where: dict[str, int] = {}
    for place, symbol in enumerate(a):
        where[symbol] = where.get(symbol, 0) | 1 << place
    every, last = (1 << len(a)) - 1, 1 << (len(a) - 1)
    # Bits say where going one symbol down in a column of the table adds one (up) or takes one away (down).
    up, down, edits = every, 0, len(a)
    for symbol in b:
        same = where.get(symbol, 0)
        diagonal = (((same & up) + up) ^ up) | same | down
        right_up = (down | ~(diagonal | up)) & every
        right_down = up & diagonal
        edits += bool(right_up & last) - bool(right_down & last)
        right_up, right_down = right_up << 1 | 1, right_down << 1
        moved = same | down
        up, down = (right_down | ~(moved | right_up)) & every, right_up & moved & every
    return edits


@dataclass(frozen=True, kw_only=True)
class Levenshtein(TextMetric):
    """1 less the edit distance over the longer text's length, against the best reference; 1 for two empty texts.

    `unit: words` edits whole words, parted by white space.
    """

    name = "levenshtein"
    fields: tuple[str, ...] = ()
    unit: Literal["characters", "words"] = "characters"
    ignore_case: bool = False

    def compare_text(self, gold: Sequence[str], prediction: str) -> Measurement:
        """See `TextMetric.compare_text`."""
        ours = self._symbols(prediction)
        return Measurement(max(_similarity(ours, self._symbols(reference)) for reference in gold))

    def _symbols(self, text: str) -> Sequence[str]:
        text = text.casefold() if self.ignore_case else text
        return text.split() if self.unit == "words" else text


def _similarity(ours: Sequence[str], gold: Sequence[str]) -> float:
    longest = max(len(ours), len(gold))
    return 1 - distance(ours, gold) / longest if longest else 1.0
