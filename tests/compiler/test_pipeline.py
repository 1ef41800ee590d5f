"""A compile from task to result: what runs when, what is written down, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dspy
import optuna
import pytest
from fakes import FakeEngine, Triage, WordLearner, compile_tickets, says

import cuecard
from cuecard.compiler import pipeline
from cuecard.compiler.journal import Clock
from cuecard.errors import InputError, RunError
from cuecard.models.engine import Decoding
from cuecard.optimizers.base import Budget
from cuecard.programs.predictor import Predictor
from cuecard.programs.state import PredictorState


class Told:
    """A reporter that keeps what it is told, in order."""

    def __init__(self) -> None:
        self.phases: list[tuple[str, float]] = []
        self.trials: list[Any] = []
        self.shares: list[float] = []
        self.done: list[int] = []
        self.recorded: int | None = None

    def begin(self, task: Any, folder: Any, recorded: int) -> None:
        self.recorded = recorded

    def phase(self, name: str, share: float) -> None:
        self.phases.append((name, share))

    def runs(self, done: int, seconds: float) -> None:
        self.done.append(done)

    def trial(self, trial: Any, share: float, seconds: float) -> None:
        self.trials.append(trial)
        self.shares.append(share)


def run_json(compiled: cuecard.Compiled) -> dict[str, Any]:
    return json.loads(compiled.compilation.folder.run.read_text())  # type: ignore[no-any-return]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# ---- a compile that finds something


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[cuecard.Compiled, FakeEngine, Told]:
    engine, told = WordLearner(bias={"billing": 2.0}).engine(), Told()
    return compile_tickets(tmp_path_factory.mktemp("runs"), engine, reporter=told, seed=5), engine, told


def test_it_finds_what_makes_the_model_do_the_task(done: Any) -> None:
    compilation = done[0].compilation
    assert compilation.result.accepted
    assert compilation.baseline["dev"].value < 0.5 < 0.8 < compilation.compiled["dev"].value
    assert compilation.baseline["test"].value < 0.5 < 0.7 < compilation.compiled["test"].value
    assert {name: score.n for name, score in compilation.compiled.items()} == {"dev": 12, "test": 12}


def test_run_json_says_what_the_run_is_and_came_to(done: Any) -> None:
    compiled, engine, _ = done
    state = run_json(compiled)
    compilation = compiled.compilation
    assert state["status"] == "finished"
    assert (state["name"], state["seed"], state["metric"], state["optimizer"]) == ("triage", 5, "exact_match", "joint")
    assert state["target"]["identity"] == "fake"
    assert state["examples"] == {"train": 12, "dev": 12, "test": 12}
    assert state["budget"] == {"metric_calls": 100, "seconds": None}
    assert state["kept"] == "candidate"
    assert state["trial"] == compilation.result.chosen.number
    assert state["baseline"]["dev"]["value"] == compilation.baseline["dev"].value
    assert set(state["compiled"]["test"]) == {"value", "low", "high", "n"}
    assert state["paired"]["p_value"] < 0.05
    assert state["spent"] == {"metric_calls": compilation.spent["metric_calls"], "trials": len(done[2].trials)}
    assert state["ledger"]["calls"] == engine.ledger.calls
    assert state["search"]["stopped_by"] == "metric_calls"
    assert state["unread"] == {"baseline": 12, "compiled": 0}


def test_there_is_a_line_for_every_trial(done: Any) -> None:
    compiled, _, told = done
    written = lines(compiled.compilation.folder.trials)
    assert [line["trial"] for line in written] == [trial.number for trial in told.trials] == list(range(len(written)))
    assert written[0]["status"] == "complete" and written[0]["best"] and written[0]["params"] == {}
    for line, trial in zip(written, told.trials, strict=True):
        assert line["candidate"] == trial.candidate.digest
        assert line["params"] == json.loads(json.dumps(dict(trial.params)))
        assert ("scores" in line) == (line["status"] == "complete")
        assert line["states"]["route"]["demos"] == len(trial.candidate.states["route"].demos)
    chosen = written[compiled.compilation.result.chosen.number]
    assert chosen["best"]
    assert sum(chosen["scores"]) / 12 == compiled.compilation.compiled["dev"].value


def test_there_is_a_line_for_every_model_call(done: Any) -> None:
    compiled, engine, _ = done
    written = lines(compiled.compilation.folder.calls)
    heads = [line for line in written if "batch" in line]
    assert [head["calls"] for head in heads] == [len(batch) for batch in engine.batches]
    assert len(written) - len(heads) == engine.ledger.calls
    assert [head["elapsed"] for head in heads] == sorted(head["elapsed"] for head in heads)


def test_optunas_study_holds_the_search(done: Any) -> None:
    compiled, _, told = done
    study = optuna.load_study(study_name="cuecard", storage=compiled.compilation.folder.study_url)
    assert study.trials[0].value == told.trials[0].score
    assert len(study.trials) >= len(told.trials)


def test_the_reporter_hears_everything_in_order(done: Any) -> None:
    told = done[2]
    assert told.recorded == 0
    assert [name for name, _ in told.phases] == ["baseline", "demos", "search", "test"]
    shares = [share for _, share in told.phases]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert told.shares == sorted(told.shares)
    assert max(told.done) == done[0].compilation.spent["metric_calls"] + 24


def test_the_test_split_is_touched_once_at_the_end(done: Any) -> None:
    engine = done[1]
    dev, test = (
        [
            number
            for number, batch in enumerate(engine.batches)
            if any(f" n{seed}x" in engine.tokenizer.text(request.prompt) for request in batch)
        ]
        for seed in (2, 3)
    )
    assert min(test) > max(dev)
    asked = [request for number in test for request in engine.batches[number]]
    assert len(asked) == 24, "baseline and winner, each once on each row"


def test_demos_come_from_train_alone(done: Any) -> None:
    demos = done[0].compilation.candidate.states["route"].demos
    assert demos
    assert all(" n1x" in demo["ticket"] for demo in demos)


def test_the_same_compile_again_is_a_new_run_with_the_same_result(done: Any, tmp_path: Path) -> None:
    compiled = done[0]
    again = compile_tickets(compiled.compilation.folder.path.parent, seed=5)
    assert again.compilation.folder.path.name == "triage-2"
    assert again.compilation.candidate == compiled.compilation.candidate
    kept = [lines(made.compilation.folder.trials) for made in (compiled, again)]
    for line in (*kept[0], *kept[1]):
        line.pop("seconds")
    assert kept[0] == kept[1]


# ---- a compile that finds nothing


def test_the_baseline_is_kept_as_it_was_when_nothing_beats_it(tmp_path: Path) -> None:
    program = Triage()
    program.route = Predictor(
        program.route.signature, PredictorState(format="xml", demos=({"ticket": "t", "queue": "billing"},))
    )
    engine = FakeEngine(says("<queue>billing</queue>"))
    compiled = compile_tickets(tmp_path, engine, program=program, budget=Budget(trials=4))
    assert not compiled.compilation.result.accepted
    assert compiled.compilation.candidate.states["route"] == program.route.state
    assert compiled.compilation.compiled == compiled.compilation.baseline
    state = run_json(compiled)
    assert (state["status"], state["kept"], state["trial"]) == ("finished", "baseline", 0)


def test_without_a_test_split_there_are_no_test_scores(tmp_path: Path) -> None:
    compiled = compile_tickets(tmp_path, testset=(), budget=Budget(trials=2))
    assert set(compiled.compilation.compiled) == {"dev"}
    assert run_json(compiled)["unread"] == {}


def test_without_train_rows_there_are_no_demos_and_nothing_is_fitted(tmp_path: Path) -> None:
    compiled = compile_tickets(tmp_path, trainset=(), budget=Budget(trials=12))
    written = lines(compiled.compilation.folder.trials)
    assert {line["params"].get("route.demos", 0) for line in written} == {0}
    assert {line["params"].get("route.readout") for line in written[1:]} <= {
        "text",
        "constrained",
        "choice",
        "choice+contextual",
    }


# ---- budgets


@pytest.mark.parametrize(("budget", "trials"), [(Budget(trials=1), 1), (Budget(trials=4), 4)])
def test_a_budget_of_trials(budget: Budget, trials: int, tmp_path: Path) -> None:
    compiled = compile_tickets(tmp_path, budget=budget)
    assert len(lines(compiled.compilation.folder.trials)) == trials
    assert compiled.compilation.result.stopped_by == "trials"


def test_metric_calls_are_kept_within_one_trial(tmp_path: Path) -> None:
    search = {"instructions": 2, "demos": [0, 4], "recalibrate": False}
    compiled = compile_tickets(tmp_path, budget={"metric_calls": 60}, search=search)
    assert 60 <= compiled.compilation.spent["metric_calls"] < 60 + 12 + 12


def test_where_calls_are_kept_back_they_are_not_gone_over(tmp_path: Path) -> None:
    compiled = compile_tickets(tmp_path, budget={"metric_calls": 70})
    assert compiled.compilation.result.trials > 2
    assert compiled.compilation.spent["metric_calls"] <= 70


class ScriptedClock(Clock):
    """A clock that every batch moves on; as many clocks as there are lives share one engine each."""

    engine: FakeEngine

    def now(self) -> float:
        return self._base + self.engine.ledger.seconds - self._since

    def set(self, seconds: float) -> None:
        self._base, self._since = seconds, self.engine.ledger.seconds

    def __init__(self) -> None:
        self.set(0.0)


def clocked(monkeypatch: pytest.MonkeyPatch, engine: FakeEngine) -> FakeEngine:
    """`engine`, whose ledger's seconds are the time: a quarter of a second a batch."""
    monkeypatch.setattr(pipeline, "Clock", type("ClockOf", (ScriptedClock,), {"engine": engine}))
    return engine


