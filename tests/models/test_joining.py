"""Samples that wait join a running batch: in fewer passes, within the limits, and without a change to any text."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cuecard.models import decode as decode_module
from cuecard.models import local as local_module
from cuecard.models.attention import KeyValues
from cuecard.models.decode import DecodePlan, Split, TreeRow
from cuecard.models.engine import Decoding, Failure, GenerateRequest, Generation, Sample
from cuecard.models.limits import WAITING, Limits, waiting_groups
from cuecard.models.local import LocalEngine

from .helpers import engine_over, family, random_model, random_tokens
from .test_forced import GRAMMARS, SCAFFOLD

SHARING = ("llama", "qwen2", "qwen3", "gpt2", "mixtral", "gemma3", "gemma", "mistral", "phi3", "olmo2", "cohere",
           "glm4", "starcoder2", "gpt_neox", "opt", "qwen2_moe")  # fmt: skip


@dataclass
class Watch:
    """What a decode did: for each change of its rows how many stayed and joined, and for each step the rows and the
    tokens that the caches have room for.
    """

    changes: list[tuple[int, int]] = field(default_factory=list)
    steps: list[tuple[int, int]] = field(default_factory=list)

    @property
    def joined(self) -> int:
        """Rows that came to a batch which was running."""
        return sum(joining for kept, joining in self.changes if kept)


@contextmanager
def watched() -> Iterator[Watch]:
    watch = Watch()

    class Watched(DecodePlan):
        def __init__(self, split: Split, store: KeyValues) -> None:
            super().__init__(split, store)

        def change(self, kept: Sequence[int], joining: Sequence[TreeRow]) -> None:
            super().change(kept, joining)
            watch.changes.append((len(kept), len(joining)))

        def begin(self, counts: Sequence[int]) -> None:
            super().begin(counts)
            watch.steps.append((len(self.rows), self.tokens))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local_module, "DecodePlan", Watched)
        yield watch


@functools.cache
def tiny() -> Any:
    """A small Llama. Not to be changed."""
    return random_model("llama")


@pytest.fixture(scope="module")
def endless() -> LocalEngine:
    """A text ends where `max_tokens` says."""
    return engine_over(random_model("llama"), ends=())


def limited(engine: LocalEngine, limits: Limits) -> LocalEngine:
    """An engine over the same model, with no prefixes carried over."""
    return engine_over(engine.model, limits, ends=tuple(engine._ends))


def samples_of(engine: LocalEngine, requests: Sequence[GenerateRequest]) -> list[Sample]:
    results = engine.generate(requests)
    assert all(isinstance(result, Generation) for result in results), results
    return [sample for result in results for sample in result.samples]


def check_same(ours: Sequence[Sample], theirs: Sequence[Sample]) -> None:
    for our, their in zip(ours, theirs, strict=True):
        assert replace(our, logprobs=(), masked=0.0) == replace(their, logprobs=(), masked=0.0)
        assert our.logprobs == pytest.approx(their.logprobs, abs=1e-4)
        assert our.masked == pytest.approx(their.masked, abs=1e-5)


def in_order(lengths: Sequence[int]) -> list[GenerateRequest]:
    """Requests for texts of these lengths, which are admitted in this order."""
    return [GenerateRequest((5 + i, 6, 7), Decoding(max_tokens=length)) for i, length in enumerate(lengths)]


# Fewer passes


def one_after_another(lengths: Sequence[int], rows: int) -> int:
    """The passes of batches that are each decoded to their end, with one for the prompts of each."""
    return sum(max(lengths[first : first + rows]) for first in range(0, len(lengths), rows))


@pytest.mark.parametrize(
    ("lengths", "rows", "passes", "before"),
    [
        ([100, *[5] * 15], 4, 100, 115),  # the short ones pass by while the long one is written
        ([120, *[5] * 127], 32, 120, 135),
        ([60, 4, 4, 4] * 4, 4, 78, 240),
        ([60, 4, 4, 4] * 8, 8, 122, 240),
        ([9] * 12, 4, 25, 27),  # nothing to gain but passes over prompts
        ([7], 4, 7, 7),
        ([1, 1, 1], 2, 1, 2),
    ],
)
def test_waiting_samples_join_as_others_finish(
    lengths: list[int], rows: int, passes: int, before: int, endless: LocalEngine
) -> None:
    engine = limited(endless, Limits(rows=rows))
    with watched() as watch:
        found = samples_of(engine, in_order(lengths))
    assert [len(sample.tokens) for sample in found] == lengths
    assert (engine.ledger.forward_passes, one_after_another(lengths, rows)) == (passes, before)
    assert max((live for live, _ in watch.steps), default=0) <= rows


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 25), min_size=1, max_size=40), st.integers(1, 9))
def test_no_more_passes_than_the_work_and_the_longest_text_ask_for(lengths: list[int], rows: int) -> None:
    """While any wait, more than three quarters of the rows go on."""
    engine = engine_over(tiny(), Limits(rows=rows), ends=())
    with watched() as watch:
        found = samples_of(engine, in_order(lengths))
    assert [len(sample.tokens) for sample in found] == lengths
    groups = list(waiting_groups(range(len(lengths)), lambda i: (i,), lambda i: 1, Limits(rows=rows)))
    bound = 0.0
    for group in groups:
        steps = [lengths[i] - 1 for i in group]
        bound += 1 + sum(steps) / (0.75 * rows) + max(steps)
    assert engine.ledger.forward_passes <= bound
    assert max((live for live, _ in watch.steps), default=0) <= rows


# Within the limits


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.data())
def test_the_limits_hold_at_every_step_and_no_text_changes(data: st.DataObject) -> None:
    """Whatever the prompts share, however long the texts, and whatever grammars force in one step."""
    count = data.draw(st.integers(1, 14))
    source = random.Random(data.draw(st.integers(0, 99)))
    heads = [(), random_tokens(source, 40), random_tokens(source, 90)]
    requests = [
        GenerateRequest(
            data.draw(st.sampled_from(heads)) + random_tokens(source, data.draw(st.integers(1, 70))),
            Decoding(
                max_tokens=data.draw(st.integers(1, 60)),
                n=data.draw(st.integers(1, 3)),
                temperature=data.draw(st.sampled_from([0.0, 1.0])),
            ),
            data.draw(st.sampled_from(GRAMMARS)),
        )
        for _ in range(count)
    ]
    limits = Limits(tokens=data.draw(st.integers(200, 1500)), rows=data.draw(st.integers(1, 8)))
    with watched() as watch:
        found = samples_of(engine_over(tiny(), limits), requests)
    assert all(rows <= limits.rows for rows, _ in watch.steps)
    assert all(tokens <= limits.tokens for rows, tokens in watch.steps if rows > 1)
    check_same(found, samples_of(engine_over(tiny(), Limits(tokens=10**6, rows=10**4)), requests))


def test_as_many_decode_together_as_fit(endless: LocalEngine) -> None:
    """Each of these caches has room for 64 tokens and 36 to come."""
    engine = limited(endless, Limits(tokens=5 * 100, rows=256))
    with watched() as watch:
        samples_of(engine, in_order([36] * 4 + [20, 36] * 6))
    assert max(rows for rows, _ in watch.steps) == 5
    assert watch.joined > 3


def test_a_text_that_does_not_fit_is_decoded_alone(endless: LocalEngine) -> None:
    engine = limited(endless, Limits(tokens=250, rows=256))
    lengths = [4, 4, 300, 4, 4]
    with watched() as watch:
        found = samples_of(engine, in_order(lengths))
    assert [len(sample.tokens) for sample in found] == lengths
    assert all(tokens <= 250 for rows, tokens in watch.steps if rows > 1)
    assert any(tokens > 250 for _, tokens in watch.steps)


def test_a_row_that_is_done_takes_no_more_room() -> None:
    """It reads its last token until the rows are packed, again and again at the same place."""
    engine = engine_over(tiny(), Limits(rows=5), ends=(0,))
    forced = GenerateRequest((4, 6, 7), Decoding(max_tokens=90), SCAFFOLD)
    with watched() as watch:
        first, *others = samples_of(engine, [forced, *in_order([90] * 4)])
    assert 25 < len(first.tokens) < 90, "it is done in a few steps"
    assert [len(sample.tokens) for sample in others] == [90] * 4
    assert watch.changes == [(0, 5)]
    assert watch.steps[-1] == (5, 5 * 96)


# Groups


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 6)), max_size=30), st.integers(1, 4), st.integers(1, 30))
def test_a_group_holds_more_samples_than_decode_together(sizes: list[tuple[int, int]], rows: int, tokens: int) -> None:
    prompts = [(i, *[7] * (length - 1)) for i, (length, _) in enumerate(sizes)]
    groups = list(
        waiting_groups(range(len(sizes)), lambda i: prompts[i], lambda i: sizes[i][1], Limits(tokens, rows))
    )  # fmt: skip
    assert [i for group in groups for i in group] == list(range(len(sizes)))
    for group in groups:
        if len(group) > 1:
            assert sum(sizes[i][0] for i in group) <= tokens
            assert sum(sizes[i][1] for i in group) <= WAITING * rows
    for group, following in zip(groups, groups[1:], strict=False):
        both = [*group, following[0]]
        assert sum(sizes[i][0] for i in both) > tokens or sum(sizes[i][1] for i in both) > WAITING * rows


# The same texts


def mixed() -> list[GenerateRequest]:
    """Prompts that share beginnings of many lengths; texts that end at once, later, and by grammars and stop strings."""
    prompts = family((0, 33, 33, 33, 70, 70, 70, 70, 128, 130, 130, 130), seed=3)
    ways: list[dict[str, Any]] = [
        {},
        {"temperature": 1.0, "n": 5},
        {"temperature": 1.2, "top_p": 0.9, "frequency_penalty": 0.5, "n": 2},
        {"stop": ("e", "the")},
        {"temperature": 0.7, "min_p": 0.05, "repetition_penalty": 1.2},
    ]
    return [
        GenerateRequest(
            prompt,
            Decoding.model_validate({"max_tokens": (30, 3, 8, 1, 5)[i % 5], "seed": i, **ways[i % len(ways)]}),
            GRAMMARS[i % len(GRAMMARS)] if i % 3 else None,
        )
        for i, prompt in enumerate(prompts)
    ]


@pytest.mark.parametrize("kind", SHARING)
def test_a_text_does_not_depend_on_when_it_joined(kind: str) -> None:
    model = random_model(kind)
    requests = mixed()
    wanted = samples_of(engine_over(model, Limits(tokens=10**6, rows=10**4)), requests)
    assert len({sample.tokens for sample in wanted}) > 7
    with watched() as watch:
        for limits in (Limits(rows=4), Limits(tokens=700)):
            check_same(samples_of(engine_over(model, limits), requests), wanted)
    assert watch.joined > 2


@pytest.mark.parametrize("shared_by", [1, 2, 100])
def test_whatever_is_shared(shared_by: int, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = samples_of(engine_over(tiny()), mixed())
    monkeypatch.setattr(decode_module, "SHARED_BY", shared_by)
    with watched() as watch:
        check_same(samples_of(engine_over(tiny(), Limits(rows=4)), mixed()), wanted)
    assert watch.joined > 5


def test_the_same_batch_gives_the_same_bytes() -> None:
    engine = engine_over(tiny(), Limits(tokens=900, rows=6))
    assert engine.generate(mixed()) == engine.generate(mixed())


def test_what_is_shared_is_attended_to_where_it_lies() -> None:
    """A row's split is that of the group: below 12 rows a segment stays shared when three of them are live."""
    seen: list[int] = []

    class Watched(DecodePlan):
        def change(self, kept: Sequence[int], joining: Sequence[TreeRow]) -> None:
            super().change(kept, joining)
            for low, high, first, last in self.shared:
                assert (high - low, 0 <= first < last <= len(self.rows)) == (60, True)
            if self.rows:
                seen.append(len(self.shared))

    source = random.Random(5)
    head = random_tokens(source, 60)
    requests = [GenerateRequest((*head, 5 + i), Decoding(max_tokens=2 + i % 5)) for i in range(12)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local_module, "DecodePlan", Watched)
        samples_of(engine_over(tiny(), Limits(rows=3), ends=()), requests)
    assert len(seen) > 4
    assert set(seen) == {1}


