"""What a batch may hold, and how one that holds more is cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import torch

from .decode import TreeRow, cache_tokens
from .tree import IntArray, TokenTree, common_prefix


@dataclass(frozen=True)
class Limits:
    """What a batch may hold. tokens: unique tokens whose keys and values are kept, and as many again in the samples'
    own caches; rows: samples that decode together.
    """

    tokens: int = 32768
    rows: int = 256


def limits_for(model: Any) -> Limits:
    """As many tokens as a share of the device's memory holds: a quarter of a GPU's, an eighth of the machine's.

    Of all its memory, not of what is free now: how a batch is cut decides its results' last bits.
    """
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    per_token = 2 * config.num_hidden_layers * heads * width * model.dtype.itemsize
    on_gpu = model.device.type == "cuda"
    budget = (
        torch.cuda.get_device_properties(model.device).total_memory // 4
        if on_gpu
        else psutil.virtual_memory().total // 8
    )
    return Limits(tokens=max(4096, int(budget // per_token)))


def groups(
    todo: Sequence[int], prompt: Callable[[int], tuple[int, ...]], extra: Callable[[int], int], limits: Limits
) -> Iterator[list[int]]:
    """Cut the requests `todo` into groups that fit, in the sorted order of their prompts (stable for equal prompts).

    The order keeps together what is shared. extra: the tokens that a request adds to its prompt.
    """
    group: list[int] = []
    tokens = 0
    last: IntArray | None = None
    for i in sorted(todo, key=lambda i: (prompt(i), i)):
        current = np.asarray(prompt(i), dtype=np.int64)
        new = len(current) - (common_prefix(last, current) if last is not None else 0) + extra(i)
        if group and (tokens + new > limits.tokens or len(group) >= limits.rows):
            yield group
            group, tokens, new = [], 0, len(current) + extra(i)
        group.append(i)
        tokens += new
        last = current
    if group:
        yield group


def parts(tree: TokenTree, rows: Sequence[TreeRow], limits: Limits) -> Iterator[list[TreeRow]]:
    """Cut the samples of a group, in the tree's order, into parts whose padded caches fit."""
    first = 0
    while first < len(rows):
        size = min(limits.rows, len(rows) - first)
        while size > 1 and cache_tokens(tree, rows[first : first + size]) > limits.tokens:
            size //= 2
        yield list(rows[first : first + size])
        first += size