def test_seconds_leave_time_for_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = clocked(monkeypatch, WordLearner(bias={"billing": 2.0}).engine())
    compiled = compile_tickets(tmp_path, engine, budget={"seconds": 10.0})
    assert compiled.compilation.result.stopped_by == "seconds"
    assert 7.0 <= compiled.compilation.seconds <= 10.5


def test_seconds_and_trials_hold_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = clocked(monkeypatch, WordLearner().engine())
    compiled = compile_tickets(tmp_path, engine, budget=Budget(seconds=1000.0, trials=3))
    assert compiled.compilation.result.trials == 3


def test_a_budget_that_is_too_small_gives_the_baseline(tmp_path: Path) -> None:
    compiled = compile_tickets(tmp_path, budget={"metric_calls": 1})
    assert compiled.compilation.result.trials == 1
    assert run_json(compiled)["kept"] == "baseline"


# ---- what goes into the space


def test_intermediate_fields_are_bootstrapped(tmp_path: Path) -> None:
    program = dspy.ChainOfThought(Triage().route.signature)

    def answer(prompt: str, decoding: Decoding, sample: int) -> str:
        if prompt.endswith("Reasoning:"):
            return " it says so\nQueue: billing"
        return WordLearner().answer(prompt, decoding, sample)

    engine = FakeEngine(answer, WordLearner(bias={"billing": 0.5}).likelihood)
    compiled = compile_tickets(tmp_path, engine, program=program, search={"instructions": 1, "formats": ["completion"]})
    written = lines(compiled.compilation.folder.trials)
    shown = max(line["params"].get("predict.demos", 0) for line in written)
    assert shown == 4, "the third of train that the bootstrap got right"
    assert any("Reasoning: it says so\nQueue: billing\n\nTicket:" in prompt for prompt in engine.prompts())


