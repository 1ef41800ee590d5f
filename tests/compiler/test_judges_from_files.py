"""Judges in files: which files hold one, what its labels are worth, how its fields meet the task's, and the whole way."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dspy
import numpy as np
import pytest
from fakes import FakeEngine, fake_target
from hypothesis import given
from hypothesis import strategies as st

import cuecard as package
from cuecard.compiler.evaluate import Answered
from cuecard.compiler.from_spec import compile_spec, spec_metric
from cuecard.compiler.judging import (
    JudgeMetric,
    Models,
    Subject,
    check_judges,
    checker,
    grader,
    judge_files,
    load_judge,
    metric_of,
)
from cuecard.compiler.judging.loading import label_values
from cuecard.compiler.judging.telling import check_on
from cuecard.compiler.label_metrics import knowing_labels
from cuecard.compiler.testing import read_suite, run_tests
from cuecard.errors import InputError
from cuecard.programs.heads import Head, choice_of
from cuecard.programs.spec import load_spec
from cuecard.programs.state import PredictorState, ReadOut

from .cli_cases import write_rows

JUDGE = """\
signature: "question, reply -> grade: Literal[1, 2, 3]"
instructions: Grade the reply.
readout: choice
"""
CASE = Answered({"question": "why"}, {}, {"reply": "so"})


def grades(*shares: float, labels: Sequence[str] = ("1", "2", "3"), **options: Any) -> FakeEngine:
    """An engine that gives the labels these probabilities, and 1 to all other texts."""
    by_label = dict(zip(labels, shares, strict=True))
    return FakeEngine(likelihood=lambda prompt, text: math.log(by_label.get(text.strip(), 1.0)), **options)


def judge_at(folder: Path, text: str = JUDGE, name: str = "judge.yaml", **options: Any) -> JudgeMetric:
    (folder / name).write_text(text, encoding="utf-8")
    made = metric_of({"judge": {"program": name, **options}}, path=folder / "spec.yaml", line=7, folder=folder)
    assert isinstance(made, JudgeMetric)
    return made


def score(metric: JudgeMetric, engine: FakeEngine, case: Answered = CASE) -> float:
    with dspy.context(lm=fake_target(engine).lm):
        (found,) = metric.measure_all([case])
    assert not isinstance(found, str), found
    return found.score


# ---- what a label is worth


def test_a_specs_grade_is_the_mean_of_what_its_labels_are_worth(tmp_path: Path) -> None:
    engine = grades(0.1, 0.2, 0.7)
    assert score(judge_at(tmp_path), engine) == pytest.approx(0.5 * 0.2 + 0.7)
    assert "Question: why" in engine.prompts()[0] and "Reply: so" in engine.prompts()[0]


def test_numbers_need_not_be_next_to_each_other_nor_in_order(tmp_path: Path) -> None:
    text = JUDGE.replace("[1, 2, 3]", "[10, 0, 2]")
    assert score(judge_at(tmp_path, text), grades(0.5, 0.25, 0.25, labels=("10", "0", "2"))) == pytest.approx(0.55)


@pytest.mark.parametrize("labels", [("yes", "no"), ("no", "yes"), ("true", "false")])
def test_yes_and_no(labels: tuple[str, ...]) -> None:
    found = label_values(labels)
    assert found == {label: float(label in ("yes", "true")) for label in labels}
    assert list(found) == list(labels)


def test_a_bool(tmp_path: Path) -> None:
    text = JUDGE.replace("grade: Literal[1, 2, 3]", "good: bool")
    assert score(judge_at(tmp_path, text), grades(0.8, 0.2, labels=("true", "false"))) == pytest.approx(0.8)


def test_other_labels_need_their_values(tmp_path: Path) -> None:
    text = JUDGE.replace("[1, 2, 3]", "['warm', 'fair', 'cold']")
    engine = grades(0.5, 0.4, 0.1, labels=("warm", "fair", "cold"))
    made = judge_at(tmp_path, text, values={"warm": 1, "fair": 0.5, "cold": 0})
    assert score(made, engine) == pytest.approx(0.7)
    with pytest.raises(InputError) as caught:
        judge_at(tmp_path, text)
    assert str(caught.value) == (
        f"{tmp_path / 'judge.yaml'}:1: what the labels warm, fair, cold are worth is not known; expected whole numbers, "
        "or yes and no\n  Say it where the judge is named: `values: {warm: 0, fair: 1}`, from 0 to 1."
    )


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"1": 1, "2": 0}, "metric.values: the label '3' has no value"),
        ({"1": 1, "2": 0, "3": 2}, "metric.values.3: found 2; expected a number from 0 to 1"),
        ({"1": True, "2": 0, "3": 1}, "metric.values.1: found True"),
        ({"1": 1, "2": 1, "3": 1}, "every label has the same value"),
        ({"1": 1, "2": 1, "4": 1}, "the judge has no label '4'"),
    ],
)
def test_values_that_do_not_fit(tmp_path: Path, values: Mapping[str, Any], told: str) -> None:
    with pytest.raises(InputError) as caught:
        judge_at(tmp_path, values=values)
    assert told in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path / 'spec.yaml'}:7: ")


@given(st.lists(st.integers(-50, 50), min_size=2, max_size=8, unique=True))
def test_a_scale_of_whole_numbers_keeps_their_order_and_distances(numbers: list[int]) -> None:
    found = label_values([str(number) for number in numbers])
    assert (min(found.values()), max(found.values())) == (0.0, 1.0)
    span = max(numbers) - min(numbers)
    for a in numbers:
        for b in numbers:
            assert found[str(a)] - found[str(b)] == pytest.approx((a - b) / span)


def test_a_label_without_probabilities_is_worth_its_value(tmp_path: Path) -> None:
    metric = judge_at(tmp_path, JUDGE.replace("readout: choice", "readout: text\nformat: completion"))
    assert score(metric, FakeEngine(lambda *_: " 2\n")) == 0.5


def test_a_learned_matrix_counts(tmp_path: Path) -> None:
    """The matrix swaps the two labels' log-likelihoods."""
    swap = np.array([[0.0, 1.0], [1.0, 0.0]], dtype=np.float32)
    zero, one = np.zeros(2, dtype=np.float32), np.ones(2, dtype=np.float32)
    choice = choice_of(Head(("1", "2"), swap, zero, zero, one, None, "scores"), "grade.head.safetensors")
    state = PredictorState(readout=ReadOut(kind="choice", heads={"grade": choice}))
    metric = JudgeMetric(program=grader(Subject(("question",), ("reply",)), "Grade it.", (1, 2), state))
    assert score(metric, grades(0.9, 0.1, labels=("1", "2"))) == pytest.approx(0.9)


