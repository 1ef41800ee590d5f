"""Attention over a token tree, plugged into transformers' attention interface.

Each token attends to its own small neighbourhood and to every shared segment above it. The parts are computed apart,
each as one product over contiguous rows, and merged exactly (Hydragen, arXiv 2402.05099, section 3.2): the whole is
divided by the sum of all exponentials at the end. The model passes the plan through as the keyword argument
`cuecard_plan`, so that nothing is kept in a global.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

NAME = "cuecard_tree"
SCORES = 1 << 20  # scores that `dense` holds at once
SHORT_RUN = 96  # tokens up to which a run's attention to itself is left to the fused kernel
FEW_ROWS = 32  # of queries, up to which the fused kernel is the faster one
# The sums between which exponentials of the scores themselves are exact: bfloat16 holds exp(-87) to exp(88).
LOWEST, HIGHEST = math.exp(-60.0), math.exp(80.0)


class Plan(Protocol):
    """What the attention function needs of a step: it stores the new keys and values and attends."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """One layer's attention: query [H, T, D], key and value [Hkv, T, D] to [H, T, D] in query's dtype."""


def register() -> None:
    """Make the attention known to transformers under `NAME`. May be called again."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, tree_attention)
    AttentionMaskInterface.register(NAME, _no_mask)


def _no_mask(*args: Any, **kwargs: Any) -> None:
    return None


def tree_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    *,
    cuecard_plan: Plan,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention signature: query [1, H, T, D], key and value [1, Hkv, T, D]; returns [1, T, H, D]."""
    unsupported = [name for name in ("softcap", "s_aux", "position_bias") if kwargs.get(name) is not None]
    if unsupported:
        raise NotImplementedError(f"tree attention does not know {', '.join(unsupported)}")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    output = cuecard_plan.attend(int(module.layer_idx), query[0], key[0], value[0], scale)  # type: ignore[arg-type]
    return output.transpose(0, 1).unsqueeze(0), None


@dataclass(frozen=True)
class Part:
    """A part of an attention, not yet divided: of each row the sum of exp(score - peak) times its value, [..., R, D] in
    any dtype, and the sum of exp(score - peak), float32 [..., R].

    peak: float32 [..., R], near the row's largest score; None where it is 0, so that parts are merged by adding them.
    """

    mixed: Tensor
    total: Tensor
    peak: Tensor | None = None

    def each(self, change: Callable[[Tensor], Tensor]) -> Part:
        """With a change of what precedes D in all three."""
        return Part(change(self.mixed), change(self.total), None if self.peak is None else change(self.peak))

    def folded(self, *shape: int) -> Part:
        """In another shape [..., R]."""
        peak = None if self.peak is None else self.peak.reshape(shape)
        return Part(self.mixed.reshape(*shape, self.mixed.shape[-1]), self.total.reshape(shape), peak)

    @property
    def output(self) -> Tensor:
        """The attention's output, float32 [..., R, D], were this all of it."""
        return self.mixed / self.total[..., None]

    @property
    def lse(self) -> Tensor:
        """The logarithm of the sum of the scores' exponentials, float32 [..., R]."""
        return self.total.log() if self.peak is None else self.peak + self.total.log()


def partial(
    query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor | None = None, causal: bool = False
) -> Part:
    """One part of an attention: [B, H, R, D].

    query [B, H, R, D], key and value [B, H, L, D], mask additive, broadcastable to [B, H, R, L].

    On a CPU in 16 bits, plain products again (see `dense`): the fused kernel takes two to four times as long for many
    sequences of few queries.
    """
    fused = causal or query.shape[:3].numel() <= FEW_ROWS
    if query.device.type == "cpu" and (query.dtype == torch.float32 or (fused and query.dtype == torch.bfloat16)):
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, causal, attn_mask=mask, scale=scale
        )
        return Part(out, torch.ones_like(lse), lse)
    if _shifts_late(query) and not causal:
        return _attention(query * scale, key.transpose(-1, -2), value, mask)
    scores = torch.matmul(query * scale, key.transpose(-1, -2)).float()  # unscaled, they overflow float16
    if causal:
        rows = torch.arange(query.shape[-2], device=query.device)
        scores = scores.masked_fill(rows[:, None] < rows[None, :], float("-inf"))
    if mask is not None:
        scores += mask
    peak = scores.amax(dim=-1, keepdim=True)
    weights = scores.sub_(peak).exp_()
    return Part(torch.matmul(weights.to(value.dtype), value), weights.sum(dim=-1), peak[..., 0])


