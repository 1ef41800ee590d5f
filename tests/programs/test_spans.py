"""The read-out `span`: text that is copied from an input, in every format, and only where there is something to copy."""

from __future__ import annotations

from typing import Any

import pytest
from fakes import FakeEngine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cuecard
from cuecard.errors import InputError, ReadError
from cuecard.models.engine import Decoding, SpanScore, Turn
from cuecard.models.lm import language_model
from cuecard.models.tokenizer import HFTokenizer
from cuecard.programs.formats.registry import BUILT_IN, format_named
from cuecard.programs.graph import build
from cuecard.programs.predictor import Predictor
from cuecard.programs.spans import MARK, Copy, copied_from, left_open, recorded_copies, runs, sources_of
from cuecard.programs.spec import read_spec
from cuecard.programs.state import PredictorState, ReadOut, SpanChoice, SpanWeights
from cuecard.programs.yaml_source import parse_yaml
from tiny import build_tiny_tokenizer

ASK = cuecard.signature("context, question -> answer")
CONTEXT = 'Ada Lovelace wrote "Note G" in 1843,\nfor Babbage\'s engine {sic}. It was <never> built.'
FORMATS = sorted(BUILT_IN)


TOKENIZER = HFTokenizer(build_tiny_tokenizer(), name="tiny")


def spans_of(format_: Any, text: str, most: int = 40) -> dict[str, tuple[int, ...]]:
    """Every span that may be written, as text -> tokens."""
    found, cuts = runs(TOKENIZER, format_, ASK, "answer", [text], most)
    return {TOKENIZER.decode(run[:cut]): run[:cut] for run, at in zip(found, cuts, strict=True) for cut in at}


@pytest.mark.parametrize("name", FORMATS)
@given(text=st.text(st.sampled_from('ab1 .,-\n"\\é<&日本👍'), min_size=1, max_size=24), most=st.integers(1, 12))
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
def test_every_run_reads_back_as_a_span(name: str, text: str, most: int) -> None:
    format_ = format_named(name)
    suffix = format_.write(ASK, "answer", MARK).split(MARK)[1]
    for written, tokens in spans_of(format_, text, most).items():
        assert len(tokens) <= most
        read = format_.parse(ASK, format_.lead(ASK, "answer", {}) + written + suffix)["answer"]
        assert read
        assert "".join(read.split()) in "".join(text.split())


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("answer", ["Ada Lovelace", '"Note G"', "1843", "never", "Babbage's engine {sic}", "built."])
def test_every_span_can_be_written(name: str, answer: str) -> None:
    format_ = format_named(name)
    suffix = format_.write(ASK, "answer", MARK).split(MARK)[1]
    written = format_.write(ASK, "answer", answer)
    assert written[: len(written) - len(suffix)] in spans_of(format_, CONTEXT)


def test_a_span_begins_and_ends_with_a_word() -> None:
    found = spans_of(format_named("completion"), "two red\napples")
    assert set(found) == {" two", " two red", " two red\napples", " red", " red\napples", " apples"}


def test_the_best_is_likely_long_and_not_likely_anyway() -> None:
    scores = (SpanScore(0, 1, -2.0, -1.0), SpanScore(1, 2, -2.5, -4.0), SpanScore(2, 4, -3.0, -2.0))
    copy = Copy(0, "answer", ("likely", "not else", "long"), scores, (0.0,) * 3, None, None)

    def taken(reward: float, contrast: float) -> str | None:
        return copy.best(SpanWeights(reward=reward, contrast=contrast))

    assert (taken(0, 0), taken(0.5, 0), taken(0, 0.5)) == ("likely", "long", "not else")


