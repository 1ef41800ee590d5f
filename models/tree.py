"""A batch of token sequences as a radix tree, so that every shared prefix is computed once.

The sequences are sorted, which puts every subtree's tokens side by side in one flat, depth-first order. Ancestors stand
before descendants, and the descendants of a segment are one contiguous range: attention over a shared prefix is one
matrix product over contiguous rows and contiguous keys, and nothing is copied per sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Segment:
    """A run of tokens without a branch. All indices are into the tree's flat order.

    start, end: its own tokens; stop: the end of its subtree (its descendants are `end` to `stop`); parent: the segment
    above it, or -1; position: the place of its first token in every sequence that runs through it; known: whether the
    keys and values of its tokens are there already.
    """

    start: int
    end: int
    stop: int
    parent: int
    position: int
    known: bool = False


@dataclass(frozen=True)
class TokenTree:
    """The flat tokens, their positions, the segments in depth-first order, and where each input sequence ends.

    tokens, positions: int64 arrays of length T; before: for each token the flat index of the token before it in its
    sequences, -1 at the start; leaves: for each input sequence the segment whose end is the sequence's end.
    """

    tokens: IntArray
    positions: IntArray
    before: IntArray
    segments: tuple[Segment, ...]
    leaves: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.tokens)

    def path(self, leaf: int) -> list[int]:
        """The segments from the root to `leaf`, both included."""
        chain = []
        while leaf >= 0:
            chain.append(leaf)
            leaf = self.segments[leaf].parent
        return chain[::-1]

    def indices(self, leaf: int) -> IntArray:
        """The flat index of every token of the sequence that ends with segment `leaf`, in sequence order."""
        spans = [np.arange(self.segments[s].start, self.segments[s].end) for s in self.path(leaf)]
        return np.concatenate(spans)

    def tail(self, leaf: int, count: int) -> IntArray:
        """The last `count` of `indices(leaf)`."""
        spans: list[IntArray] = []
        while count > 0:
            segment = self.segments[leaf]
            spans.append(np.arange(max(segment.start, segment.end - count), segment.end))
            count, leaf = count - len(spans[-1]), segment.parent
        return np.concatenate(spans[::-1])


def common_prefix(a: IntArray, b: IntArray) -> int:
    """How many leading tokens two sequences share."""
    length = min(len(a), len(b))
    differs = np.flatnonzero(a[:length] != b[:length])
    return int(differs[0]) if len(differs) else length


def build(sequences: Sequence[Sequence[int]], longest: int = 2048, known: Sequence[int] | None = None) -> TokenTree:
    """The tree of `sequences` (each at least one token); equal sequences share a leaf.

    Segments longer than `longest` tokens are cut into a chain, so that a long prompt can be computed in pieces.
    known: for each sequence, of how many of its first tokens the keys and values are there already. Of a common start
    as much is known as every sequence says: a token that one of them wants computed is computed. Segments are cut
    there.
    """
    order = sorted(range(len(sequences)), key=lambda i: tuple(sequences[i]))
    arrays = [np.asarray(sequences[i], dtype=np.int64) for i in order]
    there = [0] * len(arrays) if known is None else [known[i] for i in order]
    spans: list[tuple[int, int, int, int, bool]] = []  # sequence (in sorted order), first, last, parent, known
    leaf_of: dict[int, int] = {}
    stack = [(0, len(arrays), 0, -1)] if arrays else []
    while stack:
        low, high, depth, parent = stack.pop()
        shared = common_prefix(arrays[low], arrays[high - 1])
        common = min(there[low:high])
        cut = min(max(common, depth), shared)
        for first, last in _pieces(depth, cut, shared, longest):
            spans.append((low, first, last, parent, last <= common))
            parent = len(spans) - 1
        while low < high and len(arrays[low]) == shared:
            leaf_of[low] = parent
            low += 1
        groups = []
        while low < high:
            token, first = arrays[low][shared], low
            while low < high and arrays[low][shared] == token:
                low += 1
            groups.append((first, low, shared, parent))
        stack.extend(reversed(groups))
    return _lay_out(arrays, spans, [leaf_of[rank] for rank in np.argsort(order)])


def _pieces(first: int, cut: int, last: int, longest: int) -> list[tuple[int, int]]:
    """`first` to `last` in pieces of at most `longest`, with a border at `cut`."""
    return [
        (start, min(start + longest, end))
        for begin, end in ((first, cut), (cut, last))
        for start in range(begin, end, longest)
    ]


def _lay_out(arrays: list[IntArray], spans: list[tuple[int, int, int, int, bool]], leaves: list[int]) -> TokenTree:
    starts = np.cumsum([0] + [last - first for _, first, last, _, _ in spans])
    stops = [int(starts[i + 1]) for i in range(len(spans))]
    for i in range(len(spans) - 1, -1, -1):
        parent = spans[i][3]
        if parent >= 0:
            stops[parent] = max(stops[parent], stops[i])
    segments = tuple(
        Segment(int(starts[i]), int(starts[i + 1]), stops[i], parent, first, known)
        for i, (_, first, _, parent, known) in enumerate(spans)
    )
    empty = np.zeros(0, dtype=np.int64)
    tokens = np.concatenate([arrays[row][first:last] for row, first, last, _, _ in spans] or [empty])
    positions = np.concatenate([np.arange(first, last) for _, first, last, _, _ in spans] or [empty])
    before = np.arange(len(tokens), dtype=np.int64) - 1
    for segment in segments:
        before[segment.start] = segments[segment.parent].end - 1 if segment.parent >= 0 else -1
    return TokenTree(tokens, positions, before, segments, tuple(leaves))
