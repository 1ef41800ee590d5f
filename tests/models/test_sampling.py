"""The next token: each setting by its definition, and draws against the exact distribution."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.stats import chisquare

from cuecard.models.engine import Decoding, GenerateRequest, ScoreRequest
from cuecard.models.sampling import Sampler, derive_seed, log_normaliser

from .helpers import engine_over, random_model

LOGITS = (2.0, 1.6, -0.4, 0.9, -math.inf, 1.6001, -3.0, 0.2, -1.0, 0.0)
DRAWS = 2500


def distribution(
    logits: Sequence[float], decoding: Decoding, prompt: Sequence[int] = (), output: Sequence[int] = ()
) -> np.ndarray:
    """The next token's probabilities, written down from the definitions, one setting after the other."""
    changed = list(logits)
    for token in {*prompt, *output}:
        penalty = decoding.repetition_penalty
        changed[token] = changed[token] / penalty if changed[token] > 0 else changed[token] * penalty
    for token, count in Counter(output).items():
        changed[token] -= count * decoding.frequency_penalty + decoding.presence_penalty
    if decoding.temperature == 0:
        return np.eye(len(changed))[int(np.argmax(changed))]
    weights = np.exp((np.array(changed) - max(changed)) / decoding.temperature)
    ranked = sorted(range(len(weights)), key=lambda token: -weights[token])
    kept = set(ranked[: decoding.top_k] if decoding.top_k else ranked)
    mass = {token: weights[token] / sum(weights[t] for t in kept) for token in kept}
    nucleus, reached = set(), 0.0
    for token in ranked:
        if token in kept and reached < decoding.top_p:
            nucleus.add(token)
            reached += mass[token]
    best = max(mass.values())
    final = np.array(
        [mass[t] if t in nucleus and mass[t] >= decoding.min_p * best else 0.0 for t in range(len(weights))]
    )
    return final / final.sum()


def draws(logits: Sequence[float], decoding: Decoding, prompt: Sequence[int] = (), output: Sequence[int] = (),
          count: int = DRAWS) -> Counter[int]:  # fmt: skip
    sampler = Sampler(decoding, tuple(prompt), 0)
    for token in output:
        sampler.took(token)
    return Counter(sampler.choose(torch.tensor(logits)) for _ in range(count))


def assert_drawn_from(expected: np.ndarray, found: Counter[int]) -> None:
    """Pearson's test, on the tokens expected at least five times; nothing else may be drawn but rarely."""
    total = sum(found.values())
    assert all(expected[token] > 0 for token in found), "a token was drawn that can't be"
    often = [token for token in range(len(expected)) if expected[token] * total >= 5]
    rest = total - sum(found[token] for token in often)
    rare = total - sum(expected[token] * total for token in often)
    assert rest <= rare + 5 * math.sqrt(rare + 1)
    if len(often) > 1:
        shares = np.array([expected[token] for token in often])
        seen = np.array([found[token] for token in often])
        assert chisquare(seen, shares / shares.sum() * seen.sum()).pvalue > 1e-4


SETTINGS = (
    {"temperature": 1.0},
    {"temperature": 0.5},
    {"temperature": 3.0},
    {"temperature": 1.0, "top_k": 1},
    {"temperature": 1.0, "top_k": 3},
    {"temperature": 1.0, "top_k": 100},
    {"temperature": 1.0, "top_p": 0.6},
    {"temperature": 1.0, "top_p": 0.05},
    {"temperature": 1.0, "top_p": 0.999},
    {"temperature": 0.7, "top_k": 4, "top_p": 0.8},
    {"temperature": 1.0, "min_p": 0.3},
    {"temperature": 1.0, "min_p": 1.0},
    {"temperature": 2.0, "top_p": 0.95, "min_p": 0.2},
    {"temperature": 1.0, "frequency_penalty": 0.8},
    {"temperature": 1.0, "presence_penalty": 1.1},
    {"temperature": 1.0, "frequency_penalty": -0.5, "presence_penalty": 0.3},
    {"temperature": 1.0, "repetition_penalty": 1.7},
    {"temperature": 1.0, "repetition_penalty": 0.6},
    {"temperature": 0.8, "repetition_penalty": 1.3, "frequency_penalty": 0.2, "presence_penalty": 0.4, "top_k": 6,
     "top_p": 0.9, "min_p": 0.1},
)  # fmt: skip


@pytest.mark.parametrize("changes", SETTINGS, ids=lambda changes: " ".join(f"{k}={v}" for k, v in changes.items()))
def test_draws_follow_the_definition(changes: dict[str, float]) -> None:
    decoding = Decoding.model_validate({**changes, "seed": 11})
    prompt, output = (1, 2, 4), (0, 0, 3, 6, 0)
    expected = distribution(LOGITS, decoding, prompt, output)
    assert_drawn_from(expected, draws(LOGITS, decoding, prompt, output))


