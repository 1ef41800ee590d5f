"""The engine's contract against a real llama.cpp server, where `xllamacpp` (llama-server as a Python module) is there.

It serves a tiny random model whose texts are whole characters, from the same weights as the local engine: greedy texts
are the same, log-probabilities within what llama.cpp's kernels round differently with the size of a batch.
"""

from __future__ import annotations

import importlib.util
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cuecard.models.engine import Decoding, Engine, GenerateRequest, Generation, ScoreRequest, Scores
from cuecard.models.local import LocalEngine
from cuecard.models.server import ServerEngine, server_target
from cuecard.models.target import target
from tiny import build_tiny_model, write_tiny_gguf

from ..engine_conformance import TEXTS, EngineConformance
from .fake import is_unknown

pytestmark = pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="xllamacpp is not installed")

CLOSE = 0.05


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, with bytes that are no characters, control characters and special tokens made unlikely."""
    import torch
    import transformers

    folder = build_tiny_model(tmp_path_factory.mktemp("real") / "tidy")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = {token: tokenizer.decode([token]) for token in range(1, len(tokenizer))}
    odd = [t for t, text in texts.items() if t == 1 or "\N{REPLACEMENT CHARACTER}" in text or not text.isprintable()]
    with torch.no_grad():
        model.lm_head.weight *= 3
        model.lm_head.weight[[token for token in odd if token != 2]] = 0
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def url(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    import xllamacpp

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = xllamacpp.CommonParams()
    settings.model.path = str(write_tiny_gguf(folder, tmp_path_factory.mktemp("gguf") / "tidy.gguf"))
    settings.n_ctx, settings.n_parallel, settings.port = 1024, 2, port
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
    settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    settings.warmup = False
    server: Any = xllamacpp.Server(settings)
    yield server.listening_address
    del server


@pytest.fixture(scope="module")
def served(url: str) -> ServerEngine:
    return server_target(url).engine


@pytest.fixture(scope="module")
def local(folder: Path) -> LocalEngine:
    return target(folder, dtype="float32").engine


class TestRealLlamaCpp(EngineConformance):
    tolerance = CLOSE

    @pytest.fixture
    def engine(self, served: ServerEngine) -> Engine:
        return served

    def test_equal_requests_have_equal_results(self, engine: Engine) -> None:
        """As in the contract, log-probabilities to rounding."""
        request = GenerateRequest(self.prompt(engine, TEXTS[0]), Decoding(max_tokens=8, temperature=1.0))
        first, second = engine.generate([request, request])
        assert first.samples[0].tokens == second.samples[0].tokens
        one, two = engine.score([ScoreRequest(request.prompt, ((5,), (6, 7)))] * 2)
        assert one.totals == pytest.approx(two.totals, abs=CLOSE)

    def test_the_same_batch_gives_the_same_results(self, engine: Engine) -> None:
        """As in the contract, greedily: a draw that falls between two tokens may fall either way by rounding."""
        requests = [GenerateRequest(prompt, Decoding(max_tokens=8)) for prompt in self.prompts(engine)]
        tokens = [[result.samples[0].tokens for result in engine.generate(requests)] for _ in "ab"]
        assert tokens[0] == tokens[1]


def test_greedy_texts_are_the_local_engines(served: ServerEngine, local: LocalEngine) -> None:
    for settings in (Decoding(max_tokens=16), Decoding(max_tokens=16, repetition_penalty=1.6)):
        requests = [GenerateRequest(local.tokenizer.encode(text), settings) for text in TEXTS]
        assert [result.samples[0].tokens for result in served.generate(requests)] == [
            result.samples[0].tokens for result in local.generate(requests)
        ]


def test_scores_are_the_local_engines(served: ServerEngine, local: LocalEngine) -> None:
    texts = (" yes", " 漢字 🙂", "\x15\x00", " billing or technical")
    continuations = tuple(map(local.tokenizer.encode, texts))
    requests = [ScoreRequest(local.tokenizer.encode(text), continuations) for text in TEXTS[:3]]
    for found, expected in zip(served.score(requests), local.score(requests), strict=True):
        assert isinstance(found, Scores)
        for ours, theirs in zip(found.logprobs, expected.logprobs, strict=True):
            assert ours == pytest.approx(theirs, abs=CLOSE)


def test_a_seed_is_kept(served: ServerEngine) -> None:
    prompt = served.tokenizer.encode(TEXTS[0])
    for seed in (0, 2**32 - 1, 2**62):
        drawn = [
            served.generate([GenerateRequest(prompt, Decoding(max_tokens=8, temperature=1.0, seed=seed))])[0]
            for _ in range(2)
        ]
        assert isinstance(drawn[0], Generation)
        assert drawn[0].samples[0].tokens == drawn[1].samples[0].tokens


@pytest.mark.parametrize("grammars", ["llguidance", "gbnf"])
def test_both_grammar_languages_mask(url: str, grammars: str) -> None:
    engine = server_target(url, grammars=grammars).engine
    lark = 'start: "Queue: " part_0 ", " part_1\npart_0: "billing" | "technical"\npart_1[suffix=";"]: /(?s:.+)/\n'
    prompt = engine.tokenizer.encode(TEXTS[0])
    (result,) = engine.generate([GenerateRequest(prompt, Decoding(max_tokens=200, temperature=1.5), lark)])
    if isinstance(result, Generation):
        assert result.samples[0].text.startswith(("Queue: billing, ", "Queue: technical, "))
        assert ";" not in result.samples[0].text[:-1]
    else:
        assert "failed to parse grammar" in result.error, "this build has no llguidance"
        assert grammars == "llguidance"


def test_every_whole_token_has_its_logprob(served: ServerEngine) -> None:
    (result,) = served.generate([GenerateRequest(served.tokenizer.encode(TEXTS[0]), Decoding(max_tokens=12))])
    assert not any(map(is_unknown, result.samples[0].logprobs))
