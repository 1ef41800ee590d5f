"""Grammars as token masks: what comes out always matches, whatever the weights say."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from cuecard.errors import InputError
from cuecard.models.constraints import Constraints
from cuecard.models.engine import Decoding, Failure, GenerateRequest, Generation, Sample, ScoreRequest
from cuecard.models.local import LocalEngine
from cuecard.models.tokenizer import HFTokenizer

from .helpers import ENDS, config, engine_over, family, random_model, tokenizer

VOCABULARY = 512
SPECIAL = (0, 1, 2)
OVERFULL = "start: " + " | ".join(f"x{i}" for i in range(2100)) + "\n" + "".join(
    f'x{i}: "a" x{i} | "a"\n' for i in range(2100)
)  # fmt: skip
PERSON = {
    "type": "object",
    "properties": {
        "queue": {"enum": ["billing", "technical", "account"]},
        "score": {"type": "integer", "minimum": 0, "maximum": 10},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
        "sure": {"type": "boolean"},
    },
    "required": ["queue", "score", "tags", "sure"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def constraints() -> Constraints:
    return Constraints(tokenizer(), VOCABULARY, ENDS)


@pytest.fixture(scope="module")
def engine() -> LocalEngine:
    return engine_over(random_model("llama"))


def samples(engine: LocalEngine, grammar: str, **changes: object) -> list[Sample]:
    """Many draws, from several prompts, greedy and hot."""
    found: list[Sample] = []
    for temperature in (0.0, 1.0, 5.0):
        decoding = Decoding.model_validate({"max_tokens": 80, "n": 4, "temperature": temperature, **changes})
        for result in engine.generate([GenerateRequest(p, decoding, grammar) for p in family((0, 4, 9, 40))]):
            assert isinstance(result, Generation), result
            found += result.samples
    return found


# One text along its grammar


def walk(constraints: Constraints, grammar: str, text: str) -> bool:
    """Whether the grammar allows each of the text's tokens, and the end after them."""
    matcher = constraints.matcher(grammar)
    for token in tokenizer().encode(text):
        if not matcher.allowed()[token]:
            return False
        assert matcher.take(token)
    assert not matcher.error
    return bool(matcher.allowed()[list(ENDS)].all())


@pytest.mark.parametrize(
    ("grammar", "right", "wrong"),
    [
        ('start: "yes" | "no"\n', ("yes", "no"), ("ye", "yesno", "maybe", "Yes", " yes", "")),
        ("start: /[0-9]{2,3}/\n", ("12", "007"), ("1", "1234", "1a")),
        ('start: "a" "b"?\n', ("a", "ab"), ("b", "abb")),
        ('start: %json {"enum": ["x y", 3]}\n', ('"x y"', "3"), ("x y", "4")),
        ('start: ""\n', ("",), ("a",)),
        ('start: "é" | "日本"\n', ("é", "日本"), ("e", "日")),
    ],
)
def test_a_grammar_allows_its_texts_and_no_others(
    constraints: Constraints, grammar: str, right: Sequence[str], wrong: Sequence[str]
) -> None:
    assert [walk(constraints, grammar, text) for text in right] == [True] * len(right)
    assert [walk(constraints, grammar, text) for text in wrong] == [False] * len(wrong)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=8), min_size=1, max_size=4
    )
)
def test_any_choices_can_be_spelled(constraints: Constraints, choices: list[str]) -> None:
    grammar = "start: " + " | ".join(json.dumps(choice) for choice in choices) + "\n"
    for choice in choices:
        if tokenizer().decode(tokenizer().encode(choice)) == choice:
            assert walk(constraints, grammar, choice)


def test_special_tokens_are_no_text(constraints: Constraints) -> None:
    """A grammar for any text allows the tokens that end it, and none that only look like text."""
    allowed = constraints.matcher("start: /(.|\\n)+/\n").allowed()
    assert allowed.shape == (VOCABULARY,)
    assert allowed.dtype == np.bool_
    assert not allowed[list(SPECIAL)].any(), "nothing was said yet"
    after = constraints.matcher("start: /(.|\\n)+/\n")
    after.take(tokenizer().encode("a")[0])
    assert [bool(after.allowed()[token]) for token in SPECIAL] == [token in ENDS for token in SPECIAL]