# ---- its fields and the task's


def test_it_is_shown_what_it_has_inputs_for(tmp_path: Path) -> None:
    text = JUDGE.replace("question, reply", "reply, reference")
    engine = grades(0.2, 0.2, 0.6)
    case = Answered({"question": "why", "mood": "bad"}, {"reply": "since"}, {"reply": "so", "reason": "hm"})
    assert score(judge_at(tmp_path, text), engine, case) == pytest.approx(0.7)
    shown = engine.prompts()[0]
    assert "Reference: since" in shown and "Reply: so" in shown
    assert "why" not in shown and "bad" not in shown and "hm" not in shown


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        (
            "question, repli",
            "the judge's input 'repli' is no field of the task; expected one of question, reply (did you mean 'reply'?)",
        ),
        ("question", "the judge reads no output of the task; expected an input called reply"),
        ("question, reply, criterion", "It reads a `criterion`: give `criteria`."),
    ],
)
def test_fields_that_nothing_fills_are_told_before_anything_runs(tmp_path: Path, inputs: str, told: str) -> None:
    metric = judge_at(tmp_path, JUDGE.replace("question, reply", inputs))
    with pytest.raises(InputError) as caught:
        check_judges(metric, ["question"], ["reply"])
    assert told in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path / 'judge.yaml'}: ")
    with pytest.raises(InputError), dspy.context(lm=fake_target(grades(0.2, 0.3, 0.5)).lm):
        metric.measure_all([CASE])


