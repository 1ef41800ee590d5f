"""The compiled program: the same compile writes the same bytes, and the file is the program."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import dspy
import pytest
from fakes import SPEC, FakeEngine, Triage, WordLearner, compile_tickets, fake_target, says, spec_folder, tickets
from pydantic import BaseModel

import cuecard
from cuecard.compiler.evaluator import candidate_of
from cuecard.errors import InputError, RunError
from cuecard.models.engine import Decoding
from cuecard.optimizers.base import Budget
from cuecard.programs.learned import python_spec
from cuecard.programs.predictor import Predictor
from cuecard.programs.spec import load_spec
from cuecard.programs.state import PredictorState

BIAS = {"billing": 2.0}
NEW = tickets(20, 9)


def target() -> cuecard.Target:
    learner = WordLearner(bias=BIAS)

    def answer(prompt: str, decoding: Decoding, sample: int) -> str:
        return " in brief" if prompt.endswith("Summary:") else learner.answer(prompt, decoding, sample)

    return fake_target(FakeEngine(answer, learner.likelihood))


def predictions(program: Any, rows: Any = NEW) -> list[str]:
    return [program(ticket=row.ticket).queue for row in rows]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> tuple[cuecard.Compiled, Path]:
    folder = tmp_path_factory.mktemp("python")
    compiled = compile_tickets(folder / "runs")
    return compiled, compiled.write(folder / "triage.compiled.yaml")


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> tuple[cuecard.Compiled, Path]:
    spec = spec_folder(tmp_path_factory.mktemp("graph"))
    compiled = cuecard.compile_spec(spec, target=target(), runs=spec.parent / "runs")
    return compiled, spec.with_name("two_steps.compiled.yaml")


# ---- the same bytes


def test_the_same_compile_writes_the_same_bytes_wherever_it_runs(
    python: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = python[1].read_bytes()
    monkeypatch.chdir(tmp_path)
    again = compile_tickets(Path("other") / "runs")
    assert again.write("elsewhere.yaml").read_bytes() == written


def test_the_same_spec_writes_the_same_bytes_in_another_folder(
    graph: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_folder(tmp_path / "a" / "b")
    monkeypatch.chdir(spec.parent)
    cuecard.compile("two_steps.yaml", target=target())
    assert spec.with_name("two_steps.compiled.yaml").read_bytes() == graph[1].read_bytes()
    assert (spec.parent / ".cuecard" / "runs" / "two_steps-1" / "run.json").is_file()


def test_another_seed_writes_another_file(python: Any, tmp_path: Path) -> None:
    other = compile_tickets(tmp_path / "runs", seed=1)
    assert other.write(tmp_path / "x.yaml").read_bytes() != python[1].read_bytes()


@pytest.mark.parametrize("kind", ["python", "graph"])
def test_the_file_holds_no_place_and_no_time(kind: str, request: pytest.FixtureRequest) -> None:
    compiled, path = request.getfixturevalue(kind)
    text = path.read_text()
    assert str(compiled.compilation.folder.path.parent) not in text
    assert "seconds" not in text
    assert "stage" not in text


def test_writing_it_again_changes_nothing(python: Any, tmp_path: Path) -> None:
    compiled, path = python
    assert compiled.write(tmp_path / "again.yaml").read_bytes() == path.read_bytes()
    assert compiled.write(path).read_bytes() == (tmp_path / "again.yaml").read_bytes()


def test_a_folder_that_is_not_there_is_told(python: Any, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot be written"):
        python[0].write(tmp_path / "none" / "x.yaml")


# ---- the evidence in it


def test_the_compiled_block_says_where_it_comes_from(graph: Any) -> None:
    compiled, path = graph
    block = load_spec(path).compiled
    assert block is not None
    assert (block.target.identity, block.target.name, block.target.device) == ("fake", "fake", "cpu")
    assert set(block.data) == {"train", "dev", "test"}
    assert all(len(digest) == 64 for digest in block.data.values())
    assert (block.seed, block.optimizer, block.kept) == (0, "joint", "candidate")
    compilation = compiled.compilation
    assert block.spent == compilation.spent
    for shown, scores in ((block.baseline, compilation.baseline), (block.scores, compilation.compiled)):
        assert {name: score.n for name, score in shown.items()} == {"dev": 12, "test": 12}
        for name, score in shown.items():
            assert score.value == pytest.approx(scores[name].value, abs=1e-6)
            assert score.low is not None and score.high is not None
            assert score.low <= score.value <= score.high
    assert set(block.versions) == {"cuecard", "dspy", "torch", "transformers", "optuna"}


def test_a_kept_baseline_says_so_and_is_the_program_as_it_was(tmp_path: Path) -> None:
    engine = FakeEngine(says("nothing of use"))
    compiled = compile_tickets(tmp_path / "runs", engine, budget=Budget(trials=3))
    path = compiled.write(tmp_path / "x.yaml")
    spec = load_spec(path)
    assert spec.compiled is not None and spec.compiled.kept == "baseline"
    loaded = cuecard.load(path, program=Triage())
    assert candidate_of(loaded).states == compiled.compilation.candidate.states


def test_what_the_user_wrote_stays(graph: Any) -> None:
    spec = load_spec(graph[1])
    assert spec.name == "two_steps"
    assert spec.optimize.budget.metric_calls == 120
    assert spec.nodes is not None and list(spec.nodes) == ["summary", "route"]
    assert graph[1].read_text().startswith("name: two_steps\n")


# ---- the file is the program


def test_a_python_program_loads_with_what_it_learned(python: Any) -> None:
    compiled, path = python
    loaded = cuecard.load(path, program=Triage(), target=target())
    assert predictions(loaded) == predictions(compiled)
    assert candidate_of(loaded).states == compiled.compilation.candidate.states


def test_a_spec_loads_with_what_it_learned(graph: Any) -> None:
    compiled, path = graph
    loaded = cuecard.load(path, target=target())
    assert predictions(loaded) == predictions(compiled)
    assert candidate_of(loaded).states == compiled.compilation.candidate.states


def test_what_was_loaded_scores_what_the_file_says(graph: Any) -> None:
    spec = load_spec(graph[1])
    loaded = cuecard.load(graph[1])
    score = cuecard.evaluate(loaded, tickets(12, 3), "exact_match", target=target()).score
    assert spec.compiled is not None
    assert score.value == pytest.approx(spec.compiled.scores["test"].value, abs=1e-6)


def test_without_a_target_it_runs_on_dspys_lm(python: Any) -> None:
    loaded = cuecard.load(python[1], program=Triage())
    with dspy.context(lm=target().lm):
        assert predictions(loaded, NEW[:3]) == predictions(python[0], NEW[:3])


def test_the_compiled_program_runs_on_its_target_whatever_dspy_has(python: Any) -> None:
    other = FakeEngine(says("not me"))
    with dspy.context(lm=fake_target(other).lm):
        predictions(python[0], NEW[:2])
    assert other.batches == []


def test_a_python_programs_file_needs_the_program(python: Any) -> None:
    with pytest.raises(InputError, match="compiled from a Python program") as caught:
        cuecard.load(python[1])
    assert "program=MyProgram()" in str(caught.value)


class Other(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.router = dspy.Predict(Triage().route.signature)


class Changed(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.route = dspy.Predict("ticket -> queue")


@pytest.mark.parametrize(
    ("program", "told"),
    [(Other, "no predictor 'route'.*'router'"), (Changed, "the signature of predictor 'route' is no longer")],
)
def test_another_program_is_refused(program: Any, told: str, python: Any) -> None:
    with pytest.raises(InputError, match=told) as caught:
        cuecard.load(python[1], program=program())
    assert caught.value.path == str(python[1])


def test_loading_runs_no_code_that_the_file_names(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    (tmp_path / "mine.py").write_text(
        f"open({str(marker)!r}, 'w')\n\ndef score(example, prediction):\n    return 1.0\n"
    )
    text = SPEC.replace("metric: exact_match", "metric: {metric: 'mine:score'}")
    path = spec_folder(tmp_path, text)
    before = set(sys.modules)
    loaded = cuecard.load(path, target=target())
    predictions(loaded, NEW[:1])
    assert not marker.exists()
    assert not [name for name in set(sys.modules) - before if "mine" in name]
    with pytest.raises(InputError, match="--allow-code"):
        cuecard.compile(path, target=target(), runs=tmp_path / "runs")
    assert not marker.exists()


def test_a_compiled_spec_can_be_compiled_again(graph: Any, tmp_path: Path) -> None:
    folder = spec_folder(tmp_path).parent
    (folder / "two_steps.compiled.yaml").write_bytes(graph[1].read_bytes())
    again = cuecard.compile(folder / "two_steps.compiled.yaml", target=target(), runs=tmp_path / "runs")
    assert sorted(path.name for path in folder.glob("*.yaml")) == ["two_steps.compiled.yaml", "two_steps.yaml"]
    before, now = graph[0].compilation, again.compilation
    assert now.baseline["dev"].value == pytest.approx(before.compiled["dev"].value)
    assert now.compiled["dev"].value >= now.baseline["dev"].value


# ---- as a module


def test_a_copy_is_the_same_program_and_changes_alone(python: Any) -> None:
    compiled = python[0]
    copy = compiled.deepcopy()
    assert predictions(copy, NEW[:4]) == predictions(compiled, NEW[:4])
    kept = compiled.program.route.state
    copy.program.route.demos = []
    assert compiled.program.route.state == kept
    assert copy.deepcopy().program.route.demos == [], "a copy of what was changed is what was changed"
    assert copy.compilation is compiled.compilation
    assert compiled.reset_copy().program.route.demos == []


def test_dspys_save_and_load_work_on_it(python: Any, tmp_path: Path) -> None:
    compiled = python[0]
    compiled.save(str(tmp_path / "state.json"))
    other = compiled.deepcopy()
    other.program.route.state = PredictorState()
    other.load(str(tmp_path / "state.json"))
    assert other.program.route.state == compiled.program.route.state


def test_compiling_and_scoring_take_a_compiled_program(graph: Any, tmp_path: Path) -> None:
    compiled = graph[0]
    given = [dspy.Example(**row, summary="none").with_inputs("ticket") for row in tickets(12, 3)]
    score = cuecard.evaluate(compiled, given, "exact_match", target=target()).score
    assert score.value == pytest.approx(compiled.compilation.compiled["test"].value)
    again = compile_tickets(tmp_path / "runs", program=compiled, target=target(), budget=Budget(trials=2))
    assert again.compilation.baseline["dev"].value == pytest.approx(compiled.compilation.compiled["dev"].value)
    assert list(again.compilation.candidate.states) == ["summary", "route"]


# ---- types


class Mood(Enum):
    GOOD = "good"
    BAD = "not so good"


class Person(BaseModel):
    name: str
    age: int = 3


class Picture(dspy.Signature):
    """Look."""

    picture: dspy.Image = dspy.InputField()
    answer: Literal["yes", "no"] = dspy.OutputField()


class Typed(dspy.Signature):
    """Read."""

    text: str = dspy.InputField(desc="what was said")
    mood: Mood = dspy.OutputField()
    people: list[Person] = dspy.OutputField()
    score: float | None = dspy.OutputField()


def test_a_program_with_types_of_its_own_comes_back_typed(tmp_path: Path) -> None:
    demo = {"text": "t", "mood": Mood.BAD, "people": [Person(name="Ann", age=7)], "score": None}
    program = Predictor(Typed, PredictorState(format="json", demos=(demo,)))
    spec = python_spec("typed", program)
    from cuecard.files import write_atomic
    from cuecard.programs.yaml_source import dump_yaml

    write_atomic(tmp_path / "x.yaml", dump_yaml(spec.to_data()))
    loaded = cuecard.load(tmp_path / "x.yaml", program=dspy.Predict(Typed))
    assert loaded.state == program.state


def test_a_compile_of_typed_outputs_can_be_loaded(tmp_path: Path) -> None:
    rows = [
        dspy.Example(text=f"t{n}", mood=Mood.GOOD, people=[Person(name="Ann")], score=0.5).with_inputs("text")
        for n in range(12)
    ]
    answer = '{"mood": "good", "people": [{"name": "Ann"}], "score": 0.5}'
    engine = FakeEngine(says(answer), lambda prompt, text: -1.0 if "not" in text else 0.0)
    splits = {"trainset": rows[:2], "devset": rows[2:10], "testset": rows[10:]}
    compiled = compile_tickets(
        tmp_path / "runs",
        engine,
        program=dspy.Predict(Typed),
        budget=Budget(trials=4),
        search={"formats": ["json"], "readouts": ["text"]},
        **splits,
    )
    assert compiled.compilation.result.accepted
    path = compiled.write(tmp_path / "typed.compiled.yaml")
    loaded = cuecard.load(path, program=dspy.Predict(Typed), target=fake_target(engine))
    assert candidate_of(loaded).states == compiled.compilation.candidate.states
    assert loaded(text="x").toDict() == compiled(text="x").toDict()
