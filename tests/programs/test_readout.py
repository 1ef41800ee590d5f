"""Read-outs: how text, constrained text and choices become typed outputs, and what calibration does to a choice."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest
from fakes import FakeEngine, says

import cuecard
from cuecard.errors import InputError, ReadError
from cuecard.models.engine import Decoding, GenerateRequest, ScoreRequest
from cuecard.models.gather import RequestFailed
from cuecard.models.lm import language_model
from cuecard.programs.formats.registry import BUILT_IN
from cuecard.programs.predictor import Predictor
from cuecard.programs.readout import Choice, recorded_choices
from cuecard.programs.state import Calibration, PredictorState, ReadOut

QUEUE = "ticket -> queue: Literal['billing', 'technical']"
TWO = "ticket -> reason: str, queue: Literal['billing', 'technical']"
FORMATS = sorted(BUILT_IN)


def make(text: str, kind: Any = "text", format: Any = "completion", **rest: Any) -> Predictor:
    calibration = rest.pop("calibration", None)
    state = PredictorState(
        format=format,
        readout=ReadOut(kind=kind, calibration=calibration),
        decoding=Decoding(**rest.pop("decoding", {})),
        **rest,
    )
    return Predictor(cuecard.signature(text), state)


def run(part: Predictor, engine: FakeEngine, **inputs: Any) -> dspy.Prediction:
    with dspy.context(lm=language_model(engine)):
        return part(**inputs)


def scores(**nats: float) -> Callable[[str, str], float]:
    """A likelihood by label, whatever stands around it; the longest label that occurs counts."""

    def likelihood(prompt: str, continuation: str) -> float:
        return nats[max((label for label in nats if label in continuation), key=len)]

    return likelihood


def generated(engine: FakeEngine) -> list[GenerateRequest]:
    return [request for batch in engine.batches for request in batch if isinstance(request, GenerateRequest)]


def scored(engine: FakeEngine) -> list[ScoreRequest]:
    return [request for batch in engine.batches for request in batch if isinstance(request, ScoreRequest)]


# ---- text

WHOLE = {
    "completion": " It hums.\nQueue: technical\n\nTicket: another",
    "turns": "Reason: It hums.\nQueue: technical",
    "turns_labelled": " It hums.\nQueue: technical",
    "chat": "Reason: It hums.\nQueue: technical",
    "dspy": "[[ ## reason ## ]]\nIt hums.\n\n[[ ## queue ## ]]\ntechnical\n\n[[ ## completed ## ]]",
    "json": '{"reason": "It hums.", "queue": "technical"}',
    "xml": "<reason>It hums.</reason>\n<queue>technical</queue>",
}


def continues(text: str, *marks: str) -> Callable[..., str]:
    """A model that knows the whole answer: it goes on from wherever the prompt's end stands in it."""

    def answer(prompt: str, decoding: Decoding, sample: int) -> str:
        for mark in marks:
            if prompt.endswith(mark):
                return text[text.index(mark) + len(mark) :]
        return text

    return answer


@pytest.mark.parametrize("format_", FORMATS)
def test_text_gives_every_field_its_typed_value(format_: str) -> None:
    engine = FakeEngine(continues(WHOLE[format_], "Queue:"))
    prediction = run(make(TWO, format=format_), engine, ticket="x")
    assert prediction.toDict() == {"reason": "It hums.", "queue": "technical"}


def test_a_format_that_opens_the_answer_is_read_field_by_field() -> None:
    engine = FakeEngine(continues(WHOLE["completion"], "Queue:"))
    run(make(TWO), engine, ticket="x")
    first, second = engine.prompts()
    assert first.endswith("Ticket: x\nReason:")
    assert second.endswith("Ticket: x\nReason: It hums.\nQueue:")
    assert "\nQueue:" in generated(engine)[0].decoding.stop
    assert generated(engine)[1].decoding.stop == ("\n",)


@pytest.mark.parametrize("format_", ["turns", "chat", "dspy", "json", "xml"])
def test_any_other_format_is_read_whole(format_: str) -> None:
    engine = FakeEngine(says(WHOLE[format_]))
    run(make(TWO, format=format_), engine, ticket="x")
    (request,) = generated(engine)
    assert request.decoding.stop == make(TWO, format=format_).format.stops(cuecard.signature(TWO))


def test_the_users_stop_strings_come_on_top() -> None:
    engine = FakeEngine(says(" one ## two"))
    assert run(make("ticket -> note", decoding={"stop": ("##",)}), engine, ticket="x").note == "one"
    assert generated(engine)[0].decoding.stop[0] == "##"
    assert "\n\n" in generated(engine)[0].decoding.stop


