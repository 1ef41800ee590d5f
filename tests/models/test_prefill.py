"""Attention over a tree: who attends to whom, the arithmetic of its parts, and whole models against a plain forward pass."""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from cuecard.models import local as local_module
from cuecard.models import prefill as prefill_module
from cuecard.models.attention import KeyValues, Merge, Part, grouped, partial, repeat_heads
from cuecard.models.compute import compute
from cuecard.models.engine import ScoreRequest
from cuecard.models.local import LocalEngine
from cuecard.models.prefill import BLOCK, BUCKETS, ChunkPlan, chunks, split, waves
from cuecard.models.tree import TokenTree, build

from .helpers import engine_over, family, plain_logprobs, random_model, random_tokens

CPU = torch.device("cpu")
CLOSE = 1e-4
few = st.lists(st.integers(3, 5), min_size=1, max_size=24).map(tuple)
sequences = st.lists(few, min_size=1, max_size=14)


# Who attends to whom


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 8 tokens, so that small trees have trunks."""
    monkeypatch.setattr(prefill_module, "BLOCK", 8)


def attended(plan: ChunkPlan, row: int) -> list[int]:
    """The flat indices that a row of a chunk attends to, one for each time that it does."""
    found: list[int] = []
    for first, last in plan.own:
        if first <= row < last:
            found += plan.places[first : row + 1].tolist()
    for bucket in plan.buckets:
        length = bucket.rows.shape[1]
        for place in bucket.real.tolist():
            block, own = divmod(place, length)
            if int(bucket.rows[block, own]) == row:
                seen = torch.isfinite(bucket.mask[block, 0, own]).nonzero()[:, 0]
                found += plan.places[bucket.rows[block, seen].numpy()].tolist()
    for low, high, first, last in plan.above:
        if first <= row < last:
            found += range(low, high)
    return found


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sequences, st.integers(1, 12), st.sampled_from([1, 5, 16, 64, 2048]), st.lists(st.integers(0, 12), max_size=14))
def test_each_token_that_is_not_known_attends_once_to_each_token_before_it(
    small_blocks: None, given: Sequence[tuple[int, ...]], longest: int, size: int, depths: list[int]
) -> None:
    known = [min(depth, len(tokens)) for depth, tokens in zip([*depths, *[0] * len(given)], given, strict=False)]
    tree = build(given, longest, known)
    there = {index for segment in tree.segments if segment.known for index in range(segment.start, segment.end)}
    computed: list[int] = []
    for plan in chunks(tree, KeyValues(len(tree)), size, CPU, torch.float32):
        for row, place in enumerate(plan.places.tolist()):
            expected, index = [], place
            while index >= 0:
                expected.append(index)
                index = int(tree.before[index])
            assert sorted(attended(plan, row)) == expected[::-1]
        assert there | set(computed) >= {int(tree.before[place]) for place in plan.places} - {-1, *plan.places.tolist()}
        computed += plan.places.tolist()
    assert computed == sorted(set(computed)) and set(range(len(tree))) - there <= set(computed)
    below_unknown = {i for i in set(computed) & there if any(j not in there for j in ancestors(tree, i))}
    assert set(computed) & there == below_unknown, "what is known is left out, but below what is not"


def ancestors(tree: TokenTree, index: int) -> list[int]:
    found = []
    while (index := int(tree.before[index])) >= 0:
        found.append(index)
    return found


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sequences, st.integers(9, 40))
def test_a_chunk_is_no_longer_than_asked(small_blocks: None, given: Sequence[tuple[int, ...]], size: int) -> None:
    """Where a block and a segment are no longer than a chunk."""
    tree = build(given, size)
    plans = list(chunks(tree, KeyValues(len(tree)), size, CPU, torch.float32))
    assert all(len(plan.places) <= size for plan in plans)
    for one, two in zip(plans, plans[1:], strict=False):
        assert len(one.places) + len(two.places) > min(size, 8), (
            "two chunks that fit into one block would have been one"
        )


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sequences, st.sampled_from([5, 16, 64]), st.lists(st.integers(0, 12), max_size=14))
def test_chunks_side_by_side_need_nothing_of_one_another(
    small_blocks: None, given: Sequence[tuple[int, ...]], size: int, depths: list[int]
) -> None:
    known = [min(depth, len(tokens)) for depth, tokens in zip([*depths, *[0] * len(given)], given, strict=False)]
    tree = build(given, 12, known)
    there = {index for segment in tree.segments if segment.known for index in range(segment.start, segment.end)}
    computed: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefill_module, "BESIDE", ((3, 12), (2, 6)))
        found = list(waves(tree, KeyValues(len(tree)), size, CPU, torch.float32))
    for wave in found:
        assert 1 <= len(wave) <= 3
        before = there | set(computed)
        for plan in wave:
            own = set(plan.places.tolist())
            assert plan.places.tolist() == sorted(own)
            for row, place in enumerate(plan.places.tolist()):
                seen = attended(plan, row)
                assert sorted(seen) == sorted([place, *ancestors(tree, place)])
                assert set(seen) <= before | own
            computed += plan.places.tolist()
    assert len(computed) == len(set(computed)) and set(range(len(tree))) - there <= set(computed)


def test_chunks_side_by_side_are_of_one_size() -> None:
    """Texts of 20 tokens below a common start: the start alone, and then two or four chunks of the same size."""
    source = random.Random(0)
    start = random_tokens(source, 100)

    def sizes(texts: int, size: int = 2048, device: str = "cpu") -> list[list[int]]:
        tree = build([(*start, i + 100, *random_tokens(source, 19)) for i in range(texts)])
        found = waves(tree, KeyValues(len(tree)), size, torch.device(device), torch.float32)
        return [[len(plan.places) for plan in wave] for wave in found]

    assert sizes(50) == [[1100]], "too few for two"
    assert sizes(60) == [[100], [600, 600]]
    assert sizes(60, 400) == [[100], [300, 300], [300, 300]]
    assert sizes(240) == [[100], [1200] * 4]
    assert sizes(240, device="meta") == [[2040], [2040], [820]]


def test_blocks_and_trunk_share_out_the_tree() -> None:
    tree = build(family([0, 100, 127, 128, 129, 200, 300] * 3))
    trunk, blocks = split(tree)
    covered = [range(tree.segments[i].start, tree.segments[i].end) for i in trunk] + [range(*b) for b in blocks]
    assert sorted(index for span in covered for index in span) == list(range(len(tree)))
    assert trunk
    assert all(high - low <= BLOCK for low, high in blocks)
    assert max(BUCKETS) == BLOCK


# The parts


def attention(query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor) -> tuple[Tensor, Tensor]:
    """By definition, in float64."""
    scores = query.double() @ key.double().transpose(-1, -2) * scale + mask.double()
    return torch.softmax(scores, dim=-1) @ value.double(), torch.logsumexp(scores, dim=-1)


def states(source: torch.Generator, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=source, dtype=torch.float64).to(dtype)


def tolerance(dtype: torch.dtype) -> float:
    return 2e-2 if dtype.itemsize < 4 else 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["plain", "causal", "masked"])
def test_a_part_is_attention_with_its_normaliser(dtype: torch.dtype, kind: str) -> None:
    source = torch.Generator().manual_seed(0)
    query, key, value = (states(source, 3, 4, 21, 16, dtype=dtype) for _ in range(3))
    hidden = torch.zeros(21, 21)
    if kind == "causal":
        hidden = torch.full((21, 21), -math.inf).triu(1)
    elif kind == "masked":
        hidden = torch.where(torch.rand(3, 1, 21, 21, generator=source) < 0.5, 0.0, -math.inf)
        hidden[..., 0] = 0.0
    mask = hidden.to(dtype) if kind == "masked" else None
    part = partial(query, key, value, 0.3, mask, causal=kind == "causal")
    out, lse = part.output, part.lse
    expected, normaliser = attention(query, key, value, 0.3, hidden)
    assert part.mixed.dtype in (dtype, torch.float32)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=tolerance(dtype))
    torch.testing.assert_close(lse.double(), normaliser, rtol=0, atol=tolerance(dtype))


def test_large_scores_do_not_overflow_sixteen_bits() -> None:
    """Keys with large biases, as Qwen 2's, have products beyond float16's 65504 before they are scaled."""
    query, key = torch.full((1, 1, 2, 64), 60.0), torch.full((1, 1, 3, 64), 60.0)
    key[..., 1, :] = -60.0
    value = torch.arange(3.0)[:, None].expand(1, 1, 3, 64)
    part = partial(query.half(), key.half(), value.half(), 64**-0.5)
    torch.testing.assert_close(part.output, torch.ones(1, 1, 2, 64), rtol=0, atol=1e-2)
    assert torch.isfinite(part.lse).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("rows", [1, 13])
def test_heads_that_share_a_key_head_attend_to_it(rows: int, dtype: torch.dtype) -> None:
    source = torch.Generator().manual_seed(1)
    query = states(source, 4, 6, rows, 8, dtype=dtype)
    key, value = states(source, 4, 2, 30, 8, dtype=dtype), states(source, 4, 2, 30, 8, dtype=dtype)
    masks = {
        seen: torch.where(torch.rand(4, 1, seen, 30, generator=source) < 0.5, 0.0, -math.inf) for seen in {1, rows}
    }
    for hidden in (*masks.values(), None):
        if hidden is not None:
            hidden[..., 0] = 0.0
        part = grouped(query, key, value, 0.5, None if hidden is None else hidden.to(dtype))
        whole = torch.zeros(1) if hidden is None else hidden
        expected, normaliser = attention(query, repeat_heads(key, 6), repeat_heads(value, 6), 0.5, whole)
        torch.testing.assert_close(part.output.double(), expected, rtol=0, atol=tolerance(dtype))
        torch.testing.assert_close(part.lse.double(), normaliser, rtol=0, atol=tolerance(dtype))


@pytest.mark.parametrize("cuts", [(7,), (1, 2, 29), (5, 10, 15, 20, 25)])
def test_merged_parts_are_the_whole(cuts: tuple[int, ...]) -> None:
    """Also where one part's scores are far above another's."""
    source = torch.Generator().manual_seed(2)
    query, key, value = states(source, 4, 9, 8), states(source, 4, 30, 8), states(source, 4, 30, 8)
    key[:, 20:] *= 20
    bounds = [0, *cuts, 30]
    merge = Merge(query)
    for low, high in zip(bounds, bounds[1:], strict=False):
        part = partial(query[None], key[None, :, low:high], value[None, :, low:high], 1.0)
        part = part.each(lambda states: states[0])
        if low == 0:
            merge.put(slice(None), part)
        else:
            merge.add(0, 4, part.each(lambda states: states[:, :4]))
            merge.add(4, 9, part.each(lambda states: states[:, 4:]))
    expected, normaliser = attention(query, key, value, 1.0, torch.zeros(1))
    lse = Part(merge.mixed, merge.total, merge.peak).lse
    torch.testing.assert_close(lse.double(), normaliser, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(merge.result(torch.float32).double(), expected, rtol=0, atol=1e-5)


def test_keys_and_values_are_kept_in_flat_order() -> None:
    store = KeyValues(5)
    first, second = torch.ones(2, 3, 4), torch.full((2, 2, 4), 2.0)
    store.write(0, 0, first, -first)
    keys, values = store.write(0, 3, second, -second)
    assert keys[0, :, 0].tolist() == [1, 1, 1, 2, 2]
    assert torch.equal(values, -keys)
    assert list(store.layers) == [0]


# Whole models

ARCHITECTURES = (
    "llama", "qwen2", "qwen3", "gpt2", "mixtral", "qwen2_moe", "gemma", "gemma3", "mistral", "phi3", "olmo2",
    "cohere", "glm4", "starcoder2", "gpt_neox", "opt",
)  # fmt: skip


def requests_of(prompts: Sequence[tuple[int, ...]], seed: int = 0) -> list[ScoreRequest]:
    """Continuations of 1 to 9 tokens, which share beginnings among themselves."""
    source = random.Random(seed)
    made = []
    for prompt in prompts:
        text = random_tokens(source, 6)
        made.append(
            ScoreRequest(prompt, (text, text[:1], text[:3] + random_tokens(source, 6), random_tokens(source, 2)))
        )
    return made


def check(engine: LocalEngine, model: object, requests: Sequence[ScoreRequest], close: float = CLOSE) -> None:
    for request, scores in zip(requests, engine.score(requests), strict=True):
        for continuation, found in zip(request.continuations, scores.logprobs, strict=True):
            assert found == pytest.approx(plain_logprobs(model, request.prompt, continuation), abs=close)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_log_likelihoods_are_those_of_a_plain_forward_pass(kind: str) -> None:
    check(engine_over(random_model(kind)), random_model(kind), requests_of(family([0, 3, 90, 127, 128, 131, 260])))


@pytest.fixture(params=[(128, 2048), (128, 128), (128, 37), (16, 50), (8, 8)], ids=str)
def cut(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, int]]:
    """How blocks and chunks are cut: changed under the engine."""
    block, chunk = request.param
    monkeypatch.setattr(prefill_module, "BLOCK", block)
    monkeypatch.setattr(local_module, "CHUNK", chunk)
    yield request.param


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_chunks_and_blocks_change_nothing(kind: str, cut: tuple[int, int]) -> None:
    prompts = family([0, 1, 60, 60, 61, 126, 127, 128, 129, 129, 200, 255, 256, 257], seed=sum(cut))
    check(engine_over(random_model(kind)), random_model(kind), requests_of(prompts))


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Two threads for the one in which engines compute."""
    before = compute(torch.get_num_threads)
    compute(torch.set_num_threads, 2)
    yield
    compute(torch.set_num_threads, before)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mixtral", "gemma3"])
