"""How fast this machine could be at best: its matrix rate and memory bandwidth, and the time a workload needs at those.

The limit counts what no engine can leave out. Every unique token of the prompts goes through the layers' matrices once;
every request's last token goes through the output matrix; every later token goes through both, all requests in step,
and a step takes at least as long as its products at the matrix rate and as reading the weights once at the memory
bandwidth (the roofline of Williams, Waterman and Patterson 2009). Attention, norms and reading keys and values are left
out, so that the limit is below what can be reached. Dense models only: of a mixture of experts all would be counted.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

ROWS = 2048
GIB = 1 << 30


@dataclass(frozen=True)
class Machine:
    """matrix: operations a second, a multiply-add counting as two; bandwidth: bytes a second."""

    matrix: float
    bandwidth: float


@dataclass(frozen=True)
class Shape:
    """What a token costs. layers: weights beside the embeddings; head: weights of the output matrix; itemsize: bytes a
    weight.
    """

    layers: int
    head: int
    itemsize: int


@dataclass(frozen=True)
class Limit:
    """The least seconds of each part of a workload."""

    prefill: float
    head: float
    decode: float

    @property
    def seconds(self) -> float:
        return self.prefill + self.head + self.decode


def synchronise(device: str) -> None:
    """Wait until the device has done what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    elif device.startswith("mps"):
        torch.mps.synchronize()


def shape_of(model: Any) -> Shape:
    """The shape of a transformers model."""
    tables = {id(table.weight): table.weight for table in (model.get_input_embeddings(), model.get_output_embeddings())}
    weights = sum(weight.numel() for weight in model.parameters())
    return Shape(
        layers=weights - sum(table.numel() for table in tables.values()),
        head=model.get_output_embeddings().weight.numel(),
        itemsize=model.dtype.itemsize,
    )


def limit(shape: Shape, machine: Machine, *, unique: int, leaves: int, requests: int, output: int) -> Limit:
    """The limit of a workload: `unique` tokens of prompts in `leaves` different ones, `output` tokens a request."""
    products = 2 * (shape.layers + shape.head) * requests / machine.matrix
    reading = (shape.layers + shape.head) * shape.itemsize / machine.bandwidth
    return Limit(
        prefill=2 * shape.layers * unique / machine.matrix,
        head=2 * shape.head * leaves / machine.matrix,
        decode=(output - 1) * max(products, reading),
    )


@torch.inference_mode()
def measure(config: Any, device: str, dtype: str) -> Machine:
    """The rates on `device` with the number of threads that torch is set to. Takes a few seconds."""
    narrow = int(config.hidden_size)
    wide = int(getattr(config, "intermediate_size", None) or 4 * narrow)
    operations, seconds = 0, 0.0
    for inner, outer in ((narrow, wide), (wide, narrow)):
        rows = torch.randn(ROWS, inner, device=device).to(getattr(torch, dtype))
        weight = torch.randn(outer, inner, device=device).to(getattr(torch, dtype))
        seconds += _median_seconds(lambda a=rows, b=weight: torch.nn.functional.linear(a, b), device)
        operations += 2 * ROWS * inner * outer
    return Machine(operations / seconds, _bandwidth(device))


def _bandwidth(device: str) -> float:
    """Bytes a second of reading 1 GiB, or of copying it (a read and a write), whichever is faster."""
    memory = torch.ones(GIB // 4, device=device)
    other = torch.empty_like(memory)
    reading = GIB / _median_seconds(memory.sum, device)
    return max(reading, 2 * GIB / _median_seconds(lambda: other.copy_(memory), device))


def _median_seconds(work: Callable[[], Any], device: str, times: int = 9) -> float:
    """The median time of one call, over `times` runs of as many calls as take some 20 ms."""
    calls = max(1, int(0.02 / _seconds(work, device, 2)))
    return statistics.median(_seconds(work, device, calls) for _ in range(times))


def _seconds(work: Callable[[], Any], device: str, calls: int) -> float:
    synchronise(device)
    began = time.perf_counter()
    for _ in range(calls):
        work()
    synchronise(device)
    return (time.perf_counter() - began) / calls
