"""Encoder-decoder models: the contract of every engine, texts and scores against transformers, what is read once."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import transformers
from tiny_kinds import END, PAD, framed_tokenizer, spaced_tokenizer

from cuecard.errors import InputError
from cuecard.models.batch_limits import BatchLimits
from cuecard.models.encoder_decoder import EncoderDecoderEngine
from cuecard.models.engine import Decoding, Engine, Failure, GenerateRequest, Generation, ScoreRequest, Scores
from cuecard.models.plain import engine_for
from cuecard.models.tokenizer import HFTokenizer
from tiny import build_tiny_tokenizer

from .engine_conformance import CHOICES, EngineConformance

WINDOW = 160
NEW = 8


def t5(**changes: Any) -> Any:
    return transformers.T5Config(**{
        "vocab_size": len(spaced_tokenizer()) + 7, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2,
        "num_heads": 4, "decoder_start_token_id": PAD, "n_positions": WINDOW, **changes,
    })  # fmt: skip


def bart(**changes: Any) -> Any:
    return transformers.BartConfig(**{
        "vocab_size": len(framed_tokenizer()), "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
        "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
        "max_position_embeddings": WINDOW, "init_std": 0.5, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
        "decoder_start_token_id": 2, "forced_eos_token_id": None, **changes,
    })  # fmt: skip


KINDS: dict[str, Callable[[], Any]] = {
    "t5": t5,
    "flan-t5": lambda: t5(feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "bart": bart,
    "m2m_100": lambda: transformers.M2M100Config(**{
        name: value for name, value in bart().to_dict().items() if name not in ("model_type", "architectures")
    }),
}  # fmt: skip


def build(made: Any, kind: str = "") -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForSeq2SeqLM.from_config(made)
        for name, weight in model.named_parameters():
            if "EncDecAttention" in name:
                weight.data *= 2.0
    if kind == "bart":
        model.generation_config.forced_bos_token_id = 1
    return model.eval().requires_grad_(False)


@functools.cache
def model_of(kind: str) -> Any:
    """A small random model. Not to be changed."""
    return build(KINDS[kind](), kind)


def engine_over(model: Any, tokenizer: Any = None, **settings: Any) -> EncoderDecoderEngine:
    backend = tokenizer or (spaced_tokenizer() if "t5" in model.config.model_type else framed_tokenizer())
    engine = engine_for(
        model,
        HFTokenizer(backend, name="random"),
        identity=f"random-{model.config.model_type}",
        name="random",
        ends=(model.config.eos_token_id,),
        backend_tokenizer=backend,
        **settings,
    )
    assert isinstance(engine, EncoderDecoderEngine)
    return engine


@pytest.fixture(scope="module", params=["t5", "bart"])
def any_kind(request: pytest.FixtureRequest) -> EncoderDecoderEngine:
    return engine_over(model_of(request.param))


class TestEncoderDecoderEngine(EngineConformance):
    @pytest.fixture
    def engine(self, any_kind: EncoderDecoderEngine) -> Engine:
        return any_kind

    def test_a_continuation_can_be_scored_in_pieces(self, engine: Engine) -> None:
        """The rest of a continuation has no score of its own: a prompt is the encoder's, a continuation the decoder's."""
        prompt, text = self.prompt(engine, "A customer"), engine.tokenizer.encode(" Please refund the second charge.")
        whole, *pieces = self.scores(engine, ScoreRequest(prompt, tuple(text[:cut] for cut in (None, 1, 3)))).logprobs
        for piece in pieces:
            assert piece == pytest.approx(whole[: len(piece)], abs=self.tolerance)


# Against transformers

VARIED = [1, 1, 2, 3, 60, 61, *(5 + 7 * i % 50 for i in range(54))]


def prompts_of(lengths: Sequence[int], seed: int = 0) -> list[tuple[int, ...]]:
    source = random.Random(seed)
    return [tuple(source.randrange(3, len(spaced_tokenizer())) for _ in range(length)) for length in lengths]


def end_of(model: Any) -> int:
    return int(model.config.eos_token_id)


@functools.cache
def expected(kind: str, count: int = len(VARIED)) -> list[tuple[int, ...]]:
    """transformers' own greedy outputs, without the tokens that start and end them."""
    model = model_of(kind)
    forced = model.generation_config.forced_bos_token_id is not None
    found = []
    for prompt in prompts_of(VARIED)[:count]:
        ids = torch.tensor([[*prompt, end_of(model)]])
        output = model.generate(ids, do_sample=False, num_beams=1, max_new_tokens=NEW + forced)
        tokens = output[0, 1 + forced :].tolist()
        found.append(tuple(tokens[: tokens.index(end_of(model))] if end_of(model) in tokens else tokens))
    return found