@pytest.mark.parametrize("format_", FORMATS)
def test_text_that_is_no_label_is_a_read_error(format_: str) -> None:
    answer = WHOLE[format_].replace("technical", "kitchen sink")
    with pytest.raises(ReadError, match="queue"):
        run(make(TWO, format=format_), FakeEngine(continues(answer, "Queue:")), ticket="x")


@pytest.mark.parametrize("format_", ["chat", "dspy", "json", "xml"])
def test_text_without_the_last_field_is_a_read_error(format_: str) -> None:
    with pytest.raises(ReadError) as caught:
        run(make("ticket -> reason: str, score: int", format=format_), FakeEngine(says("I do not know.")), ticket="x")
    assert caught.value.field in ("reason", "score")


def test_an_answer_that_was_cut_off_is_read_as_far_as_it_goes() -> None:
    engine = FakeEngine(says(" a very long note indeed"))
    assert run(make("ticket -> note", decoding={"max_tokens": 3}), engine, ticket="x").note == "a very long"


def test_a_request_that_fails_raises_its_reason() -> None:
    with pytest.raises(RequestFailed, match="the window is shut"):
        run(make("ticket -> note"), FakeEngine(failure=lambda request: "the window is shut"), ticket="x")


# ---- several samples


def numbered(prompt: str, decoding: Decoding, sample: int) -> str:
    return f" seed {decoding.seed} sample {sample}"


def test_n_samples_of_a_whole_answer_are_one_request() -> None:
    engine = FakeEngine(numbered)
    prediction = run(make("ticket -> note", format="chat", decoding={"n": 3, "temperature": 1.0}), engine, ticket="x")
    assert prediction.completions.note == ["seed 0 sample 0", "seed 0 sample 1", "seed 0 sample 2"]
    assert prediction.note == "seed 0 sample 0"
    assert len(generated(engine)) == 1


def test_n_samples_field_by_field_have_a_seed_each() -> None:
    engine = FakeEngine(numbered)
    decoding = {"n": 3, "temperature": 1.0, "seed": 5}
    prediction = run(make("ticket -> note, word: str", decoding=decoding), engine, ticket="x")
    seeds = [request.decoding.seed for request in generated(engine)]
    assert [request.decoding.n for request in generated(engine)] == [1] * 6
    assert seeds[0] == seeds[1] == 5, "the first sample is the one that n=1 gives"
    assert seeds[2] == seeds[3] and seeds[4] == seeds[5]
    assert len(set(seeds)) == 3
    assert len(set(prediction.completions.note)) == 3


def test_each_sample_sees_its_own_earlier_fields() -> None:
    engine = FakeEngine(lambda prompt, decoding, sample: f" s{decoding.seed % 97}")
    prediction = run(make("ticket -> note, word", decoding={"n": 2, "temperature": 1.0}), engine, ticket="x")
    for prompt, note in zip(engine.prompts()[1::2], prediction.completions.note, strict=True):
        assert prompt.endswith(f"Note: {note}\nWord:")


def test_n_samples_of_a_choice_are_the_same_choice() -> None:
    engine = FakeEngine(likelihood=scores(billing=-2.0, technical=-1.0))
    prediction = run(make(QUEUE, "choice", decoding={"n": 3, "temperature": 1.0}), engine, ticket="x")
    assert prediction.completions.queue == ["technical"] * 3


# ---- choice


@pytest.mark.parametrize("format_", FORMATS)
def test_choice_takes_the_most_likely_label(format_: str) -> None:
    for likely in ("billing", "technical"):
        nats = {"billing": -3.0, "technical": -3.0, likely: -1.0}
        engine = FakeEngine(likelihood=scores(**nats))
        assert run(make(QUEUE, "choice", format_), engine, ticket="x").queue == likely
        assert not generated(engine)


@pytest.mark.parametrize("format_", FORMATS)
def test_choice_scores_the_text_that_an_answer_holds(format_: str) -> None:
    engine = FakeEngine(likelihood=scores(billing=-1.0, technical=-2.0))
    part = make(QUEUE, "choice", format_)
    run(part, engine, ticket="x")
    (request,) = scored(engine)
    prompt = engine.tokenizer.text(request.prompt)
    lead = part.format.lead(part.signature, "queue", {})
    assert prompt.endswith(lead)
    for label, tokens in zip(("billing", "technical"), request.continuations, strict=True):
        text = engine.tokenizer.text(tokens)
        assert (lead + text).startswith(part.format.answer(part.signature, {"queue": label})[: len(lead + text)])
        assert label in text