def test_max_tokens_fit_the_demos_unless_the_user_says(tmp_path: Path) -> None:
    signature = cuecard.signature("ticket -> note: str")
    long, budget = " ".join(["word"] * 40), Budget(trials=3)
    rows = [dspy.Example(ticket=f"t{n}", note=long).with_inputs("ticket") for n in range(12)]
    splits = {"trainset": rows[:4], "devset": rows[4:8], "testset": rows[8:]}
    for decoding, expected in ((Decoding(), 80), (Decoding(max_tokens=9), 9)):
        program = Predictor(signature, PredictorState(format="completion", decoding=decoding))
        compiled = compile_tickets(
            tmp_path, FakeEngine(says(" x")), program=program, metric="f1", budget=budget, **splits
        )
        found = {
            line["states"]["self"]["decoding"]["max_tokens"] for line in lines(compiled.compilation.folder.trials)[1:]
        }
        assert found == {expected}


def test_a_model_without_a_chat_template_is_searched_without_chats(tmp_path: Path) -> None:
    program = Triage()
    program.route = Predictor(program.route.signature, PredictorState(format="completion"))
    engine = WordLearner(bias={"billing": 2.0}).engine(chat_template=False)
    compiled = compile_tickets(tmp_path, engine, program=program)
    formats = {line["params"].get("route.format") for line in lines(compiled.compilation.folder.trials)[1:]}
    assert formats == {"completion"}


def test_what_the_user_wants_searched_is_all_that_is_searched(tmp_path: Path) -> None:
    search = {
        "formats": ["json", "xml"],
        "readouts": ["constrained"],
        "demos": 2,
        "instructions": 1,
        "temperature": [0.2, 0.4],
    }
    compiled = compile_tickets(tmp_path, search=search, budget={"metric_calls": 150})
    params = [line["params"] for line in lines(compiled.compilation.folder.trials)[1:]]
    assert {p["route.format"] for p in params} == {"json", "xml"}
    assert {p["route.readout"] for p in params} == {"constrained"}
    assert {p["route.demos"] for p in params} == {2}
    assert {p["route.instruction"] for p in params} == {0}
    assert all(0.2 <= p["route.temperature"] <= 0.4 for p in params)


# ---- what goes wrong


