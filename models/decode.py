"""Decoding: all the samples of a batch step together over the tree that prefill left.

What several samples share stays where prefill wrote it and is attended to as one product; what is a sample's own (its
part of the prompt and what it generates) lies in a padded cache beside it, one for samples of about the same length.
Finished samples leave, and the caches are packed when a quarter of the rows is idle. A sample whose grammar forces what
comes next reads all of that in one step, while the others read their one token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from .attention import KeyValues, Merge, dense, grouped, partial
from .rows import Row
from .tree import TokenTree

GROW = 32
SHARED_BY = 4  # a segment above fewer samples than this is copied into their caches,
SHARED_TOKENS = 32  # and so is a shorter one: a product of its own would cost more than the copies


@dataclass
class TreeRow(Row):
    """A sample below a tree. `leaf` is its prompt's leaf, `length` the prompt's tokens, `order` its place in the
    caller's list; read: how many of its own tokens the model has read.
    """

    order: int = 0
    leaf: int = 0
    length: int = 0
    read: int = 0

    @property
    def done(self) -> bool:
        """Whether nothing is left to be asked of the model."""
        return self.finish is not None and len(self.logprobs) == len(self.tokens)

    def unread(self, most: int) -> list[int]:
        """The tokens that the model reads next, at most so many; of a row that is done its last, for nothing."""
        if self.done:
            return self.tokens[-1:]
        # What follows the last token of a finished sample is not asked for.
        last = len(self.tokens) - (self.finish is not None)
        return self.tokens[self.read : min(last, self.read + most)]

    def question(self, place: int, index: int) -> Question:
        """What its token number `index` is, answered at `place`."""
        return Question(self, place, self.tokens[index] if index < len(self.tokens) else None)


@dataclass(frozen=True)
class Question:
    """What follows in a row, to be read at `place` among a step's logits; `token` where a grammar has forced it."""

    row: TreeRow
    place: int
    token: int | None


@dataclass
class _Step:
    """Where a step's tokens go, for the samples of one cache that read `counts` tokens each.

    flat: their places among all of the step's tokens; owner, at: for each of them its sample and its place in the
    cache; padded: [n * most] places among the step's tokens, `most` for each sample, and real: where in that they are
    no padding; mask: additive, [n, 1, most, width].
    """

    flat: Tensor
    owner: Tensor
    at: Tensor
    padded: Tensor
    real: Tensor
    mask: Tensor
    most: int


