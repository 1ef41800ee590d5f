"""A spec's program: what it is made of, how values flow through it, and how what it learned goes back into the spec."""

from __future__ import annotations

import copy
import itertools
import json
from importlib.metadata import EntryPoint
from typing import Any, Literal

import dspy
import pytest
from dspy.lm15 import Message, Response, TextPart, Usage
from hypothesis import given, settings
from hypothesis import strategies as st

from cuecard.errors import InputError, RunError
from cuecard.models.engine import Decoding
from cuecard.programs import modules
from cuecard.programs.graph import build, to_spec
from cuecard.programs.learned import apply_spec, python_spec
from cuecard.programs.ordering import running_order
from cuecard.programs.predictor import Predictor, adopt
from cuecard.programs.spec import CompiledSpec, Score, Spec, Target, read_spec
from cuecard.programs.state import Calibration, PredictorState, ReadOut
from cuecard.programs.yaml_source import dump_yaml, parse_yaml

TRIAGE = """\
inputs: {ticket: str, year: int}
model: {id: any, options: {max_tokens: 9, temperature: 0.5}}
nodes:
  route:
    module: chain_of_thought
    signature: "ticket, note, year: float -> queue: Literal['billing', 'technical'], score: int"
    inputs: {ticket: "${inputs.ticket}", note: "In ${inputs.year}: ${summary.summary}", year: "${inputs.year}"}
    format: json
    decoding: {temperature: 0.0}
  summary:
    signature: "ticket, year -> summary"
    format: json
outputs: {queue: "${route.queue}", points: "${route.score}", told: "$${x} ${route.score}", why: "${route.reasoning}"}
"""


class Scripted:
    """An engine that gives its answers one after the other, and keeps the prompts."""

    def __init__(self, *answers: dict[str, Any]) -> None:
        self.answers = list(answers)
        self.prompts: list[str] = []

    def __deepcopy__(self, memo: Any) -> Scripted:
        return self

    def complete(self, request: Any) -> Response:
        self.prompts.append(request.messages[-1].text)
        text = json.dumps(self.answers.pop(0))
        return Response(
            id=None,
            model="scripted",
            message=Message.assistant([TextPart(text)]),
            finish_reason="stop",
            usage=Usage(input_tokens=0, output_tokens=0, total_tokens=0),
        )

    def close(self) -> None:
        pass


def spec_of(text: str) -> Spec:
    return read_spec(parse_yaml(text, "triage.yaml"))


def ask(program: dspy.Module, *answers: dict[str, Any], **inputs: Any) -> tuple[dspy.Prediction, list[str]]:
    engine = Scripted(*answers)
    with dspy.context(lm=dspy.LM("test/scripted", engine=engine, cache=False)):
        return program(**inputs), engine.prompts


ANSWERS = ({"summary": "Charged twice."}, {"reasoning": "Money.", "queue": "billing", "score": 7})


def test_values_flow_along_the_references() -> None:
    prediction, prompts = ask(build(spec_of(TRIAGE)), *ANSWERS, ticket="I paid double", year=2024)
    assert dict(prediction.items()) == {"queue": "billing", "points": 7, "told": "${x} 7", "why": "Money."}
    assert "In 2024: Charged twice." in prompts[1]
    assert "I paid double" in prompts[0]


def test_predictors_are_named_after_nodes_in_running_order() -> None:
    graph = build(spec_of(TRIAGE))
    assert [name for name, _ in graph.named_predictors()] == ["summary", "route.predict"]
    assert all(isinstance(predictor, Predictor) for predictor in graph.predictors())
    assert list(graph.route.predict.signature.output_fields) == ["reasoning", "queue", "score"]


def test_the_types_at_its_ends_and_between() -> None:
    graph = build(spec_of(TRIAGE))
    assert graph.input_types == {"ticket": str, "year": int}
    assert graph.output_types == {"queue": Literal["billing", "technical"], "points": int, "told": str}
    assert graph.label_types == {"why": str, "summary": str}
    assert graph.columns == {
        "summary": {"ticket": "ticket", "year": "year", "summary": "summary"},
        "route.predict": {
            "ticket": "ticket",
            "year": "year",
            "reasoning": "why",
            "queue": "queue",
            "score": "points",
        },
    }


