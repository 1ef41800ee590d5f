"""Votes from the spec's search to the compiled program."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from fakes import LABELS, FakeEngine, WordLearner, compile_tickets, fake_target, tickets

import cuecard
from cuecard.compiler.cli.summary import summary
from cuecard.models.engine import Decoding

from .cli_cases import cuecard as run_cli


class Unsure(WordLearner):
    """Knows the right label, and says another one in two of five draws, also in the likeliest."""

    def answer(self, prompt: str, decoding: Decoding, sample: int) -> str:
        right = max(self.labels, key=lambda label: self.likelihood(prompt, label))
        drawn = random.Random(f"{prompt} {decoding.seed if decoding.temperature else 0}")
        wrong = [label for label in self.labels if label != right]
        return f" {right if drawn.random() < 0.6 else drawn.choice(wrong)}\n\nTicket:"


def compiled(runs: Path, **changes: Any) -> cuecard.Compiled:
    search = {"demos": 4, "instructions": 1, "formats": ["completion"], "readouts": ["text"], "nearest": 0, "votes": 9}
    options = {"trainset": tickets(24, 1), "devset": tickets(48, 2), "budget": {"metric_calls": 250}}
    return compile_tickets(runs, Unsure().engine(), **{**options, "search": search, **changes})


def test_votes_are_tried_and_kept_where_they_are_better(tmp_path: Path) -> None:
    found = compiled(tmp_path)
    compilation = found.compilation
    assert compilation.candidate.states["route"].readout.votes == 9
    assert compilation.result.prompt_only is None, "they are prompts as well"
    lines = [json.loads(line) for line in compilation.folder.trials.read_text().splitlines()]
    assert lines[-1]["params"] == {"votes": 9} and lines[-1]["best"]
    assert lines[-1]["score"] > max(line["score"] for line in lines[:-1])
    assert any("the one of 9 that most agree with" in line for line in summary(compilation))
    told = json.loads(compilation.folder.run.read_text())
    assert told["search"]["votes"] is True and "left_out" not in told
    assert told["spent"]["metric_calls"] <= 250


def test_the_compiled_program_votes(tmp_path: Path) -> None:
    from fakes import Triage

    path = compiled(tmp_path / "runs").write(tmp_path / "x.compiled.yaml")
    loaded = cuecard.load(path, program=Triage(), target=fake_target(Unsure().engine()))
    rows = tickets(30, 7)
    right = sum(loaded(ticket=row.ticket).queue == row.queue for row in rows)
    assert right > 20 and set(LABELS) >= {loaded(ticket=row.ticket).queue for row in rows[:5]}


def test_they_are_not_tried_where_the_budget_has_no_room(tmp_path: Path) -> None:
    for place, budget in enumerate(({"metric_calls": 250, "model_calls": 300}, {"metric_calls": 100})):
        found = compiled(tmp_path / str(place), budget=budget)
        told = json.loads(found.compilation.folder.run.read_text())
        assert told["search"]["votes"] is False and told["left_out"] == ["votes"]
        assert found.compilation.candidate.states["route"].readout.votes is None


def test_a_program_that_chooses_has_nothing_to_vote_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = "signature: \"ticket -> queue: Literal['a', 'b']\"\nreadout: {kind: choice, votes: 3}\n"
    (tmp_path / "q.yaml").write_text(spec)
    said = run_cli(capsys, "check", tmp_path / "q.yaml")
    assert said.code == 2 and "readout.votes" in said.err and "nothing to vote on" in said.err
    engine = FakeEngine()
    search = {"demos": 0, "instructions": 1, "readouts": ["choice"], "votes": 3}
    found = compile_tickets(tmp_path / "runs", engine, search=search)
    assert found.compilation.candidate.states["route"].readout.votes is None