def test_the_check_of_draws_can_fail() -> None:
    warm, cold = Decoding(temperature=1.0), Decoding(temperature=0.9)
    with pytest.raises(AssertionError):
        assert_drawn_from(distribution(LOGITS, cold), draws(LOGITS, warm))
    with pytest.raises(AssertionError):
        assert_drawn_from(distribution(LOGITS, Decoding(temperature=1.0, top_k=5)), draws(LOGITS, warm))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(-64, 64).map(lambda eighths: eighths / 8), min_size=1, max_size=12, unique=True),
    st.integers(0, 5), st.floats(0.05, 1.0), st.floats(0.0, 1.0), st.floats(0.2, 3.0), st.integers(0, 100),
)  # fmt: skip
def test_nothing_outside_the_definition_is_drawn(
    logits: list[float], top_k: int, top_p: float, min_p: float, temperature: float, seed: int
) -> None:
    decoding = Decoding(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
    expected = distribution(logits, decoding)
    edge = 1e-6  # what rounding may put on either side of a limit
    for token in draws(logits, decoding, count=6):
        wider = Decoding(
            temperature=temperature, top_k=top_k, top_p=min(1.0, top_p + edge), min_p=max(0.0, min_p - edge)
        )
        assert expected[token] > 0 or distribution(logits, wider)[token] > 0


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    logits = [math.log(share) for share in (0.5, 0.3, 0.15, 0.05)]
    for top_p, kept in (
        (0.4, {0}),
        (0.49, {0}),
        (0.51, {0, 1}),
        (0.79, {0, 1}),
        (0.81, {0, 1, 2}),
        (0.96, {0, 1, 2, 3}),
    ):
        assert set(draws(logits, Decoding(temperature=1.0, top_p=top_p), count=400)) == kept


def test_top_p_is_reckoned_after_top_k() -> None:
    logits = [math.log(share) for share in (0.4, 0.3, 0.2, 0.1)]
    assert set(draws(logits, Decoding(temperature=1.0, top_k=2, top_p=0.55), count=300)) == {0}
    assert set(draws(logits, Decoding(temperature=1.0, top_p=0.55), count=300)) == {0, 1}


def test_min_p_is_a_share_of_the_likeliest() -> None:
    logits = [math.log(share) for share in (0.4, 0.25, 0.19, 0.16)]
    assert set(draws(logits, Decoding(temperature=1.0, min_p=0.5), count=400)) == {0, 1}
    assert set(draws(logits, Decoding(temperature=1.0, min_p=0.45), count=400)) == {0, 1, 2}


def greedy(logits: Sequence[float], prompt: Sequence[int] = (), output: Sequence[int] = (), **settings: float) -> int:
    (token,) = draws(logits, Decoding.model_validate(settings), prompt, output, count=1)
    return token


def test_the_frequency_penalty_grows_with_the_count() -> None:
    assert [greedy((2.0, 1.5), output=(0,) * count, frequency_penalty=0.2) for count in range(5)] == [0, 0, 0, 1, 1]
    assert greedy((2.0, 1.5), prompt=(0,) * 9, frequency_penalty=0.2) == 0, "the prompt does not count"


def test_the_presence_penalty_does_not_grow() -> None:
    assert [greedy((2.0, 1.5), output=(0,) * count, presence_penalty=0.4) for count in range(5)] == [0] * 5
    assert [greedy((2.0, 1.5), output=(0,) * count, presence_penalty=0.6) for count in range(3)] == [0, 1, 1]
    assert greedy((2.0, 1.5), prompt=(0,), presence_penalty=9.0) == 0


def test_the_repetition_penalty_divides_and_multiplies() -> None:
    for seen in ({"prompt": (0,)}, {"output": (0,)}, {"prompt": (0, 0), "output": (0, 0)}):
        assert greedy((2.0, 1.1), repetition_penalty=1.7, **seen) == 0  # 1.18
        assert greedy((2.0, 1.1), repetition_penalty=1.9, **seen) == 1  # 1.05
        assert greedy((-1.0, -1.5), repetition_penalty=1.4, **seen) == 0
        assert greedy((-1.0, -1.5), repetition_penalty=1.6, **seen) == 1
    assert greedy((1.5, 2.0), prompt=(0,), repetition_penalty=0.5) == 0, "below 1 it rewards"


def test_a_masked_token_is_never_chosen() -> None:
    logits = (-math.inf, 0.0, -math.inf, -50.0)
    for extra in (
        {},
        {"top_k": 3},
        {"top_p": 0.999999},
        {"min_p": 0.0},
        {"repetition_penalty": 0.5},
        {"presence_penalty": -9},
    ):
        for temperature in (0.0, 1.0, 100.0):
            decoding = Decoding.model_validate({"temperature": temperature, **extra})
            assert set(draws(logits, decoding, (0, 2), (2,), count=50)) <= {1, 3}
    assert set(draws(logits, Decoding(temperature=100.0), count=100)) == {1, 3}


@pytest.mark.parametrize("temperature", [1e-3, 1e-9, 1e-30, 1e-300])
def test_a_very_low_temperature_is_greedy(temperature: float) -> None:
    for scale in (1.0, 1e4):
        logits = [scale * logit for logit in LOGITS]
        assert set(draws(logits, Decoding(temperature=temperature), count=20)) == {0}


def test_a_very_high_temperature_is_uniform_over_what_is_allowed() -> None:
    found = draws(LOGITS, Decoding(temperature=1e9))
    assert_drawn_from(np.array([0.0 if math.isinf(logit) else 1 / 9 for logit in LOGITS]), found)


def test_greedy_takes_the_first_of_equals() -> None:
    assert greedy((1.0, 3.0, 3.0)) == 1


# Seeds


def test_a_seed_gives_the_same_draws_and_another_gives_others() -> None:
    def tokens(seed: int, sample: int) -> list[int]:
        sampler = Sampler(Decoding(temperature=1.0, seed=seed), (), sample)
        return [sampler.choose(torch.tensor(LOGITS)) for _ in range(30)]

    assert tokens(5, 0) == tokens(5, 0)
    assert len({tuple(tokens(seed, sample)) for seed in (-1, 0, 1, 2**40) for sample in range(4)}) == 16


def test_derived_seeds_are_fixed_and_apart() -> None:
    assert derive_seed(0, 1) == derive_seed(0, 1)
    assert derive_seed(0, "a", 1) == 3805457466603685491
    parts = [(0,), (1,), (0, 0), (0, "0", 1), ("x",), (10,), (1, 0)]
    seeds = {derive_seed(seed, *rest) for seed in (0, 1, 11) for rest in parts}
    assert len(seeds) == 3 * len(parts)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_samples_of_a_request_are_drawn_from_the_models_distribution() -> None:
    """Through the engine: the first tokens of many samples against the scores of every token."""
    engine = engine_over(random_model("llama"), ends=())
    prompt = (40, 50, 60)
    (scores,) = engine.score([ScoreRequest(prompt, tuple((token,) for token in range(512)))])
    logits = [*scores.totals]
    for changes in ({"temperature": 1.0}, {"temperature": 0.7, "top_k": 12}):
        decoding = Decoding.model_validate({**changes, "n": 700, "max_tokens": 1, "seed": 3})
        (result,) = engine.generate([GenerateRequest(prompt, decoding)])
        assert_drawn_from(distribution(logits, decoding), Counter(sample.tokens[0] for sample in result.samples))


def test_penalties_see_prompt_and_output_in_the_engine() -> None:
    """A text that repeats itself when greedy does not when every repetition costs more than anything."""
    engine = engine_over(random_model("llama"), ends=())
    prompt = (40, 50, 60)
    for changes, avoided in (
        ({"frequency_penalty": 1e4}, set()),
        ({"presence_penalty": 1e4}, set()),
        ({"repetition_penalty": 1e6}, set(prompt)),
    ):
        decoding = Decoding.model_validate({**changes, "max_tokens": 60})
        (result,) = engine.generate([GenerateRequest(prompt, decoding)])
        tokens = result.samples[0].tokens
        assert len(tokens) == 60
        if "repetition_penalty" not in changes:
            assert len(set(tokens)) == 60
        assert not avoided & set(tokens[:20])
    (plain,) = engine.generate([GenerateRequest(prompt, Decoding(max_tokens=60))])
    assert len(set(plain.samples[0].tokens)) < 60, "without penalties it repeats itself"


# Settings


@pytest.mark.parametrize(
    "bad",
    [
        {"max_tokens": 0}, {"temperature": -0.1}, {"temperature": math.nan}, {"temperature": math.inf}, {"top_p": 0.0},
        {"top_p": 1.1}, {"top_k": -1}, {"min_p": -0.1}, {"min_p": 1.1}, {"repetition_penalty": 0.0}, {"n": 0},
        {"frequency_penalty": math.nan}, {"presence_penalty": math.inf}, {"stop": [""]}, {"stop": ["x", ""]},
        {"best_of": 2}, {"seed": 0.5},
    ],
    ids=str,
)  # fmt: skip
def test_settings_without_a_meaning_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Decoding.model_validate(bad)


# The normaliser


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_the_normaliser_is_the_logarithm_of_the_sum(dtype: torch.dtype) -> None:
    source = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 700, generator=source).to(dtype) * 5
    logits[1] += 60
    logits[2] -= 60
    logits[3, 7:] = -math.inf
    kept = logits.clone()
    found = log_normaliser(logits)
    assert found.dtype == torch.float32
    assert torch.equal(logits, kept), "the logits must be left as they are"
    torch.testing.assert_close(found.double(), torch.logsumexp(kept.double(), dim=-1), rtol=1e-6, atol=1e-5)
