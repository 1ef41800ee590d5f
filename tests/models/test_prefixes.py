"""The prefix cache: what is shared, what is kept, and that no answer depends on it."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cuecard.models.engine import Decoding, GenerateRequest, Generation, ScoreRequest, Scores
from cuecard.models.limits import Limits
from cuecard.models.local import LocalEngine
from cuecard.models.prefixes import BLOCK, PrefixCache, shared_blocks

from .helpers import engine_over, plain_greedy, plain_logprobs, random_model, random_tokens

SOURCE = random.Random(5)
START = random_tokens(SOURCE, 2 * BLOCK + 10)
OTHER = START[: BLOCK + 3] + random_tokens(SOURCE, BLOCK + 40)


def prompts(start: tuple[int, ...], count: int, seed: int) -> list[tuple[int, ...]]:
    source = random.Random(seed)
    return [start + random_tokens(source, source.randint(1, 20)) for _ in range(count)]


def batches() -> list[list[tuple[int, ...]]]:
    """Batches that have more and less in common with those before them."""
    return [
        prompts(START, 3, 1),
        prompts(OTHER, 2, 2) + prompts(START, 2, 3),
        [(*START, 5, 6, 7)],
        prompts(START[: BLOCK + 20], 2, 4) + prompts(OTHER, 2, 5) + prompts((9, 9), 2, 6),
        [START, START],
    ]


def generated(engine: LocalEngine, batch: list[tuple[int, ...]]) -> list[Any]:
    results = engine.generate([GenerateRequest(prompt, Decoding(max_tokens=4)) for prompt in batch])
    assert all(isinstance(result, Generation) for result in results), results
    return results


def scored(engine: LocalEngine, batch: list[tuple[int, ...]]) -> list[Any]:
    results = engine.score([ScoreRequest(prompt, ((5, 6), (5, 7, 8), (11,))) for prompt in batch])
    assert all(isinstance(result, Scores) for result in results), results
    return results


# ---- what is shared


@given(st.data())
@settings(deadline=None)
def test_a_block_is_shared_when_another_prompt_begins_with_it(data: st.DataObject) -> None:
    pieces = st.sampled_from([(1,) * BLOCK, (2,) * BLOCK, (3,) * (BLOCK - 1) + (4,)])
    shape = st.tuples(st.lists(pieces, max_size=3), st.integers(1, 5))
    made = data.draw(st.lists(shape, min_size=2, max_size=6))
    batch = [tuple(token for piece in parts for token in piece) + (7,) * tail for parts, tail in made]

    def shared(i: int) -> int:
        count = 0
        for blocks in range(1, (len(batch[i]) - 1) // BLOCK + 1):
            start = batch[i][: blocks * BLOCK]
            others = (prompt for j, prompt in enumerate(batch) if j != i)
            # the other must have a token after the block, or it would have no last token of its own
            count = blocks if any(o[: blocks * BLOCK] == start and len(o) > blocks * BLOCK for o in others) else count
        return count

    assert shared_blocks(batch) == [shared(i) for i in range(len(batch))]


@pytest.mark.parametrize(("length", "blocks"), [(1, 0), (BLOCK, 0), (BLOCK + 1, 1), (2 * BLOCK, 1), (2 * BLOCK + 1, 2)])
def test_a_prompt_alone_shares_all_its_blocks_with_later_ones(length: int, blocks: int) -> None:
    assert shared_blocks([(4,) * length]) == [blocks]


# ---- what is kept


def test_the_least_recently_used_block_goes_first() -> None:
    cache = PrefixCache(2)
    a, b, c = ({0: (torch.zeros(1), torch.zeros(1))} for _ in range(3))
    cache.put(b"a", a)
    cache.put(b"b", b)
    assert cache.get(b"a") is a
    cache.put(b"c", c)
    assert (cache.get(b"a"), cache.get(b"b"), cache.get(b"c")) == (a, None, c)
    assert (len(cache), cache.hits, cache.misses, cache.evicted) == (2, 3, 1, 1)


def test_a_second_batch_computes_only_what_is_new() -> None:
    engine = engine_over(random_model("llama"))
    generated(engine, prompts(START, 3, 1))
    assert engine.ledger.reused_tokens == 0
    before = engine.ledger.copy()
    batch = prompts(START, 3, 8)
    generated(engine, batch)
    spent = engine.ledger - before
    assert spent.reused_tokens == 2 * BLOCK
    assert spent.prompt_tokens == sum(map(len, batch))


def test_memory_is_bounded() -> None:
    engine = engine_over(random_model("llama"), limits=Limits(tokens=8 * BLOCK))
    for seed in range(6):
        generated(engine, prompts(random_tokens(random.Random(seed), 3 * BLOCK), 2, seed))
    cache = engine._prefixes
    assert len(cache) == cache.capacity == 4
    assert cache.evicted == 6 * 3 - 4


# ---- that no answer depends on it


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2", "gemma3", "mixtral"])
def test_an_answer_is_bit_for_bit_the_same_whatever_the_cache_held(kind: str, dtype: torch.dtype) -> None:
    model = random_model(kind, dtype=dtype)
    warm = engine_over(model)
    small = engine_over(model, limits=Limits(tokens=32768))
    small._prefixes.capacity = 2
    for batch in [*batches(), *reversed(batches())]:
        cold = engine_over(model)
        expected = generated(cold, batch), scored(engine_over(model), batch)
        assert (generated(warm, batch), scored(warm, batch)) == expected
        assert (generated(small, batch), scored(small, batch)) == expected
    assert warm._prefixes.hits > 0
    assert small._prefixes.evicted > 0


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3"])
def test_the_answers_are_transformers_own(kind: str) -> None:
    model, engine = random_model(kind), engine_over(random_model(kind))
    for batch in batches():
        for prompt, result in zip(batch, generated(engine, batch), strict=True):
            assert result.samples[0].tokens == plain_greedy(model, prompt, 4)
        for prompt, result in zip(batch, scored(engine, batch), strict=True):
            for continuation, logprobs in zip(((5, 6), (5, 7, 8), (11,)), result.logprobs, strict=True):
                assert logprobs == pytest.approx(plain_logprobs(model, prompt, continuation), abs=1e-4)
