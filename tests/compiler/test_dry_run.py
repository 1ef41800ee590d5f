"""The plan of a compile: what it says of the space and the costs, and that it runs and writes nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeEngine, WordLearner, fake_target, spec_folder

from cuecard.compiler.cli.dry_run import plan_lines
from cuecard.compiler.dry_run import MEASURED, CompilePlan, DryEvaluator, plan_compile
from cuecard.compiler.from_spec import compile_spec, spec_task
from cuecard.compiler.task import Task
from cuecard.errors import RunError
from cuecard.optimizers.base import Budget, Candidate
from cuecard.programs.prompt import PromptTooLong

from .cli_cases import cuecard, write_spec


def task_of(folder: Path, engine: FakeEngine, *changes: tuple[str, str], budget: Budget | None = None) -> Task:
    """The task of the small two-step spec, with parts of its text changed."""
    path = spec_folder(folder)
    text = path.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    return spec_task(path, target=fake_target(engine), budget=budget)[1]


def learner() -> FakeEngine:
    return WordLearner(bias={"billing": 2.0}).engine()


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def unlabelled(folder: Path) -> None:
    """Take the summaries out of the data, which the program has to make then."""
    for split in ("train", "dev", "test"):
        rows = [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]
        text = "".join(json.dumps({k: v for k, v in row.items() if k != "summary"}) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(text)


@pytest.fixture
def plan(tmp_path: Path) -> CompilePlan:
    return plan_compile(task_of(tmp_path, learner()))


def test_the_first_generation_is_that_of_the_compile(tmp_path: Path) -> None:
    task = task_of(tmp_path, learner())
    plan = plan_compile(task)
    compiled = compile_spec(tmp_path / "two_steps.yaml", target=fake_target(learner()), runs=tmp_path / "runs")
    lines = (compiled.compilation.folder.trials).read_text().splitlines()
    first = compiled.compilation.folder.read()["search"]["generations"][0][0]
    assert plan.exact
    assert [dict(each.params) for each in plan.first] == [json.loads(line)["params"] for line in lines[1 : first + 1]]


def test_nothing_runs_but_the_program_as_written_on_a_few_rows_of_dev(tmp_path: Path) -> None:
    engine = learner()
    task = task_of(tmp_path, engine)
    before = files(tmp_path)
    plan = plan_compile(task)
    assert files(tmp_path) == before
    prompts = engine.prompts()
    assert prompts and all(" n2x" in prompt for prompt in prompts), "rows of dev, and no demos of train"
    assert plan.pace.rows == min(MEASURED, 11)
    assert plan.pace.model_calls == 2.0
    assert plan.pace.prompt_tokens > plan.pace.own_tokens > 0


def test_the_dimensions_and_their_sizes(plan: CompilePlan) -> None:
    assert [part.name for part in plan.predictors] == ["summary", "route"]
    found = {
        part.name: {dimension.name: (dimension.values, dimension.size) for dimension in part.dimensions}
        for part in plan.predictors
    }
    assert found["route"]["demos"] == ((0, 1, 2, 4, 8), 5)
    assert found["route"]["format"] == (("completion", "turns"), 2)
    assert found["route"]["demo_set"] == ((), 32)
    assert found["route"]["readout"][0] == ("text", "constrained", "choice", "channel")
    assert found["route"]["calibration"][0] == ("none", "contextual", "batch")
    sizes = [part.size for part in plan.predictors]
    assert plan.size == (sizes[0] or 0) * (sizes[1] or 0) > 10**5


def test_a_range_has_no_number_of_points(tmp_path: Path) -> None:
    plan = plan_compile(task_of(tmp_path, learner(), ("search: {", "search: {temperature: [0.0, 1.0], ")))
    assert plan.size is None
    dimensions = {each.name: each for each in plan.predictors[0].dimensions}
    assert (dimensions["temperature"].values, dimensions["temperature"].size) == ((0.0, 1.0), None)


def test_demos_that_the_program_must_make_are_told_and_not_made(tmp_path: Path) -> None:
    engine = learner()
    task_of(tmp_path, engine)
    unlabelled(tmp_path)
    plan = plan_compile(spec_task(tmp_path / "two_steps.yaml", target=fake_target(engine))[1])
    assert plan.bootstrapped == ("summary", "route")
    assert plan.bootstrap_runs == 12
    assert plan.unrendered == ("route",)
    assert not plan.exact
    assert plan.seconds["demos"] > 0
    assert all(" n2x" in prompt for prompt in engine.prompts())
    demos = next(each for each in plan.predictors[1].dimensions if each.name == "demos")
    assert demos.values == (0, 1, 2, 4, 8), "as many as there may be"
    lines = "\n".join(plan_lines(task_of(tmp_path, engine), plan))
    assert "before the search the program runs on train, to make the demos of summary, route: 12 metric calls" in lines
    assert "without the prompts of route, whose inputs only a run makes" in lines


def test_instructions_that_a_model_would_write_are_not_asked_for(tmp_path: Path) -> None:
    engine = learner()
    changed = ("search: {instructions: 1", "search: {instructions: {most: 6, proposals: 3}")
    task = task_of(tmp_path, engine, changed)
    plan = plan_compile(task)
    assert (plan.proposals, plan.exact) == (6, False)
    assert all(" n2x" in prompt for prompt in engine.prompts())
    assert "before the search the model is asked for 6 instructions" in "\n".join(plan_lines(task, plan))


@pytest.mark.parametrize(
    ("budget", "limit"),
    [
        (Budget(metric_calls=120), "metric_calls"),
        (Budget(model_calls=200), "model_calls"),
        (Budget(model_calls=110), "model_calls"),
        (Budget(tokens=60000), "tokens"),
        (Budget(metric_calls=120, trials=4), "trials"),
        (Budget(metric_calls=12), "metric_calls"),
    ],
)
def test_what_the_budget_allows(budget: Budget, limit: str, tmp_path: Path) -> None:
    task = task_of(tmp_path, learner(), budget=budget)
    plan = plan_compile(task)
    assert plan.limited_by == limit
    runs = {"metric_calls": [102, 0], "model_calls": [64, 19], "trials": [72], "tokens": range(20, 400)}
    assert plan.runs in runs[limit]
    assert plan.runs // 24 <= plan.candidates <= plan.runs, "twelve rows of dev each, and twelve to calibrate on"
    assert len(plan.first) <= 12
    assert bool(plan.first) == (plan.runs > 0)
    parts = ("baseline", "demos", "search", "after", "test")
    assert plan.seconds["total"] == pytest.approx(sum(plan.seconds[part] for part in parts), abs=0.01)


@pytest.mark.parametrize(
    ("optimizer", "exact"),
    [("random", True), ("copro", False), ("gepa", False), ("simba", False), ("mipro", False), ("knn_few_shot", True)],
)
def test_other_strategies(optimizer: str, exact: bool, tmp_path: Path) -> None:
    engine = learner()
    task = task_of(tmp_path, engine, ("optimize: {", f"optimize: {{optimizer: {optimizer}, "))
    plan = plan_compile(task)
    assert plan.exact == exact
    assert all(" n2x" in prompt for prompt in engine.prompts())
    assert [part.name for part in plan.predictors] == ["summary", "route"]
    assert list(plan_lines(task, plan))


def test_an_optimizer_of_dspy_is_told_without_a_space(tmp_path: Path) -> None:
    task = task_of(tmp_path, learner(), ("optimize: {", "optimize: {optimizer: dspy.COPRO, "))
    plan = plan_compile(task)
    assert (plan.predictors, plan.first, plan.size, plan.candidates) == ((), (), None, 0)
    assert plan.runs == 120 - 12


def test_a_prompt_that_is_too_long_is_told_with_its_candidate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = DryEvaluator.prompt_tokens

    def too_long(self: DryEvaluator, candidate: Candidate, rows: Any) -> float:
        if candidate.states["route"].format == "turns":
            raise PromptTooLong("the prompt has 300 tokens")
        return tokens(self, candidate, rows)

    monkeypatch.setattr(DryEvaluator, "prompt_tokens", too_long)
    task = task_of(tmp_path, learner())
    plan = plan_compile(task)
    problems = {each.params["route.format"]: (each.problem, each.prompt_tokens is None) for each in plan.first}
    assert problems == {"completion": (None, False), "turns": ("the prompt has 300 tokens", True)}
    assert any(line.endswith('"the prompt has 300 tokens"') for line in plan_lines(task, plan))


def test_a_program_that_fails_is_told(tmp_path: Path) -> None:
    engine = FakeEngine(failure=lambda request: "no room")
    with pytest.raises(RunError, match="the program as written fails on dev.*\n.*no room"):
        plan_compile(task_of(tmp_path, engine))


# ---- the command line


def run_plan(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, path: Path, *words: Any) -> Any:
    monkeypatch.setattr("cuecard.compiler.from_spec.spec_target", lambda *_, **__: fake_target(learner()))
    monkeypatch.chdir(path.parent)
    before = files(path.parent)
    said = cuecard(capsys, "compile", path.name, "--dry-run", *words)
    assert files(path.parent) == before
    return said


def test_the_plan_on_the_screen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = "optimize: {budget: {metric_calls: 60}, stop: {score: 0.9}, search: {demos: [0, 2], formats: [completion], instructions: 1}}"
    said = run_plan(capsys, monkeypatch, write_spec(tmp_path, optimize=line))
    assert said.code == 0
    told = said.out.splitlines()
    assert told[:9] == [
        "triage on fake, float32, cpu: the plan of a compile, nothing is written",
        "",
        "examples   6 train, 8 dev, 6 test",
        "metric     exact_match",
        "optimizer  joint, seed 0",
        "budget     60 metric calls",
        "stop       exact_match 0.9 on dev",
        "",
        "main: 333 points",
    ]
    assert told[9:17] == [
        '  instruction  1   "Route the ticket."',
        "  demos        3   0, 1, 2",
        "  demo_set     32  ordered draws of the demos",
        "  nearest      1   0",
        "  per_label    1   2",
        "  label_set    8   ordered draws of each label's demos",
        "  format       1   completion",
        "  readout      4   text, constrained, choice, channel",
    ]
    assert any(line.startswith("first generation: ") for line in told)
    assert any(line.startswith("expected time: ") for line in told)


def test_the_plan_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    said = run_plan(capsys, monkeypatch, write_spec(tmp_path), "--json", "--tokens", 9000, "--seed", 3)
    assert said.code == 0
    told = json.loads(said.out)
    assert (told["name"], told["seed"], told["budget"]["tokens"], told["budget"]["metric_calls"]) == (
        "triage",
        3,
        9000,
        40,
    )
    assert told["examples"] == {"train": 6, "dev": 8, "test": 6}
    assert {"predictors", "size", "first", "pace", "runs", "limited_by", "seconds", "stop"} <= set(told)
    assert told["first"][0]["prompt_tokens"] > 0