# Nobody else is touched


def test_a_request_that_fails_touches_no_other(endless: LocalEngine) -> None:
    good = in_order([9, 2, 2, 2, 5, 5, 2])
    bad = [
        GenerateRequest((), Decoding(max_tokens=3)),
        GenerateRequest((5, 10**9), Decoding(max_tokens=3)),
        GenerateRequest((6,), Decoding(max_tokens=3), "start: nothing\n"),
        GenerateRequest((6,), Decoding(max_tokens=10**6)),
    ]
    wanted = samples_of(limited(endless, Limits(rows=2)), good)
    results = limited(endless, Limits(rows=2)).generate([*good[:3], *bad, *good[3:]])
    failed = [result for result in results if isinstance(result, Failure)]
    assert len(failed) == len(bad)
    assert [sample for r in results if isinstance(r, Generation) for sample in r.samples] == wanted


@pytest.mark.parametrize("after", [0, 3, 9, 15])
def test_memory_that_runs_out_while_others_join_costs_no_text(after: int, endless: LocalEngine) -> None:
    """The pass after so many that hold more than two rows fails; what is halved is done again."""
    requests = in_order([25, 4, 4, 4, 9, 9, 9, 9, 4, 4, 4, 4])
    wanted = samples_of(limited(endless, Limits(rows=4)), requests)
    engine, passes = limited(endless, Limits(rows=4)), [0]

    def look(module: Any, args: Any, kwargs: Any) -> None:
        passes[0] += kwargs["input_ids"].shape[1] > 2
        if passes[0] > after and kwargs["input_ids"].shape[1] > 2 and isinstance(kwargs["cuecard_plan"], DecodePlan):
            raise torch.OutOfMemoryError("there is no memory")

    handle = engine.model.register_forward_pre_hook(look, with_kwargs=True)
    try:
        found = samples_of(engine, requests)
    finally:
        handle.remove()
    check_same(found, wanted)
    assert passes[0] > after
    assert engine.ledger.generated_tokens == sum(len(sample.tokens) for sample in wanted)
