"""The engines on a device that is not the CPU (see `elsewhere.py`): the same answers, by the code paths of a GPU."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from cuecard.models.engine import Decoding, Engine, GenerateRequest, Generation, ScoreRequest, Scores, SpanRequest
from cuecard.models.hidden import FeatureRequest, Features
from cuecard.models.limits import Limits
from cuecard.models.prefixes import BLOCK

from . import test_encoder_decoder, test_plain
from .elsewhere import NAME, Elsewhere, elsewhere, moved
from .engine_conformance import EngineConformance
from .helpers import engine_over, random_model, random_tokens


def tree_engine(kind: str, dtype: torch.dtype = torch.float32, **settings: Any) -> Elsewhere:
    return Elsewhere(lambda: engine_over(moved(random_model(kind, dtype=dtype)), **settings))


# ---- the device itself


def test_tensors_of_two_devices_are_not_mixed() -> None:
    def sum_of_both() -> Any:
        return torch.ones(3, device=NAME) + torch.ones(3)

    with pytest.raises(RuntimeError, match="expected all tensors to be on the same device"):
        elsewhere(sum_of_both)


@pytest.mark.parametrize(
    "mixed",
    [
        lambda there, here: there.index_select(0, torch.tensor([1])),
        lambda there, here: here.index_copy_(0, torch.tensor([1]), there[:1]),
        lambda there, here: here[torch.tensor([1], device=NAME)],
        lambda there, here: torch.cat([there, here]),
        lambda there, here: there.masked_fill_(here > 0, 1.0),
        lambda there, here: there.numpy(),
        lambda there, here: np.asarray(there),
    ],
)
def test_what_a_gpu_refuses_is_refused(mixed: Callable[[torch.Tensor, torch.Tensor], Any]) -> None:
    with pytest.raises((RuntimeError, TypeError)):
        elsewhere(lambda: mixed(torch.ones(3, device=NAME), torch.ones(3)))


def test_tensors_are_copied_and_indexed_from_the_cpu() -> None:
    def work() -> Any:
        there = torch.arange(6, device=NAME).view(2, 3)
        there[:, 1] = 7
        there[torch.tensor([1])] += 1
        here = torch.zeros(2, 3, dtype=torch.long)
        here.copy_(there)
        assert (there.device.type, here.device.type, there.cpu().device.type) == (NAME, "cpu", "cpu")
        return here, there.cpu(), there.tolist(), there.sum().item()

    copied, moved_back, listed, total = elsewhere(work)
    assert copied.tolist() == moved_back.tolist() == listed == [[0, 7, 2], [4, 8, 6]]
    assert total == 27


# ---- the engines


@pytest.fixture(scope="module")
def tree() -> Engine:
    return tree_engine("llama")


@pytest.fixture(scope="module")
def plain() -> Engine:
    model = copy.deepcopy(test_plain.model_of("bloom"))
    return Elsewhere(lambda: test_plain.plain_over(moved(model)))


@pytest.fixture(scope="module")
def encoder_decoder() -> Engine:
    model = copy.deepcopy(test_encoder_decoder.model_of("t5"))
    return Elsewhere(lambda: test_encoder_decoder.engine_over(moved(model)))


class TestTreeEngineElsewhere(EngineConformance):
    @pytest.fixture
    def engine(self, tree: Engine) -> Engine:
        return tree


class TestPlainEngineElsewhere(EngineConformance):
    @pytest.fixture
    def engine(self, plain: Engine) -> Engine:
        return plain


class TestEncoderDecoderEngineElsewhere(EngineConformance):
    @pytest.fixture
    def engine(self, encoder_decoder: Engine) -> Engine:
        return encoder_decoder

    test_a_continuation_can_be_scored_in_pieces = (
        test_encoder_decoder.TestEncoderDecoderEngine.test_a_continuation_can_be_scored_in_pieces
    )


# ---- the answers are those of the CPU


def requests() -> tuple[list[GenerateRequest], list[ScoreRequest], list[SpanRequest], list[FeatureRequest]]:
    source = random.Random(0)
    start = random_tokens(source, BLOCK + 20)
    shared = [start + random_tokens(source, 2 * BLOCK) for _ in range(4)]
    prompts = [prefix + random_tokens(source, source.randint(1, 40)) for prefix in shared for _ in range(3)]
    prompts += [random_tokens(source, source.randint(1, 60)) for _ in range(5)]
    decodings = [
        Decoding(max_tokens=12),
        Decoding(max_tokens=9, temperature=1.0, top_p=0.9, seed=3, n=2),
        Decoding(max_tokens=9, temperature=0.7, top_k=20, min_p=0.01, seed=4, repetition_penalty=1.2),
        Decoding(max_tokens=9, presence_penalty=0.5, frequency_penalty=0.5),
    ]
    runs = tuple(prompts[0][first : first + 6] for first in range(0, 30, 3))
    cuts = tuple(tuple(range(1, len(run) + 1)) for run in runs)
    return (
        [GenerateRequest(prompt, decodings[i % len(decodings)]) for i, prompt in enumerate(prompts)]
        + [GenerateRequest(prompts[0], Decoding(max_tokens=8), grammar='start: "yes please" | "no"\n')],
        [ScoreRequest(prompt, ((5, 6), (5, 7, 8), (11,))) for prompt in prompts],
        [SpanRequest(prompt, runs, cuts, (5,), width=4, against=prompts[-1], also=(9, 5)) for prompt in prompts[:3]],
        [FeatureRequest(prompt, (1, 2)) for prompt in prompts],
    )


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gpt2", "gemma3", "mixtral"])
def test_the_answers_are_those_of_the_cpu(kind: str) -> None:
    here, there = engine_over(random_model(kind)), tree_engine(kind)
    generate, score, spans, features = requests()
    ours, theirs = here.generate(generate), there.generate(generate)
    for a, b in zip(ours, theirs, strict=True):
        assert isinstance(a, Generation)
        assert isinstance(b, Generation)
        assert [sample.tokens for sample in a.samples] == [sample.tokens for sample in b.samples]
    for a, b in zip(here.score(score), there.score(score), strict=True):
        assert isinstance(b, Scores)
        assert b.totals == pytest.approx(a.totals, abs=1e-3)
    for a, b in zip(here.spans(spans), there.spans(spans), strict=True):
        assert [(s.run, s.length) for s in a.scores] == [(s.run, s.length) for s in b.scores]
        assert [s.total for s in b.scores] == pytest.approx([s.total for s in a.scores], abs=1e-3)
    for a, b in zip(here.features(features), there.features(features), strict=True):
        assert isinstance(b, Features)
        assert np.allclose(a.last, b.last, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_in_sixteen_bits_scores_are_near_those_in_float32(kind: str, dtype: torch.dtype) -> None:
    _, score, _, _ = requests()
    expected = engine_over(random_model(kind)).score(score)
    found = tree_engine(kind, dtype).score(score)
    differences = [
        abs(a - b) / len(tokens)
        for ours, theirs in zip(expected, found, strict=True)
        for a, b, tokens in zip(ours.totals, theirs.totals, theirs.logprobs, strict=True)
    ]
    assert np.median(differences) < 0.3


def test_what_runs_out_of_memory_is_halved() -> None:
    engine = tree_engine("llama", limits=Limits(tokens=4096))
    whole = engine.generate(requests()[0])
    inner, most = engine.engine._model, 1 << 10

    def small(*args: Any, **inputs: Any) -> Any:
        if inputs["input_ids"].shape[1] > most:
            raise torch.OutOfMemoryError("out of memory")
        return inner(*args, **inputs)

    class Small:
        def __getattr__(self, name: str) -> Any:
            return getattr(inner, name)

        def __call__(self, *args: Any, **inputs: Any) -> Any:
            return small(*args, **inputs)

    engine.engine._model, most = Small(), 400
    halves = engine.generate(requests()[0])
    assert [[s.tokens for s in r.samples] for r in halves] == [[s.tokens for s in r.samples] for r in whole]