def test_a_tie_goes_to_the_first_label() -> None:
    assert run(make(QUEUE, "choice"), FakeEngine(), ticket="x").queue == "billing"


@pytest.mark.parametrize("method", ["contextual", "batch", "bias"])
def test_each_calibration_is_taken_off_before_choosing(method: Any) -> None:
    engine = FakeEngine(likelihood=scores(billing=-1.0, technical=-2.0))
    for offset, expected in ((0.9, "billing"), (1.0, "billing"), (1.1, "technical")):
        calibration = Calibration(method=method, offsets={"queue": {"billing": offset, "technical": 0.0}})
        assert run(make(QUEUE, "choice", calibration=calibration), engine, ticket="x").queue == expected


def test_labels_and_fields_without_an_offset_are_left_alone() -> None:
    engine = FakeEngine(likelihood=scores(billing=-1.0, technical=-2.0))
    for offsets in ({"other": {"billing": 9.0}}, {"queue": {"technical": 1.0}}, {"queue": {"technical": -0.5}}):
        calibration = Calibration(method="batch", offsets=offsets)
        assert run(make(QUEUE, "choice", calibration=calibration), engine, ticket="x").queue == "billing"


LONGER = "place -> city: Literal['York', 'New York', 'New York City', 'Newark']"


@pytest.mark.parametrize("format_", FORMATS)
def test_a_label_that_begins_another_does_not_win_by_being_shorter(format_: str) -> None:
    """Each token costs one nat: without what ends a value, the shorter label of a pair would always cost less."""
    seen: list[str] = []

    def likelihood(prompt: str, continuation: str) -> float:
        seen.append(continuation)
        return -1.0

    run(make(LONGER, "choice", format_), FakeEngine(likelihood=likelihood), place="x")
    assert len(seen) == 4
    assert not [(a, b) for a in seen for b in seen if a != b and b.startswith(a)]


def test_labels_that_begin_no_other_have_nothing_added() -> None:
    engine = FakeEngine()
    run(make(QUEUE, "choice"), engine, ticket="x")
    texts = [engine.tokenizer.text(tokens) for tokens in scored(engine)[0].continuations]
    assert texts == [" billing", " technical"]


@pytest.mark.parametrize(
    ("type_", "likely", "value"),
    [("bool", "true", True), ("bool", "false", False), ("Literal[1, 2, 12]", "12", 12), ("bool | None", "null", None)],
)
@pytest.mark.parametrize("format_", ["completion", "chat", "json", "xml", "dspy"])
def test_a_choice_is_the_typed_value(type_: str, likely: str, value: Any, format_: str) -> None:
    part = make(f"text -> flag: {type_}", "choice", format_)
    written = part.format.write(part.signature, "flag", value)

    def likelihood(prompt: str, continuation: str) -> float:
        return 0.0 if continuation.startswith(written) and (likely != "1" or "2" not in continuation) else -9.0

    prediction = run(part, FakeEngine(likelihood=likelihood), text="x")
    assert prediction.flag is value if not isinstance(value, int) else prediction.flag == value


def test_choice_without_a_finite_output_is_the_users_mistake() -> None:
    with pytest.raises(InputError, match="needs an output with a finite set of values"):
        run(make("ticket -> note", "choice"), FakeEngine(), ticket="x")


@pytest.mark.parametrize("format_", FORMATS)
def test_fields_without_choices_are_written_before_a_choice(format_: str) -> None:
    """What a field is shown as, after it was written, is what was written: `lead` of the next field shows it."""
    part = make(TWO, "choice", format_)
    lead = part.format.lead(part.signature, "reason", {})
    said = 'It says "off" & hums.'
    written = part.format.write(part.signature, "reason", said)
    endings = {"json": ', "queue": "technical"}', "xml": "\n<queue>", "dspy": "\n\n[[ ## queue ## ]]"}
    engine = FakeEngine(says(written + endings.get(format_, "\nQueue: technical")), scores(billing=-2.0, technical=-1))
    prediction = run(part, engine, ticket="x")
    assert prediction.toDict() == {"reason": said, "queue": "technical"}
    first, second = engine.prompts()
    assert first.endswith(lead)
    assert second.endswith(part.format.lead(part.signature, "queue", {"reason": said}))


