"""Three hundred mixed requests in a row, in one thread and in several: nothing is left behind, and failures fail alone."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator

import pytest
import torch
from mixed import KINDS, Mixed, Result, ask_at_once, ask_in_threads, mixed_requests, waiting

from cuecard.models.attention import KeyValues
from cuecard.models.engine import Failure, Generation, Scores, Spans
from cuecard.models.gather import Gatherer
from cuecard.models.limits import Limits
from cuecard.models.local import LocalEngine
from cuecard.models.prefixes import BLOCK

from .helpers import engine_over, random_model

REQUESTS, BATCH = 300, 25
KEPT = 6  # blocks


def small_engine() -> LocalEngine:
    """One that keeps few blocks, and has to cut a batch now and then."""
    return engine_over(random_model("llama"), Limits(tokens=2 * KEPT * BLOCK, rows=20))


@pytest.fixture(scope="module")
def asked() -> list[Mixed]:
    return list(mixed_requests(small_engine(), REQUESTS, seed=3))


def batches(asked: list[Mixed]) -> Iterator[list[Mixed]]:
    for first in range(0, len(asked), BATCH):
        yield asked[first : first + BATCH]


def tensors() -> int:
    """How many tensors there are in this process, once what nobody holds is gone."""
    gc.collect()
    return sum(issubclass(type(it), torch.Tensor) for it in gc.get_objects())


def stores() -> int:
    """How many stores of a batch's keys and values there are."""
    return sum(type(it) is KeyValues for it in gc.get_objects())


def same(result: Result, other: Result) -> bool:
    """Whether two results are one but for rounding."""
    if isinstance(result, Generation) and isinstance(other, Generation):
        return [sample.tokens for sample in result.samples] == [sample.tokens for sample in other.samples]
    if isinstance(result, Scores) and isinstance(other, Scores):
        return result.totals == pytest.approx(other.totals, abs=1e-3)
    if isinstance(result, Spans) and isinstance(other, Spans):
        places, wanted = ([(score.run, score.length) for score in spans.scores] for spans in (result, other))
        totals, expected = ([t for s in spans.scores for t in (s.total, s.against)] for spans in (result, other))
        return places == wanted and totals == pytest.approx(expected, abs=1e-3)
    return result == other


def test_the_mix_holds_every_kind(asked: list[Mixed]) -> None:
    counts = Counter(mixed.kind for mixed in asked)
    assert set(counts) == set(KINDS)
    assert min(counts.values()) >= 20
    assert asked == list(mixed_requests(small_engine(), REQUESTS, seed=3))
    assert asked != list(mixed_requests(small_engine(), REQUESTS, seed=4))


def test_neither_blocks_nor_tensors_nor_calls_are_left_behind(asked: list[Mixed]) -> None:
    engine = small_engine()
    gatherer = Gatherer(engine)
    cache = engine._prefixes
    before = tensors()
    for number, batch in enumerate(batches(asked)):
        if number % 3 == 0:
            results = ask_at_once(engine, batch)
        else:
            results = ask_in_threads(gatherer, batch, announced=number % 3 == 1)
        assert [wrong for mixed, result in zip(batch, results, strict=True) if (wrong := mixed.wrong(result))] == []
        assert len(cache) <= cache.capacity == KEPT
        assert waiting(gatherer) == 0
        del results
    assert cache.hits > 0
    assert cache.evicted > 0
    assert cache.misses == len(cache) + cache.evicted, "every block that was computed is kept or was dropped"
    assert engine.ledger.calls == REQUESTS
    assert stores() == 0
    held = sum(len(layers) for layers in cache._blocks.values())
    assert tensors() - before == 2 * held, "the blocks' keys and values, and nothing else"
    cache.clear()
    assert tensors() == before


def test_failures_touch_no_other_request(asked: list[Mixed]) -> None:
    """What can be answered is answered as it is without those that can't, though they lie side by side."""
    mixed_engine, calm = small_engine(), small_engine()
    gatherer = Gatherer(mixed_engine)
    for number, batch in enumerate(batches(asked)):
        together = ask_in_threads(gatherer, batch) if number % 2 else ask_at_once(mixed_engine, batch)
        good = [mixed for mixed in batch if mixed.kind != "failing"]
        assert len(good) < len(batch)
        expected = iter(ask_at_once(calm, good))
        for mixed, result in zip(batch, together, strict=True):
            assert isinstance(result, Failure) == (mixed.kind == "failing"), result
            if mixed.kind != "failing":
                wanted = next(expected)
                assert same(result, wanted), f"{mixed.request} gave {result}, and {wanted} without the failures"
    assert waiting(gatherer) == 0