def test_chunks_side_by_side_change_nothing(kind: str, two_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: set[str] = set()
    forward = LocalEngine._forward

    def seen(self: LocalEngine, *given: Any) -> Tensor:
        threads.add(threading.current_thread().name)
        return forward(self, *given)

    monkeypatch.setattr(LocalEngine, "_forward", seen)
    monkeypatch.setattr(prefill_module, "BESIDE", ((4, 300), (2, 30)))
    monkeypatch.setattr(prefill_module, "BLOCK", 16)
    monkeypatch.setattr(local_module, "CHUNK", 150)
    prompts = family([0, 1, 60, 60, 61, 126, 127, 128, 129, 129, 200, 255, 256, 257])
    engine, requests = engine_over(random_model(kind)), requests_of(prompts)
    check(engine, random_model(kind), requests)
    assert engine.score(requests) == engine.score(requests)
    assert any("side" in name for name in threads), "nothing was computed side by side"


@pytest.mark.parametrize("size", [1, 7, 16])
def test_the_batch_and_its_order_change_nothing(size: int) -> None:
    engine, prompts = engine_over(random_model("llama")), family([50, 128, 129, 10, 300, 128, 128, 5, 0, 130, 64, 64])
    requests = requests_of(prompts)
    whole = engine.score(requests)
    order = random.Random(size).sample(range(len(requests)), len(requests))
    parts = [order[first : first + size] for first in range(0, len(order), size)]
    found = {
        i: scores for part in parts for i, scores in zip(part, engine.score([requests[i] for i in part]), strict=True)
    }
    for i, scores in enumerate(whole):
        assert found[i].totals == pytest.approx(scores.totals, abs=CLOSE)


@pytest.fixture(scope="module")
def llama() -> tuple[LocalEngine, object]:
    return engine_over(random_model("llama")), random_model("llama")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(few, st.lists(few, min_size=1, max_size=3)), min_size=1, max_size=6), st.integers(1, 30))