def tokens_of(results: Sequence[Generation | Failure]) -> list[tuple[int, ...]]:
    assert all(isinstance(result, Generation) for result in results), results
    return [sample.tokens for result in results for sample in result.samples]


@pytest.mark.parametrize("rows", [1, 7, 32])
@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_greedy_outputs_are_those_of_transformers(kind: str, rows: int) -> None:
    engine = engine_over(model_of(kind), limits=BatchLimits(rows=rows))
    requests = [GenerateRequest(prompt, Decoding(max_tokens=NEW)) for prompt in prompts_of(VARIED)]
    assert tokens_of(engine.generate(requests)) == expected(kind)
    assert len(set(expected(kind))) > 10, "the outputs must vary"


@pytest.mark.parametrize("kind", ["flan-t5", "m2m_100"])
def test_greedy_outputs_are_those_of_transformers_for_their_kin(kind: str) -> None:
    engine = engine_over(model_of(kind))
    requests = [GenerateRequest(prompt, Decoding(max_tokens=NEW)) for prompt in prompts_of(VARIED)[:12]]
    assert tokens_of(engine.generate(requests)) == expected(kind, 12)


@torch.inference_mode()
def direct_logprobs(model: Any, prefix: Sequence[int], prompt: Sequence[int], output: Sequence[int]) -> list[float]:
    """The log-probability of each token of `output` in one forward pass over both sides."""
    ids, written = torch.tensor([[*prompt, end_of(model)]]), torch.tensor([[*prefix, *output]])
    logprobs = torch.log_softmax(model(input_ids=ids, decoder_input_ids=written).logits[0].double(), dim=-1)
    return [float(logprobs[len(prefix) - 1 + i, token]) for i, token in enumerate(output)]


@pytest.mark.parametrize(("kind", "prefix"), [("t5", (PAD,)), ("bart", (2, 1))])
@pytest.mark.parametrize("rows", [1, 7, 32])
def test_scores_are_those_of_a_forward_pass(kind: str, prefix: tuple[int, ...], rows: int) -> None:
    engine = engine_over(model_of(kind), limits=BatchLimits(rows=rows))
    long, other = prompts_of([6, 2], seed=1)
    requests = [
        ScoreRequest(prompt, (long, long[:1], other, (5,), (*long[:3], 7), long)) for prompt in prompts_of(VARIED[:10])
    ]
    for request, result in zip(requests, engine.score(requests), strict=True):
        assert isinstance(result, Scores)
        for continuation, logprobs in zip(request.continuations, result.logprobs, strict=True):
            wanted = direct_logprobs(engine.model, prefix, request.prompt, continuation)
            assert logprobs == pytest.approx(wanted, abs=1e-4)


# What is read once


@contextmanager
def watched(module: Any, key: str = "input_ids", most: int = 10**9) -> Iterator[list[int]]:
    """How many texts each call of a part of the model gets; memory runs out for more than `most`."""
    rows: list[int] = []

    def look(module: Any, args: Any, kwargs: Any) -> None:
        rows.append(len(kwargs[key]))
        if rows[-1] > most:
            raise torch.OutOfMemoryError("there is no memory")

    handle = module.register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield rows
    finally:
        handle.remove()


