"""The prefix cache: keys and values of prompts' beginnings, kept from batch to batch.

A prompt is cut into blocks of `BLOCK` tokens, counted from its start. A block that several prompts of a batch have in
common is taken from the cache, or computed and put there; a block is known by the hash of all tokens up to its end, as
in vLLM's automatic prefix caching. The least recently used blocks go first when the cache is full.

What a batch answers may not depend on what the cache held. So a block is always what it is when it is computed alone
over the one contiguous run of the blocks before it: the same order of additions gives the same bits, whenever that is
(`blocks.py`). And which blocks count as shared is decided by the batch alone.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from torch import Tensor

BLOCK = 128

Layers = dict[int, tuple[Tensor, Tensor]]


@dataclass
class PrefixCache:
    """Blocks by the hash of the tokens up to their end. capacity: how many are kept; 0 keeps none.

    hits, misses, evicted: blocks found, computed and dropped so far.
    """

    capacity: int
    hits: int = 0
    misses: int = 0
    evicted: int = 0
    _blocks: OrderedDict[bytes, Layers] = field(default_factory=OrderedDict)

    def __len__(self) -> int:
        return len(self._blocks)

    def clear(self) -> None:
        """Drop all blocks: their memory is wanted."""
        self.evicted += len(self._blocks)
        self._blocks.clear()

    def get(self, key: bytes) -> Layers | None:
        """A block's keys and values, each [Hkv, BLOCK, D] by layer; None when it is not there."""
        found = self._blocks.get(key)
        if found is None:
            self.misses += 1
        else:
            self.hits += 1
            self._blocks.move_to_end(key)
        return found

    def put(self, key: bytes, layers: Layers) -> None:
        """Keep a block, and drop the one that was not used for longest where there are too many."""
        self._blocks[key] = layers
        while len(self._blocks) > self.capacity:
            self._blocks.popitem(last=False)
            self.evicted += 1


def shared_blocks(prompts: Sequence[Sequence[int]]) -> list[int]:
    """For each prompt, how many of its first blocks are shared: by another prompt, or all of them when it is alone.

    A prompt's last token belongs to none, since what comes after it is always wanted.
    """
    if len(prompts) == 1:
        return [(len(prompts[0]) - 1) // BLOCK]
    order = sorted(range(len(prompts)), key=lambda i: tuple(prompts[i]))
    counts = [0] * len(prompts)
    for before, after in pairwise(order):
        both = _common_blocks(prompts[before], prompts[after])
        counts[before], counts[after] = max(counts[before], both), max(counts[after], both)
    return counts


def _common_blocks(a: Sequence[int], b: Sequence[int]) -> int:
    most = (min(len(a), len(b)) - 1) // BLOCK
    blocks = 0
    while blocks < most and tuple(a[blocks * BLOCK : (blocks + 1) * BLOCK]) == tuple(
        b[blocks * BLOCK : (blocks + 1) * BLOCK]
    ):
        blocks += 1
    return blocks


def distinct(
    prompts: Sequence[Sequence[int]], leaves: Sequence[int], counts: Sequence[int]
) -> Iterator[tuple[bytes, int, Sequence[int], int]]:
    """Each shared block once, after the blocks before it: its key, its number, and a prompt with a leaf below it.

    In the sorted order of the prompts, so that at every block the blocks before it are those last given.
    """
    seen: set[bytes] = set()
    for i in sorted(range(len(prompts)), key=lambda i: tuple(prompts[i])):
        key = b""
        for depth in range(counts[i]):
            tokens = np.asarray(prompts[i][depth * BLOCK : (depth + 1) * BLOCK], dtype=np.int64)
            key = hashlib.blake2b(key + tokens.tobytes(), digest_size=16).digest()
            if key not in seen:
                seen.add(key)
                yield key, depth, prompts[i], leaves[i]
