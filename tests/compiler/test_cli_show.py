"""What each predictor of a program is asked, without asking any."""

from __future__ import annotations

import json
from pathlib import Path

import dspy
import pytest

from cuecard.compiler.cli.filling import fill_graph, first_example
from cuecard.errors import InputError
from cuecard.programs.graph import Graph, build
from cuecard.programs.schema import Spec
from cuecard.programs.spec import load_spec

from .cli_cases import cuecard, write_rows

SPEC = """\
inputs: {ticket: str, level: int}
nodes:
  summary:
    signature: "ticket, level: int -> summary: str, words: int"
  route:
    module: chain_of_thought
    signature: "text, hint -> queue: Literal['billing', 'technical']"
    inputs: {text: "Level ${inputs.level}: ${summary.summary}", hint: be brief}
outputs: {queue: "${route.queue}"}
data: {train: train.jsonl, dev: dev.jsonl}
"""


@pytest.fixture
def program(tmp_path: Path) -> tuple[Spec, Graph]:
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC, encoding="utf-8")
    spec = load_spec(path)
    return spec, build(spec)


def test_what_another_node_writes_stands_as_its_name(program: tuple[Spec, Graph]) -> None:
    _, graph = program
    assert fill_graph(graph, {"ticket": "charged twice", "level": 2}) == {
        "summary": {"ticket": "charged twice", "level": 2},
        "route.predict": {"text": "Level 2: {summary}", "hint": "be brief"},
    }
    assert fill_graph(graph, {})["summary"] == {"ticket": "{ticket}", "level": "{level}"}


def test_what_another_node_writes_is_the_label_where_there_is_one(program: tuple[Spec, Graph]) -> None:
    _, graph = program
    values = {"ticket": "charged twice", "level": 2, "summary": "a charge", "queue": "billing"}
    assert fill_graph(graph, values)["route.predict"]["text"] == "Level 2: a charge"


def test_a_program_that_stumbles_over_a_name_still_shows_what_it_asked(program: tuple[Spec, Graph]) -> None:
    class Stumbling(dspy.Module):
        def forward(self, **inputs: str) -> dspy.Prediction:
            raise ValueError(inputs)

    _, graph = program
    setattr(graph, "route", Stumbling())  # noqa: B010 - the graph's nodes are attributes of their names
    assert fill_graph(graph, {"ticket": "x", "level": 1}) == {"summary": {"ticket": "x", "level": 1}}


def test_the_first_example_is_of_the_first_split_that_is_there(program: tuple[Spec, Graph]) -> None:
    spec, graph = program
    assert first_example(spec, graph) == ({}, "")
    row = {"ticket": "a", "level": 1, "queue": "billing"}
    write_rows(spec.folder / "train.jsonl", [{**row, "summary": "of train"}])
    assert first_example(spec, graph) == ({**row, "summary": "of train"}, "the first example of train.jsonl")
    write_rows(spec.folder / "dev.jsonl", [{**row, "ticket": "b"}])
    assert first_example(spec, graph) == ({**row, "ticket": "b"}, "the first example of dev.jsonl")
    write_rows(spec.folder / "dev.jsonl", [{**row, "level": "high"}])
    with pytest.raises(InputError, match="level: found 'high'"):
        first_example(spec, graph)


COMPILED = """\
name: mine
model: {model}
predictors:
  ask.predict:
    signature: "question -> answer: Literal['yes', 'no']"
    instructions: Answer.
    format: completion
    readout: {{kind: choice, calibration: {{method: bias, offsets: {{answer: {{"yes": 0.5, "no": -0.5}}}}}}}}
    decoding: {{temperature: 0.5}}
    demos: [{{question: "1 = 1?", answer: "yes"}}]
"""


CHANNEL = """\
name: mine
model: {model}
predictors:
  ask:
    signature: "question -> answer: Literal['yes', 'no']"
    instructions: Answer.
    format: completion
    readout: {{kind: channel}}
    demos: [{{question: "1 = 1?", answer: "no"}}, {{question: "2 = 2?", answer: "no"}}]
"""


def test_where_each_label_has_a_prompt_the_first_with_demos_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_model: Path
) -> None:
    path = tmp_path / "mine.compiled.yaml"
    path.write_text(CHANNEL.format(model=json.dumps(str(tiny_model))), encoding="utf-8")
    said = cuecard(capsys, "show", path, "--question", "1 = 2?")
    assert (said.code, said.err) == (0, "")
    lines = said.out.splitlines()
    assert lines[2].startswith("ask: ") and " demos " in lines[2]
    assert lines[3:7] == [
        "  format    completion",
        "  demos     2",
        "  read-out  choice by the likelihood of the inputs (channel)",
        "  prompts   one for each label, with its demos: yes (0), no (2); this is that of no",
    ]
    assert said.out.endswith("Question: 2 = 2?\nAnswer: no\n\nQuestion: 1 = 2?\n\n")


def test_a_compiled_python_program_shows_what_its_file_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_model: Path
) -> None:
    path = tmp_path / "mine.compiled.yaml"
    path.write_text(COMPILED.format(model=json.dumps(str(tiny_model))), encoding="utf-8")
    said = cuecard(capsys, "show", path, "--question", "1 = 2?")
    assert (said.code, said.err) == (0, "")
    lines = said.out.splitlines()
    assert lines[0] == "mine on tiny, inputs from the command line"
    assert lines[2].startswith("ask.predict: ")
    assert lines[3:9] == [
        "  format    completion",
        "  demos     1",
        "  read-out  choice by likelihood with bias calibration",
        "  answer    yes +0.50, no -0.50 nats",
        "  decoding  temperature 0.5",
        "---------- prompt ----------",
    ]
    assert "\n".join(lines[9:]) == "Answer.\n\nQuestion: 1 = 1?\nAnswer: yes\n\nQuestion: 1 = 2?\nAnswer:"


def test_demos_that_do_not_fit_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_model: Path
) -> None:
    path = tmp_path / "mine.compiled.yaml"
    text = COMPILED.format(model=json.dumps(str(tiny_model))).replace("1 = 1?", "long " * 2000)
    path.write_text(text, encoding="utf-8")
    said = cuecard(capsys, "show", path)
    assert said.code == 0
    assert "  demos     0, 1 more do not fit\n" in said.out
    assert "mine on tiny, inputs from nowhere, so they stand as {NAME}\n" in said.out
    assert "demos 0," in said.out.splitlines()[2]