def test_matchers_of_one_grammar_go_their_own_ways(constraints: Constraints) -> None:
    grammar = 'start: "yes" | "no"\n'
    one, two = constraints.matcher(grammar), constraints.matcher(grammar)
    for token in tokenizer().encode("yes"):
        assert one.take(token)
    assert one.finished
    assert not two.finished
    assert two.allowed()[tokenizer().encode("n")[0]]
    assert not constraints.matcher(grammar).finished


def test_a_refused_token_is_an_error_that_says_so(constraints: Constraints) -> None:
    matcher = constraints.matcher('start: "yes"\n')
    assert matcher.error == ""
    assert not matcher.take(tokenizer().encode("n")[0])
    assert "doesn't satisfy the grammar" in matcher.error
    assert "\n" not in matcher.error.strip()


@pytest.mark.parametrize(
    ("grammar", "says"),
    [
        ("start: nothing\n", 'unknown name: "nothing"'),
        ("", "grammar"),
        ("start: /(/\n", "regex"),
        ('start: %json {"type": "nope"}\n', "nope"),
        ('start: %json {"type": "integer", "minimum": 5, "maximum": 3}\n', "minimum (5) is greater"),
        ("start: %json {\n", "grammar"),
    ],
)
def test_a_grammar_that_makes_no_sense_is_refused(constraints: Constraints, grammar: str, says: str) -> None:
    with pytest.raises(InputError, match="the grammar can't be compiled") as caught:
        constraints.matcher(grammar)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "constraints",
    [
        Constraints(tokenizer(), VOCABULARY, ()),
        Constraints(tokenizer(), 300, (2,)),
        Constraints(None, VOCABULARY, (2,)),
    ],
    ids=["no end", "tokens beyond the model's", "no fast tokenizer"],
)
def test_a_model_that_can_follow_no_grammar_says_so(constraints: Constraints) -> None:
    with pytest.raises(InputError, match="no grammar can be used with this model"):
        constraints.matcher('start: "yes"\n')


# Generation


def test_choices_are_all_that_comes_out(engine: LocalEngine) -> None:
    found = samples(engine, 'start: "billing" | "technical" | "tech" | "account"\n')
    assert {sample.text for sample in found} <= {"billing", "technical", "tech", "account"}
    assert len({sample.text for sample in found}) > 1
    for sample in found:
        assert sample.finish == "stop" if sample.text == "tech" else sample.finish == "grammar"
        assert tokenizer().decode(sample.tokens) == sample.text
        assert len(sample.logprobs) == len(sample.tokens)


@pytest.mark.parametrize(
    "pattern", [r"[0-9]{3}-[0-9]{4}", r"(ab|cd){1,5}", r"[A-Z][a-z]{0,9}\.", r"-?(0|[1-9][0-9]{0,3})", r"[ \n]{1,4}x"]
)
def test_a_regex_is_matched(engine: LocalEngine, pattern: str) -> None:
    for sample in samples(engine, f"start: /{pattern}/\n"):
        assert re.fullmatch(pattern, sample.text), sample.text
        assert sample.finish in ("grammar", "stop")


def test_a_schema_is_followed(engine: LocalEngine) -> None:
    for sample in samples(engine, f"start: %json {json.dumps(PERSON)}\n", max_tokens=200):
        value = json.loads(sample.text)
        assert set(value) == set(PERSON["properties"])
        assert value["queue"] in ("billing", "technical", "account")
        assert value["score"] in range(11)
        assert value["tags"] in ([], *([x] for x in "ab"), *([x, y] for x in "ab" for y in "ab"))
        assert isinstance(value["sure"], bool)


def test_an_open_end_is_left_open_until_an_end_token_or_the_limit(engine: LocalEngine) -> None:
    found = samples(engine, "start: /[a-z]+/\n", max_tokens=30)
    for sample in found:
        assert re.fullmatch("[a-z]+", sample.text)
        assert sample.finish == ("length" if len(sample.tokens) == 30 else "stop")
        assert not set(sample.tokens) & set(SPECIAL)
    assert {sample.finish for sample in found} == {"length", "stop"}


def test_a_limit_cuts_a_grammar_off(engine: LocalEngine) -> None:
    for sample in samples(engine, 'start: "billing department, second floor"\n', max_tokens=2):
        assert sample.finish == "length"
        assert len(sample.tokens) == 2
        assert "billing department, second floor".startswith(sample.text)