def grouped(query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor | None = None) -> Part:
    """`partial` without causality for grouped-query attention: query [B, H, R, D], key and value [B, Hkv, L, D], mask
    [B, 1, R or 1, L].

    The heads that share a key head become rows of it, so keys are never repeated.
    """
    batch, heads, rows, width = query.shape
    shared = key.shape[1]
    folded = query.reshape(batch, shared, heads // shared * rows, width)
    if mask is not None and mask.shape[2] > 1:
        mask = mask.repeat(1, 1, heads // shared, 1)
    return partial(folded, key, value, scale, mask).folded(batch, heads, rows)


def dense(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Part:
    """Every row's attention to every key: query [H, R, D], key and value [Hkv, L, D]; the part is [H, R, D].

    What most of a prefill over a long shared prefix is. In 16 bits it is two plain matrix products a block of rows,
    with the scores between them small enough for the cache: on a CPU that is over twice as fast as the fused kernel,
    which spends its time between the products, and as exact as transformers' own eager attention.
    """
    if query.dtype not in (torch.bfloat16, torch.float16):
        return grouped(query[None], key[None], value[None], scale).each(lambda states: states[0])
    heads, rows, width = query.shape
    shared, length = key.shape[:2]
    folded = (query * scale).reshape(shared, heads // shared * rows, width)
    keys, value = key.transpose(1, 2).contiguous(), value.contiguous()
    step = max(64, SCORES // (shared * length) // 64 * 64)
    parts = [_attention(folded[:, first : first + step], keys, value) for first in range(0, folded.shape[1], step)]
    return _joined(parts, 1).folded(heads, rows)


def causal(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Part:
    """A run's attention to itself, each token to those up to it: query [H, R, D], key and value [Hkv, R, D]; the part
    is [H, R, D].

    As in `dense`: in 16 bits, blocks of rows as plain products over the keys up to the block's end.
    """
    heads, rows, width = query.shape
    if query.dtype not in (torch.bfloat16, torch.float16) or rows <= SHORT_RUN:
        wide = repeat_heads(key[None], heads), repeat_heads(value[None], heads)
        return partial(query[None], *wide, scale, causal=True).each(lambda states: states[0])
    shared = key.shape[0]
    group = heads // shared
    by_head = (query * scale).view(shared, group, rows, width)
    keys, value = key.transpose(1, 2).contiguous(), value.contiguous()
    step = 64 if rows > 256 else 128
    future = _future(step, query.dtype, query.device)
    parts = []
    for first in range(0, rows, step):
        last = min(rows, first + step)
        count = last - first
        block = by_head[:, :, first:last].reshape(shared, group * count, width)
        mask = future[:count, :count].repeat(group, 1)
        parts.append(_attention(block, keys[:, :, :last], value[:, :last], mask).folded(shared, group, count))
    return _joined(parts, 2).folded(heads, rows)


@functools.lru_cache(maxsize=8)
def _future(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What hides from each of a run's tokens those that come after it: an additive mask [length, length]."""
    return torch.full((length, length), float("-inf"), dtype=dtype, device=device).triu_(1)


def _attention(query: Tensor, keys: Tensor, value: Tensor, mask: Tensor | None = None) -> Part:
    """Attention of scaled queries [..., R, D] to keys [..., D, L] and values [..., L, D] as two plain products: the
    part is [..., R, D]. An additive mask of fewer keys is that of the last ones.

    A softmax takes each row's largest score away first, so that no exponential overflows. In bfloat16 few models come
    near to where one would (exp(88)), and finding and taking away the largest costs as much as the exponentials: so
    they are taken at once, and once more in the safe way where a sum says that this was not good enough.
    """
    late = _shifts_late(query)
    while True:
        scores = torch.matmul(query, keys)
        if mask is not None:
            scores[..., scores.shape[-1] - mask.shape[-1] :] += mask
        peak = None if late else scores.amax(dim=-1, keepdim=True)
        weights = (scores if peak is None else scores.sub_(peak)).exp_()
        total = weights.sum(dim=-1, dtype=torch.float32)
        if peak is not None:
            return Part(torch.matmul(weights, value), total, peak[..., 0].float())
        least, most = torch.aminmax(total)
        if float(least) > LOWEST and float(most) < HIGHEST:
            return Part(torch.matmul(weights, value), total)
        late = False


def _joined(parts: Sequence[Part], dim: int) -> Part:
    """Parts of other rows, side by side."""
    if len(parts) == 1:
        return parts[0]
    peaks = [part.peak for part in parts]
    if any(peak is not None for peak in peaks):
        peaks = [torch.zeros_like(part.total) if part.peak is None else part.peak for part in parts]
    return Part(
        torch.cat([part.mixed for part in parts], dim),
        torch.cat([part.total for part in parts], dim),
        torch.cat([peak for peak in peaks if peak is not None], dim) if peaks[0] is not None else None,
    )


def _shifts_late(query: Tensor) -> bool:
    """Whether `_attention` tries without each row's largest score. (Where asking for a sum waits for a device, no.)"""
    return query.dtype == torch.bfloat16 and query.device.type == "cpu"


def wholes(ranges: Iterable[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
    """Ranges (first key, last key, first row, last row), of which those that follow one another under the same rows are
    one: a product for both costs less than two.
    """
    result: list[tuple[int, int, int, int]] = []
    for low, high, first, last in ranges:
        if result and result[-1][1:] == (low, first, last):
            low = result.pop()[0]
        result.append((low, high, first, last))
    return result


def repeat_heads(states: Tensor, heads: int) -> Tensor:
    """[B, Hkv, L, D] to [B, heads, L, D], each key head repeated for the query heads that share it."""
    return states if states.shape[1] == heads else states.repeat_interleave(heads // states.shape[1], dim=1)


class Merge:
    """The running merge of the parts of T rows: `Part`'s sums in float32, [H, T, D] and [H, T]."""

    def __init__(self, query: Tensor) -> None:
        """For the rows of `query` [H, T, D], each of which is to be `put` before anything is added to it."""
        self.mixed = query.new_empty(query.shape, dtype=torch.float32)
        self.total = query.new_empty(query.shape[:2], dtype=torch.float32)
        self.peak: Tensor | None = None

    def put(self, rows: slice | Tensor, part: Part) -> None:
        """The first part [H, R, D] of these rows."""
        self.mixed[:, rows], self.total[:, rows] = part.mixed.float(), part.total
        if part.peak is not None:
            self._peaks()[:, rows] = part.peak
        elif self.peak is not None:
            self.peak[:, rows] = 0.0

    def add(self, first: int, last: int, part: Part) -> None:
        """One more part [H, R, D] of the rows `first` to `last`."""
        mixed, total = self.mixed[:, first:last], self.total[:, first:last]
        if part.peak is None and self.peak is None:
            mixed.add_(part.mixed)
            total.add_(part.total)
            return
        peak = self._peaks()[:, first:last]
        other = torch.zeros_like(peak) if part.peak is None else part.peak
        highest = torch.maximum(peak, other)
        mine, theirs = torch.exp(peak - highest), torch.exp(other - highest)
        mixed.mul_(mine[..., None]).add_(part.mixed * theirs[..., None])
        total.mul_(mine).add_(part.total * theirs)
        peak.copy_(highest)

    def result(self, dtype: torch.dtype) -> Tensor:
        """The rows' attention [H, T, D]; in memory a token's heads stand side by side, as the model reads them."""
        heads, rows, width = self.mixed.shape
        output = self.mixed.new_empty(rows, heads, width, dtype=dtype).transpose(0, 1)
        return output.copy_(self.mixed.div_(self.total[..., None]))

    def _peaks(self) -> Tensor:
        if self.peak is None:
            self.peak = torch.zeros_like(self.total)
        return self.peak


@dataclass
class KeyValues:
    """The keys and values of a tree's tokens in flat order, a pair of [Hkv, capacity, D] tensors per layer."""

    capacity: int
    layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def write(self, layer: int, start: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store [Hkv, T, D] keys and values at `start`; the layer's whole tensors come back."""
        keys, values = self._of(layer, key, value)
        keys[:, start : start + key.shape[1]] = key
        values[:, start : start + value.shape[1]] = value
        return keys, values

    def place(self, layer: int, places: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store [Hkv, T, D] keys and values at the flat indices `places` [T]; the layer's whole tensors come back."""
        keys, values = self._of(layer, key, value)
        keys.index_copy_(1, places, key)
        values.index_copy_(1, places, value)
        return keys, values

    def _of(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        if layer not in self.layers:
            made = (
                key.new_empty(key.shape[0], self.capacity, key.shape[2]),
                value.new_empty(value.shape[0], self.capacity, value.shape[2]),
            )
            return self.layers.setdefault(layer, made)  # another thread may have been here in between
        return self.layers[layer]
