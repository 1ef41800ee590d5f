"""Compiles that choose labels by the channel: found, calibrated, written, loaded, resumed and explained."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import dspy
import pytest
from fakes import KEYWORDS, FakeEngine, compile_tickets, fake_target, says, tickets

import cuecard
from cuecard.programs.spec import load_spec

ROUTE = "ticket -> queue: Literal['billing', 'technical', 'account']"
KNOWN = {word for words in KEYWORDS.values() for word in words}
HEAD = f"""\
name: triage
signature: "{ROUTE}"
data: {{train: train.jsonl, dev: dev.jsonl}}
metric: exact_match
optimize: {{budget: {{metric_calls: 60}}, search: {{readouts: [channel], instructions: 1}}}}
"""


def engine(favour: float = 0.0, **options: Any) -> FakeEngine:
    """A nat for each known word of a continuation that the prompt has too; accounts' examples have `favour` more."""

    def alike(prompt: str, continuation: str) -> float:
        words, seen = set(re.findall(r"\w+", continuation)), set(re.findall(r"\w+", prompt))
        return -9.0 + len(words & seen & KNOWN) + (favour if "password" in seen else 0.0)

    return FakeEngine(says("no label"), alike, **options)


def compiled(folder: Path, made: FakeEngine | None = None, **changes: Any) -> cuecard.Compiled:
    given: dict[str, Any] = {
        "program": dspy.Predict(cuecard.signature(ROUTE)),
        "trainset": tickets(24, 1),
        "devset": tickets(24, 2),
        "testset": tickets(12, 3),
        "target": fake_target(made or engine()),
        "search": {"instructions": 1, "readouts": ["text", "choice", "channel"]},
    }
    return compile_tickets(folder / "runs", **{**given, **changes})


def test_it_wins_where_only_the_inputs_tell(tmp_path: Path) -> None:
    found = compiled(tmp_path)
    (state,) = found.compilation.candidate.states.values()
    assert state.readout.kind == "channel"
    assert {demo["queue"] for demo in state.demos} == set(KEYWORDS) and state.nearest is None
    assert found.compilation.baseline["dev"].value == 0.0 < 0.8 < found.compilation.compiled["dev"].value
    path = found.write(tmp_path / "triage.compiled.yaml")
    assert load_spec(path).predictors is not None
    again = cuecard.load(path, program=dspy.Predict(cuecard.signature(ROUTE)), target=fake_target(engine()))
    rows = tickets(12, 9)
    assert [again(ticket=row.ticket).queue for row in rows] == [found(ticket=row.ticket).queue for row in rows]


def test_dev_rows_join_the_demos_of_each_label_in_the_end(tmp_path: Path) -> None:
    """Train has two words of each queue, dev two more, twice each: no row of it is known by itself alone."""

    def about(split: str, *words: int) -> list[Any]:
        pairs = [(KEYWORDS[queue][word], queue) for word in words for queue in KEYWORDS]
        rows = [dspy.Example(ticket=f"{word} {split}{place}", queue=queue) for place, (word, queue) in enumerate(pairs)]
        return [row.with_inputs("ticket") for row in rows]

    whole: dict[str, Any] = {
        "trainset": about("train", 0, 1),
        "devset": about("dev", 0, 1, 2, 2, 3, 3),
        "testset": about("test", 1, 2, 3),
        "budget": {"metric_calls": 200},
        "search": {"instructions": 1, "readouts": ["channel"], "recalibrate": False},
    }
    with_, without = (
        compiled(tmp_path / str(refit), **{**whole, "search": {**whole["search"], "refit": refit}})
        for refit in (True, False)
    )
    (state,), (before,) = (each.compilation.candidate.states.values() for each in (with_, without))
    assert {demo["ticket"] for demo in state.demos} > {demo["ticket"] for demo in before.demos}
    for split in ("dev", "test"):
        assert with_.compilation.compiled[split].value == 1.0 > 0.8 > without.compilation.compiled[split].value
    assert with_.compilation.result.best.params == {"refit": True}


def test_offsets_are_fitted_in_the_end(tmp_path: Path) -> None:
    whole = {"search": {"instructions": 1, "readouts": ["channel"]}, "budget": {"metric_calls": 200}}
    with_, without = (
        compiled(tmp_path / str(fit), engine(2.5), **{**whole, "search": {**whole["search"], "recalibrate": fit}})
        for fit in (True, False)
    )
    before, after = (each.compilation.compiled["dev"].value for each in (without, with_))
    (state,) = with_.compilation.candidate.states.values()
    assert state.readout.calibration is not None
    offsets = state.readout.calibration.offsets["queue"]
    favoured = {demo["queue"] for demo in state.demos if "password" in demo["ticket"]}
    others = [offset for label, offset in offsets.items() if label not in favoured]
    assert "account" in favoured and min(offsets[label] for label in favoured) > max(others), "taken off"
    assert after > before


def test_the_same_compile_writes_the_same_bytes_after_a_break(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    calls = 0

    def breaks(batch: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise Stop

    first = compiled(tmp_path / "a").write(tmp_path / "a.yaml").read_bytes()
    with pytest.raises(Exception, match="broke") as caught:
        compiled(tmp_path / "b", engine(before=breaks))
    assert isinstance(caught.value.__cause__, Stop)
    assert compiled(tmp_path / "b").write(tmp_path / "b.yaml").read_bytes() == first


def test_a_dry_run_counts_every_labels_prompt(tmp_path: Path) -> None:
    from cuecard.compiler.dry_run import plan_compile
    from cuecard.compiler.from_spec import spec_task

    for seed, split in enumerate(("train", "dev"), start=1):
        rows = [f'{{"ticket": "{row.ticket}", "queue": "{row.queue}"}}\n' for row in tickets(24, seed)]
        (tmp_path / f"{split}.jsonl").write_text("".join(rows))
    (tmp_path / "triage.yaml").write_text(HEAD)
    _, task = spec_task(tmp_path / "triage.yaml", target=fake_target(engine()))
    plan = plan_compile(task)
    assert {dimension.name: dimension.values for dimension in plan.predictors[0].dimensions}["per_label"] == (4, 8)
    first = plan.first[0]
    assert first.params["main.readout"] == "channel" and first.params["main.per_label"] == 8
    assert first.own_tokens is not None and first.prompt_tokens is not None
    assert 3 * 7 <= first.own_tokens < 3 * 15, "a ticket has some eight words, once for each label"
    assert first.prompt_tokens > 3 * 8 * 7 + first.own_tokens, "the demos of each label stand in its own prompt"
