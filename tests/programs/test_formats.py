"""What holds for every format: see the module docstring of `cuecard.programs.formats.base`."""

from __future__ import annotations

from datetime import date
from enum import Enum
from typing import Any, Literal, Optional

import dspy
import llguidance
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from llguidance._tokenizer import TokenizerWrapper
from pydantic import BaseModel

from cuecard.programs.formats import Format, format_choice, format_named, names
from cuecard.programs.formats.fields import kind

CHOICES = [*names(), {"name": "turns", "labels": True}, {"name": "completion", "describe": True}]
every_format = pytest.mark.parametrize("format_", [format_named(choice) for choice in CHOICES], ids=repr)
few = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


class Mood(Enum):
    GOOD = "good"
    BAD = "not so good"


class Person(BaseModel):
    name: str
    age: int


# ---- random signatures, with values that do not hold any format's scaffolding

# No line separators but "\n", no colon: a label is a line's start up to a colon.
CHARACTERS = "abcXYZ059 .,;-'\"\\/{}[]()<>&#*_$%é漢😀"
words = st.text(CHARACTERS, min_size=1, max_size=12).map(str.strip).filter(lambda text: any(map(str.isalnum, text)))
texts = st.lists(words, min_size=1, max_size=3).map("\n".join)
VALUES: dict[Any, st.SearchStrategy[Any]] = {
    str: texts,
    Literal["yes", "no", "not sure"]: st.sampled_from(["yes", "no", "not sure"]),
    Literal[1, 2, 10]: st.sampled_from([1, 2, 10]),
    Mood: st.sampled_from(Mood),
    bool: st.booleans(),
    int: st.integers(-10_000, 10_000),
    float: st.floats(-1000, 1000).map(lambda number: round(number, 3)),
    Optional[int]: st.none() | st.integers(0, 99),  # noqa: UP045
    Optional[str]: st.none() | words,  # noqa: UP045
    date: st.dates(date(1000, 1, 1)),
    list[str]: st.lists(words, max_size=3),
    dict[str, int]: st.dictionaries(st.sampled_from("abc"), st.integers(0, 9), max_size=2),
    Person: st.builds(Person, name=words, age=st.integers(0, 120)),
}


@st.composite
def tasks(draw: st.DrawFn) -> tuple[type[dspy.Signature], list[dict[str, Any]]]:
    """A signature and three complete examples of it."""
    fields = st.lists(st.sampled_from(["question", "ticket_text", "x1", "label", "reasoning", "a"]), unique=True)
    named = draw(fields.filter(lambda some: len(some) >= 2))
    inputs = draw(st.integers(1, len(named) - 1))
    types = {name: draw(st.sampled_from(list(VALUES))) for name in named}
    signature = dspy.Signature(
        {
            name: (types[name], dspy.InputField() if here < inputs else dspy.OutputField())
            for here, name in enumerate(named)
        },
        draw(st.sampled_from(["Do it.", "Do it.\n\n    With care."])),
    )
    values = st.fixed_dictionaries({name: VALUES[type_] for name, type_ in types.items()})
    return signature, [draw(values) for _ in range(3)]


# ---- the checks


class Bytes:
    """The tokenizer whose tokens are the bytes, and one more that ends the text."""

    eos_token_id, bos_token_id, special_token_ids = 256, None, (256,)
    tokens = (*(bytes([byte]) for byte in range(256)), b"<eos>")

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


TOKENIZER = llguidance.LLTokenizer(TokenizerWrapper(Bytes()))


def refused(grammar: str, text: str) -> str:
    """Where `grammar` refuses `text`: "" if it accepts all of it."""
    lark = llguidance.LLMatcher.grammar_from_lark(grammar)
    assert not llguidance.LLMatcher.validate_grammar(lark, TOKENIZER), grammar
    matcher = llguidance.LLMatcher(TOKENIZER, lark, log_level=0)
    tokens = list(text.encode())
    for here, token in enumerate(tokens):
        if matcher.is_stopped() or not matcher.consume_token(token):
            return f"{bytes(tokens[:here])!r} then {bytes([token])!r}"
    return "" if matcher.is_accepting() else "the end is missing"