def test_a_copy_is_its_own_program() -> None:
    graph = build(spec_of(TRIAGE))
    for other in (copy.deepcopy(graph), graph.deepcopy()):
        assert [name for name, _ in other.named_predictors()] == ["summary", "route.predict"]
        other.summary.state = other.summary.state.model_copy(update={"instructions": "Changed."})
        assert graph.summary.signature.instructions != "Changed."
        assert ask(other, *ANSWERS, ticket="x", year=1)[0].queue == "billing"


def test_replaced_predictors_are_used() -> None:
    """DSPy's optimizers put other predictors into a program by their names."""
    graph = build(spec_of(TRIAGE))
    names = []
    graph.map_named_predictors(lambda predictor: names.append(predictor) or copy.deepcopy(predictor))
    assert len(names) == 2 and not {id(p) for p in names} & {id(p) for p in graph.predictors()}
    assert ask(graph, *ANSWERS, ticket="x", year=1)[0].queue == "billing"


def test_without_outputs_all_of_the_last_node() -> None:
    graph = build(spec_of("signature: 'question -> answer'\nmodule: chain_of_thought\nformat: json\n"))
    assert [name for name, _ in graph.named_predictors()] == ["main.predict"]
    prediction, _ = ask(graph, {"reasoning": "So.", "answer": "Yes."}, question="Is it?")
    assert dict(prediction.items()) == {"reasoning": "So.", "answer": "Yes."}
    assert (graph.output_types, graph.label_types) == ({"answer": str}, {"reasoning": str})


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"tickt": "x", "year": 1}, "the program has no input 'tickt' (did you mean 'ticket'?)"),
        ({"zzz": "x"}, "the program has no input 'zzz'; expected one of ticket, year"),
        ({"ticket": "x"}, "the input 'year' is missing; expected ticket, year"),
    ],
)
def test_inputs_are_checked(inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as raised:
        build(spec_of(TRIAGE))(**inputs)
    assert str(raised.value) == message


def test_an_optional_input_may_be_left_out() -> None:
    graph = build(spec_of("signature: 'question, hint: str | None -> answer'\nformat: json\n"))
    assert ask(graph, {"answer": "Yes."}, question="Is it?")[0].answer == "Yes."


def test_learned_parameters_come_from_the_node_then_the_model() -> None:
    graph = build(spec_of(TRIAGE))
    assert graph.summary.state.decoding == Decoding(max_tokens=9, temperature=0.5)
    assert graph.route.predict.state.decoding == Decoding(max_tokens=9, temperature=0.0)
    assert graph.summary.state.format == "json"


def test_demos_are_typed() -> None:
    text = "signature: 'when: date -> ok: bool'\ndemos: [{when: 2024-01-31, ok: true}]\n"
    (demo,) = build(spec_of(text)).main.state.demos
    assert (demo["when"].isoformat(), demo["ok"]) == ("2024-01-31", True)


def test_a_wrong_spec_made_in_python_is_refused() -> None:
    with pytest.raises(InputError, match=r"the signature has no such field"):
        build(Spec(name="x", signature="a -> b", demos=({"c": 1},)))


COMPILED = CompiledSpec(
    target=Target(identity="sha256:abc", name="smollm2-135m", device="cpu", dtype="bfloat16"),
    data={"train": "aa", "dev": "bb"},
    spent={"metric_calls": 12, "seconds": 1.5},
    kept="candidate",
    baseline={"dev": Score(value=0.4, low=0.3, high=0.5, n=100)},
    scores={"dev": Score(value=0.6, low=0.5, high=0.7, n=100)},
    versions={"cuecard": "0.1"},
    note="kept as it is",
)


def learned(**changes: Any) -> PredictorState:
    given: dict[str, Any] = {
        "instructions": "Do it:\n- well\n- soon",
        "format": {"name": "completion", "describe": True},
        "decoding": Decoding(max_tokens=64, temperature=0.7, stop=("\n\n",)),
    }
    return PredictorState(**{**given, **changes})


def test_a_compiled_program_reads_back_equal() -> None:
    spec = spec_of(TRIAGE)
    demos = ({"ticket": "a: b", "note": "", "year": 1.5, "reasoning": "yes", "queue": "technical", "score": 3},)
    calibration = Calibration(method="batch", offsets={"queue": {"billing": -1.25, "technical": 0.1}})
    states = {
        "summary": learned(),
        "route.predict": learned(demos=demos, readout=ReadOut(kind="choice", calibration=calibration)),
    }
    text = dump_yaml(to_spec(spec, states, COMPILED).to_data())
    again = spec_of(text)
    assert {name: predictor.state for name, predictor in build(again).named_predictors()} == states
    assert again.compiled == COMPILED
    assert dump_yaml(to_spec(again, states, COMPILED).to_data()) == text
    # What is not learned stands as the user wrote it, in the user's order.
    assert list(again.nodes or {}) == ["route", "summary"]
    assert (again.outputs, again.inputs, again.model) == (spec.outputs, spec.inputs, spec.model)


def test_a_compiled_program_of_one_step_reads_back_equal() -> None:
    spec = spec_of("signature: \"q -> a: Literal['yes', 'no']\"\ndemos: [{q: x, a: no}]\ntests: []\n")
    text = dump_yaml(to_spec(spec, {"main": learned()}, COMPILED).to_data())
    assert build(spec_of(text)).main.state == learned()
    assert "nodes:" not in text


def test_demos_of_every_type_read_back_equal() -> None:
    text = (
        "signature:\n"
        "  inputs: {when: date, tags: 'list[str]', hint: str | None, who: {type: {name: str, age: int}}}\n"
        "  outputs: {ok: bool, share: float, level: 'Literal[1, 2]'}\n"
        "demos:\n"
        "  - {when: 2024-01-31, tags: ['no', '1'], hint: null, who: {name: x, age: 3}, ok: false, share: 1, level: 2}\n"
    )
    program = build(spec_of(text))
    spec = to_spec(spec_of(text), {"main": program.main.state})
    again = build(spec_of(dump_yaml(spec.to_data())))
    (before,), (after,) = program.main.state.demos, again.main.state.demos
    assert before.pop("who").model_dump() == after.pop("who").model_dump() == {"name": "x", "age": 3}
    assert before == after
    assert before["when"].year == 2024 and before["share"] == 1.0 and before["level"] == 2


def test_demos_keep_what_the_signature_has() -> None:
    """DSPy's optimizers give whole rows as demos, and rows that lack the output."""
    rows = ({"ticket": "a", "year": "1", "summary": "s", "queue": "billing", "augmented": True}, {"ticket": "b"})
    state = learned(demos=rows)
    spec = to_spec(spec_of(TRIAGE), {"summary": state})
    assert spec.nodes is not None and spec.nodes["summary"].demos == ({"ticket": "a", "year": "1", "summary": "s"},)


def test_states_need_a_predictor() -> None:
    with pytest.raises(InputError) as raised:
        to_spec(spec_of(TRIAGE), {"route": learned()})
    assert str(raised.value) == "the program has no predictor 'route'"


class Pair(dspy.Module):
    """Two predictors for one signature."""

    def __init__(self, signature: Any, state: PredictorState) -> None:
        super().__init__()
        self.first, self.second = Predictor(signature, state), Predictor(signature, state)

    def forward(self, **inputs: Any) -> dspy.Prediction:
        self.first(**inputs)
        return self.second(**inputs)


def add_module(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    point = EntryPoint(name, value, modules.GROUP)
    monkeypatch.setattr(modules, "entry_points", lambda group: [point] if group == modules.GROUP else [])


def test_a_package_adds_a_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modules, "Pair", Pair, raising=False)
    add_module(monkeypatch, "pair", "cuecard.programs.modules:Pair")
    spec = spec_of("module: pair\nsignature: 'question -> answer'\nformat: json\n")
    graph = build(spec)
    assert [name for name, _ in graph.named_predictors()] == ["main.first", "main.second"]
    assert ask(graph, {"answer": "no"}, {"answer": "yes"}, question="x")[0].answer == "yes"
    assert modules.names() == ("predict", "chain_of_thought", "pair")
    states = {"main.first": learned(instructions="One."), "main.second": learned(instructions="Two.")}
    again = spec_of(dump_yaml(to_spec(spec, states).to_data()))
    assert {name: predictor.state for name, predictor in build(again).named_predictors()} == states


def test_a_module_that_cannot_be_imported_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    add_module(monkeypatch, "pair", "cuecard.nowhere:Pair")
    with pytest.raises(InputError, match=r"triage.yaml:1: module: the module 'pair' cannot be imported from"):
        spec_of("module: pair\nsignature: 'question -> answer'\n")


def test_a_module_that_leaves_a_field_out_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Empty(dspy.Module):
        def __init__(self, signature: Any, state: Any) -> None:
            super().__init__()

        def forward(self, **inputs: Any) -> dspy.Prediction:
            return dspy.Prediction()

    monkeypatch.setattr(modules, "Empty", Empty, raising=False)
    add_module(monkeypatch, "empty", "cuecard.programs.modules:Empty")
    with pytest.raises(RunError, match="the module of node 'main' gave no 'answer'"):
        build(spec_of("module: empty\nsignature: 'question -> answer'\n"))(question="x")


def test_no_node_hides_an_attribute_of_the_graph() -> None:
    public = [
        name for name in dir(build(spec_of("signature: 'a -> b'"))) if not name.startswith("_") and name != "main"
    ]
    for name in public:
        with pytest.raises(InputError, match="is an attribute of every program"):
            spec_of(f"inputs: {{a: str}}\nnodes: {{{name}: {{signature: 'a -> b'}}}}\n")


class Program(dspy.Module):
    """A program written in Python."""

    def __init__(self) -> None:
        super().__init__()
        self.draft = dspy.Predict("topic -> draft")
        self.steps = [dspy.ChainOfThought("draft -> score: int")]


def test_a_python_program_keeps_what_it_learned() -> None:
    compiled = adopt(Program())
    compiled.draft.state = learned(demos=({"topic": "a", "draft": "b"},))
    text = dump_yaml(python_spec("essay", compiled, COMPILED).to_data())
    spec = spec_of(text)
    loaded = apply_spec(spec, Program())
    assert [name for name, _ in loaded.named_predictors()] == ["draft", "steps[0].predict"]
    assert {n: p.state for n, p in loaded.named_predictors()} == {n: p.state for n, p in compiled.named_predictors()}
    assert spec.compiled == COMPILED
    with pytest.raises(InputError, match="this is a compiled Python program"):
        build(spec)


def test_a_python_program_that_changed_is_refused() -> None:
    spec = spec_of(dump_yaml(python_spec("essay", Program()).to_data()))
    other = Program()
    other.draft = dspy.Predict("topic -> draft: int")
    with pytest.raises(InputError) as raised:
        apply_spec(spec, other)
    assert str(raised.value) == (
        "triage.yaml:4: the signature of predictor 'draft' is no longer the one it was compiled with\n"
        "  Compile the program again."
    )
    del other.draft
    with pytest.raises(InputError, match="the program has no predictor 'draft', which the compiled file has"):
        apply_spec(spec, other)


def test_the_file_decides_between_nodes_that_are_ready() -> None:
    assert running_order({"c": ["a"], "b": [], "a": []}) == (["b", "a", "c"], [])
    assert running_order({"x": ["z"], "y": ["x"], "z": ["y"], "free": [], "after": ["x"]}) == (
        ["free"],
        [["x", "z", "y", "x"]],
    )


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from("abcdef"), st.lists(st.sampled_from("abcdef"), max_size=3)))
def test_a_running_order_keeps_every_need(needs: dict[str, list[str]]) -> None:
    order, circles = running_order(needs)
    for place, name in enumerate(order):
        assert {need for need in needs[name] if need in needs} <= set(order[:place])
    assert (len(order) == len(needs)) == (not circles)
    for circle in circles:
        assert circle[0] == circle[-1] and not set(circle) & set(order)
        assert all(after in needs[before] for before, after in itertools.pairwise(circle))