def test_null_is_taken_where_it_is_worth_more_than_every_span() -> None:
    copy = Copy(0, "answer", ("Ada",), (SpanScore(0, 1, -2.0, -4.0),), (0.0,), (-2.5, -1.0), None)

    def taken(contrast: float, null: float) -> str | None:
        return copy.best(SpanWeights(reward=0.0, contrast=contrast, absent=null))

    assert (taken(0, 0), taken(0, 0.5), taken(0, 0.6), taken(0.5, 0.6)) == ("Ada", "Ada", None, "Ada")
    assert Copy(0, "answer", (), (), (), None, None).best(SpanWeights()) is None


def test_the_inputs_that_are_not_copied_from_are_left_open() -> None:
    signature = cuecard.signature("context, question, year: int -> answer")
    inputs = {"context": "Ada wrote it.", "question": "who?", "year": 1843}
    assert left_open(signature, ("context",), inputs) == {**inputs, "question": "N/A"}
    assert left_open(signature, ("context", "question"), inputs) == inputs


def asked(state: PredictorState, **inputs: Any) -> tuple[FakeEngine, Any]:
    """A likelihood that likes names, and long answers less."""
    engine = FakeEngine(likelihood=lambda prompt, text: -len(text) - 3 * (not text.strip()[:1].isupper()))
    predictor = Predictor(ASK, state)
    with cuecard_lm(engine):
        return engine, predictor(**inputs)


def test_the_likeliest_span_is_taken() -> None:
    state = PredictorState(format="completion", readout=ReadOut(kind="span", sources=("context",)))
    engine, outputs = asked(state, context="it was Ada who wrote", question="who wrote Note G?")
    assert outputs.answer == "Ada"
    prompts = {engine.tokenizer.text(r.prompt) for batch in engine.batches for r in batch}
    assert len(prompts) == 2
    assert sum("N/A" in prompt for prompt in prompts) == 1


@pytest.mark.parametrize(("weight", "expected"), [(0.0, "Ada"), (6.0, "Grace")])
def test_of_two_names_the_one_beside_what_is_asked_for_is_taken(weight: float, expected: str) -> None:
    text = "Ada wrote the first program, a long time ago. Much later, as is well known, Grace wrote the compiler."
    choice = SpanChoice(contrast=0.0, beside=weight)
    state = PredictorState(format="completion", readout=ReadOut(kind="span", sources=("context",), span=choice))
    with recorded_copies() as copies:
        _, outputs = asked(state, context=text, question="who made the compiler?")
    assert outputs.answer == expected
    (copy,) = copies
    places = dict(zip(copy.values, copy.beside, strict=True))
    assert places["Grace"] > places["Ada"]


def test_without_contrast_no_other_prompt_is_asked() -> None:
    choice = SpanChoice(contrast=0.0)
    state = PredictorState(format="completion", readout=ReadOut(kind="span", sources=("context",), span=choice))
    engine, _ = asked(state, context="it was Ada who wrote", question="who?")
    assert len({r.prompt for batch in engine.batches for r in batch}) == 1


NOTE = cuecard.signature("message -> who: str | None, what: str")


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize(("null", "expected"), [(0.0, "Ada"), (9.0, None)])
def test_a_field_that_may_be_null_is_left_out_where_that_is_worth_more(
    format_: str, null: float, expected: str | None
) -> None:
    engine = FakeEngine(likelihood=lambda prompt, text: -8.0 if "ull" in text or "None" in text else -len(text) / 9)
    weights = SpanChoice(contrast=0.0, fields={"who": SpanWeights(contrast=0.0, absent=null)})
    predictor = Predictor(NOTE, PredictorState(format=format_, readout=ReadOut(kind="span", span=weights)))
    with cuecard_lm(engine), recorded_copies() as copies:
        made = predictor(message="Ada wrote")
    assert (made.who, made.what) == (expected, "Ada")
    (who, what) = copies
    assert (who.field, what.field, what.null, who.chosen) == ("who", "what", None, expected)
    assert who.null == (pytest.approx(-8.0), 0.0)
    assert "Ada" in who.values


def test_nothing_to_copy_is_null_where_it_may_be() -> None:
    predictor = Predictor(cuecard.signature("message -> who: str | None"), PredictorState(readout=ReadOut(kind="span")))
    with cuecard_lm(FakeEngine()):
        assert predictor(message=" ").who is None