def test_a_baseline_that_fails_ends_the_run_and_says_so(tmp_path: Path) -> None:
    engine = FakeEngine(failure=lambda request: "no room")
    with pytest.raises(RunError, match="the uncompiled program failed on 12 of 12 dev examples.*\n.*no room"):
        compile_tickets(tmp_path, engine)
    state = json.loads((tmp_path / "triage-1" / "run.json").read_text())
    assert state["status"] == "failed"
    assert "no room" in state["reason"]


def test_a_candidate_that_fails_is_a_failed_trial(tmp_path: Path) -> None:
    def failure(request: Any) -> str | None:
        return "xml is too much" if "<ticket>" in engine.tokenizer.text(request.prompt) else None

    engine = WordLearner(bias={"billing": 2.0}).engine(failure=failure)
    compiled = compile_tickets(tmp_path, engine, budget=Budget(trials=9))
    written = lines(compiled.compilation.folder.trials)
    failed = [line for line in written if line["status"] == "failed"]
    assert failed
    assert {line["params"]["route.format"] for line in failed} == {"xml"}
    assert {line["reason"] for line in failed} == {"xml is too much"}
    assert compiled.compilation.result.accepted


def test_a_failure_in_the_test_ends_the_run_and_it_is_gone_on_with(tmp_path: Path) -> None:
    broken = True

    def failure(request: Any) -> str | None:
        return "not today" if broken and " n3x7" in engine.tokenizer.text(request.prompt) else None

    engine = WordLearner(bias={"billing": 2.0}).engine(failure=failure)
    with pytest.raises(RunError, match="the baseline program failed on 1 of 12 test examples.*\n.*not today"):
        compile_tickets(tmp_path, engine)
    state = json.loads((tmp_path / "triage-1" / "run.json").read_text())
    assert state["status"] == "failed"
    assert state["search"]["trials"] > 1


def test_an_engine_that_dies_leaves_a_run_to_go_on_with(tmp_path: Path) -> None:
    def before(batch: Any) -> None:
        if len(engine.batches) == 5:
            raise RuntimeError("the card is gone")

    engine = WordLearner(bias={"billing": 2.0}).engine(before=before)
    with pytest.raises(RunError, match="the card is gone"):
        compile_tickets(tmp_path, engine)
    again = compile_tickets(tmp_path)
    assert again.compilation.folder.path.name == "triage-1"
    assert again.compilation.folder.resumed
    assert run_json(again)["status"] == "finished"


def test_a_metric_that_breaks_in_the_search_ends_it(tmp_path: Path) -> None:
    calls = []

    def metric(example: Any, prediction: Any) -> float:
        calls.append(1)
        if len(calls) > 20:
            raise ZeroDivisionError("no more")
        return 0.0

    with pytest.raises(InputError, match="metric 'metric' raised ZeroDivisionError: no more, on example"):
        compile_tickets(tmp_path, metric=metric)


def test_a_study_that_cannot_be_written_ends_the_run(tmp_path: Path) -> None:
    class Spoiling(Told):
        def begin(self, task: Any, folder: Any, recorded: int) -> None:
            self.folder = folder

        def phase(self, name: str, share: float) -> None:
            if name == "search":
                self.folder.study.mkdir()

    with pytest.raises(RunError, match="can't write the study: unable to open database file") as caught:
        compile_tickets(tmp_path, reporter=Spoiling())
    assert caught.value.path == str(tmp_path / "triage-1" / "study.db")
    (tmp_path / "triage-1" / "study.db").rmdir()
    assert compile_tickets(tmp_path).compilation.folder.path.name == "triage-1"


@pytest.mark.parametrize("name", ["what? now", "100%20", "a#b", "ünï & co"])
def test_a_run_may_stand_in_a_folder_of_any_name(name: str, tmp_path: Path) -> None:
    compiled = compile_tickets(tmp_path / name, budget=Budget(trials=2))
    found = sorted(path.name for path in compiled.compilation.folder.path.iterdir() if path.name != ".lock")
    assert found == ["calls.jsonl", "run.json", "scores.json", "study.db", "trials.jsonl"]
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_full_disk_ends_the_run_and_leaves_it_unfinished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Any, content: bytes) -> None:
        raise RunError("can't write the record of model calls: No space left on device") from OSError(28, "full")

    with monkeypatch.context() as patched:
        patched.setattr("cuecard.compiler.journal.JournaledEngine._append", full)
        with pytest.raises(RunError, match="No space left on device"):
            compile_tickets(tmp_path)
    again = compile_tickets(tmp_path)
    assert again.compilation.folder.path.name == "triage-1"
    assert again.compilation.result.accepted