@pytest.mark.parametrize("rows", [3, 32])
def test_the_encoder_reads_equal_prompts_once(rows: int) -> None:
    engine = engine_over(model_of("t5"), limits=BatchLimits(rows=rows))
    first, second = prompts_of([9, 12])
    scores = [
        ScoreRequest(first, ((5, 6), (7,), (8, 9, 10))),
        ScoreRequest(second, ((5,),)),
        ScoreRequest(first, ((9, 9),)),
    ]
    with watched(engine.model.get_encoder()) as read:
        engine.score(scores)
    assert sum(read) == 2
    assert engine.ledger.cached_tokens == len(first)
    texts = [
        GenerateRequest(p, Decoding(max_tokens=3, temperature=1.0, seed=s, n=4))
        for p in (first, second)
        for s in (1, 2)
    ]
    with watched(engine.model.get_encoder()) as read:
        engine.generate(texts)
    assert sum(read) == 2


def test_the_decoder_reads_all_continuations_of_a_prompt_in_one_pass() -> None:
    engine = engine_over(model_of("bart"))
    (prompt,) = prompts_of([9])
    before = engine.ledger.forward_passes
    with watched(engine.model.get_decoder()) as rows:
        engine.score([ScoreRequest(prompt, ((5, 6), (7,), (8,), (8, 9, 10)))])
    assert rows == [2]  # (7,), (8,) are read where (5, 6) begins
    assert engine.ledger.forward_passes == before + 2


def test_more_samples_than_a_batch_holds_are_the_same_samples() -> None:
    (prompt,) = prompts_of([9])
    request = GenerateRequest(prompt, Decoding(max_tokens=5, temperature=1.5, n=10))
    few, many = (engine_over(model_of("t5"), limits=BatchLimits(rows=rows)).generate([request]) for rows in (3, 32))
    assert tokens_of(few) == tokens_of(many)
    assert len(set(tokens_of(few))) > 1


def test_finished_outputs_leave_the_batch() -> None:
    engine = engine_over(model_of("bart"))
    prompts = prompts_of([4, 6, 9])
    assert [
        len(tokens)
        for tokens in tokens_of(engine.generate([GenerateRequest(p, Decoding(max_tokens=4)) for p in prompts]))
    ] == [4, 4, 4]
    with watched(engine.model.get_decoder()) as rows:
        engine.generate([GenerateRequest(p, Decoding(max_tokens=m)) for p, m in zip(prompts, (1, 2, 4), strict=True)])
    assert rows == [3, 2, 1, 1]


# What the model reads


@contextmanager
def inputs(module: Any) -> Iterator[list[list[int]]]:
    seen: list[list[int]] = []
    handle = module.register_forward_pre_hook(
        lambda module, args, kwargs: seen.extend(kwargs["input_ids"].tolist()), with_kwargs=True
    )
    try:
        yield seen
    finally:
        handle.remove()


@pytest.mark.parametrize(("kind", "ended"), [("t5", [END]), ("bart", [2])])
def test_the_end_token_stands_behind_the_prompt_once(kind: str, ended: list[int]) -> None:
    engine = engine_over(model_of(kind))
    for prompt in ((5, 6), (5, 6, *ended)):
        with inputs(engine.model.get_encoder()) as read:
            engine.generate([GenerateRequest(prompt, Decoding(max_tokens=1))])
        assert read == [[5, 6, *ended]]


def test_without_a_tokenizer_the_end_token_is_that_of_the_configuration() -> None:
    engine = EncoderDecoderEngine(
        model_of("t5"), HFTokenizer(spaced_tokenizer(), name="t5"), identity="x", name="t5", ends=(END,)
    )
    with inputs(engine.model.get_encoder()) as read:
        engine.score([ScoreRequest((5, 6), ((7,),))])
    assert read == [[5, 6, END]]


def test_a_tokenizer_that_ends_no_text_leaves_prompts_as_they_are() -> None:
    engine = engine_over(model_of("bart"), build_tiny_tokenizer())
    with inputs(engine.model.get_encoder()) as read:
        engine.score([ScoreRequest((5, 6), ((7,),))])
    assert read == [[5, 6]]


