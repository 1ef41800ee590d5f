"""An optimizer of DSPy by its name: run on our evaluation and budget, written like any compiled program."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import dspy
import pytest
from fakes import LABELS, FakeEngine, FakeEvaluator, Triage, WordLearner, compile_tickets, fake_target

import cuecard
from cuecard.compiler.evaluator import candidate_of
from cuecard.compiler.examples import Example
from cuecard.compiler.options import check_options, optimize_options
from cuecard.compiler.pipeline import run_task
from cuecard.compiler.run_folder import open_run
from cuecard.compiler.task import Task
from cuecard.errors import InputError, RunError
from cuecard.metrics import Measurement
from cuecard.models.lm import language_model
from cuecard.optimizers.base import Budget, Candidate, Outcome
from cuecard.optimizers.foreign import Found, check_arguments, run_teleprompter, teleprompter_named
from cuecard.optimizers.joint import STRATEGIES, strategy_named
from cuecard.programs.predictor import adopt
from cuecard.programs.schema import SearchSpec
from cuecard.programs.state import PredictorState, ReadOut

OWN = PredictorState(format="completion", readout=ReadOut(kind="choice"))


def triage() -> dspy.Module:
    """A program whose answers can always be read."""
    return adopt(Triage(), OWN)


def compiled_by(runs: Path, optimizer: str, engine: FakeEngine | None = None, **changes: Any) -> cuecard.Compiled:
    given = {"program": triage(), "budget": {"metric_calls": 200}, "optimizer": optimizer}
    return compile_tickets(runs, engine, **{**given, **changes})


def run_json(compiled: cuecard.Compiled) -> dict[str, Any]:
    return json.loads(compiled.compilation.folder.run.read_text())  # type: ignore[no-any-return]


def trials(compiled: cuecard.Compiled) -> list[dict[str, Any]]:
    lines = compiled.compilation.folder.trials.read_text().splitlines()
    return [{**json.loads(line), "seconds": 0} for line in lines]


# ---- a whole compile


def test_what_it_finds_is_a_compiled_program_like_any_other(tmp_path: Path) -> None:
    compiled = compiled_by(tmp_path, "dspy.BootstrapFewShot")
    compilation = compiled.compilation
    assert compilation.result.accepted
    assert compilation.result.verdict is not None and compilation.result.verdict.p_value < 0.05
    assert compilation.compiled["dev"].value > 0.8 > compilation.baseline["dev"].value
    assert compilation.compiled["test"].n == 12
    state = compilation.candidate.states["route"]
    assert (state.format, state.readout) == (OWN.format, OWN.readout)
    assert state.demos and all(set(demo) == {"ticket", "queue"} and " n1x" in demo["ticket"] for demo in state.demos)
    loaded = cuecard.load(compiled.write(tmp_path / "x.compiled.yaml"), program=Triage())
    assert candidate_of(loaded) == compilation.candidate


def test_run_json_and_the_trials_tell_how_it_went(tmp_path: Path) -> None:
    compiled = compiled_by(tmp_path, "dspy.BootstrapFewShotWithRandomSearch", budget={"metric_calls": 1000})
    told = run_json(compiled)
    assert (told["optimizer"], told["search"]["stopped_by"]) == ("dspy.BootstrapFewShotWithRandomSearch", "finished")
    lines = trials(compiled)
    assert len(lines) == told["search"]["trials"] == told["spent"]["trials"] > 3
    assert all(line["status"] == "complete" and len(line["scores"]) == 12 for line in lines)
    assert lines[told["trial"]]["best"]
    assert told["spent"]["metric_calls"] == compiled.compilation.spent["metric_calls"] >= 12 * len(lines)


def test_nothing_is_said_on_the_screen(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    compiled = compiled_by(tmp_path, "dspy.BootstrapFewShot")
    assert capfd.readouterr() == ("", "")
    assert "Bootstrapped 4 full traces" in (compiled.compilation.folder.path / "optimizer.log").read_text()


@pytest.mark.parametrize("limit", [20, 60])
def test_the_budget_is_ours(limit: int, tmp_path: Path) -> None:
    compiled = compiled_by(tmp_path, "dspy.BootstrapFewShotWithRandomSearch", budget={"metric_calls": limit})
    told = run_json(compiled)
    assert told["search"]["stopped_by"] == "metric_calls"
    assert told["spent"]["metric_calls"] <= limit + 12, "at most what confirms the best so far"


def test_the_best_so_far_is_kept_when_the_budget_ends(tmp_path: Path) -> None:
    compiled = compiled_by(tmp_path, "dspy.BootstrapFewShotWithRandomSearch", budget={"metric_calls": 60})
    assert run_json(compiled)["kept"] == "candidate"
    assert compiled.compilation.candidate.states["route"].demos


def test_one_that_breaks_ends_with_the_reason(tmp_path: Path) -> None:
    """The proposer of MIPROv2 gives up on a model that cannot keep to its form."""
    told = run_json(compiled_by(tmp_path, "dspy.MIPROv2"))
    assert told["status"] == "finished"
    assert (told["search"]["stopped_by"], told["kept"]) == ("crashed", "baseline")
    assert "dspy.MIPROv2 broke: AdapterParseError" in told["search"]["reason"]


def test_one_that_breaks_late_leaves_the_best_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_(self: Any, student: Any, *, trainset: Any, valset: Any) -> Any:
        for k in (0, 8, 1):
            program = student.deepcopy()
            program.predictors()[0].demos = trainset[:k]
            for example in valset:
                assert self.metric(example, program(**example.inputs())) in (0.0, 1.0)
        raise ZeroDivisionError

    monkeypatch.setattr(dspy.teleprompt.BootstrapFewShot, "compile", compile_)
    compiled = compiled_by(tmp_path, "dspy.BootstrapFewShot")
    told = run_json(compiled)
    assert told["search"]["stopped_by"] == "crashed"
    assert told["search"]["reason"].startswith("dspy.BootstrapFewShot broke: ZeroDivisionError: compile_: raise Zero")
    assert (told["kept"], len(compiled.compilation.candidate.states["route"].demos)) == ("candidate", 8)


def test_one_that_gives_the_program_back_is_told_so(tmp_path: Path) -> None:
    told = run_json(compiled_by(tmp_path, "dspy.GEPA", budget={"metric_calls": 40}))
    assert (told["search"]["stopped_by"], told["kept"]) == ("unchanged", "baseline")
    assert "gave the program back" in told["search"]["reason"]


def test_answers_that_cannot_be_read_are_scores_and_end_nothing(tmp_path: Path) -> None:
    compiled = compiled_by(
        tmp_path, "dspy.BootstrapFewShotWithRandomSearch", program=Triage(), budget={"metric_calls": 80}
    )
    told = run_json(compiled)
    assert told["search"]["stopped_by"] in ("finished", "metric_calls")
    assert all(line["unread"] == 12 for line in trials(compiled))


def test_a_dead_engine_ends_the_run(tmp_path: Path) -> None:
    def before(batch: Any) -> None:
        if len(engine.batches) == 4:
            raise OSError("the device is gone")

    engine = WordLearner(bias={"billing": 2.0}).engine(before=before)
    with pytest.raises(RunError, match="the device is gone"):
        compiled_by(tmp_path, "dspy.BootstrapFewShotWithRandomSearch", engine)


@pytest.mark.parametrize("name", ["dspy.BootstrapFewShotWithRandomSearch", "dspy.GEPA"])
def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(name: str, tmp_path: Path) -> None:
    def before(batch: Any) -> None:
        if len(engine.batches) == 8:
            raise KeyboardInterrupt

    budget = {"metric_calls": 60}
    whole = compiled_by(tmp_path / "whole", name, budget=budget)
    engine = WordLearner(bias={"billing": 2.0}).engine(before=before)
    with pytest.raises(KeyboardInterrupt):
        compiled_by(tmp_path / "broken", name, engine, budget=budget)
    again = compiled_by(tmp_path / "broken", name, budget=budget)
    assert again.compilation.folder.resumed
    assert trials(again) == trials(whole)
    assert again.write(tmp_path / "a").read_bytes() == whole.write(tmp_path / "b").read_bytes()


def test_its_arguments_reach_it(tmp_path: Path) -> None:
    given = compiled_by(tmp_path, "dspy.LabeledFewShot").compilation.task
    parts = {**vars(given), "options": {"k": 3}}
    compilation = run_task(Task(**parts), open_run(tmp_path, "other", "x"), _Silent())
    assert len(compilation.result.best.candidate.states["route"].demos) in (0, 3)
    assert json.loads(compilation.folder.run.read_text())["options"] == {"k": 3}
    tried = [
        json.loads(line)["states"]["route"]["demos"] for line in compilation.folder.trials.read_text().splitlines()
    ]
    assert tried == [0, 3]


class _Silent:
    def begin(self, *_: Any) -> None: ...
    def phase(self, *_: Any) -> None: ...
    def runs(self, *_: Any) -> None: ...
    def trial(self, *_: Any) -> None: ...


# ---- without an engine


def ran(name: str, budget: Budget, *, pace: float = 1.0, until: int | None = None, **arguments: Any) -> Found:
    """An optimizer on an evaluator in which every demo is worth something."""
    program = triage()
    baseline = Candidate({"route": OWN})
    train, dev = (
        [Example({"ticket": f"{part}{n}"}, {"queue": LABELS[n % 3]}, n) for n in range(9)] for part in ("t", "d")
    )

    def outcome(candidate: Candidate, row: Any) -> Outcome:
        score = len(candidate.states["route"].demos) / 100
        return Outcome(row, Measurement(score), {"queue": row.labels["queue"]})

    signatures = {"route": program.route.signature}
    evaluator = FakeEvaluator(signatures, lambda candidate, row: 0.0, outcome=outcome, pace=pace)
    lm = language_model(FakeEngine())
    before = random.getstate()
    found = run_teleprompter(
        name,
        arguments,
        program,
        evaluator,
        lm,
        train=train,
        dev=dev,
        baseline=baseline,
        budget=budget,
        seed=0,
        log=io.StringIO(),
        until=until,
    )
    assert random.getstate() == before, "the shared generator stays as it was"
    return found


def test_what_the_clock_decided_is_decided_again_without_it() -> None:
    name = "dspy.BootstrapFewShotWithRandomSearch"
    first = ran(name, Budget(seconds=50.0))
    assert first.stopped_by == "seconds"
    again = ran(name, Budget(seconds=50.0), pace=0.001, until=first.ticks)
    assert (again.stopped_by, again.ticks) == ("seconds", first.ticks)
    assert again.candidate.digest == first.candidate.digest


def test_the_candidate_with_the_largest_lead_is_the_best_so_far() -> None:
    found = ran("dspy.BootstrapFewShotWithRandomSearch", Budget(metric_calls=60))
    assert found.stopped_by == "metric_calls"
    assert len(found.candidate.states["route"].demos) > 0


def test_the_worlds_random_state_plays_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def compile_(self: Any, student: Any, *, trainset: Any) -> Any:
        drawn.append(random.random())
        return student

    monkeypatch.setattr(dspy.teleprompt.LabeledFewShot, "compile", compile_)
    for seed in (1, 2):
        random.seed(seed)
        assert ran("dspy.LabeledFewShot", Budget()).stopped_by == "unchanged"
    assert drawn[0] == drawn[1]


def test_the_users_argument_goes_before_ours() -> None:
    assert len(ran("dspy.LabeledFewShot", Budget(), k=2).candidate.states["route"].demos) == 2


# ---- names and arguments


def test_an_unknown_name_is_told_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"DSPy has no optimizer 'MIPRO2'.*nearest.*'dspy\.MIPROv2'|dspy\.MIPROv2"):
        strategy_named("dspy.MIPRO2")


@pytest.mark.parametrize(("name", "reason"), [("BootstrapFinetune", "weights"), ("KNNFewShot", "knn_few_shot")])
def test_what_makes_no_prompt_is_refused(name: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        teleprompter_named(f"dspy.{name}")


@pytest.mark.parametrize(
    ("name", "argument", "told"),
    [
        ("dspy.MIPROv2", "max_bootstraped_demos", "takes no 'max_bootstraped_demos'.*max_bootstrapped_demos"),
        ("dspy.GEPA", "log_dir", "is given its 'log_dir'"),
        ("dspy.GEPA", "reflection_lm", "is given its 'reflection_lm'"),
        ("dspy.COPRO", "eval_kwargs", "is given its 'eval_kwargs'"),
        ("dspy.LabeledFewShot", "trainset", "is given its 'trainset'"),
    ],
)
def test_an_argument_that_is_not_the_users_is_told(name: str, argument: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        check_arguments(name, {argument: 1})
    with pytest.raises(InputError, match=told):
        check_options("x", name, SearchSpec(), {argument: 1})


def test_arguments_stand_beside_the_name() -> None:
    made, _ = optimize_options(None, 0, None, {"name": "dspy.BootstrapFewShot", "max_bootstrapped_demos": 2})
    assert (made.optimizer, made.options) == ("dspy.BootstrapFewShot", {"max_bootstrapped_demos": 2})
    with pytest.raises(InputError, match="optimizer"):
        optimize_options(None, 0, None, {"max_bootstrapped_demos": 2})


@pytest.mark.parametrize("name", STRATEGIES)
def test_an_option_that_a_strategy_does_not_have_is_told_before_anything_runs(name: str) -> None:
    check_options("x", name, SearchSpec(), {})
    with pytest.raises(InputError, match="unknown option 'speed'"):
        check_options("x", name, SearchSpec(), {"speed": 3})


def test_an_option_is_a_count() -> None:
    check_options("x", "copro", SearchSpec(), {"breadth": 3})
    with pytest.raises(InputError, match="breadth is 0; expected a whole number of at least 1"):
        check_options("x", "copro", SearchSpec(), {"breadth": 0})


def test_a_target_is_all_that_is_needed(tmp_path: Path) -> None:
    compiled = compiled_by(tmp_path, "dspy.LabeledFewShot", target=fake_target(WordLearner().engine()))
    assert run_json(compiled)["search"]["stopped_by"] == "finished"
