"""The predictor: what it holds, how that survives copying and saving, and how a plain program adopts it."""

from __future__ import annotations

import asyncio
import copy
from typing import Any, Literal

import dspy
import pytest
from dspy.utils.dummies import DummyLM
from fakes import FakeEngine, says

import cuecard
from cuecard.errors import InputError
from cuecard.models.engine import Decoding
from cuecard.models.lm import language_model
from cuecard.programs.predictor import Predictor, adopt
from cuecard.programs.state import Calibration, PredictorState, ReadOut

QUEUE = "ticket -> queue: Literal['billing', 'technical']"
STATE = PredictorState(
    instructions="Route it.",
    demos=({"ticket": "It hums.", "queue": "technical"}, {"ticket": "Twice!", "queue": "billing"}),
    format={"name": "turns", "labels": True},
    readout=ReadOut(
        kind="choice",
        calibration=Calibration(method="bias", offsets={"queue": {"billing": 0.25, "technical": -0.25}}),
    ),
    decoding=Decoding(max_tokens=7, temperature=0.5, stop=("\n", "##"), seed=3),
)


def predictor(state: PredictorState | None = None, text: str = QUEUE) -> Predictor:
    return Predictor(cuecard.signature(text), state)


def sent(engine: FakeEngine) -> list[Any]:
    """All requests that reached the engine."""
    return [request for batch in engine.batches for request in batch]


def call(part: Any, engine: FakeEngine, **inputs: Any) -> dspy.Prediction:
    with dspy.context(lm=language_model(engine)):
        return part(**inputs)


# ---- state


def test_a_state_comes_back_as_it_was_set() -> None:
    part = predictor()
    part.state = STATE
    assert part.state == STATE
    assert part.signature.instructions == "Route it."
    assert part.format.options == {"labels": True}


def test_without_instructions_the_signature_keeps_its_own() -> None:
    part = predictor()
    own = part.signature.instructions
    part.state = PredictorState(format="json")
    assert part.state.instructions == own


def test_demos_of_a_state_are_copies() -> None:
    part = predictor(STATE)
    part.demos[0]["queue"] = "changed"
    assert STATE.demos[0]["queue"] == "technical"


def test_demos_that_an_optimizer_sets_are_part_of_the_state() -> None:
    part = predictor()
    part.demos = [dspy.Example(ticket="a", queue="billing").with_inputs("ticket")]
    assert part.state.demos == ({"ticket": "a", "queue": "billing"},)


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(InputError, match="unknown format 'josn'.*did you mean 'json'"):
        predictor(PredictorState(format="josn"))


def test_two_predictors_made_alike_are_alike() -> None:
    assert predictor().dump_state() == predictor().dump_state()
    assert predictor().stage == predictor().stage == ""


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda part: part.deepcopy()], ids=["copy", "dspy"])
def test_a_copy_has_the_state_and_nothing_in_common(copier: Any) -> None:
    part = predictor(STATE)
    twin = copier(part)
    assert twin.state == STATE
    twin.state = PredictorState(format="json")
    twin.demos.append({"ticket": "x", "queue": "billing"})
    assert part.state == STATE


def test_copying_a_program_does_not_copy_the_engine() -> None:
    engine = FakeEngine()
    part = predictor()
    part.set_lm(language_model(engine))
    assert part.deepcopy().lm.engine.engine is engine


@pytest.mark.parametrize("ending", ["json", "pkl"])
def test_saving_and_loading_through_dspy(ending: str, tmp_path: Any) -> None:
    part = predictor(STATE)
    part.save(str(tmp_path / f"state.{ending}"))
    other = predictor()
    other.load(str(tmp_path / f"state.{ending}"), allow_pickle=ending == "pkl")
    assert other.state == STATE


def test_a_predictor_on_a_target_is_saved_without_it(tmp_path: Any) -> None:
    part = predictor(STATE)
    lm = language_model(FakeEngine())
    part.set_lm(lm)
    part.save(str(tmp_path / "state.json"))
    assert part.lm is lm
    other = predictor()
    other.load(str(tmp_path / "state.json"))
    assert other.state == STATE
    assert other.lm is None


