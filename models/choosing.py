"""The next token of every row of a batch: masks applied to all rows at once, and what each token's probability was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .sampling import Sampler, log_normaliser

BITS = (1, 2, 4, 8, 16, 32, 64, 128)

Mask = NDArray[np.uint8]


@dataclass(frozen=True)
class Chosen:
    """A token, its natural log-probability under temperature 1 without the mask, and the probability that the mask
    took from the tokens which it rules out.
    """

    token: int
    logprob: float
    masked: float = 0.0


def unpack(masks: Sequence[Mask], vocabulary: int, device: Any) -> Tensor:
    """Packed masks (see `constraints.fill_masks`) as a bool tensor [n, V]."""
    packed = torch.from_numpy(np.stack(masks)).to(device)
    bits = packed[:, :, None] & torch.tensor(BITS, dtype=torch.uint8, device=device)
    return (bits != 0).view(len(masks), -1)[:, :vocabulary]


def choose(samplers: Sequence[Sampler], masks: Sequence[Mask | None], logits: Tensor) -> list[Chosen]:
    """The next token for each row of logits [n, V], which are left as they are."""
    tokens: list[int] = logits.max(dim=-1).indices.tolist()
    bound = [place for place, mask in enumerate(masks) if mask is not None]
    normaliser = log_normaliser(logits)
    masked = [0.0] * len(tokens)
    allowed: dict[int, Tensor] = {}
    if bound:
        rows = torch.tensor(bound, device=logits.device)
        ruled_out = ~unpack([mask for mask in masks if mask is not None], logits.shape[1], logits.device)
        left = logits[rows].masked_fill_(ruled_out, float("-inf"))
        share = torch.expm1(log_normaliser(left) - normaliser[rows]).neg_().clamp_(0.0, 1.0).tolist()
        for place, token, removed in zip(bound, left.max(dim=-1).indices.tolist(), share, strict=True):
            tokens[place], masked[place] = token, removed or 0.0  # without the sign of -0.0
        allowed = dict(zip(bound, left, strict=True))
    for place, sampler in enumerate(samplers):
        if not sampler.plain:
            own = allowed.get(place, logits[place])
            tokens[place] = sampler.choose(own.to(torch.float32, copy=True))
    logprobs = (_picked(logits, tokens) - normaliser).tolist()
    return [Chosen(*each) for each in zip(tokens, logprobs, masked, strict=True)]


def forced(tokens: Sequence[int], logits: Tensor) -> list[Chosen]:
    """Tokens to which a mask left no alternative, a row of logits [n, V] for each."""
    logprobs = _picked(logits, tokens) - log_normaliser(logits)
    masked = torch.expm1(logprobs).neg_().clamp_(0.0, 1.0).tolist()
    return [Chosen(*each) for each in zip(tokens, logprobs.tolist(), masked, strict=True)]


def _picked(logits: Tensor, tokens: Sequence[int]) -> Tensor:
    index = torch.tensor(tokens, device=logits.device)
    return logits.gather(1, index[:, None])[:, 0].float()
