"""What one batch of texts may hold, and when memory has run out all the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class BatchLimits:
    """What one batch may hold, padding included. rows: texts; tokens: of prompts and outputs; pairs: of tokens that
    meet in attention; logits: places whose logits are kept.
    """

    rows: int = 128
    tokens: int = 16384
    pairs: int = 1 << 24
    logits: int = 8192


def batch_limits(model: Any) -> BatchLimits:
    """As much as a share of the device's memory holds: a quarter of a GPU's, 2 GiB elsewhere.

    Of all its memory, not of what is free now: how a batch is cut decides its results' last bits.
    """
    config = model.config.get_text_config()
    on_gpu = model.device.type == "cuda"
    budget = torch.cuda.get_device_properties(model.device).total_memory // 4 if on_gpu else 2 << 30
    width = config.hidden_size * model.dtype.itemsize
    per_token = (2 * (getattr(config, "num_hidden_layers", None) or 32) + 16) * width  # keys, values and activations
    heads = getattr(config, "num_attention_heads", None) or 32
    return BatchLimits(
        rows=256 if on_gpu else 128,
        tokens=min(max(2048, budget // per_token), 1 << 16),
        pairs=max(1 << 20, budget // (12 * heads)),  # scores and weights, some of them in float32
        logits=max(64, budget // (12 * config.vocab_size)),
    )


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; some devices say so in words only."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("out of memory", "can't allocate memory")
    )


def release(device: torch.device) -> None:
    """Give what the failed batch held back to the device."""
    backend: Any = getattr(torch, device.type, None)
    if hasattr(backend, "empty_cache"):
        backend.empty_cache()
