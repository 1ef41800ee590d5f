"""Prefill: a token tree through the model, chunk by chunk, each token once.

A subtree of at most `BLOCK` tokens is one block: its attention is a small padded product under the mask that the tree
gives. Segments above the blocks are the trunk: a trunk segment attends causally to itself, and everything below it
attends to it as one dense product. Chunks are cut between blocks and trunk segments in depth-first order, so
ancestors are always there. Where several can be computed side by side, what has descendants comes first, and the rest,
of which no token needs another chunk's, is cut into chunks of one size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .attention import KeyValues, Merge, causal, dense, grouped, wholes
from .tree import IntArray, Segment, TokenTree

BLOCK = 128
BUCKETS = (8, 16, 24, 32, 48, 64, 96, BLOCK)
# How many chunks are ready to be computed side by side, from how many tokens on: fewer are as fast one by one.
# Not as many as there are cores, since how a batch is cut decides its results' last bits.
BESIDE = ((4, 4096), (2, 1024))


@dataclass(frozen=True)
class Bucket:
    """Blocks of similar size: rows [n, L] of flat indices within the chunk (padded with 0), additive mask [n, 1, L, L],
    and where the real tokens stand in the flattened [n * L]."""

    rows: Tensor
    mask: Tensor
    real: Tensor


@dataclass
class ChunkPlan:
    """The attention of some tokens of a tree, those at the flat indices `places`, ascending. Rows count through them.

    own: trunk segments in the chunk, as row ranges; above: (first key, last key, first row, last row) for each run of
    trunk segments that rows of this chunk descend from; buckets: the chunk's blocks.
    """

    places: IntArray
    own: list[tuple[int, int]]
    above: list[tuple[int, int, int, int]]
    buckets: list[Bucket]
    store: KeyValues

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """See `attention.Plan.attend`."""
        keys, values = self._stored(layer, key, value)
        merge = Merge(query)
        for first, last in self.own:
            rows = slice(first, last)
            merge.put(rows, causal(query[:, rows], key[:, rows], value[:, rows], scale))
        for bucket in self.buckets:
            self._attend_block(bucket, query, key, value, scale, merge)
        for low, high, first, last in self.above:
            merge.add(first, last, dense(query[:, first:last], keys[:, low:high], values[:, low:high], scale))
        return merge.result(query.dtype)

    def _stored(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's keys and values, with those of this chunk in their places."""
        start = int(self.places[0])
        if int(self.places[-1]) - start + 1 == len(self.places):
            return self.store.write(layer, start, key, value)
        return self.store.place(layer, torch.from_numpy(self.places).to(key.device), key, value)

    @staticmethod
    def _attend_block(bucket: Bucket, query: Tensor, key: Tensor, value: Tensor, scale: float, merge: Merge) -> None:
        heads = query.shape[0]
        count, length = bucket.rows.shape

        def take(states: Tensor) -> Tensor:
            picked = states.index_select(1, bucket.rows.view(-1))
            return picked.view(len(states), count, length, -1).transpose(0, 1)

        part = grouped(take(query), take(key), take(value), scale, bucket.mask)
        flat = part.each(lambda states: states.transpose(0, 1)).folded(heads, count * length)
        merge.put(bucket.rows.view(-1)[bucket.real], flat.each(lambda states: states[:, bucket.real]))


def split(tree: TokenTree) -> tuple[list[int], list[tuple[int, int]]]:
    """The trunk (indices of segments) and the blocks (flat ranges) of a tree, both in flat order."""
    trunk, blocks, covered = [], [], 0
    for index, segment in enumerate(tree.segments):
        if segment.start < covered:
            continue
        if not segment.known and segment.stop - segment.start <= BLOCK:
            blocks.append((segment.start, segment.stop))
            covered = segment.stop
        else:
            trunk.append(index)
    return trunk, blocks


class _Unit(NamedTuple):
    """What is not cut: a trunk segment or a block, as a flat range. inner: whether others attend to it."""

    start: int
    end: int
    trunk: bool
    inner: bool

    @property
    def size(self) -> int:
        return self.end - self.start


def chunks(
    tree: TokenTree, store: KeyValues, size: int, device: torch.device, dtype: torch.dtype
) -> Iterator[ChunkPlan]:
    """The plans of a tree's chunks, in order; a chunk holds about `size` tokens, and at least one block or segment.

    What is known is left out, and what comes before and after it may stand in one chunk: a batch of many requests, of
    each of which the prompt is known, is as few forward passes as any other.
    """
    trunk, units = _units(tree)
    for part in _cut(units, size):
        yield _plan(tree, trunk, part, store, device, dtype)


