"""The shared blocks of a batch's prompts, kept or computed: several at once where each comes out as it does alone.

A block that is kept must be what any batch would compute (`prefixes.py`), so the plain way is a forward pass for each.
But attention is computed block by block in any case, and what is left of a model treats each token apart; whether the
kernels give a row of a larger product the same bits depends on the kernels. So it is tried: the first time that blocks
are computed in some company, the same blocks are computed alone as well, and the company is kept to where no bit
differs. With oneDNN's products in bfloat16 none does, and a search's prefixes take three fifths of the time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .attention import KeyValues, Merge, causal, dense
from .prefixes import BLOCK, PrefixCache, distinct
from .tree import IntArray, TokenTree

STACKS = (4, 2, 1)  # how many blocks one forward pass may hold


@dataclass(frozen=True)
class Block:
    """A block to be computed: its key in the cache, its tokens [BLOCK], and where in the tree it and those before it
    stand, flat indices [start + BLOCK].
    """

    key: bytes
    tokens: IntArray
    places: Tensor

    @property
    def start(self) -> int:
        """The position of its first token."""
        return len(self.places) - BLOCK

    @property
    def own(self) -> Tensor:
        """Where it stands itself."""
        return self.places[-BLOCK:]


@dataclass
class BlockPlan:
    """The attention of some blocks, none of which stands before another: each to itself and to those before it, which
    `store` holds.
    """

    blocks: Sequence[Block]
    store: KeyValues

    @property
    def tokens(self) -> IntArray:
        """The blocks' tokens, one block after the other."""
        return np.concatenate([block.tokens for block in self.blocks])

    @property
    def positions(self) -> IntArray:
        """The tokens' positions."""
        return np.concatenate([np.arange(block.start, block.start + BLOCK) for block in self.blocks])

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """See `attention.Plan.attend`."""
        merge = Merge(query)
        for first, block in zip(range(0, query.shape[1], BLOCK), self.blocks, strict=True):
            rows = slice(first, first + BLOCK)
            keys, values = self.store.place(layer, block.own, key[:, rows], value[:, rows])
            merge.put(rows, causal(query[:, rows], key[:, rows], value[:, rows], scale))
            if block.start:
                before = block.places[:-BLOCK]
                above = dense(query[:, rows], keys.index_select(1, before), values.index_select(1, before), scale)
                merge.add(first, first + BLOCK, above)
        return merge.result(query.dtype)


class Stacks:
    """Computes blocks, as many at once as leaves every bit as it is.

    compute: runs the model under plans that need nothing of one another, side by side if it likes; apart: whether the
    model treats each token apart from the others outside its attention. A mixture of experts does not: how many tokens
    an expert gets is the batch's doing, so its blocks are computed one a pass.
    """

    def __init__(self, compute: Callable[[Sequence[BlockPlan]], None], *, apart: bool) -> None:
        self._compute = compute
        self._sizes = STACKS if apart else STACKS[-1:]
        self._alike: dict[int, bool] = {}

    def run(self, blocks: Sequence[Block], store: KeyValues) -> None:
        """Put the keys and values of blocks, none of which stands before another, into `store`."""
        done = 0
        for size, count in self._shares(len(blocks)):
            part = blocks[done : done + size * count]
            done += len(part)
            if size * count > 1 and self._alike.get(size, True):
                plans = [BlockPlan(part[first : first + size], store) for first in range(0, len(part), size)]
                self._compute(plans)
                if size not in self._alike:
                    self._alike[size] = self._as_alone(plans[0])
                if self._alike[size]:
                    continue
            for block in part:
                self._compute([BlockPlan([block], store)])

    def _shares(self, count: int) -> Iterator[tuple[int, int]]:
        """How `count` blocks are shared out: (blocks a pass, passes that may run side by side). The passes are even in
        number, but for a last block.
        """
        for size in self._sizes:
            passes = count // (2 * size) * 2
            if passes:
                yield size, passes
                count -= size * passes
        if count:
            yield 1, count

    def _as_alone(self, plan: BlockPlan) -> bool:
        """Whether a plan's blocks, which are computed, come out the same bit for bit when each is computed alone."""
        together = [states(block, plan.store) for block in plan.blocks]
        for block in plan.blocks:
            self._compute([BlockPlan([block], plan.store)])
        return all(
            torch.equal(ours, theirs)
            for block, found in zip(plan.blocks, together, strict=True)
            for layer, pair in states(block, plan.store).items()
            for ours, theirs in zip(found[layer], pair, strict=True)
        )


def states(block: Block, store: KeyValues) -> dict[int, tuple[Tensor, Tensor]]:
    """A copy of a block's keys and values, each [Hkv, BLOCK, D], by layer."""
    return {
        layer: (keys.index_select(1, block.own), values.index_select(1, block.own))
        for layer, (keys, values) in store.layers.items()
    }


def fill(
    cache: PrefixCache, tree: TokenTree, prompts: Sequence[Sequence[int]], leaves: Sequence[int],
    counts: Sequence[int], store: KeyValues, stacks: Stacks, device: torch.device,
) -> int:  # fmt: skip
    """Put the keys and values of all shared blocks into `store`, the batch's own, at their places in `tree`.

    leaves: for each prompt a leaf of the tree below it; counts: of `shared_blocks`. Returns how many tokens the cache
    gave.
    """
    given = 0
    missing: dict[int, list[Block]] = {}
    for key, depth, prompt, leaf in distinct(prompts, leaves, counts):
        start, end = depth * BLOCK, (depth + 1) * BLOCK
        places = torch.from_numpy(tree.indices(leaf)[:end]).to(device)
        layers = cache.get(key)
        if layers is None:
            missing.setdefault(depth, []).append(Block(key, np.asarray(prompt[start:end], dtype=np.int64), places))
            continue
        given += BLOCK
        for layer, (keys, values) in layers.items():
            store.place(layer, places[start:], keys, values)
    for _, blocks in sorted(missing.items()):
        stacks.run(blocks, store)
        for block in blocks:
            cache.put(block.key, states(block, store))
    return given
