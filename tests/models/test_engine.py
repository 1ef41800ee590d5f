"""The local engine and the journal around it: the contract of every engine, and generation against transformers."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import cuecard
from cuecard.compiler.journal import Clock, JournaledEngine
from cuecard.errors import InputError
from cuecard.models import local as local_module
from cuecard.models.architecture import context_window
from cuecard.models.attention import KeyValues
from cuecard.models.decode import GROW, SHARED_BY, DecodePlan, Split, TreeRow
from cuecard.models.engine import (
    Decoding,
    Engine,
    Failure,
    GenerateRequest,
    Generation,
    Ledger,
    ScoreRequest,
    Scores,
    SpanRequest,
    Spans,
    Tokenizer,
)
from cuecard.models.limits import Limits
from cuecard.models.local import LocalEngine

from .engine_conformance import EngineConformance
from .helpers import (
    WINDOW,
    config,
    engine_over,
    family,
    plain_greedy,
    plain_logprobs,
    random_model,
    random_tokens,
)


@pytest.fixture(scope="module")
def local() -> LocalEngine:
    return engine_over(random_model("llama"))


class TestLocalEngine(EngineConformance):
    @pytest.fixture
    def engine(self, local: LocalEngine) -> Engine:
        return local


class TestJournaledEngine(EngineConformance):
    @pytest.fixture
    def engine(self, local: LocalEngine, tmp_path: Path) -> Engine:
        return JournaledEngine(local, tmp_path / "calls.jsonl", Clock())


class TestReplayedEngine(EngineConformance):
    """Every answer is read back from the journal, which has no engine behind it that could give another."""

    @pytest.fixture
    def engine(self, local: LocalEngine, tmp_path: Path) -> Engine:
        return Replayed(local, tmp_path / "calls.jsonl")


class Dead:
    """The identity of an engine, and nothing that could answer."""

    def __init__(self, engine: Engine) -> None:
        self.identity, self.name, self.tokenizer = engine.identity, engine.name, engine.tokenizer
        self.context_window = engine.context_window
        self.ledger = Ledger()

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Generation | Failure]:
        raise AssertionError(f"{len(requests)} requests are not in the journal")

    def score(self, requests: Sequence[ScoreRequest]) -> list[Scores | Failure]:
        raise AssertionError(f"{len(requests)} requests are not in the journal")

    def spans(self, requests: Sequence[SpanRequest]) -> list[Spans | Failure]:
        raise AssertionError(f"{len(requests)} requests are not in the journal")


class Replayed(Dead):
    """Writes every batch down with one journal, and answers from another that reads the same file."""

    def __init__(self, engine: Engine, path: Path) -> None:
        super().__init__(engine)
        self.tokenizer: Tokenizer = engine.tokenizer
        self._writer, self._path = JournaledEngine(engine, path, Clock()), path

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Generation | Failure]:
        return self._replay("generate", requests)

    def score(self, requests: Sequence[ScoreRequest]) -> list[Scores | Failure]:
        return self._replay("score", requests)

    def spans(self, requests: Sequence[SpanRequest]) -> list[Spans | Failure]:
        return self._replay("spans", requests)

    def _replay(self, ask: str, requests: Sequence[Any]) -> Any:
        written = getattr(self._writer, ask)(requests)
        reader = JournaledEngine(Dead(self), self._path, Clock())
        results = getattr(reader, ask)(requests)
        assert results == written
        self.ledger = self.ledger + reader.ledger
        return results


# Generation against transformers

AROUND_BLOCKS = (0, 1, 5, 60, 60, 100, 120, 126, 127, 127, 128, 128, 129, 135, 190, 200, 255, 256, 257, 300)
ARCHITECTURES = ("llama", "qwen2", "qwen3", "gpt2", "mixtral", "gemma3")
NEW = 12


@pytest.fixture(scope="module", params=ARCHITECTURES)
def reference(request: pytest.FixtureRequest) -> tuple[str, list[tuple[int, ...]], list[tuple[int, ...]]]:
    """An architecture, prompts that share prefixes, and how transformers goes on with each."""
    model = random_model(request.param)
    prompts = family(AROUND_BLOCKS)
    return request.param, prompts, [plain_greedy(model, prompt, NEW) for prompt in prompts]


def greedy(engine: LocalEngine, prompts: Sequence[tuple[int, ...]], tokens: int = NEW) -> list[tuple[int, ...]]:
    results = engine.generate([GenerateRequest(prompt, Decoding(max_tokens=tokens)) for prompt in prompts])
    return [result.samples[0].tokens for result in results]


@pytest.mark.parametrize("chunk", [2048, 100])
def test_greedy_is_what_transformers_generates(
    reference: tuple[str, list[tuple[int, ...]], list[tuple[int, ...]]], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, prompts, expected = reference
    monkeypatch.setattr(local_module, "CHUNK", chunk)
    engine = engine_over(random_model(kind))
    assert greedy(engine, prompts) == expected
    order = random.Random(1).sample(range(len(prompts)), len(prompts))
    assert greedy(engine, [prompts[i] for i in order]) == [expected[i] for i in order]
    for size in (1, 7):
        batches = [prompts[first : first + size] for first in range(0, len(prompts), size)]
        found = [tokens for batch in batches for tokens in greedy(engine, batch)]
        assert found == expected


def test_greedy_goes_on_beyond_the_cache_that_was_made(local: LocalEngine) -> None:
    """Longer than the cache is wide at first, twice over, beside texts that end soon."""
    model = random_model("llama")
    model.generation_config.eos_token_id = None
    engine = engine_over(random_model("llama"), ends=())
    prompts = family((40, 40, 0, 33, 90))
    tokens = [3 * GROW + 5, 3, GROW, GROW + 1, 2 * GROW + 1]
    expected = [plain_greedy(model, prompt, most, ends=()) for prompt, most in zip(prompts, tokens, strict=True)]
    results = engine.generate(
        [GenerateRequest(p, Decoding(max_tokens=most)) for p, most in zip(prompts, tokens, strict=True)]
    )
    assert [result.samples[0].tokens for result in results] == expected
    assert [len(tokens) for tokens in expected] == tokens


@pytest.mark.parametrize("samples", [1, 2, SHARED_BY - 1, SHARED_BY, SHARED_BY + 1, 9])
def test_a_prompt_is_shared_by_few_or_many_samples(local: LocalEngine, samples: int) -> None:
    """Below `SHARED_BY` samples a segment is copied, from there on it is attended to where it lies."""
    model = random_model("llama")
    source = random.Random(samples)
    common = random_tokens(source, 90)
    prompts = [common + random_tokens(source, 5 + i) for i in range(samples)]
    prompts += [prompts[0] + random_tokens(source, 70)] * samples
    assert greedy(local, prompts) == [plain_greedy(model, prompt, NEW) for prompt in prompts]


def test_many_samples_of_one_request_are_those_of_as_many_requests(local: LocalEngine) -> None:
    prompts = family((70, 70, 130))
    warm = Decoding(max_tokens=10, temperature=1.0, n=9)
    together = local.generate([GenerateRequest(prompt, warm) for prompt in prompts])
    for prompt, result in zip(prompts, together, strict=True):
        (alone,) = local.generate([GenerateRequest(prompt, warm)])
        assert [sample.tokens for sample in alone.samples] == [sample.tokens for sample in result.samples]
        assert len({sample.tokens for sample in result.samples}) > 5


def test_every_sample_is_a_plain_draw_from_the_model(local: LocalEngine) -> None:
    """The log-probability of each drawn token is the one of a plain forward pass over the sample's own text."""
    model = random_model("llama")
    for prompt in family((5, 130)):
        (result,) = local.generate([GenerateRequest(prompt, Decoding(max_tokens=40, temperature=1.0, n=6))])
        for sample in result.samples:
            expected = plain_logprobs(model, prompt, sample.tokens)
            assert sample.logprobs == pytest.approx(expected, abs=1e-4)


