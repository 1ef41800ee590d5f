"""`cuecard export`: a program's prompts as data, what is refused, and what is told to be left behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dspy
import pytest
import yaml

import cuecard as package
from cuecard import InputError
from cuecard.compiler.export import exported
from cuecard.programs.learned import python_spec
from cuecard.programs.predictor import Predictor
from cuecard.programs.spec import load_spec
from cuecard.programs.state import PredictorState

from .cli_cases import Said, cuecard

TWO = """\
name: desk
inputs: {ticket: str}
nodes:
  summary:
    signature: "ticket -> summary: str"
    instructions: Say what is wanted.
    format: completion
    demos: [{ticket: I paid twice, summary: A refund.}]
  route:
    signature: "ticket, summary -> queue: Literal['billing', 'technical']"
    inputs: {ticket: "${inputs.ticket}", summary: "${summary.summary}"}
    format: turns
    readout: READOUT
    decoding: {temperature: 0.3, stop: ["##"]}
outputs: {queue: "${route.queue}"}
"""
HEAD = {
    "weights": "w.safetensors",
    "sha256": "0" * 64,
    "labels": ["billing", "technical"],
    "layer": 2,
    "pooling": "last",
}


def write(folder: Path, readout: str = "constrained", **changes: Any) -> Path:
    """The two-step spec in `folder`; `changes` go to its second node."""
    spec = yaml.safe_load(TWO.replace("READOUT", readout))
    spec["nodes"]["route"] |= changes
    path = folder / "desk.yaml"
    path.write_text(yaml.safe_dump(spec, sort_keys=False), encoding="utf-8")
    return path


def found(path: Path) -> Any:
    return exported(load_spec(path))["predictors"]


def test_a_running_text_has_holes_for_its_inputs_and_ends_where_the_answer_begins(tmp_path: Path) -> None:
    summary = found(write(tmp_path))["summary"]
    assert summary["prompt"] == (
        "Say what is wanted.\n\nTicket: I paid twice\nSummary: A refund.\n\nTicket: {{ticket}}\nSummary:"
    )
    assert "messages" not in summary
    assert summary["settings"] == {"max_tokens": 64, "temperature": 0.0, "stop": ["\n\n", "\nTicket:", "\nSummary:"]}
    assert summary["inputs"] == {"ticket": "str"}
    assert summary["outputs"]["summary"]["after"] == "Summary:"


def test_a_chat_is_what_any_other_model_of_dspy_is_sent(tmp_path: Path) -> None:
    path = write(tmp_path, "text")
    route = found(path)["route"]
    predictor = dict(package.load(path).named_predictors())["route"]  # type: ignore[attr-defined]
    sent = predictor.format.format(predictor.signature, predictor.demos, {"ticket": "A", "summary": "B"})
    filled = json.dumps(route["messages"]).replace("{{ticket}}", "A").replace("{{summary}}", "B")
    assert json.loads(filled) == sent
    assert route["settings"]["temperature"] == 0.3 and route["settings"]["stop"][0] == "##"
    assert "grammar" not in route and "differs" not in route


def test_a_constrained_answer_has_its_grammar_and_the_schema_of_each_output(tmp_path: Path) -> None:
    route = found(write(tmp_path))["route"]
    assert '"billing" | "technical"' in route["grammar"]
    assert route["outputs"]["queue"]["schema"] == {"enum": ["billing", "technical"], "type": "string"}
    assert "differs" not in route


@pytest.mark.parametrize(
    ("readout", "said"),
    [
        ("choice", "chosen by its likelihood;"),
        ("{kind: choice, calibration: {method: bias, offsets: {queue: {billing: 1.0}}}}", "after bias calibration"),
        ("{kind: constrained, votes: 3}", "one of 3 answers"),
    ],
)
def test_what_does_not_go_along_is_told(tmp_path: Path, readout: str, said: str) -> None:
    (told,) = found(write(tmp_path, readout))["route"]["differs"]
    assert said in told


def test_the_nodes_are_told_with_where_their_inputs_come_from(tmp_path: Path) -> None:
    told = exported(load_spec(write(tmp_path)))
    assert told["nodes"]["summary"]["inputs"] == {"ticket": "${inputs.ticket}"}
    assert told["nodes"]["route"]["inputs"]["summary"] == "${summary.summary}"
    assert told["outputs"] == {"queue": "${route.queue}"}


def test_a_json_answer_is_not_cut_off_before_its_brace(tmp_path: Path) -> None:
    route = found(write(tmp_path, format="json"))["route"]
    assert route["settings"]["stop"] == ["##"]
    assert route["outputs"]["queue"]["until"] == ["}"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"nearest": {"count": 1, "pool": [{"ticket": "a", "summary": "b", "queue": "billing"}]}}, "for each input"),
        ({"readout": "channel"}, "a prompt for each label"),
    ],
)
def test_a_prompt_that_is_not_one_text_is_refused_with_how_to_get_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], said: str
) -> None:
    path = write(tmp_path, **changes)
    told = cuecard(capsys, "export", path)
    assert told.code == 2 and told.out == ""
    assert said in told.err and "nearest: 0" in told.err and "'route'" in told.err
    assert cuecard(capsys, "export", path, "--predictor", "summary").code == 0


def test_the_search_that_is_named_in_the_error_can_be_written_in_a_spec(tmp_path: Path) -> None:
    from cuecard.compiler.export import FIXED

    path = tmp_path / "spec.yaml"
    path.write_text(f"signature: \"a -> b: Literal['x', 'y']\"\noptimize:\n  {FIXED}\n", encoding="utf-8")
    search = load_spec(path).optimize.search
    assert search.nearest == (0, 0) and search.readouts == ("text", "constrained", "choice")


def compiled(folder: Path, *, kept: bool) -> Path:
    """A compiled Python program that reads a head; with the best candidate of prompts alone, or without."""
    typed = package.signature("ticket -> queue: Literal['billing', 'technical']", "Route it.")
    state = PredictorState.model_validate({"readout": {"kind": "head", "heads": {"queue": HEAD}}})
    made = python_spec("headed", Predictor(typed, state)).to_data()
    alone = {"instructions": "Route the ticket.", "format": "completion", "readout": "text"}
    only = {"predictors": {"self": alone}, "scores": {"dev": {"value": 0.5, "n": 4}}}
    made["compiled"] = {
        "target": {"identity": "tiny", "name": "tiny"},
        "scores": {"dev": {"value": 0.9, "n": 4}},
        **({"prompt_only": only} if kept else {}),
    }
    path = folder / "headed.compiled.yaml"
    path.write_text(yaml.safe_dump(made), encoding="utf-8")
    return path


def test_a_program_with_a_head_gives_its_best_prompts_without(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = cuecard(capsys, "export", compiled(tmp_path, kept=True))
    found = json.loads(told.out)
    assert told.code == 0 and "without heads" in told.err
    assert found["prompt_only"] is True and found["scores"]["dev"]["value"] == 0.5
    assert found["predictors"]["self"]["prompt"] == "Route the ticket.\n\nTicket: {{ticket}}\nQueue:"
    assert found["compiled_for"] == {"name": "tiny"}


def test_a_program_with_a_head_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no candidate of prompts alone"):
        exported(load_spec(compiled(tmp_path, kept=False)))


def test_prompts_alone_of_another_program_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = compiled(tmp_path, kept=True)
    made = yaml.safe_load(path.read_text(encoding="utf-8"))
    made["compiled"]["prompt_only"]["predictors"] = {"other": {"format": "completion"}}
    path.write_text(yaml.safe_dump(made), encoding="utf-8")
    told = cuecard(capsys, "export", path)
    assert told.code == 2 and "no predictor 'self'" in told.err and str(path) in told.err


def test_a_conversation_is_refused() -> None:
    class Chat(dspy.Signature):  # type: ignore[misc]
        """Answer."""

        history: dspy.History = dspy.InputField()
        question: str = dspy.InputField()
        answer: str = dspy.OutputField()

    with pytest.raises(InputError, match="'history' is a conversation"):
        exported(python_spec("chat", dspy.Predict(Chat)))


def test_a_hole_that_stands_in_the_prompt_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, instructions="Fill in {{ticket}}.")
    told = cuecard(capsys, "export", path)
    assert told.code == 2 and "'{{ticket}}' in itself" in told.err and "--hole" in told.err
    found = json.loads(cuecard(capsys, "export", path, "--hole", "<<NAME>>").out)
    assert "Ticket: <<ticket>>" in found["predictors"]["route"]["messages"][-1]["content"]


def test_a_hole_without_a_name_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = cuecard(capsys, "export", write(tmp_path), "--hole", "HERE")
    assert told.code == 2 and "with NAME in it" in told.err


def test_a_file_holds_what_is_printed_and_the_unknown_predictor_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, place = write(tmp_path), tmp_path / "prompts.json"
    printed: Said = cuecard(capsys, "export", path)
    written = cuecard(capsys, "export", path, "--output", place)
    assert written.code == 0 and str(place) in written.out
    assert json.loads(place.read_text(encoding="utf-8")) == json.loads(printed.out)
    told = cuecard(capsys, "export", path, "--predictor", "rote")
    assert told.code == 2 and "did you mean 'route'" in told.err
