"""A run that is killed and started again ends in the same bytes as one that was left alone."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeEngine, WordLearner, compile_tickets, tickets

import cuecard
from cuecard.compiler import pipeline
from cuecard.compiler.journal import Clock
from cuecard.errors import InputError
from cuecard.optimizers.base import Budget

TESTS = Path(__file__).resolve().parents[1]


class Killed(BaseException):
    """Stands for a kill, within the process: nobody catches it."""


def learner(kill_at: int | None = None) -> FakeEngine:
    """The engine of the small compile; it is killed as it begins batch `kill_at`."""

    def before(batch: Any) -> None:
        if len(engine.batches) == kill_at:
            raise Killed

    engine = WordLearner(bias={"billing": 2.0}).engine(before=before)
    return engine


def timeless(run: Path) -> dict[str, Any]:
    """What a run's folder says, without how long it took."""
    state = json.loads((run / "run.json").read_text())
    state.pop("seconds")
    state["ledger"].pop("seconds")
    trials = [json.loads(line) for line in (run / "trials.jsonl").read_text().splitlines()]
    for trial in trials:
        trial.pop("seconds")
    return {"run": state, "trials": trials}


def result(compiled: cuecard.Compiled, folder: Path) -> tuple[bytes, dict[str, Any]]:
    return compiled.write(folder / "x.compiled.yaml").read_bytes(), timeless(compiled.compilation.folder.path)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, dict[str, Any], FakeEngine]:
    """The compile that nobody kills: its file, its folder, its engine."""
    folder, engine = tmp_path_factory.mktemp("alone"), learner()
    return *result(compile_tickets(folder, engine), folder), engine


# ---- within the process


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.99])
def test_killed_anywhere_and_gone_on_with(share: float, alone: Any, tmp_path: Path) -> None:
    content, folder, whole = alone
    kill_at = int(share * len(whole.batches))
    with pytest.raises(Killed):
        compile_tickets(tmp_path, learner(kill_at))
    engine = learner()
    again = compile_tickets(tmp_path, engine)
    assert again.compilation.folder.resumed
    assert result(again, tmp_path) == (content, folder)
    assert engine.batches == whole.batches[kill_at:], "nothing is asked twice, and in the same batches"


@pytest.mark.parametrize("optimizer", ["copro", "gepa", "simba", "random"])
def test_a_search_that_runs_out_of_points_runs_out_again(optimizer: str, tmp_path: Path) -> None:
    """Draws that come to fewer points than asked for, or to none, ask the model and run rows all the same."""

    def given(folder: Path, engine: FakeEngine) -> cuecard.Compiled:
        search = {"instructions": 3, "demos": 0, "formats": ["completion"], "readouts": ["text"]}
        return compile_tickets(folder, engine, optimizer=optimizer, search=search, budget={"metric_calls": 600})

    whole = learner()
    expected = result(given(tmp_path / "whole", whole), tmp_path / "whole")
    assert expected[1]["run"]["search"]["stopped_by"] == "exhausted"
    for share in (0.3, 0.6, 0.9, 0.99):
        folder = tmp_path / str(share)
        with pytest.raises(Killed):
            given(folder, learner(int(share * len(whole.batches))))
        assert result(given(folder, learner()), folder) == expected


def test_killed_many_times_in_the_middle_of_writing(tmp_path: Path) -> None:
    generator, budget = random.Random(0), {"metric_calls": 400}
    whole = compile_tickets(tmp_path / "whole", budget=budget)
    expected = result(whole, tmp_path / "whole")[:2]
    tmp_path = tmp_path / "killed"
    for _ in range(3):
        with pytest.raises(Killed):
            compile_tickets(tmp_path, learner(kill_at=3), budget=budget)
        journal = tmp_path / "triage-1" / "calls.jsonl"
        content = journal.read_bytes()
        journal.write_bytes(content[: len(content) - generator.randrange(1, 3000)])
        with (tmp_path / "triage-1" / "trials.jsonl").open("a") as trials:
            trials.write('{"trial": 9')
    assert result(compile_tickets(tmp_path, budget=budget), tmp_path) == expected