def test_an_empty_input_is_an_answer_that_can_not_be_read() -> None:
    state = PredictorState(format="completion", readout=ReadOut(kind="span", sources=("context",)))
    with pytest.raises(ReadError, match="nothing to copy: context is empty"):
        asked(state, context="  ", question="who?")


@pytest.mark.parametrize("name", FORMATS)
def test_a_model_answers_with_a_span(name: str, tiny_engine: Any) -> None:
    """A random model, which would write anything."""
    state = PredictorState(format=name, readout=ReadOut(kind="span"), decoding=Decoding(max_tokens=40))
    predictor = Predictor(cuecard.signature("context -> answer"), state)
    context = "one two three"
    with cuecard_lm(tiny_engine):
        answer = predictor(context=context).answer
    assert answer in {"one", "two", "three", "one two", "two three", "one two three"}


def cuecard_lm(engine: Any) -> Any:
    import dspy

    return dspy.context(lm=language_model(engine))


@pytest.fixture(scope="module")
def tiny_engine() -> Any:
    from ..models.helpers import engine_over, random_model

    engine = engine_over(random_model("llama"))
    assert engine.tokenizer.chat([Turn("user", "x")])
    return engine


# ---- where spans come from


def test_sources_are_all_text_inputs_or_those_chosen() -> None:
    signature = cuecard.signature("context, year: int, question -> answer")
    assert sources_of(signature, ()) == ("context", "question")
    assert sources_of(signature, ("question",)) == ("question",)


@pytest.mark.parametrize(
    ("text", "chosen", "expected"),
    [
        ("context -> answer", ("contxt",), "no text input is called 'contxt'"),
        ("context, year: int -> answer", ("year",), "no text input is called 'year'"),
        ("year: int -> answer", (), "a span needs an input that is a text"),
    ],
)
def test_wrong_sources(text: str, chosen: tuple[str, ...], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        sources_of(cuecard.signature(text), chosen)
    with pytest.raises(InputError, match=expected):
        source = f"signature: '{text}'\nreadout: {{kind: span, sources: {list(chosen)}}}\n"
        build(read_spec(parse_yaml(source, "spec.yaml")))


def examples(*answers: str) -> list[dict[str, Any]]:
    return [{"context": CONTEXT, "question": "who wrote Note G?", "answer": answer} for answer in answers]


def test_copies_are_noticed() -> None:
    assert copied_from(ASK, examples("Ada Lovelace", "1843", "engine")) == ("context",)


@pytest.mark.parametrize(
    "rows",
    [
        examples("Ada Lovelace", "Byron's daughter"),
        examples(CONTEXT),
        [],
        [{"context": CONTEXT, "question": "q"}],
    ],
    ids=["not in there", "all of it", "no examples", "no answers"],
)
def test_what_is_no_copy(rows: list[dict[str, Any]]) -> None:
    assert copied_from(ASK, rows) == ()


def test_a_few_exceptions_are_allowed() -> None:
    assert copied_from(ASK, examples(*["1843"] * 18, "in another year", "1843")) == ("context",)
    assert copied_from(ASK, examples(*["1843"] * 8, "in another year", "last year")) == ()


def test_some_may_be_all_of_the_input_and_null_tells_nothing() -> None:
    signature = cuecard.signature("message -> people: str | None")
    rows = [{"message": f"a table for {n}", "people": str(n)} for n in range(6)] + [
        {"message": "12", "people": "12"}
    ] * 4
    assert copied_from(signature, [*rows, {"message": "hello", "people": None}]) == ("message",)
    assert copied_from(signature, rows[3:]) == (), "most are all of it"


def test_a_label_is_no_copy() -> None:
    signature = cuecard.signature("context -> answer: Literal['Ada', 'Babbage']")
    assert copied_from(signature, [{"context": CONTEXT, "answer": "Ada"}]) == ()
