"""What one batch of texts may hold, and what is done when memory has run out all the same: it is halved.

A batch's results depend on what is in it, in their last bits. So they are the same again for the same cut; and the cut
is decided by the limits, which do not change, until memory runs out, which also depends on who else uses the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch

from .engine import Failure, Ledger

R = TypeVar("R")

SHORTER = "shorten the prompt, ask for fewer tokens or samples, or use a smaller dtype or a device with more memory"


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


def halved(
    group: Sequence[int],
    work: Callable[[list[int]], Iterable[tuple[int, R]]],
    *,
    device: torch.device,
    ledger: Ledger,
    size: Callable[[int], int],
    emptied: Callable[[], None] = lambda: None,
) -> dict[int, R | Failure]:
    """What `work` gives for each of a group's requests; where memory runs out, half by half, down to one request.

    That one gets a `Failure`, and no other is touched. What was given before memory ran out is kept. size: a request's
    tokens, for the failure; ledger: counts no tokens of what is done again, but its forward passes; emptied: is called
    when memory has run out, to let go of more.
    """
    found: dict[int, R | Failure] = {}
    waiting = [list(group)]
    while waiting:
        part = waiting.pop()
        cause = _attempt(part, work, found, ledger)
        if cause is None:
            continue
        emptied()
        release(device)
        left = [i for i in part if i not in found]
        if len(left) == 1:
            found[left[0]] = Failure(
                f"there is not enough memory for a text of {size(left[0])} tokens ({cause}); {SHORTER}"
            )
        elif left:
            half = (len(left) + 1) // 2
            waiting += [left[half:], left[:half]]
    return found


def _attempt(
    part: list[int],
    work: Callable[[list[int]], Iterable[tuple[int, R]]],
    found: dict[int, R | Failure],
    ledger: Ledger,
) -> str | None:
    """Put the results of `part` into `found`; what was said if memory ran out. The error goes, and what it holds."""
    before = ledger.copy()
    try:
        for i, result in work(part):
            found[i] = result
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        for each in fields(ledger):
            if each.name not in ("forward_passes", "seconds"):
                setattr(ledger, each.name, getattr(before, each.name))
        return str(error).partition("\n")[0]
    return None
