"""Thousands of mixed requests through one engine: what it still holds afterwards, and what it answered wrongly.

Three ways of asking take turns: whole batches in one call, threads that wait for one another, and threads that do not,
some of which ask through DSPy's `LM`. The requests are those of `tests/mixed.py`: scores, greedy and sampled texts,
constrained ones, spans, and requests that must fail alone. The engine keeps few blocks, so that it drops most.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import logging
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dspy
import psutil
import torch

from cuecard.errors import InputError
from cuecard.models.attention import KeyValues
from cuecard.models.engine import Engine
from cuecard.models.gather import Gatherer
from cuecard.models.limits import Limits
from cuecard.models.lm import bridge_of, language_model
from cuecard.models.loading import LoadedModel
from cuecard.models.local import LocalEngine
from cuecard.models.plain import engine_for
from cuecard.models.prefixes import BLOCK
from cuecard.models.tokenizer import HFTokenizer

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from mixed import Mixed, ask_at_once, ask_in_threads, mixed_requests, waiting

from tiny import SENTENCES

LIMITS = Limits(tokens=64 * BLOCK, rows=64)  # 32 blocks are kept
BATCH, THREADS = 40, 8
LOOKS = 8  # how often memory is looked at


@dataclass(frozen=True)
class Look:
    """What the process holds after so many requests. rss: bytes; tensors: all but the kept blocks'."""

    requests: int
    seconds: float
    rss: int
    tensors: int
    stores: int
    kept: int
    evicted: int
    waiting: int


@dataclass
class Soaked:
    """What came of a soak. wrong: results that can't be right; counts: requests by kind."""

    looks: list[Look] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    @property
    def growth(self) -> int:
        """Bytes of resident memory at the end above those after the first quarter."""
        return self.looks[-1].rss - self.quarter.rss

    @property
    def quarter(self) -> Look:
        """The look after the first quarter."""
        return self.looks[min(LOOKS // 4, len(self.looks)) - 1]

    def leaks(self, capacity: int | None, bound: int) -> list[str]:
        """What is left that should not be. capacity: of blocks; bound: bytes by which resident memory may grow."""
        last, found = self.looks[-1], []
        if self.growth > bound:
            found.append(
                f"resident memory grew by {mib(self.growth)} since the first quarter, the bound is {mib(bound)}"
            )
        if last.tensors > self.quarter.tensors:
            found.append(f"{last.tensors - self.quarter.tensors} tensors more than after the first quarter")
        for look in self.looks:
            if look.stores:
                found.append(f"{look.stores} stores of keys and values after {look.requests:,} requests")
            if capacity is not None and look.kept > capacity:
                found.append(f"{look.kept} blocks after {look.requests:,} requests, {capacity} may be kept")
            if look.waiting:
                found.append(f"{look.waiting} requests wait after {look.requests:,}")
        return found


def mib(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"


def soak_engine(loaded: LoadedModel) -> Engine:
    """An engine that keeps few blocks, or none where the model shares no prefixes."""
    name = loaded.source.name
    parts: dict[str, Any] = {"identity": "soak", "name": name, "ends": loaded.ends}
    parts |= {"backend_tokenizer": loaded.tokenizer}
    tokenizer = HFTokenizer(loaded.tokenizer, name=name)
    try:
        return LocalEngine(loaded.model, tokenizer, limits=LIMITS, **parts)
    except InputError:
        return engine_for(loaded.model, tokenizer, **parts)


def soak(engine: Engine, count: int, seed: int, told: Callable[[Look], None]) -> Soaked:
    """Ask `engine` about `count` requests; `told` hears of every look."""
    found, began = Soaked(), time.perf_counter()
    lm = language_model(engine)
    dspy.configure(disable_history=True)  # which would keep every call
    logging.getLogger("dspy").setLevel(logging.ERROR)  # it warns of every text that max_tokens ends
    bridge = bridge_of(lm)
    assert bridge is not None
    gatherer, source = bridge.gatherer, random.Random(seed)
    requests = mixed_requests(engine, count, seed)
    done, next_look = 0, count / LOOKS
    for number, batch in enumerate(_batches(requests)):
        _ask(engine, gatherer, lm, batch, number % 3, source, found)
        done += len(batch)
        if done >= next_look or done == count:
            next_look += count / LOOKS
            found.looks.append(_look(engine, gatherer, done, time.perf_counter() - began))
            told(found.looks[-1])
    return found


def _batches(requests: Iterator[Mixed]) -> Iterator[list[Mixed]]:
    while batch := list(itertools.islice(requests, BATCH)):
        yield batch


def _ask(
    engine: Engine, gatherer: Gatherer, lm: dspy.LM, batch: list[Mixed], way: int, source: random.Random, found: Soaked
) -> None:
    """Ask one batch, and note what is wrong. A sixth of all go through DSPy: half of what threads ask at random."""
    through_lm = BATCH // 2 if way == 2 else 0
    asked = batch[through_lm:]
    with ThreadPoolExecutor(1) as beside:
        texts = [_text(source) for _ in batch[:through_lm]]
        other = beside.submit(_ask_lm, lm, texts, engine.context_window)
        results = ask_at_once(engine, asked) if way == 0 else ask_in_threads(gatherer, asked, THREADS, way == 1)
        found.wrong += other.result()
    found.counts["dspy.LM"] += len(texts)
    for mixed, result in zip(asked, results, strict=True):
        found.counts[mixed.kind] += 1
        if (wrong := mixed.wrong(result)) is not None:
            found.wrong.append(wrong)


def _text(source: random.Random) -> str:
    words = [word for sentence in source.sample(SENTENCES, 3) for word in sentence.split()]
    return f"Number {source.randrange(10**9)}: {' '.join(source.sample(words, 20))}"


def _ask_lm(lm: dspy.LM, texts: Sequence[str], window: int) -> list[str]:
    """Ask DSPy's LM from two threads; one text in ten is too long. What came out wrong."""

    def ask(place: int) -> list[str]:
        if place % 10 == 9:
            with contextlib.suppress(dspy.utils.exceptions.ContextWindowExceededError):
                return [f"a text that is too long gave {lm('long ' * window, max_tokens=4)}"]
            return []
        (text,) = lm(texts[place], max_tokens=6, temperature=float(place % 2))
        return [] if isinstance(text, str) else [f"the LM gave {text!r}"]

    with ThreadPoolExecutor(2) as pool:
        return [wrong for each in pool.map(ask, range(len(texts))) for wrong in each]


def _look(engine: Engine, gatherer: Gatherer, requests: int, seconds: float) -> Look:
    gc.collect()
    objects = gc.get_objects()
    tensors = sum(issubclass(type(it), torch.Tensor) for it in objects)
    stores = sum(type(it) is KeyValues for it in objects)
    del objects
    cache = getattr(engine, "_prefixes", None)
    held = sum(2 * len(layers) for layers in cache._blocks.values()) if cache is not None else 0
    return Look(
        requests,
        seconds,
        psutil.Process().memory_info().rss,
        tensors - held,
        stores,
        len(cache) if cache is not None else 0,
        cache.evicted if cache is not None else 0,
        waiting(gatherer),
    )


def capacity_of(engine: Engine) -> int | None:
    """How many blocks the engine may keep; None for one that keeps none."""
    cache = getattr(engine, "_prefixes", None)
    return None if cache is None else int(cache.capacity)
