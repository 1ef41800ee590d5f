"""Replay: recorded calls give the same bytes without a model, and what was not recorded is an error that says where."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import dspy
import pytest
from fakes import FakeEngine, WordLearner, compile_tickets, fake_target, spec_folder, tickets
from hypothesis import given
from hypothesis import strategies as st

import cuecard
from cuecard.compiler.memory_tokenizer import Asked, read_asked, write_asked
from cuecard.compiler.replay import recorded, replay_target
from cuecard.errors import InputError
from cuecard.models.target import Target

LABELS = "Literal['billing', 'technical', 'account']"


class Route(dspy.Module):
    """One predictor, `route`, with a changeable instruction."""

    def __init__(self, instructions: str = "Route the ticket.\nBe quick.") -> None:
        super().__init__()
        self.route = dspy.Predict(cuecard.signature(f"ticket -> queue: {LABELS}", instructions))

    def forward(self, ticket: str) -> dspy.Prediction:
        return self.route(ticket=ticket)


def evaluated(target: Target, program: dspy.Module, count: int = 6) -> list[Any]:
    evaluation = cuecard.evaluate(program, tickets(count, 1), "exact_match", target=target)
    return [(outcome.prediction, outcome.measurement, outcome.unread) for outcome in evaluation.outcomes]


def record(folder: Path, program: dspy.Module | None = None, engine: FakeEngine | None = None) -> list[Any]:
    with recorded(fake_target(engine or WordLearner().engine()), folder) as target:
        return evaluated(target, program or Route())


def test_a_replay_answers_the_same_without_the_model(tmp_path: Path) -> None:
    found = record(tmp_path / "calls")
    before = {path.name: path.read_bytes() for path in (tmp_path / "calls").iterdir()}
    target = replay_target(tmp_path / "calls")
    assert evaluated(target, Route()) == found
    assert target.description == fake_target(FakeEngine()).description
    assert {path.name: path.read_bytes() for path in (tmp_path / "calls").iterdir()} == before
    assert sorted(before) == ["calls.jsonl", "record.json", "tokenizer.jsonl"]


def test_two_nodes_are_replayed(tmp_path: Path) -> None:
    program = cuecard.load(spec_folder(tmp_path / "spec"))
    assert evaluated_graph(record_graph(tmp_path, program), program) == evaluated_graph(
        replay_target(tmp_path / "calls"), program
    )


def record_graph(folder: Path, program: dspy.Module) -> Target:
    inner = fake_target(WordLearner().engine())
    with recorded(inner, folder / "calls") as target:
        evaluated_graph(target, program)
    return inner


def evaluated_graph(target: Target, program: dspy.Module) -> list[Any]:
    rows = [dspy.Example(ticket=f"refund {n}", queue="billing").with_inputs("ticket") for n in range(4)]
    return [outcome.prediction for outcome in cuecard.evaluate(program, rows, "exact_match", target=target).outcomes]


def test_a_changed_instruction_is_told_with_predictor_and_place(tmp_path: Path) -> None:
    record(tmp_path / "calls")
    with pytest.raises(InputError) as caught:
        evaluated(replay_target(tmp_path / "calls"), Route("Route the ticket.\nBe slow."))
    text = str(caught.value)
    assert "the prompt of the predictor 'route' has changed since its calls were recorded" in text
    assert '"Be quick."' in text and '"Be slow."' in text
    assert "--record" in text


def test_a_new_row_is_told(tmp_path: Path) -> None:
    record(tmp_path / "calls")
    with pytest.raises(InputError, match="has changed since its calls were recorded"):
        evaluated(replay_target(tmp_path / "calls"), Route(), count=7)


def test_changed_settings_are_told(tmp_path: Path) -> None:
    spec = 'signature: "ticket -> note: str"\nformat: completion\nmodel: {id: x, options: {max_tokens: 9}}\n'
    path = tmp_path / "note.yaml"
    path.write_text(spec)
    row = [dspy.Example(ticket="a", note="b").with_inputs("ticket")]
    with recorded(fake_target(FakeEngine()), tmp_path / "calls") as target:
        cuecard.evaluate(cuecard.load(path), row, "exact_match", target=target)
    path.write_text(spec.replace("9", "12"))
    with pytest.raises(InputError) as caught:
        cuecard.evaluate(cuecard.load(path), row, "exact_match", target=replay_target(tmp_path / "calls"))
    assert "the settings of the predictor" in str(caught.value)
    assert "max_tokens was 9 and is 12" in str(caught.value)


def test_a_compile_run_is_replayed_with_the_tokenizer_of_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = WordLearner(bias={"billing": 2.0}).engine()
    compiled = compile_tickets(tmp_path / "runs", engine)
    rows = tickets(12, 3)
    there = cuecard.evaluate(compiled, rows, "exact_match", target=fake_target(engine))
    monkeypatch.setattr("cuecard.compiler.replay._opened", lambda model: engine.tokenizer)
    target = replay_target(next((tmp_path / "runs").iterdir()))
    assert cuecard.evaluate(compiled, rows, "exact_match", target=target).score == there.score
    changed = [dspy.Example(ticket="another", queue="billing").with_inputs("ticket")]
    with pytest.raises(InputError, match="the prompt of the predictor 'route' has changed"):
        cuecard.evaluate(compiled, changed, "exact_match", target=target)


def test_a_run_that_has_not_ended_is_refused_and_left_alone(tmp_path: Path) -> None:
    compile_tickets(tmp_path / "runs")
    run = next((tmp_path / "runs").iterdir())
    state = (run / "run.json").read_text()
    (run / "run.json").write_text(state.replace('"status": "finished"', '"status": "running"'))
    calls = (run / "calls.jsonl").read_bytes()[:-1]
    (run / "calls.jsonl").write_bytes(calls)
    with pytest.raises(InputError, match="the run is running; expected a finished run"):
        replay_target(run)
    assert (run / "calls.jsonl").read_bytes() == calls


def test_a_recording_is_replaced_but_nothing_else_is(tmp_path: Path) -> None:
    record(tmp_path / "calls", Route("One."))
    found = record(tmp_path / "calls", Route("Two."))
    assert evaluated(replay_target(tmp_path / "calls"), Route("Two.")) == found
    (tmp_path / "calls" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"the folder holds 'notes.txt'"):
        record(tmp_path / "calls")
    assert (tmp_path / "calls" / "record.json").exists()


def test_a_recording_that_did_not_end_is_refused(tmp_path: Path) -> None:
    def die(batch: Any) -> None:
        raise RuntimeError("gone")

    with pytest.raises(cuecard.RunError):
        record(tmp_path / "calls", engine=FakeEngine(before=die))
    with pytest.raises(InputError, match="not a recording"):
        replay_target(tmp_path / "calls")


@pytest.mark.parametrize(
    ("text", "message"),
    [("[]", "not a JSON object"), ("{", "not valid JSON"), ('{"format": "x"}', "found the format 'x'")],
)
def test_a_damaged_record_is_told(tmp_path: Path, text: str, message: str) -> None:
    record(tmp_path / "calls")
    (tmp_path / "calls" / "record.json").write_text(text)
    with pytest.raises(InputError, match=message):
        replay_target(tmp_path / "calls")


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        replay_target(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="not a recording"):
        replay_target(tmp_path / "empty")


texts = st.text(alphabet=st.characters(), max_size=12)
ids = st.lists(st.integers(0, 5), max_size=6).map(tuple)
chats = st.tuples(st.lists(st.tuples(st.sampled_from(["user", "system"]), texts), max_size=3).map(tuple), texts)


@given(
    st.builds(
        Asked,
        ids,
        st.dictionaries(texts, ids, max_size=5),
        st.dictionaries(ids, texts, max_size=5),
        st.dictionaries(chats, texts, max_size=5),
    )
)
def test_what_a_tokenizer_was_asked_survives_the_file(tmp_path_factory: pytest.TempPathFactory, asked: Asked) -> None:
    path = tmp_path_factory.getbasetemp() / "asked.jsonl"
    write_asked(path, asked)
    assert dataclasses.asdict(read_asked(path)) == dataclasses.asdict(asked)