def test_fields_choose_among_the_outputs_that_it_reads(tmp_path: Path) -> None:
    text = JUDGE.replace("question, reply", "reply, reference")
    case = Answered({"question": "why"}, {"reply": "since"}, {"reply": "so", "reason": "hm"})
    assert judge_at(tmp_path, text, field="reply").subject(case).answers == ("reply",)
    with pytest.raises(InputError, match="the judge does not read the field 'reason'; expected one of its inputs"):
        judge_at(tmp_path, text, field="reason").subject(case)


def test_an_optional_input_may_stay_empty(tmp_path: Path) -> None:
    text = JUDGE.replace("question, reply", "reply, mood: str | None")
    assert score(judge_at(tmp_path, text), grades(0.2, 0.2, 0.6)) == pytest.approx(0.7)


def test_a_program_with_other_names_inside_and_with_reasoning(tmp_path: Path) -> None:
    text = """\
inputs: {question: str, reply: str}
nodes:
  judge:
    module: chain_of_thought
    signature: "asked, said -> mark: Literal[1, 2]"
    format: completion
    readout: choice
    inputs: {asked: "${inputs.question}", said: "${inputs.reply}"}
outputs: {grade: "${judge.mark}"}
"""
    engine = FakeEngine(
        lambda *_: " it is short\n", lambda prompt, label: math.log({"1": 0.3, "2": 0.7}[label.strip()])
    )
    assert score(judge_at(tmp_path, text), engine) == pytest.approx(0.7)
    assert "Asked: why" in engine.prompts()[0]


INNER = """\
inputs: {ticket: str}
nodes:
  short: {signature: "ticket -> summary: str", format: completion}
  route:
    signature: "ticket, summary -> queue: Literal['billing', 'account']"
    inputs: {ticket: "${inputs.ticket}", summary: "${short.summary}"}
outputs: {queue: "${route.queue}"}
"""


def test_what_lies_between_the_nodes_is_no_output_that_a_judge_could_read(tmp_path: Path) -> None:
    metric = judge_at(tmp_path, JUDGE.replace("question, reply", "ticket, summary, queue"))
    (tmp_path / "program.yaml").write_text(INNER)
    told = "the judge's input 'summary' is no field of the task; expected one of ticket, queue"
    with pytest.raises(InputError, match=told):
        knowing_labels(metric, package.load(tmp_path / "program.yaml"))
    (tmp_path / "program.yaml").write_text(INNER.replace("outputs: {", 'outputs: {summary: "${short.summary}", '))
    assert knowing_labels(metric, package.load(tmp_path / "program.yaml")) is metric
    line = "  - {name: a, inputs: {ticket: t}, assert: [{type: judge, field: queue, value: {program: judge.yaml}}]}\n"
    (tmp_path / "program.yaml").write_text(f"{INNER}tests:\n{line}")
    with pytest.raises(InputError, match=told):
        read_suite(tmp_path / "program.yaml")


def test_what_a_module_adds_can_be_read(tmp_path: Path) -> None:
    metric = judge_at(tmp_path, JUDGE.replace("question, reply", "reasoning, reply"))
    (tmp_path / "program.yaml").write_text("module: chain_of_thought\nsignature: question -> reply\n")
    assert knowing_labels(metric, package.load(tmp_path / "program.yaml")) is metric


