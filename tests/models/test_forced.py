"""Tokens that a grammar forces: the same texts as step by step, in fewer steps; and how much a grammar masks."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cuecard.compiler.journal import Clock, JournaledEngine
from cuecard.models import local as local_module
from cuecard.models import rows as rows_module
from cuecard.models.choosing import choose, forced, unpack
from cuecard.models.constraints import Constraints, fill_masks, only_tokens
from cuecard.models.engine import Decoding, GenerateRequest, Generation, Sample
from cuecard.models.limits import Limits
from cuecard.models.local import LocalEngine
from cuecard.models.sampling import Sampler, log_normaliser

from .helpers import ENDS, engine_over, family, random_model, tokenizer
from .test_plain import model_of, plain_over

VOCABULARY = 512
SCAFFOLD = 'start: "the answer, all in all, is: " /[0-9]{2}/ " of them, and no more (" ("yes" | "no") ")."\n'
SCHEMA = "start: %json " + json.dumps(
    {
        "x-guidance": {"whitespace_flexible": False},
        "type": "object",
        "properties": {
            "department": {"enum": ["billing department", "billing desk", "account"]},
            "urgent": {"type": "boolean"},
        },
        "required": ["department", "urgent"],
        "additionalProperties": False,
    }
)
GRAMMARS = (SCAFFOLD, SCHEMA + "\n", 'start: "technical"\n', 'start: "a" /[a-z]{0,3}/ " and that is all"?\n', None)


def stepping(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on no token is taken without a step."""
    monkeypatch.setattr(rows_module, "only_tokens", lambda masks: [None] * len(masks))


def requests_of(lengths: Sequence[int], **settings: object) -> list[GenerateRequest]:
    decoding = Decoding.model_validate({"max_tokens": 70, **settings})
    return [GenerateRequest(prompt, decoding, GRAMMARS[i % len(GRAMMARS)]) for i, prompt in enumerate(family(lengths))]


def samples_of(engine: LocalEngine, requests: Sequence[GenerateRequest]) -> list[Sample]:
    results = engine.generate(requests)
    assert all(isinstance(result, Generation) for result in results), results
    return [sample for result in results for sample in result.samples]


def check_same(ours: Sequence[Sample], theirs: Sequence[Sample]) -> None:
    for our, their in zip(ours, theirs, strict=True):
        assert replace(our, logprobs=(), masked=0.0) == replace(their, logprobs=(), masked=0.0)
        assert our.logprobs == pytest.approx(their.logprobs, abs=1e-4)
        assert our.masked == pytest.approx(their.masked, abs=1e-5)


