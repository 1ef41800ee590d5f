"""The read-out `span`: text that is copied from an input, in every format, and only where there is something to copy."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cuecard
from cuecard.errors import InputError
from cuecard.models.engine import Decoding, Turn
from cuecard.models.lm import language_model
from cuecard.programs.formats.registry import BUILT_IN, format_named
from cuecard.programs.graph import build
from cuecard.programs.predictor import Predictor
from cuecard.programs.spans import copied_from, sources_of, span_grammar
from cuecard.programs.spec import read_spec
from cuecard.programs.state import PredictorState, ReadOut
from cuecard.programs.yaml_source import parse_yaml
from tiny import build_tiny_tokenizer

ASK = cuecard.signature("context, question -> answer")
CONTEXT = 'Ada Lovelace wrote "Note G" in 1843,\nfor Babbage\'s engine {sic}. It was <never> built.'
FORMATS = sorted(BUILT_IN)


class Walker:
    """Random walks through a grammar, token by token."""

    def __init__(self) -> None:
        from cuecard.models.constraints import Constraints

        tokenizer = build_tiny_tokenizer()
        self.tokenizer = tokenizer
        self.constraints = Constraints(tokenizer, len(tokenizer), (0, 2))

    def walk(self, grammar: str, data: Any, most: int = 200) -> str | None:
        matcher, tokens = self.constraints.matcher(grammar), []
        while not matcher.finished and len(tokens) < most:
            allowed = [int(token) for token in matcher.allowed().nonzero()[0]]
            token = data.draw(st.sampled_from(allowed))
            if token in (0, 2):
                break
            matcher.take(token)
            tokens.append(token)
        return None if len(tokens) >= most else self.tokenizer.decode(tokens)


WALKER = Walker()


@pytest.mark.parametrize("name", FORMATS)
@given(data=st.data())
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_the_grammar_lets_through_is_a_span(name: str, data: st.DataObject) -> None:
    format_ = format_named(name)
    grammar = span_grammar(format_, ASK, "answer", [CONTEXT], format_.ends(ASK, "answer"))
    text = WALKER.walk(grammar, data)
    if text is None:
        return
    for end in format_.ends(ASK, "answer"):
        text = text.split(end)[0] if text.strip() else text
    read = format_.parse(ASK, format_.lead(ASK, "answer", {}) + text)["answer"]
    assert read
    assert " ".join(read.split()) in " ".join(CONTEXT.split())


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("answer", ["Ada Lovelace", '"Note G"', "1843", "never", "Babbage's engine {sic}", "built."])
def test_every_span_can_be_written(name: str, answer: str) -> None:
    format_ = format_named(name)
    matcher = WALKER.constraints.matcher(span_grammar(format_, ASK, "answer", ["something else", CONTEXT], ()))
    for token in WALKER.tokenizer.encode(format_.write(ASK, "answer", answer), add_special_tokens=False):
        assert matcher.take(token), matcher.error
    assert matcher.finished or {0, 2} & set(matcher.allowed().nonzero()[0].tolist())


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


def test_nothing_to_copy_from() -> None:
    with pytest.raises(InputError, match="nothing that 'answer' could be copied from"):
        span_grammar(format_named("completion"), ASK, "answer", ["", "  "], ())


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


def test_a_label_is_no_copy() -> None:
    signature = cuecard.signature("context -> answer: Literal['Ada', 'Babbage']")
    assert copied_from(signature, [{"context": CONTEXT, "answer": "Ada"}]) == ()
