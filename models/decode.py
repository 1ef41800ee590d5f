"""Decoding: the samples that are live step together over the tree that prefill left.

What several samples share stays where prefill wrote it and is attended to as one product; what is a sample's own (its
part of the prompt and what it generates) lies in a padded cache beside it, one for samples of about the same length.
What is shared is decided once for all samples of a group, so that nothing moves when others come and go. Finished
samples leave and waiting ones join (continuous batching: Orca, Yu et al. 2022, OSDI, section 4), in lumps, since the
caches are packed anew each time. A sample whose grammar forces what comes next reads all of that in one step, while the
others read their one token.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from .attention import KeyValues, Merge, Part, dense, grouped, wholes
from .rows import Row
from .tree import IntArray, TokenTree

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

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Part:
        """Store the keys and values of the step's tokens [Hkv, T, D] that are these rows', and attend with their
        queries of [H, T, D]: the part is [H, n, D].
        """
        step, (keys, values) = self.step, self.layers[layer]
        whole = len(step.flat) == query.shape[1]
        mine = slice(None) if whole else step.flat
        keys[step.owner, :, step.at] = key[:, mine].transpose(0, 1)
        values[step.owner, :, step.at] = value[:, mine].transpose(0, 1)
        if step.most == 1:
            part = grouped(query[:, mine].transpose(0, 1)[:, :, None], keys, values, scale, step.mask)
            return part.each(lambda states: states[:, :, 0].transpose(0, 1))
        heads, count = len(query), len(keys)
        wide = query[:, step.padded].view(heads, count, step.most, -1).transpose(0, 1)
        part = grouped(wide, keys, values, scale, step.mask).each(lambda states: states.transpose(0, 1))
        return part.folded(heads, count * step.most).each(lambda states: states[:, step.real])

    def keep(self, new_place: dict[int, int]) -> _Cache | None:
        """Only the rows that have a place in the next steps; None when there are none."""
        mine = [row for row, place in enumerate(self.places.tolist()) if place in new_place]
        if not mine:
            return None
        index = torch.tensor(mine)
        device = next(iter(self.layers.values()))[0].device
        on_device = index.to(device)
        places = torch.tensor([new_place[int(self.places[row])] for row in mine])
        layers = {layer: (k[on_device], v[on_device]) for layer, (k, v) in self.layers.items()}
        return _Cache(places, self.filled[index], self.width, layers)


@dataclass(frozen=True)
class _Origin:
    """Where a new cache's rows come from. moved: (an old cache's number, rows of it, rows of the new one); new: for
    each of the rows after them, the flat indices in the tree of its tokens, [new rows, width]. What they are padded
    with is never seen (any token's states do, as long as they are numbers).
    """

    moved: list[tuple[int, Tensor, Tensor]]
    new: Tensor

    def gather(self, rows: int, store: Tensor, old: Sequence[Tensor]) -> Tensor:
        """The new cache [rows, Hkv, width, D] from the tree's states [Hkv, T, D] and the old caches'."""
        heads, tokens, depth = store.shape
        width = self.new.shape[1]
        device = store.device
        by_head = self.new.to(device)[:, None] + tokens * torch.arange(heads, device=device)[:, None]
        new = store.reshape(-1, depth).index_select(0, by_head.view(-1)).view(-1, heads, width, depth)
        if not self.moved:
            return new
        states = store.new_zeros(rows, heads, width, depth)
        states[rows - len(new) :] = new
        for number, before, after in self.moved:
            both = min(width, old[number].shape[2])
            states[after.to(device), :, :both] = old[number][before.to(device), :, :both]
        return states


@dataclass(frozen=True)
class Split:
    """What the rows of a group share: `shared` are the segments of the tree that stay where they are. The rest of a
    row's path is its own. See `split`.
    """

    tree: TokenTree
    shared: frozenset[int]

    def own(self, row: TreeRow) -> IntArray:
        """The flat indices of the prompt's tokens that are the row's own."""
        spans = [np.arange(self.tree.segments[s].start, self.tree.segments[s].end) for s in self._rest(row)]
        return np.concatenate(spans) if spans else np.zeros(0, dtype=np.int64)

    def filled(self, row: TreeRow) -> int:
        """How many tokens the row's cache holds now, or is to hold when the row begins."""
        return sum(self.tree.segments[s].end - self.tree.segments[s].start for s in self._rest(row)) + row.read

    def ranges(self, rows: Sequence[TreeRow]) -> list[tuple[int, int, int, int]]:
        """(first key, last key, first row, last row) of what these rows, in the tree's order, share."""
        below: dict[int, list[int]] = {}
        for place, row in enumerate(rows):
            for segment in self.tree.path(row.leaf):
                if segment in self.shared:
                    below.setdefault(segment, []).append(place)
        segments = self.tree.segments
        return wholes((segments[s].start, segments[s].end, below[s][0], below[s][-1] + 1) for s in sorted(below))

    def _rest(self, row: TreeRow) -> list[int]:
        return [segment for segment in self.tree.path(row.leaf) if segment not in self.shared]


@dataclass
class Room:
    """How many tokens the caches of some rows can come to hold, when they are packed now and no row leaves.

    sizes: for each cache its rows, the most tokens that one of them has, and the most that one of them will yet read.
    """

    split: Split
    sizes: dict[int, tuple[int, int, int]] = field(default_factory=dict)

    def add(self, row: TreeRow) -> None:
        """Count a row that is not done."""
        filled, coming = self.split.filled(row), row.sampler.decoding.max_tokens - row.read
        rows, longest, most = self.sizes.get(_size(filled), (0, 0, 0))
        self.sizes[_size(filled)] = rows + 1, max(longest, filled), max(most, coming)

    @property
    def tokens(self) -> int:
        """Padding included."""
        return sum(rows * (_width(longest) + most) for rows, longest, most in self.sizes.values())


class DecodePlan:
    """The attention of one decoding step, and the samples' own keys and values.

    rows: those that step, in the tree's order, so that those below a shared segment are contiguous. `change` says which
    they are; each step is a `begin`, a forward pass and an `end`.
    """

    def __init__(self, split: Split, store: KeyValues) -> None:
        self.rows: list[TreeRow] = []
        self.shared: list[tuple[int, int, int, int]] = []
        self._split, self._store = split, store
        self._caches: list[_Cache] = []
        self._counts, self._ends = torch.zeros(0, dtype=torch.long), [0]

    @property
    def tokens(self) -> int:
        """How many tokens the samples' own caches have room for."""
        return sum(len(cache.places) * cache.width for cache in self._caches)

    def change(self, kept: Sequence[int], joining: Sequence[TreeRow]) -> None:
        """Go on with the rows at these places (ascending), and with those that join, which come after them in the
        tree's order.
        """
        self.rows = [*(self.rows[place] for place in kept), *joining]
        self.shared = self._split.ranges(self.rows)
        if joining:
            self._caches = self._pack(kept)
        else:
            new_place = {old: new for new, old in enumerate(kept)}
            self._caches = [left for cache in self._caches if (left := cache.keep(new_place)) is not None]

    def begin(self, counts: Sequence[int]) -> None:
        """Prepare a step that reads so many tokens of each row."""
        self._counts = torch.tensor(counts)
        self._ends = [0, *self._counts.cumsum(0).tolist()]
        starts = torch.tensor(self._ends[:-1])
        for cache in self._caches:
            cache.begin(self._counts[cache.places], starts[cache.places])

    def end(self, idle: Sequence[int]) -> None:
        """The step is done: every row holds its tokens, but for those at the places `idle`, which read for nothing."""
        for place in idle:
            self._counts[place] = 0
        for cache in self._caches:
            cache.filled += self._counts[cache.places]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """See `attention.Plan.attend`; T is the number of the step's tokens, row by row."""
        merge = Merge(query)
        for cache in self._caches:
            rows = cache.step.flat if len(self._caches) > 1 else slice(None)
            merge.put(rows, cache.attend(layer, query, key, value, scale))
        shared_keys, shared_values = self._store.layers[layer]
        for low, high, first_row, last_row in self.shared:
            part, first, last = slice(low, high), self._ends[first_row], self._ends[last_row]
            merge.add(first, last, dense(query[:, first:last], shared_keys[:, part], shared_values[:, part], scale))
        return merge.result(query.dtype)

    def _pack(self, kept: Sequence[int]) -> list[_Cache]:
        """New caches for the rows, a cache for each size; the first rows were at the places `kept`, the others join.

        A layer's old caches go as soon as its new ones are there.
        """
        home = {
            p: (number, row) for number, old in enumerate(self._caches) for row, p in enumerate(old.places.tolist())
        }
        filled = [self._split.filled(row) for row in self.rows]
        by_size: dict[int, list[int]] = {}
        for place, count in enumerate(filled):
            by_size.setdefault(_size(count), []).append(place)
        caches, origins = [], []
        for _, places in sorted(by_size.items()):
            sizes = [filled[place] for place in places]
            caches.append(_Cache(torch.tensor(places), torch.tensor(sizes), _width(max(sizes)), {}))
            homes = [home[kept[place]] for place in places if place < len(kept)]
            joining = [self._split.own(self.rows[place]) for place in places[len(homes) :]]
            origins.append(_origin(homes, joining, caches[-1].width))
        for layer, (store_keys, store_values) in self._store.layers.items():
            old = [cache.layers.pop(layer) for cache in self._caches]
            old_keys, old_values = [keys for keys, _ in old], [values for _, values in old]
            for cache, origin in zip(caches, origins, strict=True):
                rows = len(cache.places)
                cache.layers[layer] = (
                    origin.gather(rows, store_keys, old_keys),
                    origin.gather(rows, store_values, old_values),
                )
        return caches


def split(tree: TokenTree, rows: Sequence[TreeRow]) -> Split:
    """What is shared by rows of a tree, in its order: the longer segments above enough of them."""
    below = Counter(segment for row in rows for segment in tree.path(row.leaf))
    long = (s for s in below if tree.segments[s].end - tree.segments[s].start >= SHARED_TOKENS)
    return Split(tree, frozenset(segment for segment in long if below[segment] >= SHARED_BY))


def _size(tokens: int) -> int:
    """Rows that hold about so many tokens share a cache: those up to the same power of two."""
    return max(GROW, 1 << (tokens - 1).bit_length() if tokens else 0)


def _width(longest: int) -> int:
    """The width of a new cache whose rows hold at most so many tokens, with room to grow."""
    return -(-longest // GROW) * GROW + GROW


def _origin(homes: Sequence[tuple[int, int]], joining: Sequence[IntArray], width: int) -> _Origin:
    """See `_Origin`. homes: for each of the new cache's first rows, the old cache and the row there that it was;
    joining: the flat indices of the tokens of each of the others, at most `width`.
    """
    moved = []
    for number in sorted({number for number, _ in homes}):
        pairs = [(before, after) for after, (home, before) in enumerate(homes) if home == number]
        before, after = torch.tensor(pairs).unbind(dim=1)
        moved.append((number, before, after))
    new = np.zeros((len(joining), width), dtype=np.int64)
    for row, own in zip(new, joining, strict=True):
        row[: len(own)] = own
    return _Origin(moved, torch.from_numpy(new))