@pytest.mark.parametrize(("kind", "prefix"), [("t5", [PAD]), ("bart", [2, 1])])
def test_the_decoder_starts_as_the_generation_config_says(kind: str, prefix: list[int]) -> None:
    engine = engine_over(model_of(kind))
    with inputs(engine.model.get_decoder()) as written:
        (result,) = engine.generate([GenerateRequest((5, 6), Decoding(max_tokens=2))])
    assert written == [prefix, [result.samples[0].tokens[0]]]


def test_a_decoder_without_a_start_is_refused() -> None:
    with pytest.raises(InputError, match="does not say with which token its decoder starts"):
        engine_over(build(t5(decoder_start_token_id=None)))


WINDOWS = [
    (lambda: t5(n_positions=200), 200),
    (lambda: transformers.T5Config(**{k: v for k, v in t5().to_dict().items() if k != "n_positions"}), 512),
    (lambda: bart(max_position_embeddings=140), 140),
]


@pytest.mark.parametrize(("made", "window"), WINDOWS)
def test_whatever_fits_into_the_window_fits_both_sides(made: Callable[[], Any], window: int) -> None:
    engine = engine_over(build(made()))
    assert engine.context_window == window
    long = (5,) * (window - 1)
    results = [
        *engine.generate(
            [GenerateRequest(long, Decoding(max_tokens=1)), GenerateRequest((5,), Decoding(max_tokens=window - 1))]
        ),
        *engine.score([ScoreRequest(long, ((5,),)), ScoreRequest((5,), (long,))]),
    ]
    assert not any(isinstance(result, Failure) for result in results), results
    (over,) = engine.score([ScoreRequest(long, ((5, 6),))])
    assert over == Failure(f"prompt and output need {window + 1} tokens, and the model's context window holds {window}")


# Grammars over pieces of words


def test_a_grammar_may_be_followed_with_the_space_before_the_first_word() -> None:
    tokenizer, engine = spaced_tokenizer(), engine_over(model_of("t5"))
    (result,) = engine.generate([GenerateRequest((5, 6), Decoding(max_tokens=20, temperature=3.0, n=40), CHOICES)])
    texts = {sample.text for sample in result.samples}
    firsts = {tokenizer.convert_ids_to_tokens(sample.tokens[0])[0] for sample in result.samples}
    assert texts == {"yes", "no", "maybe later"}
    assert "\u2581" in firsts
    assert len(firsts) > 1


def test_a_grammar_that_no_token_can_follow_fails_alone() -> None:
    engine = engine_over(model_of("t5"))
    grammars = ['start: "a|"\n', CHOICES, None, "start: nothing\n", 'start: "a:" "\\nb: " ("c" | "d")\n']
    results = engine.generate([GenerateRequest((5, 6), Decoding(max_tokens=9), grammar) for grammar in grammars])
    assert results[0] == Failure("the grammar can't be followed after 'a': the model has no token for what comes next")
    assert isinstance(results[1], Generation)
    assert isinstance(results[2], Generation)
    assert isinstance(results[3], Failure)
    assert results[4] == Failure("the grammar can't be followed after 'a:': the model has no token for what comes next")


# Memory


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_a_batch_that_does_not_fit_into_memory_is_halved(part: str) -> None:
    engine = engine_over(model_of("t5"), limits=BatchLimits(rows=16))
    prompts = prompts_of(VARIED[:7])
    requests = [GenerateRequest(p, Decoding(max_tokens=4, temperature=1.0, n=2)) for p in prompts]
    scored = [ScoreRequest(prompt, ((5, 6), (7, 8, 9))) for prompt in prompts]
    texts, scores = engine.generate(requests), engine.score(scored)
    with watched(getattr(engine.model, f"get_{part}")(), most=2) as rows:
        assert tokens_of(engine.generate(requests)) == tokens_of(texts)
        for found, result in zip(engine.score(scored), scores, strict=True):
            assert found.totals == pytest.approx(result.totals, abs=1e-4)
    assert max(rows) > 2


def test_the_notice_says_that_it_is_an_encoder_decoder() -> None:
    assert engine_over(model_of("t5")).notice == (
        "random shares no prefixes: it is an encoder-decoder; every prompt is computed in full"
    )