@pytest.mark.parametrize("said", [' "It hums', ' "It hums",', " It hums", "It hums"])
def test_a_json_text_that_is_not_whole_is_read_as_it_is_meant(said: str) -> None:
    """Cut off by `max_tokens`, closed too early, without its quotation marks."""
    engine = FakeEngine(says(said), scores(billing=-2.0, technical=-1.0))
    assert run(make(TWO, "choice", "json"), engine, ticket="x").reason == "It hums"


@pytest.mark.parametrize(
    ("kind", "format_"), [("text", "completion"), ("text", "turns_labelled"), *(("choice", name) for name in FORMATS)]
)
def test_silence_is_an_empty_text(kind: str, format_: str) -> None:
    engine = FakeEngine(
        lambda prompt, *_: " billing" if prompt.endswith("Queue:") else "", scores(billing=-1.0, technical=-2.0)
    )
    assert run(make(TWO, kind, format_), engine, ticket="x").reason == ""


def test_a_choice_between_two_texts_is_seen_by_the_second() -> None:
    part = make("ticket -> queue: Literal['billing', 'technical'], note: str, urgent: bool", "choice")
    engine = FakeEngine(says(" call back"), scores(billing=-2, technical=-1, true=-3, false=-2))
    prediction = run(part, engine, ticket="x")
    assert prediction.toDict() == {"queue": "technical", "note": "call back", "urgent": False}
    assert engine.prompts()[-1].endswith("Queue: technical\nNote: call back\nUrgent:")


# ---- what a choice leaves behind


def test_choices_are_recorded_before_calibration() -> None:
    calibration = Calibration(method="bias", offsets={"queue": {"billing": 5.0, "technical": 0.0}})
    part = make(QUEUE, "choice", calibration=calibration)
    engine = FakeEngine(likelihood=scores(billing=-1.0, technical=-2.5))
    with recorded_choices() as made:
        run(part, engine, ticket="x")
    tokens = len(scored(engine)[0].prompt)
    assert made == [Choice(id(part), "queue", ("billing", "technical"), (-1.0, -2.5), "technical", tokens)]


def test_recording_ends_with_its_block_and_nests() -> None:
    part, engine = make(QUEUE, "choice"), FakeEngine()
    with recorded_choices() as outer:
        run(part, engine, ticket="x")
        with recorded_choices() as inner:
            run(part, engine, ticket="y")
        run(part, engine, ticket="z")
    run(part, engine, ticket="w")
    assert (len(outer), len(inner)) == (2, 1)


def test_the_likelihood_of_several_tokens_is_their_sum() -> None:
    part, engine = make("place -> city: Literal['New York City', 'Troy']", "choice"), FakeEngine()
    with recorded_choices() as made:
        run(part, engine, place="x")
    assert [len(tokens) for tokens in scored(engine)[0].continuations] == [3, 1]
    assert made[0].totals == (-1.0, -1.0)


# ---- constrained: on a real tokenizer, with random weights


@pytest.fixture(scope="module")
def tiny(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> cuecard.Target:
    return cuecard.target(tiny_model, device="cpu", cache=tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("text", [QUEUE, "ticket -> queue: Literal['a', 'b'], urgent: bool, score: Literal[1, 2]"])
def test_constrained_text_always_parses(format_: str, text: str, tiny: cuecard.Target) -> None:
    part = make(text, "constrained", format_, decoding={"max_tokens": 120, "temperature": 1.0, "n": 2})
    with dspy.context(lm=tiny.lm):
        prediction = part(ticket="I was charged twice.")
    assert len(prediction.completions.queue) == 2
    assert set(prediction.completions.queue) <= {"billing", "technical", "a", "b"}


def test_constrained_text_that_is_cut_off_is_a_read_error(tiny: cuecard.Target) -> None:
    part = make(QUEUE, "constrained", "json", decoding={"max_tokens": 3})
    with pytest.raises(ReadError), dspy.context(lm=tiny.lm):
        part(ticket="I was charged twice.")


@pytest.mark.parametrize("format_", FORMATS)
def test_a_choice_on_a_model_is_the_label_with_the_highest_likelihood(format_: str, tiny: cuecard.Target) -> None:
    part = make(QUEUE, "choice", format_)
    with recorded_choices() as made, dspy.context(lm=tiny.lm):
        chosen = part(ticket="I was charged twice.").queue
    (seen,) = made
    assert chosen == seen.chosen == seen.labels[seen.totals.index(max(seen.totals))]
    assert all(math.isfinite(total) and total < 0 for total in seen.totals)
