"""The Python API: what can be given, what is refused, and when."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.utils.dummies import DummyLM
from fakes import (
    LABELS,
    SPEC,
    FakeEngine,
    Triage,
    WordLearner,
    compile_tickets,
    fake_target,
    says,
    spec_folder,
    tickets,
)

import cuecard
from cuecard.compiler.data import from_dspy
from cuecard.compiler.options import optimize_options
from cuecard.errors import InputError, RunError
from cuecard.optimizers.base import Budget
from cuecard.programs.graph import build
from cuecard.programs.predictor import Predictor
from cuecard.programs.spec import load_spec
from cuecard.programs.state import PredictorState, ReadOut

FEW = Budget(trials=2)


def target() -> cuecard.Target:
    return fake_target(WordLearner(bias={"billing": 2.0}).engine())


def written(folder: Path, name: str, rows: list[dspy.Example]) -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(dict(row)) + "\n" for row in rows))
    return path


# ---- compile: examples


def test_lists_examples_and_paths_are_the_same_examples(tmp_path: Path) -> None:
    sets = {"trainset": tickets(12, 1), "devset": tickets(12, 2), "testset": tickets(12, 3)}
    files = {name: written(tmp_path, f"{name}.jsonl", rows) for name, rows in sets.items()}
    given: list[dict[str, Any]] = [
        sets,
        {name: tuple(rows) for name, rows in sets.items()},
        {name: from_dspy(rows) for name, rows in sets.items()},
        files,
        {name: str(path) for name, path in files.items()},
    ]
    made = [
        compile_tickets(tmp_path / f"runs{n}", budget=FEW, **data).write(tmp_path / f"{n}.yaml").read_bytes()
        for n, data in enumerate(given)
    ]
    assert len(set(made)) == 1


def test_without_a_devset_dev_is_split_off_the_trainset(tmp_path: Path) -> None:
    compiled = compile_tickets(tmp_path, trainset=tickets(24, 1), devset=(), testset=(), budget=FEW)
    task = compiled.compilation.task
    assert (len(task.train), len(task.dev), len(task.test)) == (12, 12, 0)
    assert not {row.key for row in task.train} & {row.key for row in task.dev}
    again = compile_tickets(tmp_path, trainset=tickets(24, 1), devset=(), testset=(), budget=FEW)
    assert again.compilation.task.dev == task.dev
    other = compile_tickets(tmp_path, trainset=tickets(24, 1), devset=(), testset=(), budget=FEW, seed=1)
    assert other.compilation.task.dev != task.dev


@pytest.mark.parametrize("empty", [(), []])
def test_empty_sets_are_no_sets(empty: Any, tmp_path: Path) -> None:
    compiled = compile_tickets(tmp_path, trainset=empty, testset=empty, budget=FEW)
    assert set(compiled.compilation.baseline) == {"dev"}


def test_a_row_may_stand_in_one_set_only(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="this row of test has the same inputs as row 3 of dev"):
        compile_tickets(tmp_path, testset=[tickets(12, 2)[2]])
    assert not (tmp_path / "triage-1").exists()


@pytest.mark.parametrize(
    ("sets", "told"),
    [
        ({"trainset": (), "devset": (), "testset": ()}, "a compile needs dev examples"),
        ({"trainset": tickets(3, 1), "devset": ()}, "a compile needs dev examples"),
        ({"devset": [dspy.Example(ticket="t", queue="billing")]}, "does not say which fields are inputs"),
        ({"devset": "nowhere.jsonl"}, "no such file"),
    ],
)
def test_examples_that_cannot_be_used(sets: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=told):
        compile_tickets(tmp_path, **sets)
    assert list(tmp_path.iterdir()) == []


def test_a_file_for_a_program_of_several_predictors_needs_marked_examples(tmp_path: Path) -> None:
    class Two(Triage):
        def __init__(self) -> None:
            super().__init__()
            self.other = dspy.Predict("ticket -> note")

    with pytest.raises(InputError, match="does not say which fields are the inputs"):
        compile_tickets(tmp_path, program=Two(), devset=written(tmp_path, "dev.jsonl", tickets(4, 2)))


def test_examples_for_a_graph_are_checked_against_it(tmp_path: Path) -> None:
    graph = build(load_spec(spec_folder(tmp_path)))
    rows = [dspy.Example(ticket=f"t{n}", queue="Billing") for n in range(4)]
    with pytest.raises(InputError, match=r"example 1: queue.*'Billing'"):
        compile_tickets(tmp_path / "runs", program=graph, devset=rows)
    plain = [dspy.Example(dict(row)) for row in tickets(4, 2)]
    given = {"trainset": (), "devset": plain, "testset": ()}
    compiled = compile_tickets(tmp_path / "runs", program=graph, budget=FEW, **given)
    assert set(compiled.compilation.task.dev[0].inputs) == {"ticket"}, "the graph knows its inputs"


# ---- compile: everything else


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"metric": None}, "a compile needs a metric"),
        ({"metric": "exact_mach"}, "there is no metric 'exact_mach'.*'exact_match'"),
        ({"metric": lambda example: 1}, "metric '<lambda>' takes"),
        ({"optimizer": "jont"}, "unknown optimizer 'jont'.*'joint'"),
        ({"search": {"demo": 3}}, "search.demo: unknown key.*'demos'"),
        ({"search": {"demos": [4, 1]}}, "search.demos"),
        ({"search": {"formats": ["jason"]}}, "unknown format 'jason'.*'json'"),
        ({"search": {"readouts": ["chioce"]}}, "search.readouts"),
        ({"search": {"top_p": 0}}, "search.top_p"),
        ({"search": 3}, "search: found 3; expected a mapping"),
        ({"budget": {"metric_cals": 3}}, "budget.metric_cals: unknown key.*'metric_calls'"),
        ({"budget": {"metric_calls": 0}}, "budget.metric_calls: found 0; expected at least 1"),
        ({"budget": {"seconds": -1}}, "budget.seconds: found -1; expected more than 0"),
        ({"budget": {"metric_calls": "many"}}, "budget.metric_calls: found 'many'; expected a whole number"),
        ({"budget": 100}, "budget: found 100; expected a mapping"),
        ({"budget": Budget(metric_calls=-3)}, "budget.metric_calls: found -3"),
        ({"budget": Budget(trials=0)}, "a budget of 0 trials; expected at least 1"),
        ({"seed": "x"}, "seed: found 'x'; expected a whole number"),
        ({"name": "a/b"}, "the name 'a/b' cannot be used"),
        ({"name": "my program"}, "the name 'my program' cannot be used"),
    ],
)
def test_bad_arguments_are_told_before_anything_runs(changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    engine = FakeEngine()
    with pytest.raises(InputError, match=told):
        compile_tickets(tmp_path, engine, **changes)
    assert engine.batches == []
    assert list(tmp_path.iterdir()) == []


def test_several_mistakes_are_told_together(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        compile_tickets(tmp_path, budget={"seconds": -1}, search={"demos": -2}, seed=1.5)
    assert all(name in str(caught.value) for name in ("budget.seconds", "search.demos", "seed"))


@pytest.mark.parametrize(
    ("program", "told"), [(Triage, "an instance, Triage()"), (None, "a dspy.Module"), ("f1".upper, "a dspy.Module")]
)
def test_what_is_no_program_is_told(program: Any, told: str, tmp_path: Path) -> None:
    for ask in (
        lambda: compile_tickets(tmp_path, program=program),
        lambda: cuecard.evaluate(program, tickets(3, 2), "exact_match", target=target()),
    ):
        with pytest.raises(InputError, match="is no program") as caught:
            ask()
        assert told in str(caught.value)


@pytest.mark.parametrize("given", [DummyLM([]), 3])
def test_what_is_no_target_is_told(given: Any, tmp_path: Path) -> None:
    for ask in (
        lambda: compile_tickets(tmp_path, target=given),
        lambda: cuecard.evaluate(Triage(), tickets(3, 2), "exact_match", target=given),
        lambda: cuecard.load(spec_folder(tmp_path), target=given),
    ):
        with pytest.raises(InputError, match=r"is no target; expected cuecard.target\(...\), or a model's name"):
            ask()


def test_a_program_without_predictors_is_refused(tmp_path: Path) -> None:
    class Nothing(dspy.Module):
        def forward(self, ticket: str) -> dspy.Prediction:
            return dspy.Prediction(queue="billing")

    with pytest.raises(InputError, match="calls no model"):
        compile_tickets(tmp_path, program=Nothing())


def test_the_default_budget_is_two_thousand_metric_calls() -> None:
    for budget in (None, {}, Budget()):
        assert optimize_options(budget, 0, None, "joint")[1] == Budget(metric_calls=2000)
    assert optimize_options({"seconds": 3}, 0, None, "joint")[1] == Budget(seconds=3)


def test_the_program_that_was_given_is_left_alone(tmp_path: Path) -> None:
    program = Triage()
    compiled = compile_tickets(tmp_path, program=program)
    assert compiled.compilation.result.accepted
    assert type(program.route) is dspy.Predict
    assert program.route.demos == []
    assert program.route.lm is None


def test_a_programs_own_lm_is_not_what_it_is_compiled_for(tmp_path: Path) -> None:
    own = FakeEngine(says("mine"))
    program = Triage()
    program.set_lm(fake_target(own).lm)
    compiled = compile_tickets(tmp_path, program=program, budget=FEW)
    assert own.batches == []
    assert compiled.compilation.ledger["calls"] > 0


@pytest.mark.parametrize("metric", ["exact_match", {"metric": "exact_match", "field": "queue"}, ["exact_match"]])
def test_a_metric_may_be_named_in_several_ways(metric: Any, tmp_path: Path) -> None:
    assert compile_tickets(tmp_path, metric=metric).compilation.result.accepted


def exact(example: Any, prediction: Any, trace: Any = None) -> bool:
    return bool(example.queue == prediction.queue)


class Exact:
    def __call__(self, example: Any, prediction: Any) -> bool:
        return exact(example, prediction)


@pytest.mark.parametrize(
    "metric", [exact, Exact(), functools.partial(exact, trace=None)], ids=["def", "object", "partial"]
)
def test_a_metric_may_be_a_function_and_a_run_with_it_can_be_gone_on_with(metric: Any, tmp_path: Path) -> None:
    def before(batch: Any) -> None:
        if len(engine.batches) == 5:
            raise RuntimeError("gone")

    engine = WordLearner(bias={"billing": 2.0}).engine(before=before)
    with pytest.raises(RunError):
        compile_tickets(tmp_path, engine, metric=metric)
    fresh = Exact() if isinstance(metric, Exact) else metric
    again = compile_tickets(tmp_path, metric=fresh)
    assert again.compilation.folder.path.name == "triage-1"
    assert again.compilation.result.accepted


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"budget": Budget(trials=3)},
        {"metric": "f1"},
        {"devset": tickets(11, 2)},
        {"search": {"instructions": 1}},
        {"optimizer": "random"},
        {"program": dspy.Predict(Triage().route.signature), "name": "triage"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_compile_does_not_go_on_with_an_unfinished_one(change: dict[str, Any], tmp_path: Path) -> None:
    def before(batch: Any) -> None:
        if len(engine.batches) == 2:
            raise RuntimeError("gone")

    engine = WordLearner().engine(before=before)
    with pytest.raises(RunError):
        compile_tickets(tmp_path, engine, budget=FEW)
    other = compile_tickets(tmp_path, **{"budget": FEW, **change})
    assert other.compilation.folder.path.name == "triage-2"


def test_fresh_begins_anew(tmp_path: Path) -> None:
    engine = FakeEngine(failure=lambda request: "no")
    for number in (1, 2):
        with pytest.raises(RunError):
            compile_tickets(tmp_path, engine, fresh=True)
        assert (tmp_path / f"triage-{number}").is_dir()


# ---- compile: a spec


def test_what_stands_in_a_spec_cannot_be_given_beside_it(tmp_path: Path) -> None:
    path = spec_folder(tmp_path)
    for given in (
        {"trainset": tickets(4, 1)},
        {"metric": "f1"},
        {"search": {}},
        {"optimizer": "random"},
        {"name": "x"},
    ):
        with pytest.raises(InputError, match=f"{next(iter(given))} stands in the spec"):
            cuecard.compile(path, target=target(), runs=tmp_path / "runs", **given)  # type: ignore[arg-type]


def test_budget_and_seed_go_before_a_specs(tmp_path: Path) -> None:
    path = spec_folder(tmp_path)
    compiled = cuecard.compile(path, target=target(), budget={"metric_calls": 1}, seed=7, runs=tmp_path / "runs")
    task = compiled.compilation.task
    assert (task.budget, task.seed) == (Budget(metric_calls=1), 7)
    plain = cuecard.compile(str(path), target=target(), runs=tmp_path / "more")
    assert (plain.compilation.task.budget, plain.compilation.task.seed) == (Budget(metric_calls=120), 0)


def test_a_spec_without_a_metric_or_data_cannot_be_compiled(tmp_path: Path) -> None:
    for line, told in (("metric: exact_match\n", "no `metric:`"), ("data: {train: train.jsonl, dev", "no `data:`")):
        start = SPEC.index(line)
        text = SPEC[:start] + SPEC[SPEC.index("\n", start) + 1 :]
        with pytest.raises(InputError, match=told):
            cuecard.compile(spec_folder(tmp_path / line[:4], text), target=target())


def test_a_spec_with_train_alone_is_split(tmp_path: Path) -> None:
    path = spec_folder(
        tmp_path, SPEC.replace("train: train.jsonl, dev: dev.jsonl, test: test.jsonl", "train: train.jsonl")
    )
    compiled = cuecard.compile_spec(path, target=target(), runs=tmp_path / "runs", budget=FEW)
    task = compiled.compilation.task
    assert [len(task.train), len(task.dev), len(task.test)] == [5, 4, 3] or sum(
        map(len, (task.train, task.dev, task.test))
    ) == 12
    assert not {row.key for row in task.dev} & {row.key for row in (*task.train, *task.test)}


def test_rows_that_stand_in_two_files_of_a_spec_are_told(tmp_path: Path) -> None:
    path = spec_folder(tmp_path)
    (tmp_path / "test.jsonl").write_bytes((tmp_path / "dev.jsonl").read_bytes())
    with pytest.raises(InputError, match="this row of test has the same inputs as"):
        cuecard.compile_spec(path, target=target(), runs=tmp_path / "runs")


def test_the_output_of_a_spec_may_go_elsewhere(tmp_path: Path) -> None:
    path = spec_folder(tmp_path)
    cuecard.compile_spec(path, target=target(), runs=tmp_path / "runs", budget=FEW, output=tmp_path / "out.yaml")
    assert load_spec(tmp_path / "out.yaml").compiled is not None
    assert not (tmp_path / "two_steps.compiled.yaml").exists()


# ---- evaluate


def routing(text: str) -> cuecard.Target:
    return fake_target(FakeEngine(says(text)))


def test_a_score_with_its_interval() -> None:
    program = Predictor(Triage().route.signature, PredictorState(format="completion"))
    evaluation = cuecard.evaluate(program, tickets(12, 2), "exact_match", target=routing(" billing"))
    score = evaluation.score
    assert (round(score.value * 12), score.n) == (4, 12)
    assert 0 < score.low < score.value < score.high < 1
    assert (evaluation.unread, evaluation.failed) == (0, 0)
    assert [outcome.row.id for outcome in evaluation.outcomes] == list(range(12))


def test_unread_answers_count_and_failed_calls_do_not() -> None:
    def failure(request: Any) -> str | None:
        return "no" if " n2x3" in engine.tokenizer.text(request.prompt) else None

    def answer(prompt: str, *rest: Any) -> str:
        return " hm" if " n2x4" in prompt else " billing"

    engine = FakeEngine(answer, failure=failure)
    program = Predictor(Triage().route.signature, PredictorState(format="completion"))
    evaluation = cuecard.evaluate(program, tickets(12, 2), "exact_match", target=fake_target(engine))
    assert (evaluation.unread, evaluation.failed, evaluation.score.n) == (1, 1, 11)
    assert evaluation.score.value == pytest.approx(3 / 11)


def test_nothing_to_score_is_told() -> None:
    program = Triage()
    with pytest.raises(InputError, match="there are no examples"):
        cuecard.evaluate(program, [], "exact_match", target=target())
    failing = fake_target(FakeEngine(failure=lambda request: "no room"))
    with pytest.raises(RunError, match="all 3 examples failed.*\n.*no room"):
        cuecard.evaluate(program, tickets(3, 2), "exact_match", target=failing)


def test_one_example_that_breaks_the_program_is_one_failure() -> None:
    class Fragile(Triage):
        def forward(self, ticket: str) -> dspy.Prediction:
            if " n2x1" in f" {ticket}":
                raise LookupError("what is this?")
            return super().forward(ticket)

    evaluation = cuecard.evaluate(Fragile(), tickets(4, 2), "exact_match", target=routing("[[ ## queue ## ]]\nbilling"))
    errors = [outcome.error for outcome in evaluation.outcomes]
    assert errors == [None, "the program broke: LookupError: what is this?", None, None]


def test_evaluation_takes_files_and_other_seeds(tmp_path: Path) -> None:
    path = written(tmp_path, "dev.jsonl", tickets(9, 2))
    program = Predictor(Triage().route.signature, PredictorState(format="completion", readout=ReadOut(kind="choice")))
    graded = [cuecard.evaluate(program, path, "f1", target=target(), seed=seed).score for seed in (0, 0, 1)]
    assert graded[0] == graded[1]
    assert graded[0].value == graded[2].value


def test_a_plain_program_is_scored_as_dspy_would_ask(tmp_path: Path) -> None:
    engine = FakeEngine(says("[[ ## queue ## ]]\nbilling\n\n[[ ## completed ## ]]"))
    program = Triage()
    evaluation = cuecard.evaluate(program, tickets(6, 2), "exact_match", target=fake_target(engine))
    assert evaluation.score.value == pytest.approx(2 / 6)
    assert "[[ ## ticket ## ]]" in engine.prompts()[0]
    assert type(program.route) is dspy.Predict


def test_the_observer_counts_finished_examples() -> None:
    seen: list[int] = []
    cuecard.evaluate(Triage(), tickets(6, 2), "exact_match", target=routing("x"), observer=seen.append)
    assert max(seen) == 6


# ---- load


def test_load_gives_a_specs_program(tmp_path: Path) -> None:
    program = cuecard.load(spec_folder(tmp_path), target=target())
    assert program(ticket="invoice").queue in LABELS


def test_load_refuses_what_is_no_spec(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("hello: [")
    for path, told in ((tmp_path / "x.yaml", "not valid YAML"), (tmp_path / "y.yaml", "no such file")):
        with pytest.raises(InputError, match=told):
            cuecard.load(path)


# ---- Joint, the teleprompter


def test_joint_is_a_teleprompter(tmp_path: Path) -> None:
    joint = cuecard.Joint(
        exact, target=target(), budget={"metric_calls": 100}, search={"instructions": 2, "demos": [0, 4]}, runs=tmp_path
    )
    assert isinstance(joint, dspy.teleprompt.Teleprompter)
    compiled = joint.compile(Triage(), trainset=tickets(12, 1), valset=tickets(12, 2))
    assert isinstance(compiled, cuecard.Compiled)
    assert compiled.compilation.result.accepted
    assert (len(compiled.compilation.task.dev), len(compiled.compilation.task.test)) == (12, 0)


def test_joint_uses_dspys_lm_where_it_is_a_target(tmp_path: Path) -> None:
    engine = WordLearner(bias={"billing": 2.0}).engine()
    with dspy.context(lm=fake_target(engine).lm):
        compiled = cuecard.Joint("exact_match", budget=FEW, runs=tmp_path).compile(Triage(), trainset=tickets(12, 1))
    assert engine.batches
    assert compiled.compilation.task.target.engine is engine
    with dspy.context(lm=DummyLM([{"queue": "billing"}])), pytest.raises(InputError, match="not a Cuecard target"):
        cuecard.Joint("exact_match", runs=tmp_path).compile(Triage(), trainset=tickets(12, 1))


def test_joint_and_compile_come_to_the_same(tmp_path: Path) -> None:
    joint = cuecard.Joint("exact_match", target=target(), budget=Budget(trials=4), seed=3, runs=tmp_path / "a")
    ours = joint.compile(Triage(), trainset=tickets(12, 1), valset=tickets(12, 2))
    theirs = compile_tickets(tmp_path / "b", testset=(), search=None, seed=3, budget=Budget(trials=4))
    assert ours.write(tmp_path / "a.yaml").read_bytes() == theirs.write(tmp_path / "b.yaml").read_bytes()


@pytest.mark.parametrize("given", [{"teacher": Triage()}, {"max_demos": 3}], ids=["teacher", "other"])
def test_joint_refuses_what_it_would_overlook(given: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"Joint takes no {next(iter(given))!r}"):
        cuecard.Joint("exact_match", target=target(), runs=tmp_path).compile(Triage(), trainset=tickets(12, 1), **given)
