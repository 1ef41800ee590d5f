"""The read-out `channel`: each label's own prompt, what of it is scored, and which label that makes."""

from __future__ import annotations

import enum
from typing import Any

import dspy
import pytest
from fakes import FakeEngine, says

import cuecard
from cuecard.errors import InputError
from cuecard.models.engine import ScoreRequest
from cuecard.models.lm import language_model
from cuecard.programs.channel import demos_of, first_of_each
from cuecard.programs.formats.registry import BUILT_IN
from cuecard.programs.predictor import Predictor
from cuecard.programs.readout import first_calls, recorded_choices
from cuecard.programs.state import Calibration, PredictorState, ReadOut

QUEUE = "ticket -> queue: Literal['billing', 'technical', 'account']"
DEMOS = (
    {"ticket": "The invoice is wrong.", "queue": "billing"},
    {"ticket": "It hums.", "queue": "technical"},
    {"ticket": "I was charged twice.", "queue": "billing"},
)
FORMATS = sorted(BUILT_IN)


def part(text: str = QUEUE, format: Any = "completion", demos: Any = DEMOS, **readout: Any) -> Predictor:
    state = PredictorState(demos=demos, format=format, readout=ReadOut(kind="channel", **readout))
    return Predictor(cuecard.signature(text), state)


def run(predictor: Predictor, engine: FakeEngine, **inputs: Any) -> dspy.Prediction:
    with dspy.context(lm=language_model(engine)):
        return predictor(**inputs)


def alike(prompt: str, continuation: str) -> float:
    """As many nats less as words of the continuation do not stand in the prompt."""
    return -float(sum(word not in prompt for word in continuation.split()))


@pytest.mark.parametrize("format", FORMATS)
def test_each_label_has_the_demos_of_its_own(format: str) -> None:
    engine = FakeEngine(likelihood=alike)
    assert run(part(format=format), engine, ticket="My invoice is wrong").queue == "billing"
    (batch,) = engine.batches
    assert len(batch) == 3, "one request a label, in one batch"
    texts = [engine.tokenizer.text(request.prompt) for request in batch]
    found = [["invoice" in text, "charged" in text, "hums" in text] for text in texts]
    assert found == [[True, True, False], [False, False, True], [False, False, False]]


@pytest.mark.parametrize("format", FORMATS)
def test_only_the_inputs_are_scored_and_what_follows_them_at_once(format: str) -> None:
    engine = FakeEngine(likelihood=alike)
    predictor = part(format=format)
    for ticket in ("My invoice is wrong", "Cold"):
        run(predictor, engine, ticket=ticket)
    first, second = engine.batches
    assert [request.prompt for request in first] == [request.prompt for request in second], "shared by all calls"
    for batch, ticket in ((first, "My invoice is wrong"), (second, "Cold")):
        own = {engine.tokenizer.text(request.continuations[0]) for request in batch}
        assert len(own) == 1, "the same for all labels"
        (text,) = own
        rest = text.partition(ticket)
        assert rest[1] == ticket and len(rest[0].split()) <= 1 and len(rest[2].split()) <= 1


def test_an_example_never_answers_itself() -> None:
    engine = FakeEngine(likelihood=alike)
    predictor = part(QUEUE + ", reply", demos=tuple({**demo, "reply": "Sorry."} for demo in DEMOS))
    lm = language_model(engine)
    assert [prompt.demos for prompt in predictor.prompts(lm, ticket="It hums.")] == [2, 0, 0]
    assert [prompt.demos for prompt in predictor.prompts(lm, ticket="It hums")] == [2, 1, 0]
    run(predictor, engine, ticket="It hums.")
    texts = [engine.tokenizer.text(request.prompt) for batch in engine.batches for request in batch]
    assert all(text.count("It hums.") <= 1 for text in texts), "nor in the prompt of what is written"


def test_several_inputs_are_scored_from_the_first_to_the_last() -> None:
    engine = FakeEngine(likelihood=alike)
    signature = "subject, urgent: int, ticket -> queue: Literal['billing', 'technical']"
    run(part(signature, demos=()), engine, subject="Odd noise", urgent=3, ticket="It hums")
    text = engine.tokenizer.text(engine.batches[0][0].continuations[0])
    assert "Odd noise" in text and "Urgent: 3" in text and "It hums" in text
    assert "Queue" not in text


def test_the_likelihood_is_that_of_the_inputs_in_context() -> None:
    engine = FakeEngine(likelihood=alike)
    with recorded_choices() as seen:
        run(part(), engine, ticket="My invoice is wrong")
    (choice,) = seen
    asked: list[ScoreRequest] = engine.batches[0]
    expected = [
        alike(engine.tokenizer.text(r.prompt), engine.tokenizer.text(r.continuations[0])) for r in asked
    ]  # the fake's likelihood, request by request
    assert choice.totals == pytest.approx(expected) and choice.channel
    assert choice.labels == ("billing", "technical", "account") and choice.chosen == "billing"