def waves(
    tree: TokenTree, store: KeyValues, size: int, device: torch.device, dtype: torch.dtype
) -> Iterator[list[ChunkPlan]]:
    """The plans of a tree's chunks, as lists of those that can be computed side by side once the lists before them are
    there. On a CPU, where that is faster; on other devices they are those of `chunks`, one by one.
    """
    trunk, units = _units(tree)

    def plan(part: Sequence[_Unit]) -> ChunkPlan:
        return _plan(tree, trunk, part, store, device, dtype)

    ends = [unit for unit in units if not unit.inner]
    tokens = sum(unit.size for unit in ends)
    ways = next((ways for ways, least in BESIDE if tokens >= least), 1) if device.type == "cpu" else 1
    alone = units if ways == 1 else [unit for unit in units if unit.inner]
    yield from ([plan(part)] for part in _cut(alone, size))
    if ways > 1:
        parts = _evenly(ends, ways * math.ceil(tokens / (ways * size)))
        for first in range(0, len(parts), ways):
            yield [plan(part) for part in parts[first : first + ways]]


def _units(tree: TokenTree) -> tuple[list[int], list[_Unit]]:
    """The trunk, and what of the tree is to be computed, in flat order."""
    trunk, blocks = split(tree)
    segments = [segment for i in trunk if not (segment := tree.segments[i]).known]
    units = [_Unit(segment.start, segment.end, True, segment.end < segment.stop) for segment in segments]
    return trunk, sorted(units + [_Unit(*block, False, False) for block in blocks])


def _cut(units: Sequence[_Unit], size: int) -> Iterator[Sequence[_Unit]]:
    """The units in parts of at most `size` tokens, or of one unit."""
    first = 0
    while first < len(units):
        last, count = first, 0
        while last < len(units) and (last == first or count + units[last].size <= size):
            count += units[last].size
            last += 1
        yield units[first:last]
        first = last


def _evenly(units: Sequence[_Unit], count: int) -> list[list[_Unit]]:
    """The units in at most `count` parts of about as many tokens each."""
    parts: list[list[_Unit]] = [[] for _ in range(count)]
    share, before = sum(unit.size for unit in units) / count, 0
    for unit in units:
        parts[int((before + unit.size / 2) / share)].append(unit)
        before += unit.size
    return [part for part in parts if part]


def _plan(
    tree: TokenTree,
    trunk: Sequence[int],
    units: Sequence[_Unit],
    store: KeyValues,
    device: torch.device,
    dtype: torch.dtype,
) -> ChunkPlan:
    """The plan of the chunk that consists of `units`, in flat order."""
    places = np.concatenate([np.arange(unit.start, unit.end) for unit in units])
    rows = np.searchsorted(places, [unit.start for unit in units]).tolist()
    own = [(row, row + unit.size) for unit, row in zip(units, rows, strict=True) if unit.trunk]
    members = [(unit.start, unit.end, row) for unit, row in zip(units, rows, strict=True) if not unit.trunk]
    above = wholes(a for i in trunk if (a := _rows_below(tree.segments[i], places)) is not None)
    return ChunkPlan(places, own, above, _buckets(tree, members, device, dtype), store)


def _rows_below(segment: Segment, places: IntArray) -> tuple[int, int, int, int] | None:
    low, high = np.searchsorted(places, (segment.end, segment.stop))
    return (segment.start, segment.end, int(low), int(high)) if low < high else None


def _buckets(
    tree: TokenTree, blocks: list[tuple[int, int, int]], device: torch.device, dtype: torch.dtype
) -> list[Bucket]:
    """The blocks, each given as its flat range and its first row, by size."""
    by_length: dict[int, list[tuple[int, int, int]]] = {}
    for block in blocks:
        length = next(size for size in BUCKETS if size >= block[1] - block[0])
        by_length.setdefault(length, []).append(block)
    result = []
    for length, members in sorted(by_length.items()):
        rows = np.zeros((len(members), length), dtype=np.int64)
        seen = np.zeros((len(members), length, length), dtype=bool)
        real = np.zeros((len(members), length), dtype=bool)
        for i, (low, high, row) in enumerate(members):
            rows[i, : high - low] = np.arange(row, row + high - low)
            real[i, : high - low] = True
            _see(tree.before[low:high] - low, seen[i])
        mask = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~torch.from_numpy(seen), float("-inf"))
        result.append(
            Bucket(
                torch.from_numpy(rows).to(device),
                mask[:, None].to(device),
                torch.from_numpy(np.flatnonzero(real)).to(device),
            )
        )
    return result


def _see(
    before: np.ndarray[tuple[int], np.dtype[np.int64]], seen: np.ndarray[tuple[int, int], np.dtype[np.bool_]]
) -> None:
    """Fill `seen[i, j]`: token i attends to token j when j is i or stands before it. Padding sees token 0."""
    for i, previous in enumerate(before):
        if previous >= 0:
            seen[i] = seen[previous]
        seen[i, i] = True
    seen[len(before) :, 0] = True