def test_an_interrupt_is_written_down_and_gone_on_with(alone: Any, tmp_path: Path) -> None:
    def before(batch: Any) -> None:
        if len(engine.batches) == 4:
            raise KeyboardInterrupt

    engine = WordLearner(bias={"billing": 2.0}).engine(before=before)
    with pytest.raises(KeyboardInterrupt):
        compile_tickets(tmp_path, engine)
    state = json.loads((tmp_path / "triage-1" / "run.json").read_text())
    assert (state["status"], state["reason"]) == ("interrupted", "KeyboardInterrupt")
    assert state["ledger"]["calls"] > 0
    assert result(compile_tickets(tmp_path), tmp_path) == alone[:2]


def test_a_finished_run_is_not_taken_up(alone: Any, tmp_path: Path) -> None:
    compile_tickets(tmp_path, budget=Budget(trials=1))
    again = compile_tickets(tmp_path, budget=Budget(trials=1))
    assert again.compilation.folder.path.name == "triage-2"


def test_a_journal_that_is_broken_is_told_and_fresh_helps(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        compile_tickets(tmp_path, learner(kill_at=4))
    journal = tmp_path / "triage-1" / "calls.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:3], b"hello\n", *lines[4:]]))
    with pytest.raises(InputError, match="not a record of model calls"):
        compile_tickets(tmp_path)
    assert compile_tickets(tmp_path, fresh=True).compilation.folder.path.name == "triage-2"


# ---- with a budget in seconds


class EngineTime(Clock):
    """A quarter of a second a batch, so that a budget in seconds ends at the same place on every machine."""

    engine: FakeEngine

    def now(self) -> float:
        return self._base + self.engine.ledger.seconds - self._since

    def set(self, seconds: float) -> None:
        self._base, self._since = seconds, self.engine.ledger.seconds

    def __init__(self) -> None:
        self.set(0.0)


def timed(monkeypatch: pytest.MonkeyPatch, folder: Path, engine: FakeEngine, pace: float = 1.0) -> cuecard.Compiled:
    """The compile under 4 seconds. With another pace, time goes faster or slower than in the first life."""

    class Time(EngineTime):
        def now(self) -> float:
            return self._base + pace * (self.engine.ledger.seconds - self._since)

    Time.engine = engine
    monkeypatch.setattr(pipeline, "Clock", Time)
    return compile_tickets(folder, engine, budget={"seconds": 4.0})


@pytest.mark.parametrize("share", [0.5, 0.99])
def test_a_budget_in_seconds_counts_all_lives(share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = learner()
    expected = result(timed(monkeypatch, tmp_path / "alone", whole), tmp_path)
    with pytest.raises(Killed):
        timed(monkeypatch, tmp_path / "killed", learner(int(share * len(whole.batches))))
    assert result(timed(monkeypatch, tmp_path / "killed", learner()), tmp_path) == expected


def test_killed_after_the_search_it_has_the_same_trials_on_a_slower_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = learner()
    expected = result(timed(monkeypatch, tmp_path / "alone", whole), tmp_path)
    with pytest.raises(Killed):
        timed(monkeypatch, tmp_path / "killed", learner(len(whole.batches) - 1))
    state = json.loads((tmp_path / "killed" / "triage-1" / "run.json").read_text())
    assert state["search"]["stopped_by"] == "seconds"
    assert (
        state["search"]["trials"]
        == 1 + sum(each[0] for each in state["search"]["generations"])
        == len(expected[1]["trials"])
    )
    for pace in (0.0, 50.0):
        with pytest.raises(Killed):
            timed(monkeypatch, tmp_path / "killed", learner(0), pace)
    assert result(timed(monkeypatch, tmp_path / "killed", learner(), 20.0), tmp_path) == expected


# ---- as processes

SPEC = """\
name: tiny
inputs: {ticket: str}
nodes:
  summary: {signature: "ticket -> summary: str", format: completion, decoding: {max_tokens: 6}}
  route:
    signature: "ticket, summary -> queue: Literal['billing', 'technical', 'account']"
    inputs: {ticket: "${inputs.ticket}", summary: "${summary.summary}"}
    format: json
    decoding: {max_tokens: 6}
outputs: {queue: "${route.queue}"}
data: {train: train.jsonl, dev: dev.jsonl, test: test.jsonl}
metric: exact_match
optimize: {budget: {metric_calls: 300}, search: {instructions: 2, demos: [0, 2]}}
"""

SCRIPT = """
import json, os, signal, sys, threading, time
from pathlib import Path

import cuecard

spec, model, when = sys.argv[1:]
run = Path(spec).parent / "runs" / "tiny-1"


def lines(name):
    return (run / name).read_bytes().count(b"\\n") if (run / name).exists() else 0


def reached():
    name, _, count = when.partition(">=")
    if name == "test":
        return (run / "run.json").exists() and '"stopped_by"' in (run / "run.json").read_text()
    return lines(f"{name}.jsonl") >= int(count)


def watch():
    while not reached():
        time.sleep(0.0005)
    os.kill(os.getpid(), signal.SIGKILL)


if when != "never":
    threading.Thread(target=watch, daemon=True).start()
target = cuecard.target(model, device="cpu", cache=Path(spec).parent / "cache")
cuecard.compile_spec(spec, target=target, runs=Path(spec).parent / "runs")
"""


def process(folder: Path, model: Path, when: str) -> subprocess.CompletedProcess[str]:
    """Compile the spec in `folder` in a process of its own, which kills itself at a moment of its own run's making."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, str(folder / "tiny.yaml"), str(model), when]
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=300)


def laid_out(folder: Path) -> Path:
    folder.mkdir()
    (folder / "tiny.yaml").write_text(SPEC)
    for seed, split in enumerate(("train", "dev", "test"), start=1):
        # one queue is far more frequent, which even a random model can learn from a fitted bias
        rows = [(row.ticket, "account" if n % 6 else "billing") for n, row in enumerate(tickets(12, seed))]
        text = "".join(json.dumps({"ticket": ticket, "queue": queue}) + "\n" for ticket, queue in rows)
        (folder / f"{split}.jsonl").write_text(text)
    return folder


def count(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.slow
def test_processes_that_are_killed_three_times_write_the_same_file(tiny_model: Path, tmp_path: Path) -> None:
    alone, killed = laid_out(tmp_path / "alone"), laid_out(tmp_path / "killed")
    whole = process(alone, tiny_model, "never")
    assert whole.returncode == 0, whole.stderr
    content = (alone / "tiny.compiled.yaml").read_bytes()
    run = killed / "runs" / "tiny-1"
    moments: Sequence[tuple[str, str]] = (("calls>=1", "running"), ("trials>=3", "running"), ("test", "running"))
    seen = []
    for when, status in moments:
        done = process(killed, tiny_model, when)
        assert done.returncode == -signal.SIGKILL, (when, done.stderr)
        assert not (killed / "tiny.compiled.yaml").exists()
        assert json.loads((run / "run.json").read_text())["status"] == status
        seen.append((count(run / "calls.jsonl"), count(run / "trials.jsonl")))
    assert seen[0][1] == 0, "killed in the baseline"
    assert 3 <= seen[1][1] < seen[2][1], "killed in the search"
    assert 0 < seen[0][0] < seen[1][0] < seen[2][0] < count(alone / "runs" / "tiny-1" / "calls.jsonl")
    last = process(killed, tiny_model, "never")
    assert last.returncode == 0, last.stderr
    assert (killed / "tiny.compiled.yaml").read_bytes() == content
    assert timeless(run) == timeless(alone / "runs" / "tiny-1")
    assert timeless(run)["run"]["status"] == "finished"
    assert [path.name for path in (killed / "runs").iterdir()] == ["tiny-1"]


WAITING = """
import sys, time
from pathlib import Path
from fakes import WordLearner, compile_tickets

def before(batch):
    if len(engine.batches) == 4:
        print("working", flush=True)
        time.sleep(600)

engine = WordLearner(bias={"billing": 2.0}).engine(before=before)
compile_tickets(Path(sys.argv[1]), engine)
"""


def test_two_processes_in_one_run(alone: Any, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WAITING, str(tmp_path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        try:
            assert first.stdout.readline() == "working\n"
            before = (tmp_path / "triage-1" / "calls.jsonl").read_bytes()
            with pytest.raises(InputError, match="another process is working in this run") as caught:
                compile_tickets(tmp_path)
            assert caught.value.path == str(tmp_path / "triage-1")
            assert (tmp_path / "triage-1" / "calls.jsonl").read_bytes() == before
        finally:
            first.kill()
    assert result(compile_tickets(tmp_path), tmp_path) == alone[:2]
