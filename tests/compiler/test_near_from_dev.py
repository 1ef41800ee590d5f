"""Near demos that are chosen from dev's rows as well: each row's own call does without it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dspy
from fakes import FakeEngine, WordLearner, compile_tickets, fake_target, tickets

import cuecard

ROUTE = "ticket -> queue: Literal['billing', 'technical', 'account']"
TRAIN, DEV = tickets(24, 1), tickets(12, 2)


class Route(dspy.Module):
    """One predictor, which is given the ticket, or what `change` makes of it."""

    def __init__(self, change: Any = None) -> None:
        super().__init__()
        self.route = dspy.Predict(cuecard.signature(ROUTE))
        self.change = change

    def forward(self, ticket: str) -> Any:
        return self.route(ticket=self.change(ticket, self.route) if self.change else ticket)


def compiled(runs: Path, program: Any = None, **changes: Any) -> tuple[cuecard.Compiled, list[str]]:
    """What a compile finds, every candidate of which has four near demos, and all prompts that the model was given."""
    prompts: list[str] = []

    def before(batch: Sequence[Any]) -> None:
        prompts.extend(engine.tokenizer.decode(request.prompt) for request in batch)

    engine: FakeEngine = WordLearner(bias={"billing": 2.0}).engine(before=before)
    search = {
        "instructions": 1,
        "demos": [0, 1],
        "nearest": [4, 4],
        "readouts": ["choice"],
        **changes.pop("search", {}),
    }
    given = {"trainset": TRAIN, "devset": DEV, "target": fake_target(engine), "search": search, **changes}
    return compile_tickets(runs, program=program or Route(), **given), prompts


def pools(found: cuecard.Compiled) -> set[int]:
    """How many rows the near demos of each candidate that ran on all of dev were chosen from."""
    states = [trial.candidate.states["route"] for trial in found.compilation.result.complete]
    return {len(state.nearest.pool) for state in states if state.nearest is not None}


def test_near_demos_come_from_dev_too_but_never_from_the_row_itself(tmp_path: Path) -> None:
    found, prompts = compiled(tmp_path)
    assert pools(found) == {len(TRAIN) + len(DEV)}
    assert found.compilation.result.accepted
    assert json.loads(found.compilation.folder.run.read_text())["search"].get("refit") is not True
    holding = {row.ticket: [prompt for prompt in prompts if row.ticket in prompt] for row in DEV}
    assert all(prompt.count(ticket) == 1 for ticket, held in holding.items() for prompt in held)
    assert any(sum(row.ticket in prompt for row in DEV) > 1 for prompt in prompts), "other dev rows are demos"


def test_dev_can_be_kept_out(tmp_path: Path) -> None:
    found, _ = compiled(tmp_path, search={"refit": False})
    assert pools(found) == {len(TRAIN)}


def test_a_program_that_changes_its_inputs_chooses_from_train_alone(tmp_path: Path) -> None:
    found, _ = compiled(tmp_path, Route(lambda ticket, route: f"{ticket} please"))
    assert pools(found) == {len(TRAIN)}


def test_a_candidate_whose_inputs_are_changed_late_is_run_again_without_dev(tmp_path: Path) -> None:
    """Only one row's input is changed, so that no first block needs to tell."""
    found, prompts = compiled(tmp_path, Route(lambda ticket, route: ticket + " please" * (ticket == DEV[7].ticket)))
    best = found.compilation.result.chosen
    assert len(best.candidate.states["route"].nearest.pool) == len(TRAIN)
    assert best.score == found.compilation.result.best.score > 0.5
    after = [prompt for prompt in prompts if f"{DEV[7].ticket} please" in prompt]
    assert after and after[-1].count(DEV[7].ticket) == 1