@every_format
@few
@given(task=tasks())
def test_lead_and_write_are_the_answer_cut_at_its_values(format_: Format, task: Any) -> None:
    signature, (values, *_) = task
    before: dict[str, Any] = {}
    whole = ""
    for name in signature.output_fields:
        lead = format_.lead(signature, name, before)
        assert lead.startswith(whole)
        assert not lead.endswith(" ")
        whole = lead + format_.write(signature, name, values[name])
        before[name] = values[name]
    assert format_.answer(signature, values).startswith(whole)


@every_format
@few
@given(task=tasks())
def test_an_answer_is_read_back(format_: Format, task: Any) -> None:
    signature, (values, *_) = task
    outputs = {name: values[name] for name in signature.output_fields}
    # DSPy writes the None of an optional text as "None", and reads that as a text.
    assume(format_.name != "dspy" or not any(kind(signature, name) == Optional[str] for name in outputs))  # noqa: UP045
    assert format_.parse(signature, format_.answer(signature, values)) == outputs


@every_format
@few
@given(task=tasks())
def test_the_grammar_accepts_the_answer(format_: Format, task: Any) -> None:
    signature, (values, *_) = task
    assert refused(format_.grammar(signature), format_.answer(signature, values)) == ""


@pytest.mark.parametrize(
    ("type_", "answer", "accepted"),
    [
        (int, "Label: 12", True),
        (int, "Label: 12\n", True),
        (int, "Label: 12\n\n", True),
        (int, "Label: 12 or so", False),
        (str, "Label: One\ntwo\n\n", True),
        (str, "Label: One\n\ntwo", False),
        (str, "Label: ", False),
        (Literal["yes", "yes, but"], "Label: yes\n\n", True),
        (Literal["yes", "no"], "Label: yes", True),
        (Literal["yes", "no"], "Label: yes\n", False),
    ],
)
def test_a_masked_completion_may_end_its_block(type_: Any, answer: str, accepted: bool) -> None:
    signature = dspy.Signature({"question": (str, dspy.InputField()), "label": (type_, dspy.OutputField())})
    assert (refused(format_named("completion").grammar(signature), answer) == "") is accepted


@every_format
@few
@given(task=tasks())
def test_what_ends_a_value_is_not_in_it(format_: Format, task: Any) -> None:
    signature, (values, *_) = task
    before: dict[str, Any] = {}
    written = ""
    for name in signature.output_fields:
        written = format_.write(signature, name, values[name])
        for end in format_.ends(signature, name):
            assert written.find(end) in (-1, len(written) - len(end))
        before[name] = values[name]
    beginning = format_.lead(signature, name, before)
    assert not any(stop in beginning + written.removesuffix(stop) for stop in format_.stops(signature))


# ---- heads


class Triage(dspy.Signature):
    """Send the ticket on.

    Think first."""

    ticket_text: str = dspy.InputField()
    customer: str = dspy.InputField()
    reasoning: str = dspy.OutputField(desc="${reasoning}")
    queue: Literal["billing", "technical"] = dspy.OutputField(desc="where it goes")


class Classify(dspy.Signature):
    """Classify the question."""

    question: str = dspy.InputField()
    label: Literal["person", "place"] = dspy.OutputField()


HEADS: list[tuple[Any, list[dict[str, Any]], dict[str, Any]]] = [
    (
        Triage,
        [
            {"ticket_text": "One\nA", "customer": "Ann", "reasoning": "Two", "queue": "billing"},
            {"ticket_text": "Three", "customer": "Bob", "reasoning": "Four", "queue": "technical"},
        ],
        {"ticket_text": "INPUT\nB", "customer": "Cy"},
    ),
    (
        Classify,
        [{"question": "One", "label": "person"}, {"question": "Two", "label": "place"}],
        {"question": "INPUT"},
    ),
]
every_head = pytest.mark.parametrize(("signature", "demos", "inputs"), HEADS, ids=["several", "single"])