# Batches that do not fit

SMALL = (
    Limits(tokens=300, rows=256),
    Limits(tokens=32768, rows=3),
    Limits(tokens=1, rows=1),
    Limits(tokens=150, rows=5),
)


@pytest.mark.parametrize("limits", SMALL, ids=str)
def test_a_batch_that_does_not_fit_is_cut(local: LocalEngine, limits: Limits) -> None:
    small = engine_over(random_model("llama"), limits)
    prompts = family(AROUND_BLOCKS[:14])
    requests = [GenerateRequest(p, Decoding(max_tokens=1 + i, temperature=1.0, n=1 + i % 3))
                for i, p in enumerate(prompts)]  # fmt: skip
    for result, expected in zip(small.generate(requests), local.generate(requests), strict=True):
        assert [sample.tokens for sample in result.samples] == [sample.tokens for sample in expected.samples]
    scored = [ScoreRequest(prompt, ((5, 6), (5, 7, 8), (9,))) for prompt in prompts]
    for score, wanted in zip(small.score(scored), local.score(scored), strict=True):
        assert score.totals == pytest.approx(wanted.totals, abs=1e-4)


@pytest.mark.parametrize("limits", [Limits(tokens=400, rows=256), Limits(tokens=2000, rows=5)], ids=str)
def test_no_batch_holds_more_than_the_limits(limits: Limits, monkeypatch: pytest.MonkeyPatch) -> None:
    """One long text among short ones must not widen the cache of them all."""
    stores, caches, joined = [], [], []

    class Watched(DecodePlan):
        def __init__(self, split: Split, store: KeyValues) -> None:
            super().__init__(split, store)
            stores.append(store.capacity)

        def change(self, kept: Sequence[int], joining: Sequence[TreeRow]) -> None:
            super().change(kept, joining)
            coming = sum(row.sampler.decoding.max_tokens - row.read for row in self.rows)
            caches.append((len(self.rows), self.tokens + coming))
            joined.append(len(joining))

    monkeypatch.setattr(local_module, "DecodePlan", Watched)
    source = random.Random(0)
    prompts = [random_tokens(source, 300), *(random_tokens(source, 10) for _ in range(20))]
    engine = engine_over(random_model("llama"), limits, ends=())
    results = engine.generate([GenerateRequest(prompt, Decoding(max_tokens=8, n=2)) for prompt in prompts])
    assert all(isinstance(result, Generation) and len(result.samples) == 2 for result in results)
    assert max(stores) <= limits.tokens
    assert max(rows for rows, _ in caches) <= limits.rows
    assert max(tokens for rows, tokens in caches if rows > 1) <= limits.tokens
    assert sum(joined) == 2 * len(prompts)
    before = engine.ledger.forward_passes
    engine.score([ScoreRequest(prompt, ((5,),)) for prompt in prompts])
    assert engine.ledger.forward_passes - before >= len(prompts) // limits.rows + 1


