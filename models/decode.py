"""Decoding: all the samples of a batch step together over the tree that prefill left.

What several samples share stays where prefill wrote it and is attended to as one product; what is a sample's own (its
part of the prompt and what it generates) lies in a padded cache beside it. Finished samples leave, and the cache is
packed when a quarter of it is idle.
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


class DecodePlan:
    """The attention of one decoding step, and the samples' own keys and values.

    Rows are kept in the tree's order, so that those below a shared segment are contiguous.
    """

    def __init__(self, tree: TokenTree, store: KeyValues, rows: list[Row]) -> None:
        self.store = store
        self.shared, own = _shared_and_own(tree, rows)
        self.filled = torch.tensor([len(indices) for indices in own])
        self.width = int(self.filled.max()) + GROW
        self._own = {layer: (self._gather(k, own), self._gather(v, own)) for layer, (k, v) in store.layers.items()}
        self.device = next(iter(self._own.values()))[0].device
        self._mask: Tensor | None = None

    def _gather(self, states: Tensor, own: list[np.ndarray[tuple[int], np.dtype[np.int64]]]) -> Tensor:
        cache = states.new_zeros(len(own), states.shape[0], self.width, states.shape[2])
        for row, indices in enumerate(own):
            picked = torch.from_numpy(indices).to(states.device)
            cache[row, :, : len(indices)] = states.index_select(1, picked)
        return cache

    def begin(self) -> None:
        """Prepare a step: make room for one more token a row, and mask what is not filled."""
        if int(self.filled.max()) + 1 > self.width:
            self.width += GROW
            for layer, (key, value) in self._own.items():
                pad = key.new_zeros(key.shape[0], key.shape[1], GROW, key.shape[3])
                self._own[layer] = (torch.cat([key, pad], dim=2), torch.cat([value, pad], dim=2))
        dtype = next(iter(self._own.values()))[0].dtype
        unfilled = torch.arange(self.width)[None, :] > self.filled[:, None]
        mask = torch.zeros(unfilled.shape, dtype=dtype).masked_fill_(unfilled, float("-inf"))
        self._mask = mask[:, None, None, :].to(self.device)

    def end(self) -> None:
        """The step is done: every row holds one token more."""
        self.filled += 1

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """See `attention.Plan.attend`; T is the number of rows."""
        rows = torch.arange(query.shape[1], device=self.device)
        places = self.filled.to(self.device)
        keys, values = self._own[layer]
        keys[rows, :, places] = key.transpose(0, 1)
        values[rows, :, places] = value.transpose(0, 1)
        out, lse = grouped(query.transpose(0, 1)[:, :, None], keys, values, scale, self._mask)
        merge = Merge(out[:, :, 0].transpose(0, 1).float().contiguous(), lse[:, :, 0].transpose(0, 1).contiguous())
        shared_keys, shared_values = self.store.layers[layer]
        for low, high, first, last in self.shared:
            part = slice(low, high)
            merge.add(first, last, *dense(query[:, first:last], shared_keys[:, part], shared_values[:, part], scale))
        return merge.output.to(query.dtype)

    def keep(self, rows: list[int]) -> None:
        """Drop all rows but these (ascending)."""
        index = torch.tensor(rows)
        self.filled = self.filled[index]
        on_device = index.to(self.device)
        self._own = {layer: (k[on_device], v[on_device]) for layer, (k, v) in self._own.items()}
        new_place = {old: new for new, old in enumerate(rows)}
        shared = []
        for low, high, first, last in self.shared:
            left = [new_place[row] for row in range(first, last) if row in new_place]
            if left:
                shared.append((low, high, left[0], left[-1] + 1))
        self.shared = shared


def cache_width(tree: TokenTree, rows: Sequence[Row]) -> int:
    """How many tokens a sample's own cache must hold at most when `rows` decode together."""
    return max(map(len, _shared_and_own(tree, rows)[1])) + max(row.limit for row in rows)


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