def flat(format_: Format, signature: Any, demos: Any, inputs: Any) -> str:
    """The whole head as one string."""
    head = format_.head(signature, demos, inputs)
    assert bool(head.turns) != bool(head.text)
    return head.text or "".join(f"<|{turn.role}|>{turn.content}" for turn in head.turns)


@every_format
@every_head
def test_demos_stand_in_the_order_given(format_: Format, signature: Any, demos: Any, inputs: Any) -> None:
    for order in (demos, demos[::-1]):
        before, _, _ = flat(format_, signature, order, inputs).partition("INPUT")
        places = [before.rindex(str(value)) for demo in order for value in demo.values()]
        assert places == sorted(places)


@every_format
@every_head
def test_heads_are_the_same_up_to_the_inputs(format_: Format, signature: Any, demos: Any, inputs: Any) -> None:
    other = {**inputs, next(iter(inputs)): "OTHER and longer"}
    for shown in ([], demos[:1], demos):
        before, _, _ = flat(format_, signature, shown, inputs).partition("INPUT")
        assert flat(format_, signature, shown, other).partition("OTHER")[0] == before


@every_format
@every_head
def test_the_instruction_stands_before_the_demos(format_: Format, signature: Any, demos: Any, inputs: Any) -> None:
    with_demos, without = (flat(format_, signature, shown, inputs) for shown in (demos, []))
    line = signature.instructions.splitlines()[0]
    at = without.index(line) + len(line)
    assert with_demos[:at] == without[:at]
    assert with_demos.index(line) < with_demos.index("One")


@every_format
def test_a_demo_without_its_last_output_or_without_inputs_is_left_out(format_: Format) -> None:
    _, demos, inputs = HEADS[0]
    for lacking in ({**demos[0], "queue": None}, {"reasoning": "Two", "queue": "billing"}):
        text = flat(format_, Triage, [lacking, demos[1]], inputs)
        if format_.name == "dspy":  # DSPy shows what has an input and an output, with a remark
            continue
        assert "Two" not in text
        assert "Four" in text


@every_format
def test_a_demo_shows_the_fields_it_has(format_: Format) -> None:
    _, demos, inputs = HEADS[0]
    demo = dspy.Example(ticket_text="One", queue="billing").with_inputs("ticket_text")
    text = flat(format_, Triage, [demo, *demos[1:]], inputs)
    assert "One" in text
    assert "Ann" not in text
    assert text.count("Bob") == 1


@every_format
def test_a_history_stands_after_the_demos(format_: Format) -> None:
    signature = Classify.prepend("history", dspy.InputField(), dspy.History)
    history = dspy.History(messages=[{"question": "Past", "label": "place"}])
    text = flat(format_, signature, HEADS[1][1], {"question": "INPUT", "history": history})
    assert text.rindex("Two") < text.index("Past") < text.index("INPUT")
    assert flat(format_, signature, [], {"question": "INPUT"}).count("INPUT") == 1


@every_format
def test_a_signature_without_inputs_still_asks(format_: Format) -> None:
    signature = dspy.Signature({"poem": (str, dspy.OutputField())}, "Write a poem.")
    head = format_.head(signature, [], {})
    assert "Write a poem." in flat(format_, signature, [], {})
    assert all(turn.content for turn in head.turns)
    assert not head.turns or head.turns[-1].role == "user"


@every_format
def test_a_choice_names_the_format_it_was_made_from(format_: Format) -> None:
    again = format_named(format_choice(format_))
    assert (type(again), again.options) == (type(format_), format_.options)
