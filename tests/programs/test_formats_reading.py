"""What the formats read out of answers that are not as they should be, and how they say that they cannot."""

from __future__ import annotations

from typing import Any, Literal, Optional

import dspy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cuecard.errors import ReadError
from cuecard.programs.formats import format_named, names

LABEL = dspy.Signature(
    {"question": (str, dspy.InputField()), "label": (Literal["person", "place"], dspy.OutputField())}, "Classify."
)
ANSWER = dspy.Signature("question -> answer", "Answer.")
THINK = dspy.Signature("question -> reasoning, answer", "Answer.")
RATE = dspy.Signature("ticket_text -> reasoning: str, score: int, tags: list[str]", "Rate.")


@pytest.mark.parametrize(
    ("choice", "signature", "answer", "outputs"),
    [
        # completion: what follows the block is invented; the engine may leave the first label out
        ("completion", LABEL, "Label: person\n\nQuestion: What?\nLabel: place", {"label": "person"}),
        ("completion", LABEL, " person\n\nQuestion: What?\nLabel: place", {"label": "person"}),
        ("completion", LABEL, "Label: person\nQuestion: What?", {"label": "person"}),
        ("completion", LABEL, "label: person\nLabel: place", {"label": "person"}),
        ("completion", ANSWER, "Answer: one\ntwo\n\nthree", {"answer": "one\ntwo"}),
        ("completion", ANSWER, " one\nanswer: two", {"answer": "one"}),
        ("completion", THINK, " a\n\nb\nAnswer: c\n\nmore", {"reasoning": "a\n\nb", "answer": "c"}),
        (
            "completion",
            RATE,
            "Reasoning: a\nScore: 3\nTags: []\nTicket text: x",
            {"reasoning": "a", "score": 3, "tags": []},
        ),
        # chat formats: labels in bold, words before the answer, an explanation after it
        ("turns", LABEL, "Label: person", {"label": "person"}),
        ("turns", LABEL, "**Label:** person", {"label": "person"}),
        ("turns", LABEL, "person\n\nBecause it asks for one.", {"label": "person"}),
        ("turns", ANSWER, "One.\n\nTwo: three.", {"answer": "One.\n\nTwo: three."}),
        ("turns", THINK, "Sure!\n**Reasoning**: a\n\nb\n**ANSWER**: c", {"reasoning": "a\n\nb", "answer": "c"}),
        ("turns", THINK, "a\nAnswer: c", {"reasoning": "a", "answer": "c"}),
        ("turns", THINK, "Answer: c\nReasoning: a", {"reasoning": "a", "answer": "c"}),
        ("chat", THINK, "Question: q\nReasoning: a\nAnswer: c\nQuestion: r", {"reasoning": "a", "answer": "c"}),
        ("turns_labelled", LABEL, "Label:\nperson\n", {"label": "person"}),
        # JSON: fences, words around it, keys in another case, an object never closed, quotation marks forgotten
        ("json", LABEL, '```json\n{"label": "person"}\n```', {"label": "person"}),
        ("json", LABEL, 'Here {it} is: {"Label": "person"} and {"label": "place"}', {"label": "person"}),
        ("json", LABEL, '{"label": "person', {"label": "person"}),
        ("json", LABEL, "{label: 'person'}", {"label": "person"}),
        ("json", LABEL, '{"answer": {"label": "person"}}', {"label": "person"}),
        ("json", ANSWER, '{"answer": 3}', {"answer": "3"}),
        ("json", ANSWER, '{"answer": " kept \\n"}', {"answer": " kept \n"}),
        ("json", RATE, '{"score": "3", "tags": "[]", "reasoning": "a"}', {"reasoning": "a", "score": 3, "tags": []}),
        ("json", RATE, '{"reasoning": "a", "score": 3, "tags": ["x"', {"reasoning": "a", "score": 3, "tags": ["x"]}),
        # XML: the last tag not closed, tags in another case, an own closing tag inside
        ("xml", LABEL, "<label>person", {"label": "person"}),
        ("xml", LABEL, "Yes: <LABEL>\nperson\n</LABEL> done", {"label": "person"}),
        ("xml", THINK, "<reasoning>a\n<answer>c", {"reasoning": "a", "answer": "c"}),
        ("xml", THINK, "<answer>c</answer><reasoning>a</reasoning>", {"reasoning": "a", "answer": "c"}),
        ("xml", ANSWER, "<answer>1 < 2 & 3</answer>", {"answer": "1 < 2 & 3"}),
        # DSPy's own
        ("dspy", LABEL, "[[ ## label ## ]]\nperson", {"label": "person"}),
    ],
)
def test_tolerant(choice: str, signature: Any, answer: str, outputs: dict[str, Any]) -> None:
    assert format_named(choice).parse(signature, answer) == outputs


@pytest.mark.parametrize("choice", names())
def test_a_missing_field_is_named_with_what_was_found(choice: str) -> None:
    format_ = format_named(choice)
    answer = format_.answer(THINK, {"reasoning": "Because."})
    with pytest.raises(ReadError) as caught:
        format_.parse(THINK, answer)
    assert caught.value.field == "answer"
    assert "Because." in str(caught.value)


@pytest.mark.parametrize("choice", names())
def test_a_value_of_the_wrong_type_is_named(choice: str) -> None:
    format_ = format_named(choice)
    wrong = format_.answer(
        RATE.with_updated_fields("score", type_=str), {"reasoning": "a", "score": "many", "tags": []}
    )
    with pytest.raises(ReadError) as caught:
        format_.parse(RATE, wrong)
    assert caught.value.field == "score"
    assert "many" in str(caught.value)


@pytest.mark.parametrize("choice", names())
def test_nothing_can_be_read_from_nothing(choice: str) -> None:
    with pytest.raises(ReadError) as caught:
        format_named(choice).parse(LABEL, "")
    assert caught.value.field == "label"


@pytest.mark.parametrize("choice", names())
def test_an_output_with_a_default_may_be_missing(choice: str) -> None:
    signature = dspy.Signature(
        {
            "question": (str, dspy.InputField()),
            "answer": (str, dspy.OutputField()),
            "source": (Optional[str], dspy.OutputField()),  # noqa: UP045
            "sure": (bool, dspy.OutputField(default=False)),
        }
    )
    format_ = format_named(choice)
    answer = format_.answer(signature, {"answer": "Troy."})
    assert format_.parse(signature, answer) == {"answer": "Troy.", "source": None, "sure": False}


def test_an_own_closing_tag_is_escaped() -> None:
    format_ = format_named("xml")
    assert format_.write(ANSWER, "answer", "a</Answer>b</other>") == "a&lt;/Answer>b</other></answer>"


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.sampled_from(["</answer>", "&lt;/answer>", "&amp;", "amp;", "&", "lt;/answer>", "<", "x"])).map("".join)
)
def test_any_text_survives_the_tags(value: str) -> None:
    format_ = format_named("xml")
    answer = format_.answer(ANSWER, {"answer": f"[{value}]"})
    assert format_.parse(ANSWER, answer) == {"answer": f"[{value}]"}
