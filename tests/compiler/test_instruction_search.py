"""Which instructions a compile tries: the user's own wordings, the catalogue's, and what a model proposes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeEngine, WordLearner, compile_tickets, fake_target, spec_folder

import cuecard
from cuecard.compiler import from_spec
from cuecard.compiler.from_spec import compile_spec
from cuecard.errors import InputError
from cuecard.programs.spec import load_spec

PROPOSALS = (
    "Pick the queue whose words stand in the ticket.",
    "Read the ticket to its end and name the team that can help.",
    "",
)


class Proposer:
    """A model that only writes instructions, another one each time."""

    def __init__(self) -> None:
        self.asked = 0

    def answer(self, prompt: str, decoding: Any, sample: int) -> str:
        assert "write the instruction" in prompt
        self.asked += 1
        return PROPOSALS[(self.asked - 1) % len(PROPOSALS)]

    def engine(self) -> FakeEngine:
        return FakeEngine(self.answer, identity="proposer")


class Both(WordLearner):
    """A target that is asked for instructions as well."""

    def answer(self, prompt: str, decoding: Any, sample: int) -> str:
        if "write the instruction" in prompt:
            return "Sort the ticket by what it asks for."
        return super().answer(prompt, decoding, sample)


def searched(compiled: cuecard.Compiled) -> set[str]:
    lines = compiled.compilation.folder.trials.read_text().splitlines()
    return {json.loads(line)["states"]["route"]["instructions"] for line in lines[1:]}


def told(compiled: cuecard.Compiled) -> dict[str, Any]:
    return json.loads(compiled.compilation.folder.run.read_text())["search"]  # type: ignore[no-any-return]


def search(**instructions: Any) -> dict[str, Any]:
    return {"demos": 0, "formats": ["completion"], "readouts": ["choice"], "instructions": instructions}


def test_own_texts_and_chosen_principles_are_what_is_tried(tmp_path: Path) -> None:
    given = search(most=3, texts=["Route this."], principles=["role"])
    found = searched(compile_tickets(tmp_path, search=given))
    assert len(found) == 3 and "Route this." in found
    assert any(text.startswith("You are an expert") for text in found)


def test_own_texts_are_never_cut(tmp_path: Path) -> None:
    found = searched(compile_tickets(tmp_path, search=search(most=1, texts=["Route this.", "Say where it goes."])))
    assert {"Route this.", "Say where it goes."} < found and len(found) == 3


def test_the_target_is_asked_where_no_proposer_is_named(tmp_path: Path) -> None:
    compiled = compile_tickets(tmp_path, Both().engine(), search=search(most=8, principles=[], proposals=2))
    assert "Sort the ticket by what it asks for." in searched(compiled)
    assert told(compiled)["proposals"] == {"dropped": {"a copy": 1}}


def test_nobody_is_asked_unless_told(tmp_path: Path) -> None:
    engine = Both().engine()
    assert "proposals" not in told(compile_tickets(tmp_path, engine))
    assert not any("write the instruction" in prompt for prompt in engine.prompts())


SPEC = """\
description: Sends tickets to teams.
signature: "ticket -> queue: Literal['billing', 'technical', 'account']"
data: {train: train.jsonl, dev: dev.jsonl}
metric: exact_match
optimize:
  budget: {metric_calls: 120}
  search:
    demos: 0
    formats: [completion]
    readouts: [choice]
    instructions: {most: 8, principles: [], proposals: 3, proposer: models/strong}
"""


def compile_with(proposer: FakeEngine, folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Any:
    spec = spec_folder(folder, SPEC)
    monkeypatch.setattr(from_spec, "open_target", lambda name, **_: fake_target(proposer))
    return compile_spec(spec, target=fake_target(WordLearner().engine()), runs=folder / "runs", **options)


def test_a_proposer_named_in_the_spec_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proposer = Proposer().engine()
    compiled = compile_with(proposer, tmp_path, monkeypatch)
    lines = compiled.compilation.folder.trials.read_text().splitlines()
    found = {json.loads(line)["states"]["main"]["instructions"] for line in lines[1:]}
    assert set(PROPOSALS[:2]) < found
    assert told(compiled)["proposals"]["dropped"] == {"empty": 1}
    assert told(compiled)["proposals"]["ledger"]["calls"] == 3
    assert all("Sends tickets to teams." in prompt for prompt in proposer.prompts())
    kept = load_spec(tmp_path / "two_steps.compiled.yaml").optimize.search.instructions
    assert kept.proposer is not None and kept.proposer.id == "models/strong"


def test_a_resumed_run_asks_the_proposer_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = compile_with(Proposer().engine(), tmp_path / "whole", monkeypatch)

    class Stopped(Exception):
        pass

    def stop(batch: Any) -> None:
        if learner.batches and len(learner.batches) > 3:
            raise Stopped

    learner = WordLearner().engine(before=stop)
    spec = spec_folder(tmp_path / "cut", SPEC)
    first, second = Proposer().engine(), Proposer().engine()
    monkeypatch.setattr(from_spec, "open_target", lambda name, **_: fake_target(first))
    with pytest.raises(cuecard.CuecardError):
        compile_spec(spec, target=fake_target(learner), runs=tmp_path / "cut" / "runs")
    assert len(first.prompts()) == 3
    resumed = compile_with(second, tmp_path / "cut", monkeypatch)
    assert second.prompts() == []
    assert resumed.compilation.candidate == whole.compilation.candidate


@pytest.mark.parametrize(
    ("instructions", "message"),
    [
        ({"principles": ["rolle"]}, "unknown principle 'rolle'.*role"),
        ({"texts": {"rout": ["Route it."]}}, "no predictor 'rout'.*route"),
        ({"proposals": -1}, "proposals"),
        ({"most": "many"}, "most"),
        ({"propose": 3}, "propose.*proposer"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(instructions: Any, message: str, tmp_path: Path) -> None:
    engine = WordLearner().engine()
    with pytest.raises(InputError) as raised:
        compile_tickets(tmp_path, engine, search=search(**instructions))
    assert re.search(message, " ".join(str(raised.value).split())) and not engine.batches


def test_a_list_of_texts_belongs_to_one_predictor(tmp_path: Path) -> None:
    spec = spec_folder(tmp_path)
    text = spec.read_text(encoding="utf-8").replace("instructions: 1", "instructions: {texts: [Route it.]}")
    spec.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="found a list for a program with the predictors summary, route"):
        compile_spec(spec, target=fake_target(WordLearner().engine()), runs=tmp_path / "runs")


def test_nobody_is_asked_for_what_there_is_no_room_for(tmp_path: Path) -> None:
    engine = Both().engine()
    compile_tickets(tmp_path, engine, search=search(most=2, texts=["Route this."], proposals=3))
    assert not any("write the instruction" in prompt for prompt in engine.prompts())