def test_any_tree_is_computed_right(
    small_blocks: None,
    llama: tuple[LocalEngine, object],
    given: list[tuple[tuple[int, ...], list[tuple[int, ...]]]],
    chunk: int,
) -> None:
    engine, model = llama
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local_module, "CHUNK", chunk)
        check(engine, model, [ScoreRequest(prompt, tuple(continuations)) for prompt, continuations in given])


def test_a_device_without_the_cpus_kernel_computes_the_same() -> None:
    """float64 takes the way that other devices take."""
    engine = engine_over(random_model("llama", dtype=torch.float64))
    check(engine, random_model("llama"), requests_of(family([0, 3, 90, 128, 131, 260])))


def test_all_logits_are_right_not_only_those_asked_for() -> None:
    """Every token's logits, over a tree with several chunks: what decoding goes on from."""
    model, engine = random_model("qwen3"), engine_over(random_model("qwen3"))
    tree: TokenTree = build(family([0, 60, 128, 129, 250]))
    with torch.inference_mode():
        passes = engine._prefill(tree, KeyValues(len(tree)), np.arange(len(tree)))
        logits = torch.cat([part for _, part in passes])
        for leaf in tree.leaves:
            indices = tree.indices(leaf)
            plain = model(input_ids=torch.from_numpy(tree.tokens[indices])[None], use_cache=False).logits[0]
            torch.testing.assert_close(logits[indices], plain, rtol=0, atol=2e-3)