def test_requests_that_share_a_prefix_stay_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """However they are mixed: every prefix is computed in one group, so the whole costs what is unique."""
    source = random.Random(3)
    heads = [random_tokens(source, 60) for _ in range(4)]
    prompts = [head + random_tokens(source, 4) for _ in range(6) for head in heads]
    engine = engine_over(random_model("llama"), Limits(tokens=60 + 6 * (4 + 1), rows=256))
    engine.generate([GenerateRequest(prompt, Decoding(max_tokens=1)) for prompt in prompts])
    unique = sum(map(len, heads)) + 4 * len(prompts)
    assert engine.ledger.prompt_tokens - engine.ledger.cached_tokens == unique


# The account


def test_the_ledger_is_exact(local: LocalEngine) -> None:
    engine = engine_over(random_model("llama"), ends=())
    assert engine.ledger == Ledger()
    a, b = (5, 6, 7, 8), (5, 6, 9)
    engine.generate([GenerateRequest(p, Decoding(max_tokens=3)) for p in (a, b, a)])
    assert replace(engine.ledger, seconds=0.0) == Ledger(
        calls=3, prompt_tokens=11, cached_tokens=6, generated_tokens=9, forward_passes=3
    )
    before = engine.ledger.copy()
    engine.score([ScoreRequest(a, ((1,), (2, 3), (2, 4))), ScoreRequest(b, ((1,),)), ScoreRequest((), ((1,),))])
    assert replace(engine.ledger - before, seconds=0.0) == Ledger(
        calls=3, prompt_tokens=9 + 4, cached_tokens=3, generated_tokens=0, forward_passes=1
    )
    assert engine.ledger.seconds > before.seconds