def test_a_program_that_was_saved_answers_as_before(tmp_path: Any) -> None:
    class Two(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = [predictor(), predictor(text="ticket -> note: str")]

        def forward(self, ticket: str) -> dspy.Prediction:
            return dspy.Prediction(queue=self.parts[0](ticket=ticket).queue, note=self.parts[1](ticket=ticket).note)

    program = Two()
    program.parts[0].state = STATE
    program.parts[1].state = PredictorState(format="completion", demos=({"ticket": "t", "note": "n"},))
    program.save(str(tmp_path / "program.json"))
    loaded = Two()
    loaded.load(str(tmp_path / "program.json"))
    engines = FakeEngine(says(" fine")), FakeEngine(says(" fine"))
    answers = [
        call(made, engine, ticket="hm").toDict() for made, engine in zip((program, loaded), engines, strict=True)
    ]
    assert answers[0] == answers[1] == {"queue": "technical", "note": "fine"}
    assert sent(engines[0]) == sent(engines[1])


def test_what_plain_dspy_saved_can_be_loaded() -> None:
    plain = dspy.Predict("question -> answer")
    plain.demos = [{"question": "a", "answer": "b"}]
    part = Predictor(plain.signature, PredictorState(format="json"))
    part.load_state(plain.dump_state())
    assert part.state.demos == ({"question": "a", "answer": "b"},)
    assert part.state.format == "json"


def test_loading_leaves_what_was_given_as_it_was() -> None:
    saved = predictor(STATE).dump_state()
    before = copy.deepcopy(saved)
    predictor().load_state(saved)
    assert saved == before


# ---- calling


def test_a_call_overrides_decoding_settings() -> None:
    engine = FakeEngine(says(" fine"))
    part = predictor(PredictorState(format="completion", decoding=Decoding(max_tokens=9, top_k=4)), "ticket -> note")
    call(part, engine, ticket="x", config={"max_tokens": 3, "temperature": 0.25, "top_p": None, "rollout_id": 5})
    settings = sent(engine)[0].decoding
    assert (settings.max_tokens, settings.temperature, settings.top_k, settings.top_p) == (3, 0.25, 4, 1.0)
    assert part.state.decoding == Decoding(max_tokens=9, top_k=4)


def test_a_stop_string_given_to_a_call_may_be_alone() -> None:
    engine = FakeEngine(says(" one ## two"))
    part = predictor(PredictorState(format="completion"), "ticket -> note")
    assert call(part, engine, ticket="x", config={"stop": "##"}).note == "one"


def test_a_setting_that_is_no_setting_is_told() -> None:
    part = predictor(PredictorState(format="completion"), "ticket -> note")
    with pytest.raises(InputError, match="temperature"):
        call(part, FakeEngine(), ticket="x", config={"temperature": -1})


def test_asking_for_several_samples_keeps_the_temperature_that_was_learned() -> None:
    engine = FakeEngine(says(" fine"))
    state = PredictorState(format="completion", decoding=Decoding(temperature=1.5))
    call(predictor(state, "ticket -> note"), engine, ticket="x", config={"n": 2})
    assert {request.decoding.temperature for request in sent(engine)} == {1.5}


def test_asking_for_several_samples_makes_a_greedy_predictor_draw_as_in_dspy() -> None:
    engine = FakeEngine(says(" fine"))
    call(predictor(PredictorState(format="completion"), "ticket -> note"), engine, ticket="x", config={"n": 2})
    assert {request.decoding.temperature for request in sent(engine)} == {0.7}


def test_a_call_may_bring_its_own_demos_and_signature() -> None:
    engine = FakeEngine(says(" fine"))
    part = predictor(PredictorState(format="completion"), "ticket -> note")
    other = part.signature.with_instructions("Write it down.")
    call(part, engine, ticket="x", demos=[{"ticket": "shown", "note": "so"}], signature=other)
    assert engine.prompts()[0].endswith("Write it down.\n\nTicket: shown\nNote: so\n\nTicket: x\nNote:")
    assert part.demos == []


def test_the_call_stands_in_dspys_trace() -> None:
    part = predictor(PredictorState(format="completion"), "ticket -> note")
    with dspy.context(trace=[]):
        call(part, FakeEngine(says(" fine")), ticket="x")
        ((traced, inputs, prediction),) = dspy.settings.trace
    assert traced is part
    assert inputs == {"ticket": "x"}
    assert prediction.note == "fine"


def test_an_awaited_call_is_the_same_call() -> None:
    part = predictor(STATE)
    engines = FakeEngine(), FakeEngine()

    async def answer() -> dspy.Prediction:
        with dspy.context(lm=language_model(engines[0])):
            return await part.acall(ticket="hm")

    assert asyncio.run(answer()).queue == call(part, engines[1], ticket="hm").queue == "technical"
    assert sent(engines[0]) == sent(engines[1])


@pytest.mark.parametrize("format_", ["completion", "chat", "dspy", "json"])
@pytest.mark.parametrize("kind", ["text", "choice", "constrained"])
def test_the_prompt_that_is_shown_is_the_one_that_is_sent(format_: str, kind: Any) -> None:
    state = PredictorState(format=format_, readout=ReadOut(kind=kind), demos=STATE.demos)
    answers = {"dspy": "[[ ## queue ## ]]\nbilling", "json": '{"queue": "billing"}'}
    engine = FakeEngine(says(answers.get(format_, "Queue: billing" if format_ == "chat" else " billing")))
    part = predictor(state)
    shown = part.prompt(language_model(engine), ticket="hm")
    assert engine.batches == [], "showing calls no model"
    assert call(part, engine, ticket="hm").queue == "billing"
    assert sent(engine)[0].prompt == shown.ids
    assert engine.tokenizer.text(shown.ids) == f"<|start|>{shown.text}"


def test_a_prompt_is_only_shown_for_a_target() -> None:
    with pytest.raises(InputError, match="Cuecard target"):
        predictor().prompt(DummyLM([{"queue": "billing"}]), ticket="hm")
    with pytest.raises(InputError, match="Cuecard target"), dspy.context(lm=None):
        predictor().prompt(ticket="hm")


# ---- on an LM that is not ours


def test_another_lm_gets_a_text_read_out() -> None:
    lm = DummyLM([{"queue": "billing"}])
    with dspy.context(lm=lm):
        assert predictor(PredictorState(format="dspy"))(ticket="hm").queue == "billing"


@pytest.mark.parametrize("kind", ["choice", "constrained"])
def test_another_lm_cannot_do_more_than_text(kind: Any) -> None:
    part = predictor(PredictorState(format="dspy", readout=ReadOut(kind=kind)))
    with (
        pytest.raises(InputError, match=f"the read-out `{kind}` needs a Cuecard target"),
        dspy.context(lm=DummyLM([{"queue": "billing"}])),
    ):
        part(ticket="hm")


def test_the_predictors_own_lm_wins() -> None:
    engine = FakeEngine(says(" mine"))
    part = predictor(PredictorState(format="completion"), "ticket -> note")
    part.set_lm(language_model(engine))
    assert call(part, FakeEngine(says(" theirs")), ticket="x").note == "mine"


# ---- adopting a program


class Leaf(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ask = dspy.Predict("question -> answer")

    def forward(self, **inputs: Any) -> dspy.Prediction:
        return self.ask(**inputs)


def names_of(program: dspy.Module) -> list[str]:
    return [name for name, part in program.named_predictors() if isinstance(part, Predictor)]


def test_every_place_of_a_program_is_adopted() -> None:
    class Program(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.alone = dspy.Predict("a -> b")
            self.inside = Leaf()
            self.listed = [dspy.Predict("a -> c"), Leaf()]
            self.paired = (dspy.Predict("a -> d"), "text")
            self.named = {"x": dspy.Predict("a -> e"), "y": [Leaf()]}
            self.thought = dspy.ChainOfThought("a -> f")

    program = Program()
    adopted = adopt(program, PredictorState(format="json"))
    assert names_of(adopted) == [name for name, _ in program.named_predictors()]
    assert not names_of(program), "the program itself is left alone"
    assert isinstance(adopted.named["y"][0].ask, Predictor), "deeper than DSPy's own names reach"
    assert {part.state.format for part in adopted.predictors()} == {"json"}
    assert adopted.paired[1] == "text"


def test_a_program_that_is_a_predict_itself() -> None:
    adopted = adopt(dspy.Predict(cuecard.signature(QUEUE)))
    assert isinstance(adopted, Predictor)
    assert names_of(adopted) == ["self"]


def test_a_shared_predict_stays_shared() -> None:
    class Program(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = dspy.Predict("a -> b")
            self.again = [self.first]

    adopted = adopt(Program())
    assert adopted.first is adopted.again[0]
    assert isinstance(adopted.first, Predictor)


def test_cyclic_references_do_no_harm() -> None:
    class Parent(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.child = Leaf()
            self.child.parent = self
            self.everything: list[Any] = [self.child]
            self.everything.append(self.everything)
            self.table: dict[str, Any] = {}
            self.table["table"] = self.table
            self.table["ask"] = self.child.ask

    adopted = adopt(Parent())
    assert isinstance(adopted.child.ask, Predictor)
    assert adopted.child.parent is adopted
    assert adopted.everything[0] is adopted.child
    assert adopted.table["ask"] is adopted.child.ask
    assert adopted.table["table"]["ask"] is adopted.child.ask


def test_containers_keep_their_kind() -> None:
    from collections import OrderedDict, defaultdict

    class Program(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.counts: defaultdict[str, int] = defaultdict(int)
            self.ordered = OrderedDict(one=dspy.Predict("a -> b"))

    adopted = adopt(Program())
    adopted.counts["new"] += 1
    adopted.ordered.move_to_end("one")
    assert isinstance(adopted.ordered["one"], Predictor)


def test_demos_instructions_and_settings_are_kept() -> None:
    plain = dspy.Predict(
        dspy.Signature("question -> answer", "Be brief."), max_tokens=5, temperature=0.5, stop="##", top_p=None
    )
    plain.demos = [dspy.Example(question="a", answer="b").with_inputs("question"), {"question": "c", "answer": "d"}]
    state = adopt(plain, PredictorState(format="turns", instructions="not this")).state
    assert state.instructions == "Be brief."
    assert state.demos == ({"question": "a", "answer": "b"}, {"question": "c", "answer": "d"})
    assert (state.decoding.max_tokens, state.decoding.temperature, state.decoding.stop) == (5, 0.5, ("##",))
    assert state.decoding.model_fields_set == {"max_tokens", "temperature", "stop"}
    assert state.format == "turns"


def test_the_predicts_own_lm_and_other_settings_are_kept() -> None:
    plain = dspy.Predict("ticket -> note", rollout_id=3, max_tokens=4)
    plain.lm = language_model(FakeEngine(says(" mine")))
    adopted = adopt(plain, PredictorState(format="completion"))
    assert adopted(ticket="x").note == "mine"
    assert adopted.config == {"rollout_id": 3}


def test_what_is_adopted_already_keeps_its_state() -> None:
    class Program(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ours = predictor(STATE)
            self.plain = dspy.Predict("a -> b")

    adopted = adopt(Program(), PredictorState(format="xml"))
    assert adopted.ours.state == STATE
    assert adopted.plain.state.format == "xml"


def test_a_subclass_of_predict_is_left_as_it_is() -> None:
    class Own(dspy.Predict):
        pass

    class Program(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own = Own("a -> b")

    assert type(adopt(Program()).own) is Own


def test_adopting_a_react_program_reaches_both_its_predictors() -> None:
    def look_up(word: str) -> str:
        """Look a word up."""
        return word

    adopted = adopt(dspy.ReAct("question -> answer", tools=[look_up]))
    assert names_of(adopted) == ["react", "extract.predict"]


def test_literal_types_survive_adoption() -> None:
    adopted = adopt(dspy.Predict(cuecard.signature(QUEUE)))
    assert adopted.signature.output_fields["queue"].annotation == Literal["billing", "technical"]
