"""The exact prompt: its text and tokens under each format, and what happens when it does not fit."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeEngine
from hypothesis import given, settings
from hypothesis import strategies as st

import cuecard
from cuecard.programs.formats.registry import BUILT_IN, format_named
from cuecard.programs.prompt import Prompt, PromptTooLong, render

SIGNATURE = cuecard.signature("ticket -> queue: Literal['billing', 'technical']", "Route the ticket.")
DEMOS = ({"ticket": "Charged twice.", "queue": "billing"}, {"ticket": "It hums.", "queue": "technical"})
INPUTS = {"ticket": "No sound."}

EXPECTED = {
    "completion": """\
Route the ticket.

Ticket: Charged twice.
Queue: billing

Ticket: It hums.
Queue: technical

Ticket: No sound.
Queue:""",
    "turns": """\
<|system|>
Route the ticket.
Queue: one of: billing, technical<|end|>
<|user|>
Charged twice.<|end|>
<|assistant|>
billing<|end|>
<|user|>
It hums.<|end|>
<|assistant|>
technical<|end|>
<|user|>
No sound.<|end|>
<|assistant|>
""",
    "turns_labelled": """\
<|system|>
Route the ticket.
Queue: one of: billing, technical<|end|>
<|user|>
Ticket: Charged twice.<|end|>
<|assistant|>
Queue: billing<|end|>
<|user|>
Ticket: It hums.<|end|>
<|assistant|>
Queue: technical<|end|>
<|user|>
Ticket: No sound.<|end|>
<|assistant|>
Queue:""",
    "chat": """\
<|user|>
Route the ticket.

Here are some examples.

Ticket: Charged twice.
Queue: billing

Ticket: It hums.
Queue: technical

Now do the same for this one.

Ticket: No sound.

Reply with only the queue (one of: billing, technical).<|end|>
<|assistant|>
""",
    "json": """\
<|system|>
Route the ticket.
Answer with a JSON object that has these keys:
"queue": one of: billing, technical<|end|>
<|user|>
Charged twice.<|end|>
<|assistant|>
{"queue": "billing"}<|end|>
<|user|>
It hums.<|end|>
<|assistant|>
{"queue": "technical"}<|end|>
<|user|>
No sound.<|end|>
<|assistant|>
{"queue":""",
    "xml": """\
<|system|>
Route the ticket.
Answer in these tags:
<queue>one of: billing, technical</queue><|end|>
<|user|>
<ticket>Charged twice.</ticket><|end|>
<|assistant|>
<queue>billing</queue><|end|>
<|user|>
<ticket>It hums.</ticket><|end|>
<|assistant|>
<queue>technical</queue><|end|>
<|user|>
<ticket>No sound.</ticket><|end|>
<|assistant|>
<queue>""",
}


def prompt(engine: FakeEngine, format_: str, demos: Any = DEMOS, *, room: int = 0) -> Prompt:
    chosen = format_named(format_)
    return render(engine, chosen, SIGNATURE, demos, INPUTS, chosen.lead(SIGNATURE, "queue", {}), room)


@pytest.mark.parametrize("format_", EXPECTED)
def test_the_exact_text(format_: str) -> None:
    assert prompt(FakeEngine(), format_).text == EXPECTED[format_]


def test_dspys_format_ends_with_its_marker() -> None:
    text = prompt(FakeEngine(), "dspy").text
    assert text.endswith("<|assistant|>\n[[ ## queue ## ]]\n")
    assert text.count("<|user|>") == 3


@pytest.mark.parametrize("format_", sorted(BUILT_IN))
def test_the_ids_are_the_start_and_the_text(format_: str) -> None:
    engine = FakeEngine()
    made = prompt(engine, format_)
    assert made.ids == engine.tokenizer.start() + engine.tokenizer.encode(made.text)
    assert (made.demos, made.dropped) == (2, 0)


@pytest.mark.parametrize("format_", sorted(BUILT_IN))
def test_a_real_tokenizer_gives_the_text_back(format_: str, tiny_model: Path, tmp_path: Path) -> None:
    target = cuecard.target(tiny_model, device="cpu", cache=tmp_path)
    made = prompt(target.engine, format_)  # type: ignore[arg-type]
    assert made.ids == target.engine.tokenizer.start() + target.engine.tokenizer.encode(made.text)
    shown = made.text.replace("<|im_start|>", "").replace("<|im_end|>", "")
    assert target.engine.tokenizer.decode(made.ids) == shown


# ---- what does not fit


def length(demos: Any) -> int:
    return len(prompt(FakeEngine(), "completion", demos).ids)


def test_the_first_demos_go_when_it_is_too_long(caplog: pytest.LogCaptureFixture) -> None:
    window = length(DEMOS[1:]) + 4
    engine = FakeEngine(context_window=window)
    with caplog.at_level(logging.WARNING, "cuecard"):
        made = prompt(engine, "completion", room=4)
    assert (made.demos, made.dropped) == (1, 1)
    assert "Charged twice" not in made.text
    assert "It hums." in made.text
    (record,) = caplog.records
    assert record.name == "cuecard"
    assert f"dropped 1 of 2 demos: the prompt did not fit into {window - 4} tokens" in record.message


def test_a_prompt_that_just_fits_keeps_everything(caplog: pytest.LogCaptureFixture) -> None:
    made = prompt(FakeEngine(context_window=length(DEMOS) + 4), "completion", room=4)
    assert (made.demos, made.dropped) == (2, 0)
    assert not caplog.records


def test_one_token_less_drops_a_demo() -> None:
    assert prompt(FakeEngine(context_window=length(DEMOS) + 3), "completion", room=4).dropped == 1


@settings(max_examples=30, deadline=None)
@given(count=st.integers(0, 6), spare=st.integers(0, 120))
def test_as_many_demos_as_fit_and_always_the_last_ones(count: int, spare: int) -> None:
    demos = [{"ticket": f"number {n} is here", "queue": "billing"} for n in range(count)]
    limit = length(()) + spare
    made = prompt(FakeEngine(context_window=limit), "completion", demos)
    assert len(made.ids) <= limit
    assert made.demos + made.dropped == count
    kept = demos[made.dropped :]
    assert made.text == prompt(FakeEngine(), "completion", kept).text
    if made.dropped:
        assert length(demos[made.dropped - 1 :]) > limit, "one more would have fitted"


def test_a_prompt_that_does_not_fit_without_demos_is_an_error() -> None:
    engine = FakeEngine(context_window=length(()) + 3)
    with pytest.raises(PromptTooLong) as caught:
        prompt(engine, "completion", room=4)
    told = str(caught.value)
    assert f"the prompt has {length(())} tokens without any demo" in told
    assert f"at most {length(()) - 1}" in told
    assert f"the context window of fake is {length(()) + 3}" in told


def test_room_for_more_than_the_window_is_told_as_such() -> None:
    with pytest.raises(PromptTooLong, match="max_tokens") as caught:
        prompt(FakeEngine(context_window=100), "completion", room=101)
    assert "-1" not in str(caught.value)
