"""Attention over a token tree, plugged into transformers' attention interface.

Each token attends to its own small neighbourhood and to every shared segment above it. The parts are computed apart,
each as one product over contiguous rows, and merged by their log-sum-exp (Hydragen, arXiv 2402.05099, section 3.2;
the merge is exact). The model passes the plan through as the keyword argument `cuecard_plan`, so that nothing is kept
in a global.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

NAME = "cuecard_tree"
SCORES = 1 << 20  # scores that `dense` holds at once
SHORT_RUN = 96  # tokens up to which a run's attention to itself is left to the fused kernel
FEW_ROWS = 32  # of queries, up to which the fused kernel is the faster one
# The log-sum-exps between which exponentials of the scores themselves are exact: bfloat16 holds exp(-87) to exp(88).
LOWEST, HIGHEST = -60.0, 80.0


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


def partial(
    query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor | None = None, causal: bool = False
) -> tuple[Tensor, Tensor]:
    """One part of an attention: the output and the log-sum-exp of its scores.

    query [B, H, R, D], key and value [B, H, L, D], mask additive, broadcastable to [B, H, R, L]. Returns [B, H, R, D],
    in float32 or the query's dtype, and float32 [B, H, R].

    On a CPU in 16 bits, plain products again (see `dense`): the fused kernel takes two to four times as long for many
    sequences of few queries.
    """
    fused = causal or query.shape[:3].numel() <= FEW_ROWS
    if query.device.type == "cpu" and (query.dtype == torch.float32 or (fused and query.dtype == torch.bfloat16)):
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, causal, attn_mask=mask, scale=scale
        )
        return out, lse
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
    total = weights.sum(dim=-1, keepdim=True)
    output = torch.matmul(weights.to(value.dtype), value) / total
    return output, (peak + total.log())[..., 0]


def grouped(
    query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`partial` without causality for grouped-query attention: query [B, H, R, D], key and value [B, Hkv, L, D], mask
    [B, 1, R or 1, L].

    The heads that share a key head become rows of it, so keys are never repeated.
    """
    batch, heads, rows, width = query.shape
    shared = key.shape[1]
    folded = query.reshape(batch, shared, heads // shared * rows, width)
    if mask is not None and mask.shape[2] > 1:
        mask = mask.repeat(1, 1, heads // shared, 1)
    out, lse = partial(folded, key, value, scale, mask)
    return out.reshape(batch, heads, rows, -1), lse.reshape(batch, heads, rows)


def dense(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Every row's attention to every key: query [H, R, D], key and value [Hkv, L, D] to [H, R, D] and [H, R].

    What most of a prefill over a long shared prefix is. In 16 bits it is two plain matrix products a block of rows,
    with the scores between them small enough for the cache: on a CPU that is over twice as fast as the fused kernel,
    which spends its time between the products, and as exact as transformers' own eager attention.
    """
    if query.dtype not in (torch.bfloat16, torch.float16):
        out, lse = grouped(query[None], key[None], value[None], scale)
        return out[0], lse[0]
    heads, rows, width = query.shape
    shared, length = key.shape[:2]
    folded = (query * scale).reshape(shared, heads // shared * rows, width)
    keys, value = key.transpose(1, 2).contiguous(), value.contiguous()
    output = folded.new_empty(*folded.shape[:2], value.shape[2], dtype=torch.float32)
    lse = folded.new_empty(folded.shape[:2], dtype=torch.float32)
    step = max(64, SCORES // (shared * length) // 64 * 64)
    for first in range(0, folded.shape[1], step):
        part = slice(first, first + step)
        output[:, part], lse[:, part] = _attention(folded[:, part], keys, value)
    return output.reshape(heads, rows, -1), lse.reshape(heads, rows)


def causal(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """A run's attention to itself, each token to those up to it: query [H, R, D], key and value [Hkv, R, D] to
    [H, R, D] and [H, R].

    As in `dense`: in 16 bits, blocks of rows as plain products over the keys up to the block's end.
    """
    heads, rows, width = query.shape
    if query.dtype not in (torch.bfloat16, torch.float16) or rows <= SHORT_RUN:
        wide = repeat_heads(key[None], heads), repeat_heads(value[None], heads)
        out, lse = partial(query[None], *wide, scale, causal=True)
        return out[0].float(), lse[0]
    shared = key.shape[0]
    group = heads // shared
    by_head = (query * scale).view(shared, group, rows, width)
    keys, value = key.transpose(1, 2).contiguous(), value.contiguous()
    output = query.new_empty(shared, group, rows, value.shape[2], dtype=torch.float32)
    lse = query.new_empty(shared, group, rows, dtype=torch.float32)
    step = 64 if rows > 256 else 128
    future = torch.full((step, step), float("-inf"), dtype=query.dtype, device=query.device).triu_(1)
    for first in range(0, rows, step):
        last = min(rows, first + step)
        count = last - first
        block = by_head[:, :, first:last].reshape(shared, group * count, width)
        mask = future[:count, :count].repeat(group, 1)
        mixed, sums = _attention(block, keys[:, :, :last], value[:, :last], mask)
        output[:, :, first:last] = mixed.view(shared, group, count, -1)
        lse[:, :, first:last] = sums.view(shared, group, count)
    return output.view(heads, rows, -1), lse.view(heads, rows)


def _attention(query: Tensor, keys: Tensor, value: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Attention of scaled queries [..., R, D] to keys [..., D, L] and values [..., L, D] as two plain products: float32
    [..., R, D] and the log-sum-exp [..., R]. An additive mask of fewer keys is that of the last ones.

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
        lse = total.log() if peak is None else peak[..., 0] + total.log()
        if not late or bool((lse.amin() > LOWEST) & (lse.amax() < HIGHEST)):
            return torch.matmul(weights, value) / total[..., None], lse
        late = False


def _shifts_late(query: Tensor) -> bool:
    """Whether `_attention` tries without each row's largest score. (Where asking for a sum waits for a device, no.)"""
    return query.dtype == torch.bfloat16 and query.device.type == "cpu"


def repeat_heads(states: Tensor, heads: int) -> Tensor:
    """[B, Hkv, L, D] to [B, heads, L, D], each key head repeated for the query heads that share it."""
    return states if states.shape[1] == heads else states.repeat_interleave(heads // states.shape[1], dim=1)


@dataclass
class Merge:
    """The running merge of parts for T rows: output [H, T, D] in float32 and log-sum-exp [H, T]."""

    output: Tensor
    lse: Tensor

    def add(self, first: int, last: int, output: Tensor, lse: Tensor) -> None:
        """Merge a part's output [H, R, D] and log-sum-exp [H, R] into rows `first` to `last`."""
        old = self.lse[:, first:last]
        total = torch.logaddexp(old, lse)
        rows = self.output[:, first:last]
        rows.mul_(torch.exp(old - total)[..., None]).add_(output * torch.exp(lse - total)[..., None])
        self.lse[:, first:last] = total


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

    def place(self, layer: int, places: Tensor, key: Tensor, value: Tensor) -> None:
        """Store [Hkv, T, D] keys and values at the flat indices `places` [T]."""
        keys, values = self._of(layer, key, value)
        keys.index_copy_(1, places, key)
        values.index_copy_(1, places, value)

    def _of(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        if layer not in self.layers:
            self.layers[layer] = (
                key.new_empty(key.shape[0], self.capacity, key.shape[2]),
                value.new_empty(value.shape[0], self.capacity, value.shape[2]),
            )
        return self.layers[layer]