def test_a_stop_string_ends_a_grammar_too(engine: LocalEngine) -> None:
    for sample in samples(engine, 'start: "one, two, three"\n', stop=(", t",)):
        assert sample.text == "one"
        assert sample.finish == "stop"


def test_logprobs_are_the_models_own_without_the_mask(engine: LocalEngine) -> None:
    prompt = family((20,))[0]
    (result,) = engine.generate([GenerateRequest(prompt, Decoding(max_tokens=20), 'start: "technical"\n')])
    (scores,) = engine.score([ScoreRequest(prompt, (result.samples[0].tokens,))])
    assert result.samples[0].logprobs == pytest.approx(scores.logprobs[0], abs=1e-4)
    assert sum(scores.logprobs[0]) < -5, "the model would never say it by itself"


def test_greedy_takes_the_likeliest_of_what_is_allowed(engine: LocalEngine) -> None:
    for prompt in family((3, 20, 40)):
        (result,) = engine.generate([GenerateRequest(prompt, Decoding(max_tokens=1), "start: /[0-9]/\n")])
        digits = [token for token in range(VOCABULARY) if re.fullmatch("[0-9]", tokenizer().decode([token]))]
        (scores,) = engine.score([ScoreRequest(prompt, tuple((digit,) for digit in digits))])
        assert result.samples[0].tokens == (digits[int(np.argmax(scores.totals))],)


def test_requests_with_and_without_a_grammar_share_a_batch(engine: LocalEngine) -> None:
    prompts = family((50, 50, 20, 20, 0, 0))
    free, bound = Decoding(max_tokens=12), Decoding(max_tokens=12, temperature=1.0)
    requests = [
        GenerateRequest(p, bound, 'start: "yes" | "no"\n') if i % 2 else GenerateRequest(p, free)
        for i, p in enumerate(prompts)
    ]
    for request, result in zip(requests, engine.generate(requests), strict=True):
        (alone,) = engine.generate([request])
        assert result.samples[0].tokens == alone.samples[0].tokens
        assert request.grammar is None or result.samples[0].text in ("yes", "no")


def test_a_grammar_that_grows_too_complex_is_its_requests_failure(engine: LocalEngine) -> None:
    """The text up to there would match nothing, so it is not handed out as if it did."""
    prompt = family((20,))[0]
    good = GenerateRequest(prompt, Decoding(max_tokens=5), 'start: "yes" | "no"\n')
    bad = GenerateRequest(prompt, Decoding(max_tokens=5, n=2), OVERFULL)
    first, failed, last = engine.generate([good, bad, good])
    assert isinstance(failed, Failure)
    assert "the grammar can't be followed" in failed.error
    assert "2000" in failed.error
    assert first == last
    assert first.samples[0].text in ("yes", "no")


def test_without_a_token_that_ends_a_text_grammars_fail_and_texts_do_not() -> None:
    engine = engine_over(random_model("llama"), ends=())
    prompt = family((20,))[0]
    free, bound = engine.generate([GenerateRequest(prompt), GenerateRequest(prompt, grammar='start: "yes"\n')])
    assert isinstance(free, Generation)
    assert isinstance(bound, Failure)
    assert "a token that ends a text" in bound.error


def test_a_model_wider_than_its_tokenizer_never_says_what_has_no_text() -> None:
    """Vocabularies are padded to round numbers; the padding is not in the tokenizer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config("llama", vocab_size=VOCABULARY + 77)).eval()
        model.lm_head.weight.data[VOCABULARY:] *= 30
    engine = LocalEngine(
        model,
        HFTokenizer(tokenizer(), name="wide"),
        identity="wide",
        name="wide",
        ends=ENDS,
        backend_tokenizer=tokenizer(),
    )
    for sample in samples(engine, "start: /[a-z]{1,9}/\n"):
        assert re.fullmatch("[a-z]{1,9}", sample.text)
        assert max(sample.tokens) < VOCABULARY
    (free,) = engine.generate([GenerateRequest((5, 6), Decoding(max_tokens=5, temperature=1.0))])
    assert max(free.samples[0].tokens) >= VOCABULARY, "without a grammar nothing holds it back"