@dataclass
class _Cache:
    """The own keys and values of samples whose own parts are about as long: [rows, Hkv, width, D] per layer.

    places: which of the step's rows they are; filled: how many tokens each has; step: made by `begin`.
    """

    places: Tensor
    filled: Tensor
    width: int
    layers: dict[int, tuple[Tensor, Tensor]]
    step: _Step = field(init=False)

    def begin(self, counts: Tensor, starts: Tensor) -> None:
        """Make room for so many more tokens of each row, which begin at `starts` in the step, and mask what is not
        filled.
        """
        missing = int((self.filled + counts).max()) - self.width
        if missing > 0:
            room = -(-missing // GROW) * GROW
            self.width += room
            for layer, (key, value) in self.layers.items():
                pad = key.new_zeros(key.shape[0], key.shape[1], room, key.shape[3])
                self.layers[layer] = (torch.cat([key, pad], dim=2), torch.cat([value, pad], dim=2))
        sample = next(iter(self.layers.values()))[0]
        most = int(counts.max())
        ahead = torch.arange(most)
        last = self.filled[:, None] + ahead
        unfilled = torch.arange(self.width) > last[:, :, None]
        mask = torch.zeros(unfilled.shape, dtype=sample.dtype).masked_fill_(unfilled, float("-inf"))
        real = ahead < counts[:, None]
        padded = starts[:, None] + torch.where(real, ahead, 0)
        owner, offset = real.nonzero(as_tuple=True)
        device = sample.device
        self.step = _Step(
            flat=padded[real].to(device),
            owner=owner.to(device),
            at=(self.filled[owner] + offset).to(device),
            padded=padded.view(-1).to(device),
            real=real.view(-1).nonzero()[:, 0].to(device),
            mask=mask[:, None].to(device),
            most=most,
        )

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Store the keys and values of the step's tokens [Hkv, T, D] that are these rows', and attend with their
        queries of [H, T, D]: [H, n, D] and [H, n].
        """
        step, (keys, values) = self.step, self.layers[layer]
        whole = len(step.flat) == query.shape[1]
        mine = slice(None) if whole else step.flat
        keys[step.owner, :, step.at] = key[:, mine].transpose(0, 1)
        values[step.owner, :, step.at] = value[:, mine].transpose(0, 1)
        if step.most == 1:
            out, lse = grouped(query[:, mine].transpose(0, 1)[:, :, None], keys, values, scale, step.mask)
            return out[:, :, 0].transpose(0, 1), lse[:, :, 0].transpose(0, 1)
        heads, _, width = query.shape
        count, shared = keys.shape[:2]
        wide = query[:, step.padded].view(heads, count, step.most, width).transpose(0, 1)
        group = heads // shared
        mask = step.mask.repeat(1, 1, group, 1)  # the heads that share a key head become rows of it
        folded = wide.reshape(count, shared, group * step.most, width)
        out, lse = partial(folded, keys, values, scale, mask)
        out = out.reshape(count, heads, step.most, -1).transpose(0, 1).reshape(heads, count * step.most, -1)
        lse = lse.reshape(count, heads, step.most).transpose(0, 1).reshape(heads, -1)
        return out[:, step.real], lse[:, step.real]

    def keep(self, rows: list[int], new_place: dict[int, int]) -> _Cache | None:
        """Only those of its rows that are among `rows`; None when there are none."""
        going = set(rows)
        mine = [row for row, place in enumerate(self.places.tolist()) if place in going]
        if not mine:
            return None
        index = torch.tensor(mine)
        device = next(iter(self.layers.values()))[0].device
        on_device = index.to(device)
        places = torch.tensor([new_place[int(self.places[row])] for row in mine])
        layers = {layer: (k[on_device], v[on_device]) for layer, (k, v) in self.layers.items()}
        return _Cache(places, self.filled[index], self.width, layers)


class DecodePlan:
    """The attention of one decoding step, and the samples' own keys and values.

    Rows are kept in the tree's order, so that those below a shared segment are contiguous.
    """

    def __init__(self, tree: TokenTree, store: KeyValues, rows: list[TreeRow]) -> None:
        self.store = store
        self._counts, self._ends = torch.ones(len(rows), dtype=torch.long), list(range(len(rows) + 1))
        self.shared, own = _shared_and_own(tree, rows)
        by_width: dict[int, list[int]] = {}
        for place, indices in enumerate(own):
            by_width.setdefault(_width(len(indices)), []).append(place)
        self._caches: list[_Cache] = []
        for width, places in sorted(by_width.items()):
            mine = [own[place] for place in places]
            layers = {n: (_gather(k, mine, width), _gather(v, mine, width)) for n, (k, v) in store.layers.items()}
            filled = torch.tensor([len(indices) for indices in mine])
            self._caches.append(_Cache(torch.tensor(places), filled, width, layers))

    @property
    def tokens(self) -> int:
        """How many tokens the samples' own caches have room for."""
        return sum(len(cache.places) * cache.width for cache in self._caches)

    def begin(self, counts: Sequence[int] | None = None) -> None:
        """Prepare a step that reads so many tokens of each row; one where nothing is said."""
        rows = sum(len(cache.places) for cache in self._caches)
        self._counts = torch.tensor(counts) if counts is not None else torch.ones(rows, dtype=torch.long)
        self._ends = [0, *self._counts.cumsum(0).tolist()]
        starts = torch.tensor(self._ends[:-1])
        for cache in self._caches:
            cache.begin(self._counts[cache.places], starts[cache.places])

    def end(self) -> None:
        """The step is done: every row holds its tokens."""
        for cache in self._caches:
            cache.filled += self._counts[cache.places]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """See `attention.Plan.attend`; T is the number of the step's tokens, row by row."""
        merge = self._own(layer, query, key, value, scale)
        shared_keys, shared_values = self.store.layers[layer]
        for low, high, first_row, last_row in self.shared:
            part, first, last = slice(low, high), self._ends[first_row], self._ends[last_row]
            merge.add(first, last, *dense(query[:, first:last], shared_keys[:, part], shared_values[:, part], scale))
        return merge.output.to(query.dtype)

    def _own(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Merge:
        """The part of the attention that is each sample's own."""
        if len(self._caches) == 1:
            out, lse = self._caches[0].attend(layer, query, key, value, scale)
            return Merge(out.float().contiguous(), lse.contiguous())
        merge = Merge(
            query.new_empty(query.shape, dtype=torch.float32), query.new_empty(query.shape[:2], dtype=torch.float32)
        )
        for cache in self._caches:
            out, lse = cache.attend(layer, query, key, value, scale)
            merge.output[:, cache.step.flat], merge.lse[:, cache.step.flat] = out.float(), lse
        return merge

    def keep(self, rows: list[int]) -> None:
        """Drop all rows but these (ascending)."""
        new_place = {old: new for new, old in enumerate(rows)}
        self._caches = [kept for cache in self._caches if (kept := cache.keep(rows, new_place)) is not None]
        shared = []
        for low, high, first, last in self.shared:
            left = [new_place[row] for row in range(first, last) if row in new_place]
            if left:
                shared.append((low, high, left[0], left[-1] + 1))
        self.shared = shared


def cache_tokens(tree: TokenTree, rows: Sequence[TreeRow]) -> int:
    """How many tokens the padded caches of `rows` must hold at most when they decode together."""
    own = _shared_and_own(tree, rows)[1]
    return sum(_width(len(indices)) + row.sampler.decoding.max_tokens for indices, row in zip(own, rows, strict=True))


def _width(tokens: int) -> int:
    """The width of the cache for a sample with so many own tokens: a power of two, and room to grow."""
    return max(GROW, 1 << (tokens - 1).bit_length() if tokens else 0) + GROW


def _gather(states: Tensor, own: list[np.ndarray[tuple[int], np.dtype[np.int64]]], width: int) -> Tensor:
    cache = states.new_zeros(len(own), states.shape[0], width, states.shape[2])
    for row, indices in enumerate(own):
        picked = torch.from_numpy(indices).to(states.device)
        cache[row, :, : len(indices)] = states.index_select(1, picked)
    return cache


def _shared_and_own(
    tree: TokenTree, rows: Sequence[TreeRow]
) -> tuple[list[tuple[int, int, int, int]], list[np.ndarray[tuple[int], np.dtype[np.int64]]]]:
    """Which segments stay shared, as (first key, last key, first row, last row), and each row's own flat indices."""
    below: dict[int, list[int]] = {}
    for place, row in enumerate(rows):
        for segment in tree.path(row.leaf):
            below.setdefault(segment, []).append(place)
    shared = {
        segment
        for segment, places in below.items()
        if len(places) >= SHARED_BY and tree.segments[segment].end - tree.segments[segment].start >= SHARED_TOKENS
    }
    ranges = [(tree.segments[s].start, tree.segments[s].end, below[s][0], below[s][-1] + 1) for s in sorted(shared)]
    own = []
    for row in rows:
        spans = [
            np.arange(tree.segments[s].start, tree.segments[s].end) for s in tree.path(row.leaf) if s not in shared
        ]
        own.append(np.concatenate(spans) if spans else np.zeros(0, dtype=np.int64))
    return ranges, own
