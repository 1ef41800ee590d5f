"""Plain batches: the contract of every engine, decoder-only models against transformers, and what a model can't do."""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from cuecard.errors import InputError, RunError
from cuecard.models.architecture import prepare
from cuecard.models.batch_limits import BatchLimits, batch_limits
from cuecard.models.batch_rows import score_paths
from cuecard.models.engine import Decoding, Engine, Failure, GenerateRequest, Generation, ScoreRequest, Scores
from cuecard.models.plain import PlainEngine, engine_for
from cuecard.models.tokenizer import HFTokenizer

from .engine_conformance import EngineConformance
from .helpers import ENDS, config, plain_greedy, plain_logprobs, random_tokens, tokenizer

V = len(tokenizer())
WINDOW = 256
NEW = 8
SMALL: dict[str, Any] = {"vocab_size": V, "hidden_size": 32, "num_hidden_layers": 2, "initializer_range": 0.3}
CONFIGS: dict[str, Callable[[], Any]] = {
    "bloom": lambda: transformers.BloomConfig(vocab_size=V, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.3),
    "gemma2": lambda: config("gemma2", sliding_window=24, attn_logit_softcapping=2.0, max_position_embeddings=WINDOW),
    "mpt": lambda: transformers.MptConfig(
        vocab_size=V, d_model=32, n_layers=2, n_heads=4, max_seq_len=WINDOW, initializer_range=0.3
    ),
    "mamba": lambda: transformers.MambaConfig(**SMALL),
    "biased mamba": lambda: transformers.MambaConfig(**SMALL, use_bias=True),
    "rwkv": lambda: transformers.RwkvConfig(
        vocab_size=V, hidden_size=32, num_hidden_layers=2, context_length=WINDOW, bos_token_id=1, eos_token_id=2
    ),
    "recurrent gemma": lambda: transformers.RecurrentGemmaConfig(
        vocab_size=V, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=1, lru_width=32, attention_window_size=64,
    ),
}  # fmt: skip