def test_criteria_beside_a_judge_that_reads_none(tmp_path: Path) -> None:
    told = "the judge reads no criterion\n  Leave out `criteria`, or name a judge that `checker` made."
    with pytest.raises(InputError, match=told):
        check_judges(judge_at(tmp_path, criteria=["is short"]), ["question"], ["reply"])
    made = JudgeMetric(program=grader(Subject(("question",), ("reply",)), "Grade it."), criteria=["is short"])
    with pytest.raises(InputError, match=told), dspy.context(lm=fake_target(FakeEngine()).lm):
        made.measure_all([CASE])


# ---- which files


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            'signature: "question, reply -> grade: int"\n',
            "no output is a label: grade; expected one output with a finite",
        ),
        ('signature: "reply -> a: bool, b: bool"\n', "the outputs a, b are labels"),
        ('signature: "reply: list[str] -> a: bool"\n', "the judge's input 'reply' is list[str]; expected str"),
        ('signature: "reply -> a bool"\n', "judge.yaml:1"),
        (
            "inputs: {reply: str}\nnodes:\n"
            '  a: {signature: "reply -> short: str"}\n'
            '  b: {signature: "short -> grade: bool", inputs: {short: "${a.short}"}}\n',
            "judge.yaml:2: the program calls the model in 2 places; expected one",
        ),
        (
            'predictors: {main: {signature: "reply -> good: bool"}}\n',
            "this file was compiled from a Python program, which it does not hold",
        ),
    ],
)
def test_files_that_hold_no_judge(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(InputError) as caught:
        judge_at(tmp_path, text)
    assert told in str(caught.value)
    assert "judge.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"program": "gone.yaml"}, "metric.program: no such file: gone.yaml"),
        ({"program": "judje.yaml"}, "(did you mean 'judge.yaml'?)"),
        ({"program": "../judge.yaml"}, "metric.program: '../judge.yaml' leads out of the spec's folder"),
        ({"program": "judge.yaml", "rubric": "x"}, "metric.rubric: found 'rubric' beside 'program'"),
        ({"program": "judge.yaml", "scale": [1, 3]}, "metric.scale: found 'scale' beside 'program'"),
        ({"program": "judge.yaml", "reference": True}, "metric.reference: the judge reads no reference"),
        ({"rubric": "x", "values": {"1": 0}}, "metric.values: found 'values' without 'program'"),
        ({"program": 3}, "metric.program: found 3"),
    ],
)
def test_what_a_spec_says_wrong(tmp_path: Path, options: Mapping[str, Any], told: str) -> None:
    (tmp_path / "inside").mkdir()
    for folder in (tmp_path, tmp_path / "inside"):
        (folder / "judge.yaml").write_text(JUDGE)
    with pytest.raises(InputError) as caught:
        metric_of({"judge": options}, path=tmp_path / "inside" / "spec.yaml", line=2)
    assert told in str(caught.value)


def test_outside_the_folder_only_where_that_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "judge.yaml").write_text(JUDGE)
    (tmp_path / "inside" / "link.yaml").symlink_to(tmp_path / "judge.yaml")
    spec = tmp_path / "inside" / "spec.yaml"
    for name in ("../judge.yaml", str(tmp_path / "judge.yaml"), "link.yaml"):
        with pytest.raises(InputError, match="leads out of the spec's folder"):
            metric_of({"judge": {"program": name}}, path=spec)
        assert isinstance(metric_of({"judge": {"program": name}}, path=spec, allow_outside=True), JudgeMetric)
    assert isinstance(metric_of({"judge": {"program": str(tmp_path / "judge.yaml")}}), JudgeMetric)


