"""What a batch may hold, how one that holds more is cut, and which of the samples that wait may join a running one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import psutil
import torch

from .decode import Room, Split, TreeRow
from .tree import IntArray, common_prefix

WAITING = 4  # samples of a group for each that may decode at once


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
    todo: Sequence[int],
    prompt: Callable[[int], tuple[int, ...]],
    extra: Callable[[int], int],
    limits: Limits,
    samples: Callable[[int], int] = lambda i: 1,
) -> Iterator[list[int]]:
    """Cut the requests `todo` into groups that fit, in the sorted order of their prompts (stable for equal prompts).

    The order keeps together what is shared. extra: the tokens that a request adds to its prompt; samples: its rows.
    """
    group: list[int] = []
    tokens, rows = 0, 0
    last: IntArray | None = None
    for i in sorted(todo, key=lambda i: (prompt(i), i)):
        current = np.asarray(prompt(i), dtype=np.int64)
        new = len(current) - (common_prefix(last, current) if last is not None else 0) + extra(i)
        if group and (tokens + new > limits.tokens or rows + samples(i) > limits.rows):
            yield group
            group, tokens, rows, new = [], 0, 0, len(current) + extra(i)
        group.append(i)
        tokens, rows = tokens + new, rows + samples(i)
        last = current
    if group:
        yield group


def waiting_groups(
    todo: Sequence[int], prompt: Callable[[int], tuple[int, ...]], samples: Callable[[int], int], limits: Limits
) -> Iterator[list[int]]:
    """`groups` of requests whose samples begin as soon as there is room for them, see `fitting`.

    Until then only their prompts are kept. So a group may hold more samples than decode together.
    """
    return groups(todo, prompt, lambda i: 0, replace(limits, rows=WAITING * limits.rows), samples)


def fitting(split: Split, live: Sequence[TreeRow], waiting: Sequence[TreeRow], limits: Limits) -> int:
    """How many of the samples that wait, in their order, fit beside those that are live: at least one where none is."""
    room = Room(split)
    for row in live:
        room.add(row)
    count = 0
    for row in waiting[: max(0, limits.rows - len(live))]:
        room.add(row)
        if room.tokens > limits.tokens and (live or count):
            break
        count += 1
    return count