# Which models


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("gemma2", "softcap"),
        ("gpt_oss", "s_aux"),
        ("gptj", "(gptj) can't share prefixes"),
        ("gpt_neo", "(gpt_neo) can't share prefixes"),
        ("falcon", "(falcon) can't share prefixes"),
        ("bert", "(bert) can't share prefixes"),
        ("deepseek_v3", "(deepseek_v3) can't share prefixes"),
        ("bloom", "states no context window"),
        ("mamba", "states no context window"),
        ("lfm2", "layers of the kinds ['conv', 'full_attention']"),
    ],
)
def test_a_model_that_would_be_wrong_is_refused(kind: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        engine_over(random_model(kind))
    assert says in str(caught.value)
    assert "'random'" in str(caught.value)


def test_an_encoder_decoder_is_refused() -> None:
    with pytest.raises(InputError, match="encoder-decoder"):
        context_window(transformers.T5Config(), "t5")


@pytest.mark.parametrize(
    ("settings", "window"),
    [
        (config("llama", max_position_embeddings=77), 77),
        (config("mistral", sliding_window=33), 33),
        (config("mistral", sliding_window=None), WINDOW),
        (config("gemma3", sliding_window=48), 48),
        (config("gemma3", sliding_window=48, layer_types=["full_attention"] * 2), 48),
        (config("qwen2", sliding_window=48), WINDOW),
        (config("qwen2", sliding_window=48, use_sliding_window=True, max_window_layers=1), 48),
        (config("gpt2"), WINDOW),
        (config("phi3", max_position_embeddings=WINDOW, original_max_position_embeddings=64, rope_parameters={
            "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}), 64),
    ],
    ids=lambda value: value if isinstance(value, int) else value.model_type,
)  # fmt: skip
def test_the_window_is_where_full_attention_is_the_models_own(settings: Any, window: int) -> None:
    assert context_window(settings, "model") == window


def test_a_text_as_long_as_the_sliding_window_is_still_exact() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config("mistral", sliding_window=40)).eval()
    plain = copy.deepcopy(model)
    text = random_tokens(random.Random(0), 40)
    (scores,) = engine_over(model).score([ScoreRequest(text[:1], (text[1:],))])
    assert scores.logprobs[0] == pytest.approx(plain_logprobs(plain, text[:1], text[1:]), abs=1e-4)


def test_sixteen_bits_are_as_good_as_the_models_own() -> None:
    """Rounding differs, but the tree adds no error of its own to what a plain pass has."""
    exact, half = random_model("llama"), random_model("llama", dtype=torch.bfloat16)
    engine = engine_over(random_model("llama", dtype=torch.bfloat16))
    ours, theirs = [], []
    for prompt in family((130, 200, 20)):
        continuation = random_tokens(random.Random(len(prompt)), 30)
        wanted = torch.tensor(plain_logprobs(exact, prompt, continuation))
        (scores,) = engine.score([ScoreRequest(prompt, (continuation,))])
        ours.append((torch.tensor(scores.logprobs[0]) - wanted).abs().mean())
        theirs.append((torch.tensor(plain_logprobs(half, prompt, continuation)) - wanted).abs().mean())
    assert sum(ours) < 1.5 * sum(theirs)


def test_an_engine_that_breaks_says_how(local: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken forward pass is no request's failure: it is raised."""
    engine = engine_over(random_model("llama"))

    def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("the device is lost")

    monkeypatch.setattr(engine.model, "forward", broken)
    with pytest.raises(RuntimeError, match="the device is lost"):
        engine.generate([GenerateRequest((5, 6))])


def test_a_target_over_a_folder(tiny_model: Path) -> None:
    """Through the front door: weights on disk, hashed, loaded, and behind an engine and an LM."""
    target = cuecard.target(tiny_model, dtype="float32")
    again = cuecard.target(tiny_model, dtype="float32")
    assert target.engine.identity == again.engine.identity == target.description.identity
    assert cuecard.target(tiny_model, dtype="bfloat16").engine.identity != target.engine.identity
    assert (target.description.name, target.description.device, target.description.dtype) == ("tiny", "cpu", "float32")
    assert target.description.context_window == target.engine.context_window == 2048
    assert target.description.parameters == sum(weight.numel() for weight in target.engine.model.parameters())
    assert copy.deepcopy(target) is target
    assert target.lm is target.lm
    prompt = target.engine.tokenizer.encode("A customer was charged twice")
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    assert greedy(target.engine, [prompt]) == [plain_greedy(model, prompt, NEW)]
    (text,) = target.lm("Hello", max_tokens=5, temperature=0.0)
    assert [text] == again.lm("Hello", max_tokens=5, temperature=0.0)


@pytest.mark.slow
def test_the_default_model_fits_and_is_itself(default_model: Path) -> None:
    """In its own dtype, through the front door: the target's greedy text is transformers' own."""
    target = cuecard.target(dtype="float32")
    prompt = target.engine.tokenizer.encode("The capital of France is")
    (result,) = target.engine.generate([GenerateRequest(prompt, Decoding(max_tokens=8))])
    model = transformers.AutoModelForCausalLM.from_pretrained(default_model, dtype=torch.float32)
    output = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=8)[0, len(prompt) :].tolist()
    assert list(result.samples[0].tokens) == output
    coarse = cuecard.target(dtype="bfloat16")
    assert coarse.engine.identity != target.engine.identity
