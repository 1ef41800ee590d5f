"""Batches that run out of device memory: halved down to one request, which fails alone, and nothing is counted twice."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cuecard.models.batch_limits import halved
from cuecard.models.engine import (
    Decoding,
    Failure,
    GenerateRequest,
    Generation,
    Ledger,
    ScoreRequest,
    Scores,
    SpanRequest,
    Spans,
)
from cuecard.models.hidden import FeatureRequest, Features
from cuecard.models.local import LocalEngine

from .helpers import engine_over, random_model, random_tokens

SPOKEN = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 1000 bytes\nand no more to say"


@pytest.fixture(scope="module")
def local() -> LocalEngine:
    return engine_over(random_model("llama"))


@contextmanager
def scarce(engine: LocalEngine, most: int, error: type[Exception] = torch.OutOfMemoryError) -> Iterator[list[int]]:
    """How many tokens each forward pass has; memory runs out for more than `most`."""
    passes: list[int] = []

    def look(module: Any, args: Any, kwargs: Any) -> None:
        passes.append(kwargs["input_ids"].shape[1])
        if passes[-1] > most:
            raise error(SPOKEN)

    handle = engine.model.register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield passes
    finally:
        handle.remove()


def prompts_of(lengths: Sequence[int]) -> list[tuple[int, ...]]:
    source = random.Random(0)
    return [random_tokens(source, length) for length in lengths]


LENGTHS = (9, 3, 20, 14, 9, 30, 2, 11)


def texts(engine: LocalEngine, lengths: Sequence[int] = LENGTHS) -> list[Generation | Failure]:
    return engine.generate(
        [GenerateRequest(prompt, Decoding(max_tokens=4, temperature=1.0, n=2)) for prompt in prompts_of(lengths)]
    )


def scores(engine: LocalEngine, lengths: Sequence[int] = LENGTHS) -> list[Scores | Failure]:
    return engine.score([ScoreRequest(prompt, ((5, 6), (7, 8, 9))) for prompt in prompts_of(lengths)])


def spans(engine: LocalEngine, lengths: Sequence[int] = LENGTHS) -> list[Spans | Failure]:
    runs, cuts = ((5, 6, 7, 8, 9), (6, 7)), ((1, 3, 5), (1, 2))
    return engine.spans([SpanRequest(prompt, runs, cuts, (4,), 2) for prompt in prompts_of(lengths)])


def features(engine: LocalEngine, lengths: Sequence[int] = LENGTHS) -> list[Features | Failure]:
    return engine.features([FeatureRequest(prompt, (1,)) for prompt in prompts_of(lengths)])


def numbers(results: Sequence[Any]) -> list[list[float]]:
    """Every result as numbers that can be compared; tokens among them."""
    found = []
    for result in results:
        assert not isinstance(result, Failure), result
        if isinstance(result, Generation):
            found.append([float(x) for sample in result.samples for x in (*sample.tokens, *sample.logprobs)])
        elif isinstance(result, Scores):
            found.append(list(result.totals))
        elif isinstance(result, Spans):
            found.append([float(x) for score in result.scores for x in (score.run, score.length, score.total)])
        else:
            found.append(result.last.ravel().tolist() + result.mean.ravel().tolist())
    return found


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
@pytest.mark.parametrize("most", [40, 55, 80])
@pytest.mark.parametrize("ask", [texts, scores, spans, features])
def test_a_group_that_does_not_fit_into_memory_is_halved(
    ask: Any, most: int, error: type[Exception], local: LocalEngine
) -> None:
    wanted = numbers(ask(local))
    with scarce(local, most, error) as passes:
        found = ask(local)
    assert max(passes) > most
    for ours, theirs in zip(numbers(found), wanted, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)


@pytest.mark.parametrize("ask", [texts, scores, spans, features])
def test_the_same_cut_gives_the_same_bytes(ask: Any, local: LocalEngine) -> None:
    with scarce(local, 55):
        assert numbers(ask(local)) == numbers(ask(local))


@pytest.mark.parametrize("ask", [texts, scores, spans, features])
def test_a_request_too_large_for_memory_fails_alone_and_says_what_to_do(ask: Any, local: LocalEngine) -> None:
    lengths = (9, 70, 20)
    with scarce(local, 40):
        results = ask(local, lengths)
    assert [isinstance(result, Failure) for result in results] == [False, True, False]
    assert results[1].error.startswith("there is not enough memory for a text of ")
    assert "you tried to allocate 1000 bytes); shorten the prompt" in results[1].error
    assert "\n" not in results[1].error


def test_what_is_done_again_is_counted_once(local: LocalEngine) -> None:
    spent = []
    for most in (10**6, 55):
        engine = engine_over(random_model("llama"))
        with scarce(engine, most) as passes:
            texts(engine)
            scores(engine)
        assert engine.ledger.forward_passes <= len(passes)
        spent.append(replace(engine.ledger, seconds=0.0, forward_passes=0))
    assert spent[0] == spent[1]


def test_another_error_is_no_lack_of_memory(local: LocalEngine) -> None:
    def fail(*args: Any) -> None:
        raise RuntimeError("a defect")

    handle = local.model.register_forward_pre_hook(fail)
    try:
        with pytest.raises(RuntimeError, match="a defect"):
            texts(local)
    finally:
        handle.remove()


def test_kept_prefixes_are_let_go_when_memory_runs_out() -> None:
    engine = engine_over(random_model("llama"))
    head = random_tokens(random.Random(1), 140)
    requests = [GenerateRequest((*head, 5, i), Decoding(max_tokens=2)) for i in range(5, 9)]
    wanted = engine.generate(requests)
    assert len(engine._prefixes) == 1
    with scarce(engine, 10):
        failed = engine.generate(requests)
    assert all(isinstance(result, Failure) for result in failed)
    assert len(engine._prefixes) == 0
    assert engine.generate(requests) == wanted


@given(st.lists(st.integers(1, 20), max_size=12), st.integers(1, 40))
def test_everything_that_fits_alone_is_answered(sizes: list[int], room: int) -> None:
    ledger = Ledger()

    def work(group: list[int]) -> Iterator[tuple[int, str]]:
        ledger.prompt_tokens += sum(sizes[i] for i in group)
        if sum(sizes[i] for i in group) > room:
            raise MemoryError("full")
        return ((i, f"answer {i}") for i in group)

    found = halved(
        range(len(sizes)), work, device=torch.device("cpu"), ledger=ledger, size=lambda i: sizes[i]
    )  # fmt: skip
    assert sorted(found) == list(range(len(sizes)))
    for i, size in enumerate(sizes):
        assert found[i] == f"answer {i}" if size <= room else isinstance(found[i], Failure)
    assert ledger.prompt_tokens == sum(size for size in sizes if size <= room)
