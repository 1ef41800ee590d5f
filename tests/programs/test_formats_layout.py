"""What each format looks like, to the letter: a change here changes every prompt, and every cached result with it."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from textwrap import dedent
from typing import Any, Literal

import dspy
import pytest

from cuecard.errors import InputError
from cuecard.programs.formats import format_choice, format_named, names, registry
from cuecard.programs.formats.chat import Turns


class Classify(dspy.Signature):
    """Classify the question."""

    question: str = dspy.InputField()
    label: Literal["person", "place"] = dspy.OutputField()


class Triage(dspy.Signature):
    """Send the ticket on.

    Think first."""

    ticket_text: str = dspy.InputField()
    customer: str = dspy.InputField()
    reasoning: str = dspy.OutputField(desc="${reasoning}")
    urgent: bool = dspy.OutputField(desc="whether it can wait")


DEMO = {"question": "Who wrote Hamlet?", "label": "person"}
TICKET = {"ticket_text": "Down.\n\nAll of it.", "customer": "Ann", "reasoning": "All is down.", "urgent": True}
INPUTS = {"ticket_text": "Hi", "customer": "Bob"}


def shown(choice: Any, signature: Any, demos: Any, inputs: Any) -> str:
    head = format_named(choice).head(signature, demos, inputs)
    return head.text or "\n".join(f"[{turn.role}] {turn.content}" for turn in head.turns)


def text(block: str) -> str:
    return dedent(block).strip("\n")


def test_completion() -> None:
    assert shown("completion", Classify, [DEMO], {"question": "Where is Troy?"}) == (
        "Classify the question.\n\nQuestion: Who wrote Hamlet?\nLabel: person\n\nQuestion: Where is Troy?\n"
    )
    format_ = format_named("completion")
    assert format_.opens
    assert format_.lead(Classify, "label", {}) == "Label:"
    assert format_.write(Classify, "label", "person") == " person"
    assert format_.ends(Classify, "label") == ("\n",)


def test_completion_of_several_fields() -> None:
    assert shown("completion", Triage, [TICKET], INPUTS) == (
        "Send the ticket on.\nThink first.\n\nTicket text: Down.\n\nAll of it.\nCustomer: Ann\n"
        "Reasoning: All is down.\nUrgent: true\n\nTicket text: Hi\nCustomer: Bob\n"
    )
    format_ = format_named("completion")
    assert format_.lead(Triage, "urgent", TICKET) == "Reasoning: All is down.\nUrgent:"
    assert format_.ends(Triage, "reasoning") == ("\n\n", "\nUrgent:", "\nTicket text:", "\nCustomer:")
    assert format_.stops(Triage) == ("\n\n", "\nTicket text:", "\nCustomer:")


def test_completion_describes_the_outputs_when_asked() -> None:
    described = shown({"name": "completion", "describe": True}, Classify, [], {"question": "Where is Troy?"})
    assert described == ("Classify the question.\nLabel: one of: person, place\n\nQuestion: Where is Troy?\n")


def test_turns() -> None:
    assert shown("turns", Classify, [DEMO], {"question": "Where is Troy?"}) == text("""
        [system] Classify the question.
        Label: one of: person, place
        [user] Who wrote Hamlet?
        [assistant] person
        [user] Where is Troy?
    """)
    format_ = format_named("turns")
    assert not format_.opens
    assert (format_.lead(Classify, "label", {}), format_.write(Classify, "label", "person")) == ("", "person")


def test_turns_of_several_fields() -> None:
    prompt = shown("turns", Triage, [TICKET], INPUTS)
    assert prompt.startswith("[system] Send the ticket on.\nThink first.\nUrgent: whether it can wait")
    assert prompt.endswith(
        "[user] Ticket text: Down.\n\nAll of it.\nCustomer: Ann\n"
        "[assistant] Reasoning: All is down.\nUrgent: true\n[user] Ticket text: Hi\nCustomer: Bob"
    )


@pytest.mark.parametrize("choice", ["turns_labelled", {"name": "turns", "labels": True}])
def test_turns_labelled(choice: Any) -> None:
    assert shown(choice, Classify, [DEMO], {"question": "Where is Troy?"}) == text("""
        [system] Classify the question.
        Label: one of: person, place
        [user] Question: Who wrote Hamlet?
        [assistant] Label: person
        [user] Question: Where is Troy?
    """)
    format_ = format_named(choice)
    assert format_.opens
    assert (format_.lead(Classify, "label", {}), format_.write(Classify, "label", "person")) == ("Label:", " person")


def test_chat() -> None:
    assert shown("chat", Classify, [DEMO], {"question": "Where is Troy?"}) == text("""
        [user] Classify the question.

        Here are some examples.

        Question: Who wrote Hamlet?
        Label: person

        Now do the same for this one.

        Question: Where is Troy?

        Reply with only the label (one of: person, place).
    """)
    assert shown("chat", Classify, [], {"question": "Where is Troy?"}) == text("""
        [user] Classify the question.

        Question: Where is Troy?

        Reply with only the label (one of: person, place).
    """)


def test_chat_asks_for_several_fields_line_by_line() -> None:
    prompt = shown("chat", Triage, [], INPUTS)
    assert "\n\nReply with these lines:\nReasoning: ...\nUrgent: whether it can wait" in prompt


def test_json() -> None:
    assert shown("json", Classify, [DEMO], {"question": "Where is Troy?"}) == text("""
        [system] Classify the question.
        Answer with a JSON object that has these keys:
        "label": one of: person, place
        [user] Who wrote Hamlet?
        [assistant] {"label": "person"}
        [user] Where is Troy?
    """)
    format_ = format_named("json")
    assert format_.lead(Triage, "reasoning", {}) == '{"reasoning":'
    assert format_.write(Triage, "reasoning", 'It says "é".') == ' "It says \\"é\\"."'
    assert format_.lead(Triage, "urgent", TICKET) == '{"reasoning": "All is down.", "urgent":'
    assert format_.answer(Triage, TICKET) == '{"reasoning": "All is down.", "urgent": true}'


def test_xml() -> None:
    assert shown("xml", Classify, [DEMO], {"question": "Where is Troy?"}) == text("""
        [system] Classify the question.
        Answer in these tags:
        <label>one of: person, place</label>
        [user] <question>Who wrote Hamlet?</question>
        [assistant] <label>person</label>
        [user] <question>Where is Troy?</question>
    """)
    format_ = format_named("xml")
    assert format_.lead(Triage, "urgent", TICKET) == "<reasoning>All is down.</reasoning>\n<urgent>"
    assert format_.write(Triage, "urgent", True) == "true</urgent>"


@pytest.mark.parametrize("signature", [Classify, Triage])
@pytest.mark.parametrize("count", [0, 1])
def test_dspy_writes_the_prompts_of_dspy(signature: Any, count: int) -> None:
    demo, inputs = (DEMO, {"question": "Where is Troy?"}) if signature is Classify else (TICKET, INPUTS)
    theirs = dspy.ChatAdapter().format(signature, [demo] * count, dict(inputs))
    format_ = format_named("dspy")
    head = format_.head(signature, [demo] * count, inputs)
    assert [{"role": turn.role, "content": turn.content} for turn in head.turns] == theirs
    assert format_.format(signature, [demo] * count, inputs) == theirs
    assert format_.answer(signature, demo) == dspy.ChatAdapter().format_assistant_message_content(signature, demo)


def test_dspy_leads() -> None:
    format_ = format_named("dspy")
    assert format_.lead(Triage, "reasoning", {}) == "[[ ## reasoning ## ]]\n"
    assert format_.lead(Triage, "urgent", TICKET) == "[[ ## reasoning ## ]]\nAll is down.\n\n[[ ## urgent ## ]]\n"
    assert format_.write(Triage, "urgent", True) == "True"


def test_two_labels_that_read_the_same_keep_their_names() -> None:
    signature = dspy.Signature("long_text, Long_text -> label")
    assert (
        format_named("completion")
        .head(signature, [], {"long_text": "a", "Long_text": "b"})
        .text.endswith("long_text: a\nLong_text: b\n")
    )


def test_inputs_that_are_not_text() -> None:
    signature = dspy.Signature("passages: list[str], number: int, text -> label")
    prompt = shown("completion", signature, [], {"passages": ["é", "b"], "number": 3, "text": ["one", "two"]})
    assert prompt.endswith('Passages: ["é","b"]\nNumber: 3\nText: [1] «one»\n[2] «two»\n')


# ---- the registry


def test_names() -> None:
    assert names()[:7] == ("completion", "turns", "turns_labelled", "chat", "dspy", "json", "xml")
    assert [format_named(name).name for name in names()] == list(names())


def test_a_choice_holds_what_differs_from_the_defaults() -> None:
    assert format_choice(format_named("turns")) == "turns"
    assert format_choice(format_named({"name": "turns", "labels": False})) == "turns"
    assert format_choice(format_named({"name": "turns", "labels": True})) == {"name": "turns", "labels": True}


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("turn", "unknown format 'turn'; expected one of completion, turns, turns_labelled, chat, dspy, json, xml"),
        ("turn", "(did you mean 'turns'?)"),
        ({"name": "turns", "label": True}, "the format 'turns' has no option 'label'; expected one of labels"),
        ({"name": "turns", "label": True}, "(did you mean 'labels'?)"),
        ({"name": "turns", "labels": "yes"}, "the format 'turns' got 'yes' for 'labels'; expected a bool"),
        ({"name": "json", "labels": True}, "the format 'json' has no option 'labels'; expected no options"),
        ({"labels": True}, "names no format"),
        (3, "3 names no format"),
    ],
)
def test_what_cannot_be_named(choice: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        format_named(choice)
    assert message in str(caught.value)


class Own(Turns):
    name = "own"


def test_a_package_adds_a_format(monkeypatch: pytest.MonkeyPatch) -> None:
    added = [
        EntryPoint("own", f"{__name__}:Own", registry.GROUP),
        EntryPoint("gone", "no_such_module:Own", registry.GROUP),
        EntryPoint("wrong", "fractions:Fraction", registry.GROUP),
        EntryPoint("renamed", f"{__name__}:Own", registry.GROUP),
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: added if group == registry.GROUP else [])
    assert names()[-4:] == ("gone", "own", "renamed", "wrong")
    assert isinstance(format_named({"name": "own", "labels": True}), Own)
    for name, message in {"gone": "cannot be imported", "wrong": "is no format", "renamed": "calls itself"}.items():
        with pytest.raises(InputError, match=message):
            format_named(name)
