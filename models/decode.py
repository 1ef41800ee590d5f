"""Decoding: all the samples of a batch step together over the tree that prefill left.

What several samples share stays where prefill wrote it and is attended to as one product; what is a sample's own (its
part of the prompt and what it generates) lies in a padded cache beside it, one for samples of about the same length.
Finished samples leave, and the caches are packed when a quarter of the rows is idle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from .attention import KeyValues, Merge, dense, grouped
from .constraints import Matcher
from .engine import FinishReason, Sample, Tokenizer
from .sampling import Sampler
from .tree import TokenTree

GROW = 32
SHARED_BY = 4  # a segment above fewer samples than this is copied into their caches,
SHARED_TOKENS = 32  # and so is a shorter one: a product of its own would cost more than the copies


@dataclass
class Row:
    """One sample on its way. `leaf` is its prompt's leaf in the tree, `order` its place in the caller's list."""

    order: int
    leaf: int
    length: int
    sampler: Sampler
    limit: int
    matcher: Matcher | None = None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: FinishReason | None = None
    text: str | None = None

    def sample(self, tokenizer: Tokenizer) -> Sample:
        """The finished sample."""
        text = tokenizer.decode(self.tokens) if self.text is None else self.text
        return Sample(text, tuple(self.tokens), tuple(self.logprobs), self.finish or "length")

    def take(self, token: int, logprob: float, ends: frozenset[int], tokenizer: Tokenizer) -> None:
        """Take the next token, and notice when it is the last."""
        if token in ends:
            self.finish = "stop"
            return
        self.tokens.append(token)
        self.logprobs.append(logprob)
        self.sampler.took(token)
        if self.matcher is not None:
            self.matcher.take(token)
            if self.matcher.finished:
                self.finish = "grammar"
        if self.sampler.decoding.stop:
            self._look_for_stops(tokenizer)
        if self.finish is None and len(self.tokens) >= self.limit:
            self.finish = "length"

    def _look_for_stops(self, tokenizer: Tokenizer) -> None:
        text = tokenizer.decode(self.tokens)
        places = [place for stop in self.sampler.decoding.stop if (place := text.find(stop)) >= 0]
        if places:
            self.text, self.finish = text[: min(places)], "stop"


@dataclass
class _Cache:
    """The own keys and values of samples whose own parts are about as long: [rows, Hkv, width, D] per layer.

    places: which of the step's rows they are; filled: how many tokens each has.
    """

    places: Tensor
    filled: Tensor
    width: int
    layers: dict[int, tuple[Tensor, Tensor]]
    mask: Tensor | None = None

    def begin(self) -> None:
        """Make room for one more token a row, and mask what is not filled."""
        if int(self.filled.max()) + 1 > self.width:
            self.width += GROW
            for layer, (key, value) in self.layers.items():
                pad = key.new_zeros(key.shape[0], key.shape[1], GROW, key.shape[3])
                self.layers[layer] = (torch.cat([key, pad], dim=2), torch.cat([value, pad], dim=2))
        sample = next(iter(self.layers.values()))[0]
        unfilled = torch.arange(self.width)[None, :] > self.filled[:, None]
        mask = torch.zeros(unfilled.shape, dtype=sample.dtype).masked_fill_(unfilled, float("-inf"))
        self.mask = mask[:, None, None, :].to(sample.device)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Store this step's [Hkv, n, D] keys and values, and attend with query [H, n, D]: [H, n, D] and [H, n]."""
        keys, values = self.layers[layer]
        rows, places = torch.arange(query.shape[1], device=query.device), self.filled.to(query.device)
        keys[rows, :, places] = key.transpose(0, 1)
        values[rows, :, places] = value.transpose(0, 1)
        out, lse = grouped(query.transpose(0, 1)[:, :, None], keys, values, scale, self.mask)
        return out[:, :, 0].transpose(0, 1), lse[:, :, 0].transpose(0, 1)

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

    def __init__(self, tree: TokenTree, store: KeyValues, rows: list[Row]) -> None:
        self.store = store
        self.shared, own = _shared_and_own(tree, rows)
        by_width: dict[int, list[int]] = {}
        for place, indices in enumerate(own):
            by_width.setdefault(_width(len(indices)), []).append(place)
        self._caches = []
        for width, places in sorted(by_width.items()):
            mine = [own[place] for place in places]
            layers = {n: (_gather(k, mine, width), _gather(v, mine, width)) for n, (k, v) in store.layers.items()}
            filled = torch.tensor([len(indices) for indices in mine])
            self._caches.append(_Cache(torch.tensor(places), filled, width, layers))

    @property
    def tokens(self) -> int:
        """How many tokens the samples' own caches have room for."""
        return sum(len(cache.places) * cache.width for cache in self._caches)

    def begin(self) -> None:
        """Prepare a step."""
        for cache in self._caches:
            cache.begin()

    def end(self) -> None:
        """The step is done: every row holds one token more."""
        for cache in self._caches:
            cache.filled += 1

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """See `attention.Plan.attend`; T is the number of rows."""
        merge = self._own(layer, query, key, value, scale)
        shared_keys, shared_values = self.store.layers[layer]
        for low, high, first, last in self.shared:
            part = slice(low, high)
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
            mine = cache.places.to(query.device)
            out, lse = cache.attend(layer, query[:, mine], key[:, mine], value[:, mine], scale)
            merge.output[:, mine], merge.lse[:, mine] = out.float(), lse
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


def cache_tokens(tree: TokenTree, rows: Sequence[Row]) -> int:
    """How many tokens the padded caches of `rows` must hold at most when they decode together."""
    own = _shared_and_own(tree, rows)[1]
    return sum(_width(len(indices)) + row.limit for indices, row in zip(own, rows, strict=True))


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
    tree: TokenTree, rows: Sequence[Row]
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