def test_offsets_are_taken_off() -> None:
    offsets = {"queue": {"billing": 9.0, "technical": 0.0, "account": 9.0}}
    calibrated = part(calibration=Calibration(method="bias", offsets=offsets))
    assert run(calibrated, FakeEngine(likelihood=alike), ticket="My invoice is wrong").queue == "technical"


def test_the_first_of_equals_is_chosen() -> None:
    assert run(part(demos=()), FakeEngine(likelihood=alike), ticket="Anything").queue == "billing"


def test_prompts_are_those_of_each_label_in_order() -> None:
    predictor = part()
    lm = language_model(FakeEngine())
    prompts = predictor.prompts(lm, ticket="Cold")
    assert [prompt.demos for prompt in prompts] == [2, 1, 0]
    assert predictor.prompt(lm, ticket="Cold") == prompts[0]


def test_the_first_calls_are_as_many_as_the_first_prompts() -> None:
    kinds: tuple[Any, ...] = ("text", "constrained", "choice", "channel")
    for text, expected in ((QUEUE, (1, 1, 1, 3)), ("ticket -> note", (1, 1, 1, 1))):
        states = [PredictorState(readout=ReadOut(kind=kind)) for kind in kinds]
        assert tuple(first_calls(cuecard.signature(text), state) for state in states) == expected
    lm = language_model(FakeEngine())
    assert len(part().prompts(lm, ticket="Cold")) == first_calls(part().signature, part().state) == 3


class Queue(enum.Enum):
    BILLING = "billing"
    TECHNICAL = "technical"


def test_demos_are_told_apart_by_what_their_label_is_written_as() -> None:
    class Route(dspy.Signature):
        ticket: str = dspy.InputField()
        queue: Queue = dspy.OutputField()
        urgent: bool = dspy.OutputField()

    demos = [
        {"ticket": "a", "queue": Queue.BILLING, "urgent": True},
        {"ticket": "b", "queue": "billing", "urgent": False},
        {"ticket": "c", "queue": "technical", "urgent": True},
        {"ticket": "d", "urgent": True},
    ]
    assert [demo["ticket"] for demo in demos_of(Route, demos, "queue")["billing"]] == ["a", "b"]
    assert [demo["ticket"] for demo in demos_of(Route, demos, "urgent")["true"]] == ["a", "c", "d"]
    assert [demo["ticket"] for demo in first_of_each(Route, demos, 1)] == ["a", "b", "c"], "d is the third urgent one"
    assert first_of_each(Route, demos, 3) == tuple(demos)


TWO = "ticket -> queue: Literal['billing', 'technical'], urgent: bool"
URGENT = (
    {"ticket": "My invoice is wrong.", "queue": "billing", "urgent": False},
    {"ticket": "It hums.", "queue": "technical", "urgent": False},
    {"ticket": "I was charged twice.", "queue": "billing", "urgent": False},
    {"ticket": "Smoke comes out now.", "queue": "technical", "urgent": True},
)


def test_each_of_several_outputs_is_judged_by_itself() -> None:
    engine = FakeEngine(likelihood=alike)
    found = run(part(TWO, demos=URGENT, per_label=1), engine, ticket="Smoke over my invoice now")
    assert (found.queue, found.urgent) == ("billing", True)
    texts = [[engine.tokenizer.text(request.prompt) for request in batch] for batch in engine.batches]
    shown = [[[demo["ticket"] in text for demo in URGENT] for text in batch] for batch in texts]
    queues = [[True, False, False, False], [False, True, False, False]]
    assert shown == [queues, [[False, False, False, True], [True, False, False, False]]], "true, then false"


def test_an_output_without_labels_is_written_after_all_demos() -> None:
    engine = FakeEngine(says("thanks"), likelihood=alike)
    demos = tuple({**demo, "reply": "Sorry."} for demo in DEMOS)
    found = run(part(QUEUE + ", reply", demos=demos, per_label=1), engine, ticket="My invoice is wrong")
    assert (found.queue, found.reply) == ("billing", "thanks")
    labels, (written,) = engine.batches
    assert len(labels) == 3
    text = engine.tokenizer.text(written.prompt)
    assert all(demo["ticket"] in text for demo in DEMOS) and text.rstrip().endswith("Queue: billing\nReply:")


def test_it_needs_labels_and_a_text() -> None:
    engine = FakeEngine()
    with pytest.raises(InputError, match="`channel` needs an output with a finite set of values"):
        run(part("ticket -> note", demos=()), engine, ticket="a")
    with pytest.raises(InputError, match="`channel` needs an input that is a text"):
        run(part("count: int -> queue: Literal['a', 'b']", demos=()), engine, count=3)
    assert not engine.batches


def test_a_prompt_that_is_too_long_loses_demos_of_its_own_label_only() -> None:
    whole = part().prompts(language_model(FakeEngine()), ticket="Cold")
    engine = FakeEngine(likelihood=alike, context_window=len(whole[0].ids))  # with room for one token more
    prompts = part().prompts(language_model(engine), ticket="Cold")
    assert [(prompt.demos, prompt.dropped) for prompt in prompts] == [(1, 1), (1, 0), (0, 0)]
    assert run(part(), engine, ticket="charged").queue == "billing"