LENGTHS = (0, 5, 60, 60, 100, 127, 128, 128, 150, 150, 190, 200)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gpt2", "mixtral", "gemma3"])
@pytest.mark.parametrize(
    "settings", [{}, {"temperature": 1.3, "n": 3, "top_p": 0.9, "frequency_penalty": 0.5}], ids=str
)
def test_forced_tokens_are_those_of_single_steps(
    kind: str, settings: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_over(random_model(kind))
    requests = requests_of(LENGTHS, **settings)
    found = samples_of(engine, requests)
    stepping(monkeypatch)
    check_same(found, samples_of(engine, requests))


@pytest.mark.parametrize("limits", [Limits(tokens=400), Limits(rows=3)], ids=str)
@pytest.mark.parametrize("chunk", [4, 24])
def test_long_runs_are_read_in_pieces(limits: Limits, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = samples_of(engine_over(random_model("llama")), requests_of(LENGTHS))
    monkeypatch.setattr(local_module, "CHUNK", chunk)
    check_same(samples_of(engine_over(random_model("llama"), limits), requests_of(LENGTHS)), wanted)


@pytest.mark.parametrize("most", [1, 2, 5, 11, 12, 13])
@pytest.mark.parametrize("stop", [(), (", all",), ("is: ",), (" of",)])
def test_limits_and_stop_strings_cut_forced_tokens_where_steps_would(
    most: int, stop: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_over(random_model("llama"))
    requests = requests_of((3, 60, 60, 60, 60), max_tokens=most, stop=stop)
    found = samples_of(engine, requests)
    assert all(len(sample.tokens) == len(sample.logprobs) <= most for sample in found)
    stepping(monkeypatch)
    check_same(found, samples_of(engine, requests))


def test_a_text_without_a_choice_costs_two_passes() -> None:
    engine = engine_over(random_model("llama"))
    (sample,) = samples_of(
        engine, [GenerateRequest((5, 6), Decoding(max_tokens=50), 'start: "technical department"\n')]
    )
    assert sample.text == "technical department"
    assert sample.finish == "grammar"
    assert len(sample.tokens) == len(sample.logprobs) > 3
    assert engine.ledger.forward_passes == 2


def test_a_scaffold_costs_as_many_passes_as_it_leaves_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    request = GenerateRequest((5, 6), Decoding(max_tokens=90), SCAFFOLD)
    engine = engine_over(random_model("llama"))
    (sample,) = samples_of(engine, [request])
    assert len(sample.tokens) > 25
    assert engine.ledger.forward_passes <= 8
    stepping(monkeypatch)
    before = engine.ledger.forward_passes
    samples_of(engine, [request])
    assert engine.ledger.forward_passes - before == len(sample.tokens)


def test_a_limit_of_one_forced_token_costs_one_pass() -> None:
    engine = engine_over(random_model("llama"))
    (sample,) = samples_of(engine, [GenerateRequest((5, 6), Decoding(max_tokens=1), 'start: "technical"\n')])
    assert (len(sample.tokens), sample.finish, engine.ledger.forward_passes) == (1, "length", 1)


def test_bfloat16_forces_the_same_texts() -> None:
    exact, coarse = (engine_over(random_model("llama", dtype=dtype)) for dtype in (torch.float32, torch.bfloat16))
    requests = [GenerateRequest(prompt, Decoding(max_tokens=40), 'start: "technical department"\n')
                for prompt in family((0, 60, 60, 60, 60, 130))]  # fmt: skip
    for ours, theirs in zip(samples_of(coarse, requests), samples_of(exact, requests), strict=True):
        assert ours.text == theirs.text
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=0.5)


# Masks


@pytest.fixture(scope="module")
def constraints() -> Constraints:
    return Constraints(tokenizer(), VOCABULARY, ENDS)


def test_masks_filled_side_by_side_are_those_filled_alone(constraints: Constraints) -> None:
    matchers = [constraints.matcher(grammar) for grammar in GRAMMARS if grammar is not None]
    for matcher, mask in zip(matchers, unpack(list(fill_masks(matchers)), VOCABULARY, "cpu"), strict=True):
        assert mask.numpy().tolist() == matcher.allowed().tolist()
    assert fill_masks([]).shape[0] == 0


@given(st.lists(st.sets(st.integers(0, 63), max_size=3), min_size=1, max_size=5))
def test_the_only_token_of_a_mask_is_found(allowed: list[set[int]]) -> None:
    flags = np.zeros((len(allowed), 64), dtype=bool)
    for row, tokens in zip(flags, allowed, strict=True):
        row[list(tokens)] = True
    packed = np.packbits(flags, axis=1, bitorder="little")
    assert only_tokens(packed) == [next(iter(tokens)) if len(tokens) == 1 else None for tokens in allowed]
    assert unpack(list(packed), 64, "cpu").numpy().tolist() == flags.tolist()


# What a grammar masks


@given(st.integers(0, 2**31), st.sampled_from([torch.float32, torch.bfloat16]))
def test_the_masked_probability_is_that_of_the_tokens_ruled_out(seed: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(4, 64, generator=generator) * 4).to(dtype)
    flags = torch.rand(4, 64, generator=generator) < 0.4
    flags[:, 0] = True
    flags[3] = True
    packed = list(np.packbits(flags.numpy(), axis=1, bitorder="little"))
    masks = [packed[0], None, packed[2], packed[3]]
    samplers = [Sampler(Decoding(), (), 0) for _ in range(4)]
    before = logits.clone()
    found = choose(samplers, masks, logits)
    assert torch.equal(before, logits)
    probabilities = torch.softmax(logits.double(), dim=-1)
    for place, (mask, chosen) in enumerate(zip(masks, found, strict=True)):
        allowed = flags[place] if mask is not None else torch.ones(64, dtype=torch.bool)
        assert chosen.token == int(torch.where(allowed, logits[place].float(), -math.inf).argmax())
        assert chosen.masked == pytest.approx(float(probabilities[place, ~allowed].sum()), abs=1e-5)
        assert chosen.logprob == pytest.approx(float(probabilities[place, chosen.token].log()), abs=1e-4)
    assert found[3].masked == 0.0
    assert math.copysign(1.0, found[3].masked) == 1.0
    for chosen, again in zip(forced([each.token for each in found], logits), found, strict=True):
        assert chosen.logprob == again.logprob
        assert chosen.masked == pytest.approx(1 - math.exp(again.logprob), abs=1e-5)


def test_a_sample_has_the_mean_over_the_places_where_a_token_was_chosen(constraints: Constraints) -> None:
    engine = engine_over(random_model("llama"))
    grammar = 'start: "tech" | "technical" | "account"\n'
    for prompt in family((0, 20, 40, 60)):
        (sample,) = samples_of(engine, [GenerateRequest(prompt, Decoding(max_tokens=20), grammar)])
        matcher, removed = constraints.matcher(grammar), []
        tokens = [*sample.tokens, ENDS[0]] if sample.finish == "stop" else list(sample.tokens)
        for place, token in enumerate(tokens):
            with torch.inference_mode():
                text = torch.tensor([[*prompt, *tokens[:place]]])
                logits = random_model("llama")(input_ids=text, use_cache=False).logits[0, -1]
            probabilities = torch.softmax(logits.double(), dim=-1)
            removed.append(float(probabilities[torch.from_numpy(~matcher.allowed())].sum()))
            matcher.take(token)
        assert sample.masked == pytest.approx(sum(removed) / len(removed), abs=1e-4)
        assert 0 < sample.masked < 1


@pytest.mark.parametrize("plain", [False, True])
def test_nothing_is_masked_without_a_grammar(plain: bool) -> None:
    engine = plain_over(model_of("bloom")) if plain else engine_over(random_model("llama"))
    free, bound = engine.generate(
        [GenerateRequest((5, 6)), GenerateRequest((5, 6), Decoding(max_tokens=9), 'start: "yes" | "no"\n')]
    )
    assert isinstance(free, Generation)
    assert isinstance(bound, Generation)
    assert free.samples[0].masked == 0.0
    assert 0.5 < bound.samples[0].masked < 1


def test_a_mask_is_no_part_of_a_logprob(constraints: Constraints) -> None:
    logits = torch.randn(2, VOCABULARY, generator=torch.Generator().manual_seed(1)).repeat(2, 1)
    mask = fill_masks([constraints.matcher('start: "yes" | "no"\n')])[0]
    found = choose([Sampler(Decoding(), (), 0)] * 4, [mask, None, mask, None], logits)
    for place, chosen in enumerate(found):
        expected = float(logits[place, chosen.token] - log_normaliser(logits)[place])
        assert chosen.logprob == pytest.approx(expected, abs=1e-6)


def test_a_journal_keeps_what_was_masked_and_reads_those_that_do_not(tmp_path: Path) -> None:
    path, engine = tmp_path / "calls.jsonl", engine_over(random_model("llama"))
    requests = [GenerateRequest((5, 6), Decoding(max_tokens=9), 'start: "yes" | "no"\n')]
    (written,) = JournaledEngine(engine, path, Clock()).generate(requests)
    calls = engine.ledger.calls
    assert JournaledEngine(engine, path, Clock()).generate(requests) == [written]
    assert isinstance(written, Generation)
    old, count = re.subn(r',"masked":[^}\]]*', "", path.read_text())
    assert count == 1
    path.write_text(old)
    (read,) = JournaledEngine(engine, path, Clock()).generate(requests)
    assert read == Generation((replace(written.samples[0], masked=0.0),))
    assert engine.ledger.calls == calls, "it was answered from the journal"