@functools.cache
def model_of(kind: str) -> Any:
    """A small random model whose next token is seldom a near tie. Not to be changed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(CONFIGS[kind]())
        for name, weight in model.named_parameters():
            if name.endswith("bias") and kind == "biased mamba":
                torch.nn.init.normal_(weight, std=0.5)
    model.generation_config.eos_token_id = list(ENDS)
    return model.eval().requires_grad_(False)


def plain_over(model: Any, **settings: Any) -> PlainEngine:
    engine = engine_for(
        model,
        HFTokenizer(tokenizer(), name="random"),
        identity=f"random-{model.config.model_type}",
        name="random",
        ends=ENDS,
        backend_tokenizer=tokenizer(),
        **settings,
    )
    assert isinstance(engine, PlainEngine)
    return engine


def rows_of(count: int) -> BatchLimits:
    return BatchLimits(rows=count)


def prompts_of(lengths: Sequence[int], seed: int = 0) -> list[tuple[int, ...]]:
    source = random.Random(seed)
    return [random_tokens(source, length) for length in lengths]


@contextmanager
def watched(model: Any, most: int = 10**9, width: int = 10**9) -> Iterator[list[tuple[int, int]]]:
    """The shapes of what the model is given; memory runs out for more rows than `most`, or more tokens than `width`."""
    shapes: list[tuple[int, int]] = []

    def look(module: Any, args: Any, kwargs: Any) -> None:
        rows, tokens = kwargs["input_ids"].shape
        shapes.append((rows, tokens))
        if rows > most or tokens > width:
            raise torch.OutOfMemoryError("there is no memory\nand no more to say")

    handle = model.register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield shapes
    finally:
        handle.remove()


def tokens_of(results: Sequence[Generation | Failure]) -> list[tuple[int, ...]]:
    assert all(isinstance(result, Generation) for result in results), results
    return [sample.tokens for result in results for sample in result.samples]


@pytest.fixture(scope="module", params=["bloom", "mamba", "rwkv"])
def any_kind(request: pytest.FixtureRequest) -> PlainEngine:
    return plain_over(model_of(request.param))


class TestPlainEngine(EngineConformance):
    @pytest.fixture
    def engine(self, any_kind: PlainEngine) -> Engine:
        return any_kind


# Against transformers

VARIED = [1, 1, 2, 3, 60, 61, *(5 + 7 * i % 50 for i in range(54))]


@functools.cache
def expected(kind: str) -> list[tuple[int, ...]]:
    return [plain_greedy(model_of(kind), prompt, NEW) for prompt in prompts_of(VARIED)]


@pytest.mark.parametrize("rows", [1, 7, 32])
@pytest.mark.parametrize("kind", ["bloom", "gemma2", "mamba"])
def test_greedy_texts_are_those_of_transformers(kind: str, rows: int) -> None:
    engine = plain_over(model_of(kind), limits=rows_of(rows))
    requests = [GenerateRequest(prompt, Decoding(max_tokens=NEW)) for prompt in prompts_of(VARIED)]
    assert tokens_of(engine.generate(requests)) == expected(kind)


@pytest.mark.parametrize("kind", ["mpt", "biased mamba", "rwkv", "recurrent gemma"])
def test_greedy_texts_are_those_of_transformers_for_models_with_limits(kind: str) -> None:
    prompts = prompts_of([*VARIED[2:12], 5, 5, 5])
    requests = [GenerateRequest(prompt, Decoding(max_tokens=NEW)) for prompt in prompts]
    found = tokens_of(plain_over(model_of(kind), limits=rows_of(8)).generate(requests))
    assert found == [plain_greedy(model_of(kind), prompt, NEW) for prompt in prompts]


@pytest.mark.parametrize(
    ("kind", "rows"), [("bloom", 1), ("bloom", 7), ("bloom", 32), ("gemma2", 7), ("mamba", 7), ("rwkv", 7)]
)
def test_scores_are_those_of_a_forward_pass(kind: str, rows: int) -> None:
    engine = plain_over(model_of(kind), limits=rows_of(rows))
    source = random.Random(1)
    requests = []
    for prompt in prompts_of(VARIED[:10]):
        long = random_tokens(source, 6)
        continuations = (long, long[:1], long[:3], (5,), random_tokens(source, 2), (*long[:3], 7), long)
        requests.append(ScoreRequest(prompt, continuations))
    for request, result in zip(requests, engine.score(requests), strict=True):
        assert isinstance(result, Scores)
        for continuation, logprobs in zip(request.continuations, result.logprobs, strict=True):
            assert logprobs == pytest.approx(plain_logprobs(engine.model, request.prompt, continuation), abs=1e-4)


def test_generated_tokens_have_the_logprobs_of_a_forward_pass() -> None:
    engine = plain_over(model_of("gemma2"))
    for prompt, result in zip(
        prompts_of(VARIED[:8]),
        engine.generate([GenerateRequest(p, Decoding(max_tokens=6, temperature=1.0)) for p in prompts_of(VARIED[:8])]),
        strict=True,
    ):
        (sample,) = result.samples
        assert sample.logprobs == pytest.approx(plain_logprobs(engine.model, prompt, sample.tokens), abs=1e-4)


def test_weights_in_sixteen_bits_are_used_as_they_are() -> None:
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS["bloom"](), dtype=torch.bfloat16).eval()
    engine = plain_over(model)
    (prompt,) = prompts_of([20])
    (result,) = engine.score([ScoreRequest(prompt, ((5, 6, 7),))])
    assert result.logprobs[0] == pytest.approx(plain_logprobs(model, prompt, (5, 6, 7)), abs=0.1)
    assert model.dtype == torch.bfloat16


# Batches


def test_finished_texts_leave_the_batch() -> None:
    engine = plain_over(model_of("bloom"), limits=rows_of(3))
    prompts = prompts_of([4, 6, 9])
    full = [len(tokens) for tokens in expected_lengths(engine, prompts)]
    assert full == [8, 8, 8], "the texts must not end by themselves"
    limits = [1, 3, 8]
    with watched(engine.model) as shapes:
        engine.generate([GenerateRequest(p, Decoding(max_tokens=m)) for p, m in zip(prompts, limits, strict=True)])
    assert shapes == [(3, 9), (2, 1), (2, 1), *[(1, 1)] * 5]


def expected_lengths(engine: PlainEngine, prompts: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    return tokens_of(engine.generate([GenerateRequest(prompt, Decoding(max_tokens=8)) for prompt in prompts]))


def test_texts_stay_to_the_end_where_the_cache_lets_no_row_go() -> None:
    engine = plain_over(model_of("recurrent gemma"))
    prompts = prompts_of([4, 6])
    with watched(engine.model) as shapes:
        engine.generate([GenerateRequest(p, Decoding(max_tokens=m)) for p, m in zip(prompts, (1, 4), strict=True)])
    assert {rows for rows, _ in shapes} == {2}


def test_only_prompts_of_equal_length_share_a_batch_where_padding_is_not_known() -> None:
    engine = plain_over(model_of("biased mamba"))
    with watched(engine.model) as shapes:
        engine.generate([GenerateRequest(p, Decoding(max_tokens=1)) for p in prompts_of([9, 4, 4, 9, 4])])
    assert shapes == [(3, 4), (2, 9)]


def test_a_prompt_of_one_token_does_not_continue_what_the_model_saw_last() -> None:
    engine = plain_over(model_of("recurrent gemma"))
    request = GenerateRequest((5,), Decoding(max_tokens=8))
    before = engine.generate([request])
    engine.generate([GenerateRequest(prompt, Decoding(max_tokens=3)) for prompt in prompts_of([20])])
    assert engine.generate([request]) == before


def test_every_text_is_alone_where_a_batch_is_computed_wrong() -> None:
    engine = plain_over(model_of("rwkv"))
    with watched(engine.model) as shapes:
        engine.generate([GenerateRequest(p, Decoding(max_tokens=1)) for p in prompts_of([4, 4])])
    assert shapes == [(1, 4), (1, 4)]


def test_equal_prompts_are_computed_once() -> None:
    engine = plain_over(model_of("bloom"))
    (prompt,) = prompts_of([9])
    requests = [GenerateRequest(prompt, Decoding(max_tokens=4, temperature=2.0, seed=s, n=2)) for s in (1, 2)]
    with watched(engine.model) as shapes:
        together = engine.generate([*requests, requests[0]])
    assert [rows for rows, _ in shapes] == [1, 4, 4, 4]
    assert together[0] == together[2]
    assert engine.ledger.cached_tokens == 2 * len(prompt)
    assert [tokens_of(engine.generate([request])) for request in requests] == [tokens_of([r]) for r in together[:2]]


@pytest.mark.parametrize("tokens", [40, 100, 10**6])
def test_a_batch_holds_no_more_tokens_than_the_limit(tokens: int) -> None:
    engine = plain_over(model_of("bloom"), limits=BatchLimits(rows=16, tokens=tokens))
    requests = [GenerateRequest(prompt, Decoding(max_tokens=2)) for prompt in prompts_of(VARIED[:30])]
    with watched(engine.model) as shapes:
        engine.generate(requests)
    prefills = [(rows, width) for rows, width in shapes if width > 1]
    assert all(rows == 1 or rows * (width + 2) <= tokens for rows, width in prefills)
    assert all(rows <= 16 for rows, _ in shapes)
    assert (len(prefills) < 6) == (tokens == 10**6)


def test_pairs_and_logits_are_limited_as_well() -> None:
    requests = [ScoreRequest(prompt, ((5, 6, 7),)) for prompt in prompts_of([20] * 8)]
    for limits, rows in ((BatchLimits(pairs=2 * 22**2), 2), (BatchLimits(logits=12), 4), (BatchLimits(), 8)):
        engine = plain_over(model_of("bloom"), limits=limits)
        with watched(engine.model) as shapes:
            engine.score(requests)
        assert shapes == [(rows, 22)] * (8 // rows)


def test_more_samples_than_a_batch_holds_are_the_same_samples() -> None:
    (prompt,) = prompts_of([9])
    request = GenerateRequest(prompt, Decoding(max_tokens=5, temperature=1.5, n=10))
    few, many = (plain_over(model_of("bloom"), limits=rows_of(rows)).generate([request]) for rows in (3, 32))
    assert tokens_of(few) == tokens_of(many)
    assert len(set(tokens_of(few))) > 1


def test_a_seed_decides_the_text_however_the_batch_is_cut() -> None:
    requests = [
        GenerateRequest(prompt, Decoding(max_tokens=6, temperature=1.2, top_p=0.9, seed=seed, frequency_penalty=0.5))
        for seed, prompt in enumerate(prompts_of(VARIED[:20]))
    ]
    alone, together = (plain_over(model_of("bloom"), limits=rows_of(rows)).generate(requests) for rows in (1, 20))
    assert tokens_of(alone) == tokens_of(together)


CONTINUATIONS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4).map(tuple), min_size=1, max_size=6)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.builds(ScoreRequest, st.sampled_from([(1,), (2,), (1, 2)]), CONTINUATIONS.map(tuple)), max_size=4))
def test_every_continuation_is_read_from_a_text_that_holds_it(requests: list[ScoreRequest]) -> None:
    paths, homes = score_paths(requests)
    for request in requests:
        for continuation in request.continuations:
            index, start = homes[request.prompt][continuation]
            path = paths[index]
            assert path.prompt == request.prompt
            assert path.picks[start : start + len(continuation)] == tuple(enumerate(continuation))
            assert path.tokens[: len(continuation) - 1] == continuation[:-1]
    for path in paths:
        others = [other.tokens for other in paths if other is not path and other.prompt == path.prompt]
        assert not any(other[: len(path.tokens)] == path.tokens for other in others)


# Memory


@pytest.mark.parametrize("most", [1, 2, 5])
def test_a_batch_that_does_not_fit_into_memory_is_halved(most: int) -> None:
    engine = plain_over(model_of("bloom"), limits=rows_of(32))
    prompts = prompts_of(VARIED[:11])
    requests = [GenerateRequest(p, Decoding(max_tokens=4, temperature=1.0, n=2)) for p in prompts]
    scored = [ScoreRequest(prompt, ((5, 6), (7, 8, 9))) for prompt in prompts]
    texts, scores = engine.generate(requests), engine.score(scored)
    with watched(engine.model, most=most) as shapes:
        assert tokens_of(engine.generate(requests)) == tokens_of(texts)
        for found, result in zip(engine.score(scored), scores, strict=True):
            assert found.totals == pytest.approx(result.totals, abs=1e-4)
    assert max(rows for rows, _ in shapes) > most


def test_a_text_too_large_for_memory_fails_alone() -> None:
    engine = plain_over(model_of("bloom"))
    prompts = prompts_of([5, 50, 6])
    scored = [ScoreRequest(prompt, ((5, 6), (7,))) for prompt in prompts]
    with watched(engine.model, width=30):
        texts = engine.generate([GenerateRequest(prompt, Decoding(max_tokens=3)) for prompt in prompts])
        scores = engine.score(scored)
    assert [isinstance(result, Failure) for result in texts] == [False, True, False]
    assert [isinstance(result, Failure) for result in scores] == [False, True, False]
    assert texts[1].error == (
        "there is not enough memory for a text of 53 tokens (there is no memory); shorten the prompt, ask for fewer "
        "tokens or samples, or use a smaller dtype or a device with more memory"
    )


def test_another_error_is_no_lack_of_memory() -> None:
    engine = plain_over(model_of("bloom"))

    def fail(*args: Any) -> None:
        raise RuntimeError("a defect")

    handle = engine.model.register_forward_pre_hook(fail)
    try:
        with pytest.raises(RuntimeError, match="a defect"):
            engine.generate([GenerateRequest((5, 6), Decoding(max_tokens=2))])
    finally:
        handle.remove()


def test_a_model_that_does_not_fit_into_memory_is_no_wrong_input() -> None:
    with watched(model_of("bloom"), most=0), pytest.raises(RunError, match="not enough memory to run model 'random'"):
        plain_over(model_of("bloom"))


def test_limits_follow_the_size_of_the_model() -> None:
    small, large = (
        batch_limits(transformers.AutoModelForCausalLM.from_config(config("llama", **changes)))
        for changes in (
            {},
            {"hidden_size": 512, "num_hidden_layers": 16, "num_attention_heads": 64, "vocab_size": 9000},
        )
    )
    assert large.tokens < small.tokens
    assert large.pairs < small.pairs
    assert large.logits < small.logits


# Models


def test_a_model_that_sees_what_follows_is_refused() -> None:
    model = transformers.AutoModelForCausalLM.from_config(config("bert")).eval()
    with pytest.raises(
        InputError, match=r"model 'random' \(bert\) can't be run in batches: its tokens depend on those"
    ):
        plain_over(model)


def test_a_model_that_cannot_run_is_refused_with_the_cause() -> None:
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS["bloom"]()).eval()
    model.lm_head = torch.nn.Linear(7, 7)
    with pytest.raises(InputError, match="can't be run in batches: mat1 and mat2 shapes"):
        plain_over(model)


@pytest.mark.parametrize("kind", ["gemma2", "bloom", "mpt"])
def test_a_model_that_the_tree_engine_refuses_is_left_as_it_was(kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[kind]()).eval()
    model.load_state_dict(model_of(kind).state_dict())
    before = json.dumps(attention_of(model.config))
    capfd.readouterr()
    with pytest.raises(InputError, match="can't share prefixes"):
        prepare(model, "random")
    assert json.dumps(attention_of(model.config)) == before
    assert capfd.readouterr() == ("", "")
    requests = [GenerateRequest(prompt, Decoding(max_tokens=NEW)) for prompt in prompts_of(VARIED)[:8]]
    assert tokens_of(plain_over(model).generate(requests)) == expected(kind)[:8]


def attention_of(config: Any) -> list[Any]:
    """The attention that a configuration and its parts name."""
    return [config._attn_implementation, *(attention_of(getattr(config, name)) for name in config.sub_configs)]


def test_the_notice_says_what_is_not_shared_and_why() -> None:
    assert plain_over(model_of("bloom"), why="its biases are of places").notice == (
        "random shares no prefixes: its biases are of places; every prompt is computed in full"
    )
    assert "\n" not in plain_over(model_of("bloom")).notice


WINDOWS = [
    ("bloom", {}, 2048),
    ("mamba", {}, 2048),
    ("gemma2", {"max_position_embeddings": 300, "sliding_window": 100}, 300),
    ("gpt2", {"n_positions": 300}, 300),
    ("phi3", {"original_max_position_embeddings": 64, "max_position_embeddings": 256, "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4,
        "original_max_position_embeddings": 64}}, 64),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "changes", "window"), WINDOWS, ids=[kind for kind, _, _ in WINDOWS])
def test_the_window_is_what_the_model_was_made_for(kind: str, changes: dict[str, Any], window: int) -> None:
    model = transformers.AutoModelForCausalLM.from_config(config(kind, **changes)).eval()
    assert plain_over(model).context_window == window