def test_loading_runs_no_code(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(f"open({str(marker)!r}, 'w')\n")
    judge_at(tmp_path, JUDGE + "metric: evil:metric\n")
    assert not marker.exists()


def test_its_file_is_known_by_its_content(tmp_path: Path) -> None:
    one = judge_files(judge_at(tmp_path))
    two = judge_files(judge_at(tmp_path, JUDGE.replace("Grade", "Judge")))
    assert len(one) == 1 and one != two
    assert judge_files(metric_of("exact_match")) == []


# ---- what it runs on


def test_it_runs_on_the_engine_that_it_was_made_for_else_on_the_model_of_its_file(tmp_path: Path) -> None:
    block = "model: big\ncompiled: {target: {identity: big-engine}}\n"
    mine, big = grades(0.1, 0.1, 0.8, identity="mine"), grades(0.8, 0.1, 0.1, identity="big-engine")
    opened: list[Any] = []

    def open_model(name: Any) -> Any:
        opened.append(name)
        return fake_target(big)

    metric = judge_at(tmp_path, JUDGE + block)
    metric.models = Models(open_model)
    assert score(metric, mine) == pytest.approx(0.15)
    assert opened == ["big"]
    again = judge_at(tmp_path, JUDGE + block)
    assert score(again, grades(0.2, 0.2, 0.6, identity="big-engine")) == pytest.approx(0.7)
    named = judge_at(tmp_path, JUDGE + block, model="other")
    named.models = Models(open_model)
    assert score(named, mine) == pytest.approx(0.15)
    assert opened == ["big", "other"]
    assert (again.model_name, named.model_name, judge_at(tmp_path).model_name) == ("big", "other", None)
    assert score(judge_at(tmp_path), mine) == pytest.approx(0.85)


def test_another_target_than_it_was_made_for_is_warned_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    block = "compiled: {target: {identity: big-engine, name: big, dtype: bfloat16, device: cpu}}\n"
    metric = judge_at(tmp_path, JUDGE + block)
    for identity in ("big-engine", "mine", "mine"):
        score(metric, grades(0.1, 0.1, 0.8, identity=identity))
    assert [record.getMessage() for record in caplog.records if record.name == "cuecard"] == [
        "the judge 'judge' was compiled for another target (big, bfloat16, cpu); it runs on fake"
    ]
    caplog.clear()
    score(judge_at(tmp_path), grades(0.1, 0.1, 0.8))
    assert not caplog.records


# ---- compiled from Python


def compiled(judge: dspy.Module, rows: Sequence[dict[str, Any]], outputs: str, engine: FakeEngine, path: Path) -> Path:
    marked = [dspy.Example(**row).with_inputs(*[name for name in row if name != outputs]) for row in rows]
    made = package.compile(
        judge,
        trainset=marked[: len(marked) // 2],
        devset=marked[len(marked) // 2 :],
        metric="exact_match",
        target=fake_target(engine),
        budget={"metric_calls": 20},
        search={"instructions": 1, "demos": [0, 2], "formats": ["chat"]},
        runs=path.parent / "runs",
    )
    return made.write(path)


def test_what_grader_made_is_read_again(tmp_path: Path) -> None:
    judge = grader(Subject(("question",), ("reply",)), "How helpful is the reply?", (1, 3))
    rows = [{"question": "why", "reply": f"so {n}", "grade": 1 + n % 3} for n in range(12)]
    path = compiled(judge, rows, "grade", grades(0.5, 0.3, 0.2), tmp_path / "judge.compiled.yaml")
    metric = JudgeMetric(program=load_judge(str(path)))
    assert metric.values() == {"1": 0.0, "2": 0.5, "3": 1.0}
    state = load_spec(path).predictors["judge"]  # type: ignore[index]
    assert metric.words == state.instructions
    with dspy.context(lm=fake_target(grades(0.1, 0.2, 0.7)).lm):
        found = metric.questions(CASE)
        assert [inputs for _, inputs in found] == [{"question": "why", "reply": "so"}]
        assert 0.0 <= metric.measure_all([CASE])[0].score <= 1.0  # type: ignore[union-attr]


def test_what_checker_made_takes_criteria(tmp_path: Path) -> None:
    judge = checker(Subject(("question",), ("reply",)))
    rows = [
        {"question": "why", "reply": f"so {n}", "criterion": "is short", "met": "yes" if n % 2 else "no"}
        for n in range(12)
    ]
    labels = ("yes", "no")
    path = compiled(judge, rows, "met", grades(0.5, 0.5, labels=labels), tmp_path / "list.yaml")
    made = metric_of({"judge": {"program": path.name, "criteria": ["is short", "is kind"]}}, folder=tmp_path)
    assert isinstance(made, JudgeMetric)
    asked = [given["criterion"] for _, given in made.questions(CASE)]
    assert asked == ["is short", "is kind"]
    assert 0.0 < score(made, grades(0.9, 0.1, labels=labels)) <= 1.0


# ---- tests and gates

SUITE = """\
signature: question -> reply
format: completion
metric: {judge: {program: judge.yaml}}
tests:
"""


def echoing(**options: Any) -> FakeEngine:
    """Says again what was asked; a judge finds a `good` reply a 3, any other a 1."""

    def likelihood(prompt: str, label: str) -> float:
        said = prompt.rpartition("Reply: ")[2].splitlines()[0]
        return math.log(0.9 if label.strip() == ("3" if "good" in said else "1") else 0.05)

    return FakeEngine(lambda p, *_: f" {p.rpartition('Question: ')[2].splitlines()[0]}\n", likelihood, **options)


def suite_at(folder: Path, tests: str, judge: str = JUDGE) -> Any:
    (folder / "judge.yaml").write_text(judge)
    (folder / "spec.yaml").write_text(SUITE + tests)
    write_rows(folder / "rows.jsonl", [{"question": f"good {n}", "reply": "x"} for n in range(3)])
    return read_suite(folder / "spec.yaml")


def ended(suite: Any, engine: FakeEngine) -> dict[str, Any]:
    return {each.name: each for each in run_tests(suite, fake_target(engine).lm)}


def test_as_an_assertion_and_in_a_gate_in_one_batch(tmp_path: Path) -> None:
    suite = suite_at(
        tmp_path,
        """\
  - {name: good, inputs: {question: good}, assert: [{type: judge, value: {program: judge.yaml}, threshold: 0.8}]}
  - {name: bad, inputs: {question: bad}, assert: [{type: judge, value: {program: judge.yaml}}]}
  - {name: gate, data: rows.jsonl, at_least: 0.9}
""",
    )
    engine = echoing()
    found = ended(suite, engine)
    assert [found[name].status for name in ("good", "bad", "gate")] == ["pass", "fail", "pass"]
    assert found["gate"].score == pytest.approx(0.925)
    assert len(engine.batches) == 2


def test_an_assertions_reference(tmp_path: Path) -> None:
    judge = JUDGE.replace("question, reply", "reference, reply")
    line = "  - {name: a, inputs: {question: good}, assert: [{type: judge, value: {program: judge.yaml}%s}]}\n"
    engine = echoing()
    assert ended(suite_at(tmp_path, line % ", options: {reference: very good}", judge), engine)["a"].status == "pass"
    assert "Reference: very good" in engine.prompts()[-1]
    with pytest.raises(InputError, match="the judge reads a reference, and is given none"):
        suite_at(tmp_path, line % "", judge)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("{program: gone.yaml}", "tests[0].assert[0].value: program: no such file: gone.yaml"),
        ("{program: ../judge.yaml}", "leads out of the spec's folder"),
        ("{programm: judge.yaml}", "a judge's file has no 'programm'"),
        ("{values: {good: 1}}", "expected {program: FILE}"),
        ("x, options: {program: judge.yaml}", "It is the value: `value: {program: FILE}`."),
    ],
)
def test_what_an_assertion_says_wrong(tmp_path: Path, value: str, told: str) -> None:
    with pytest.raises(InputError) as caught:
        suite_at(tmp_path, f"  - {{name: a, inputs: {{question: q}}, assert: [{{type: judge, value: {value}}}]}}\n")
    assert told in str(caught.value)


def test_an_optional_input_that_a_case_leaves_out_is_shown_empty(tmp_path: Path) -> None:
    (tmp_path / "judge.yaml").write_text(JUDGE.replace("question, reply", "question, mood, reply"))
    (tmp_path / "spec.yaml").write_text(
        "signature: 'question, mood: str | None -> reply'\nformat: completion\ntests:\n"
        "  - {name: a, inputs: {question: good}, assert: [{type: judge, value: {program: judge.yaml}}]}\n"
        "  - {name: b, inputs: {question: bad}, assert: [{type: llm-rubric, value: is kind}]}\n"
    )
    engine = echoing()
    inner = engine.likelihood
    engine.likelihood = lambda prompt, label: -1.0 if "Criterion: " in prompt else inner(prompt, label)
    found = ended(read_suite(tmp_path / "spec.yaml"), engine)
    assert (found["a"].status, found["b"].status) == ("pass", "pass")
    assert all("Mood: \n" in prompt for prompt in engine.prompts()[2:])


def test_an_assertion_on_an_output_that_the_judge_does_not_read(tmp_path: Path) -> None:
    line = "  - {name: a, inputs: {question: q}, assert: [{type: judge, value: {program: judge.yaml}}]}\n"
    told = "the judge's input 'answer' is no field of the task; expected one of question"
    with pytest.raises(InputError, match=told):
        run_tests(
            suite_at(tmp_path, line, JUDGE.replace("question, reply", "question, answer")), fake_target(echoing()).lm
        )


# ---- the whole way, as the documentation tells it


def test_the_documentations_example_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[2] / "docs" / "judges.md").read_text(encoding="utf-8")
    text = text.partition("## A judge of your own")[2]
    for name, rows in re.findall(r"`(graded\.\w+\.jsonl)`:\n\n```jsonl\n(.*?)```", text, re.S):
        Path(name).write_text(rows, encoding="utf-8")
    judge, program, tests = re.findall(r"```yml\n(.*?)```", text, re.S)
    Path("reply_judge.yaml").write_text(judge, encoding="utf-8")
    Path("replies.yaml").write_text(program, encoding="utf-8")
    human = {
        row["reply"]: row["grade"]
        for name in ("train", "dev", "test")
        for row in map(json.loads, Path(f"graded.{name}.jsonl").read_text(encoding="utf-8").splitlines())
    }

    kind = next(reply for reply in human if reply.startswith("Yes, four are left!"))

    def likelihood(prompt: str, label: str) -> float:
        """Gives everything a 2; with an example of each grade before it, what people gave."""
        shown = [reply for reply in human if reply in prompt.rpartition("Reply: ")[0]]
        asked = prompt.rpartition("Reply: ")[2].splitlines()[0].replace("<|end|>", "")
        right = human.get(asked, 2) if len({human[reply] for reply in shown}) == 3 else 2
        return 0.0 if label.strip() == str(right) else -6.0

    target = fake_target(FakeEngine(lambda *_: f" {kind}\n", likelihood))

    def agreement() -> float:
        spec = load_spec("replies.yaml")
        graph = package.load("replies.yaml")
        rows = package.load_examples("graded.test.jsonl", inputs={"question": str}, outputs={"reply": str})
        metric = spec_metric(spec)
        assert isinstance(metric, JudgeMetric)
        found = check_on(metric, graph, rows.items, target.lm, labels="grade").labels
        assert found is not None
        return found.accuracy

    before = agreement()
    compile_spec("reply_judge.yaml", target=target, runs=tmp_path / "runs")
    Path("replies.yaml").write_text(
        program.replace("reply_judge.yaml", "reply_judge.compiled.yaml") + tests, encoding="utf-8"
    )
    assert (before, agreement()) == (pytest.approx(1 / 3), 1.0)
    suite = read_suite(Path("replies.yaml"))
    assert [each.status for each in run_tests(suite, target.lm)] == ["pass", "pass"]
