"""Judges: what they are asked, how their verdicts become scores, as metrics and compiled; pairs in both orders."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest
from fakes import FakeEngine, WordLearner, compile_tickets, fake_target
from hypothesis import given
from hypothesis import strategies as st

import cuecard
from cuecard.compiler.evaluate import Answered, measured, run_program
from cuecard.compiler.examples import Example
from cuecard.compiler.from_spec import spec_metric
from cuecard.compiler.judging import (
    JudgeMetric,
    Models,
    NoJudgement,
    NoModel,
    Pair,
    Subject,
    compare_pairs,
    grader,
    krippendorff_alpha,
    metric_of,
    preferrer,
)
from cuecard.compiler.judging.asking import softmax
from cuecard.compiler.label_metrics import knowing_labels
from cuecard.compiler.testing import read_suite
from cuecard.errors import InputError, RunError
from cuecard.programs.predictor import Predictor
from cuecard.programs.spec import load_spec
from cuecard.programs.state import Calibration, PredictorState, ReadOut

RUBRIC = "Is the reply helpful?"
TASK = Subject(("question",), ("reply",))


def grades(of: Callable[[str], list[float]], **options: Any) -> FakeEngine:
    """An engine that gives the labels 1..n these probabilities, and answers "Echo: " with what was asked."""

    def likelihood(prompt: str, continuation: str) -> float:
        return math.log(of(prompt)[int(continuation.strip()) - 1])

    return FakeEngine(
        lambda prompt, *_: f" {prompt.rpartition('Question: ')[2].splitlines()[0]}\n", likelihood, **options
    )


def echo() -> dspy.Module:
    return Predictor(cuecard.signature("question -> reply"), PredictorState(format="completion"))


def rows(*questions: str, **labels: str) -> list[Example]:
    return [Example({"question": text}, dict(labels), n) for n, text in enumerate(questions)]


def test_a_grade_is_the_mean_of_the_grades_under_their_probabilities_from_one_scoring() -> None:
    engine = grades(lambda prompt: [0.1, 0.2, 0.7])
    metric = JudgeMetric(RUBRIC, scale=(1, 3))
    with dspy.context(lm=fake_target(engine).lm):
        found = metric.measure_all([Answered({"question": "why"}, {}, {"reply": "so"})])
    assert [each.score for each in found] == [pytest.approx((1 * 0.1 + 2 * 0.2 + 3 * 0.7 - 1) / 2)]
    assert [len(batch) for batch in engine.batches] == [1]
    prompt = engine.prompts()[0]
    assert prompt.index(RUBRIC) < prompt.index("Question: why") < prompt.index("Reply: so")


def test_without_probabilities_the_likeliest_grade_counts() -> None:
    metric = JudgeMetric(RUBRIC, scale=(1, 3), probabilities=False)
    with dspy.context(lm=fake_target(grades(lambda prompt: [0.1, 0.5, 0.4])).lm):
        assert metric.measure_all([Answered({"question": "why"}, {}, {"reply": "so"})])[0].score == 0.5


def test_a_checklist_asks_each_criterion_in_one_batch_and_takes_the_probability_of_yes() -> None:
    sure = {"polite": 0.8, "short": 0.4}
    engine = FakeEngine(
        likelihood=lambda prompt, label: math.log(
            next(p if "yes" in label else 1 - p for word, p in sure.items() if f"Criterion: it is {word}" in prompt)
        )
    )
    metric = JudgeMetric(criteria=("it is polite", "it is short"))
    with dspy.context(lm=fake_target(engine).lm):
        found = metric.measure_all([Answered({"question": "why"}, {}, {"reply": "so"})])
    assert found[0].score == pytest.approx(0.6)
    assert [len(batch) for batch in engine.batches] == [2]


def test_the_reference_is_shown_only_where_it_is_asked_for() -> None:
    for reference in (False, True):
        engine = grades(lambda prompt: [0.5, 0.5])
        metric = JudgeMetric(RUBRIC, scale=(1, 2), reference=reference)
        with dspy.context(lm=fake_target(engine).lm):
            metric.measure_all([Answered({"question": "why"}, {"reply": "since"}, {"reply": "so"})])
        assert ("Reference: since" in engine.prompts()[0]) is reference
    with pytest.raises(InputError, match="reply"), dspy.context(lm=fake_target(engine).lm):
        metric.measure_all([Answered({"question": "why"}, {}, {"reply": "so"})])


def test_fields_of_the_task_may_have_the_judges_names() -> None:
    subject = Subject(("grade", "reference"), ("criterion",), reference=True)
    made = grader(subject, RUBRIC).judge.signature
    assert list(made.input_fields) == ["grade", "reference", "judge_reference", "criterion"]
    assert list(made.output_fields) == ["judge_grade"]


def test_as_a_metric_its_calls_are_one_batch_after_the_rows_and_equal_answers_are_judged_once() -> None:
    engine = grades(lambda prompt: [0.25, 0.75] if "Reply: good" in prompt else [1.0, 1e-300])
    metric = JudgeMetric(RUBRIC, scale=(1, 2))
    outcomes = run_program(echo(), rows("good", "bad", "good"), lm=fake_target(engine).lm, metric=metric)
    assert [outcome.measurement.score for outcome in outcomes if outcome.measurement] == pytest.approx([0.75, 0, 0.75])
    assert [len(batch) for batch in engine.batches] == [3, 2]


def test_in_a_weighted_sum() -> None:
    metric = metric_of([{"judge": {"rubric": RUBRIC, "scale": [1, 2]}, "weight": 3}, "exact_match"])
    engine = grades(lambda prompt: [0.5, 0.5])
    lm = fake_target(engine).lm
    outcomes = run_program(echo(), rows("yes", "no", reply="yes"), lm=lm, metric=metric)
    assert [outcome.measurement.score for outcome in outcomes if outcome.measurement] == [0.625, 0.375]
    with dspy.context(lm=lm):
        assert [each.score for each in measured(echo(), outcomes, metric)] == [0.625, 0.375]
    assert metric.describe().aggregation == "mean"


def test_a_failed_call_of_the_judge_is_a_failure_and_no_score() -> None:
    engine = grades(lambda prompt: [0.5, 0.5])
    engine.failure = lambda request: "too hot" if "Reply: bad" in engine.tokenizer.text(request.prompt) else None
    lm = fake_target(engine).lm
    outcomes = run_program(echo(), rows("good", "bad"), lm=lm, metric=JudgeMetric(RUBRIC, scale=(1, 2)))
    assert outcomes[0].measurement is not None and outcomes[0].error is None
    assert (outcomes[1].measurement, outcomes[1].error) == (None, "the judge failed: too hot")
    there = run_program(echo(), rows("good", "bad"), lm=lm)
    with dspy.context(lm=lm), pytest.raises(RunError, match="example 2 has no score by 'judge': the judge failed"):
        measured(echo(), there, JudgeMetric(RUBRIC, scale=(1, 2)))


def test_a_verdict_that_cannot_be_read_is_told_apart_from_a_failed_call() -> None:
    judge = grader(TASK, RUBRIC, (1, 3), PredictorState(readout=ReadOut(kind="text")))
    metric = JudgeMetric(program=judge, scale=(1, 3))
    cases = [Answered({"question": "why"}, {}, {"reply": "so"})]
    with dspy.context(lm=fake_target(FakeEngine(lambda *_: "2")).lm):
        assert metric.measure_all(cases)[0].score == 0.5
    with dspy.context(lm=fake_target(FakeEngine(lambda *_: "lovely", identity="other")).lm):
        assert str(metric.measure_all(cases)[0]).startswith("the judge's verdict could not be read: ")


def test_a_judge_runs_on_a_model_of_its_own_which_is_opened_once() -> None:
    mine, theirs, opened = grades(lambda prompt: [0.5, 0.5]), grades(lambda prompt: [0.1, 0.9], identity="big"), []

    def open_model(name: Any) -> Any:
        opened.append(name)
        return fake_target(theirs)

    metric = metric_of(
        {"metric": "judge", "rubric": RUBRIC, "scale": [1, 2], "model": "big"}, models=Models(open_model)
    )
    outcomes = run_program(echo(), rows("a", "b"), lm=fake_target(mine).lm, metric=metric)
    assert [o.measurement.score for o in outcomes if o.measurement] == pytest.approx([0.9, 0.9])
    assert opened == ["big"]
    assert [len(batch) for batch in theirs.batches] == [2]
    assert len(mine.batches) == 1


def test_without_a_model_there_is_no_score() -> None:
    with pytest.raises(NoModel, match="has no model to run on"):
        JudgeMetric(RUBRIC).measure_all([Answered({"question": "why"}, {}, {"reply": "so"})])


def test_a_judge_called_from_a_rows_own_thread_does_not_wait_for_itself() -> None:
    judge = JudgeMetric(RUBRIC, scale=(1, 2))
    outcomes = run_program(
        echo(),
        rows("a", "b", "c"),
        lm=fake_target(grades(lambda prompt: [0.5, 0.5])).lm,
        metric=cuecard.metric(lambda example, prediction: judge.measure({}, prediction).score),
    )
    assert [outcome.measurement.score for outcome in outcomes if outcome.measurement] == [0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("judge", "the judge has no rubric"),
        ({"metric": "judge", "rubrik": "x"}, "a judge has no option 'rubrik' (did you mean 'rubric'?)"),
        ({"judge": {"rubric": "x", "scale": [5, 1]}}, "metric.scale: found the scale [5, 1]"),
        ({"judge": {"rubric": " "}}, "the judge has neither a rubric nor criteria"),
        ({"judge": {"rubric": 1}}, "metric.rubric: found 1"),
        ({"judge": {"rubric": "x", "field": "a", "fields": ["b"]}}, "both 'field' and 'fields'"),
        ({"judge": {"rubric": "x", "criteria": ["", "y"]}}, "a criterion is empty"),
        ({"judge": "x", "weight": -1}, "the weight -1"),
        ({"judge": {"rubric": "x", "format": "chatt"}}, "metric.format: unknown format 'chatt'"),
        ({"preference": {"rubric": "x", "format": {"name": "chat", "no": 1}}}, "metric.format: "),
        (
            {"judge": {"rubric": "x", "model": {"id": "a", "dtyp": "auto"}}},
            "metric.model: a model has no key 'dtyp' (did",
        ),
        ({"preference": {"rubric": "x", "model": {"id": "a", "dtype": "half"}}}, "metric.model.dtype: found 'half'"),
    ],
)
def test_what_a_spec_says_wrong(spec: Any, told: str) -> None:
    with pytest.raises(InputError) as caught:
        metric_of(spec, path="spec.yaml", line=7)
    assert told in str(caught.value)
    assert str(caught.value).startswith("spec.yaml:7: ")


@pytest.mark.parametrize(
    "spec",
    [
        {"judge": {"rubric": "x", "field": "repli"}},
        {"preference": {"rubric": "x", "fields": ["reply", "repli"]}},
        {"perplexity": {"field": "repli"}},
        ["exact_match", {"judge": {"rubric": "x", "field": "repli"}}],
    ],
)
def test_a_field_that_no_output_has_is_told_before_anything_runs(spec: Any, tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text("signature: question -> reply\n")
    program = cuecard.load(tmp_path / "spec.yaml")
    told = "looks at the field 'repli', which is no output of the program \\(did you mean 'reply'"
    with pytest.raises(InputError, match=told):
        knowing_labels(metric_of(spec), program)
    (tmp_path / "gate.yaml").write_text(
        f"signature: question -> reply\ntests:\n  - {{name: a, data: rows.jsonl, at_least: 1, metric: {json.dumps(spec)}}}\n"
    )
    (tmp_path / "rows.jsonl").write_text('{"question": "q", "reply": "r"}\n')
    with pytest.raises(InputError, match=r"gate.yaml:3: metric: metric '\w+' looks at the field 'repli'"):
        read_suite(tmp_path / "gate.yaml")


@pytest.mark.parametrize("kind", ["judge", "preference", "perplexity"])
def test_a_model_that_is_not_there_is_told_before_a_row_runs(kind: str) -> None:
    def open_model(name: Any) -> Any:
        raise InputError(f"no model is called {name!r}")

    engine = grades(lambda prompt: [0.5, 0.5])
    options = {"model": "bigg", **({} if kind == "perplexity" else {"rubric": "x"})}
    metric = metric_of([{"metric": "exact_match"}, {"metric": kind, **options}], models=Models(open_model))
    with pytest.raises(InputError, match="no model is called 'bigg'"):
        run_program(echo(), rows("a", reply="b"), lm=fake_target(engine).lm, metric=metric)
    assert not engine.batches


def test_a_server_that_a_strangers_test_names_is_not_asked() -> None:
    metric = metric_of({"judge": {"rubric": "x", "model": "http://localhost:1"}})
    with pytest.raises(InputError, match="needs a spec"):
        metric.measure({}, {"reply": "so"})


def test_every_way_to_write_it_in_a_spec(tmp_path: Path) -> None:
    for written in (
        f"{{judge: {RUBRIC!r}}}",
        f"{{judge: {{rubric: {RUBRIC!r}}}}}",
        f"{{metric: judge, rubric: {RUBRIC!r}}}",
    ):
        path = tmp_path / "spec.yaml"
        path.write_text(f"signature: question -> reply\nmetric: {written}\n")
        spec = load_spec(path)
        metric = spec_metric(spec)
        assert isinstance(metric, JudgeMetric) and metric.rubric == RUBRIC
        assert spec.to_data()["metric"] == {"metric": "judge", "rubric": RUBRIC}


@given(st.lists(st.floats(-50, 0), min_size=1, max_size=8), st.floats(-5, 5))
def test_probabilities_sum_to_one_and_depend_on_differences_alone(totals: list[float], shift: float) -> None:
    found = softmax(totals)
    assert math.fsum(found) == pytest.approx(1.0)
    assert softmax([total + shift for total in totals]) == pytest.approx(found)


def test_a_learned_calibration_counts() -> None:
    offsets = Calibration(method="bias", offsets={"grade": {"1": math.log(3.0)}})
    judge = grader(TASK, RUBRIC, (1, 2), PredictorState(readout=ReadOut(kind="choice", calibration=offsets)))
    metric = JudgeMetric(program=judge, scale=(1, 2))
    with dspy.context(lm=fake_target(grades(lambda prompt: [0.75, 0.25])).lm):
        assert metric.measure_all([Answered({"question": "q"}, {}, {"reply": "r"})])[0].score == pytest.approx(0.5)


# ---- pairs


def prefers(of: Callable[[str, str], str]) -> FakeEngine:
    """An engine that says which is better, from the two replies."""

    def likelihood(prompt: str, continuation: str) -> float:
        shown = [prompt.rpartition(f"{place} reply: ")[2].splitlines()[0] for place in ("First", "Second")]
        return 0.0 if continuation.strip() == of(*shown) else -5.0

    return FakeEngine(likelihood=likelihood)


def pairs(*texts: tuple[str, str]) -> list[Pair]:
    return [Pair({"question": "why"}, {"reply": a}, {"reply": b}) for a, b in texts]


def test_only_verdicts_of_both_orders_count() -> None:
    def better(first: str, second: str) -> str:
        if "odd" in first + second:
            return "first"
        return "tie" if len(first) == len(second) else "first" if len(first) > len(second) else "second"

    engine = prefers(better)
    found = compare_pairs(
        preferrer(TASK, "Which is longer?"),
        TASK,
        pairs(("longer", "short"), ("a", "more"), ("same", "size"), ("odd", "one")),
        fake_target(engine).lm,
    )
    assert found.winners == ("a", "b", "tie", "inconsistent")
    assert found.position is not None
    assert (found.position.pairs, found.position.consistent, found.position.first) == (4, 0.75, 0.25)
    assert found.position.picked_first == pytest.approx(4 / 6)
    assert [len(batch) for batch in engine.batches] == [8]


def test_a_judge_that_always_picks_the_first_wins_nothing() -> None:
    found = compare_pairs(
        preferrer(TASK, "Which?", ties=False),
        TASK,
        pairs(("a", "b"), ("c", "d")),
        fake_target(prefers(lambda *_: "first")).lm,
    )
    assert found.winners == ("inconsistent", "inconsistent")
    assert found.position is not None and (found.position.first, found.position.picked_first) == (1.0, 1.0)


def test_pairs_that_failed_are_counted_apart() -> None:
    engine = prefers(lambda *_: "first")
    engine.failure = lambda request: "too hot" if "hot" in engine.tokenizer.text(request.prompt) else None
    found = compare_pairs(preferrer(TASK, "Which?"), TASK, pairs(("hot", "b"), ("c", "d")), fake_target(engine).lm)
    assert found.winners == (NoJudgement("too hot"), "inconsistent")
    assert (found.failed, found.unread) == (1, 0)
    assert found.position is not None and found.position.pairs == 1


# ---- a judge is a program: compiled against people's labels


KIND = {"2": ("helpful", "clear", "right"), "1": ("rude", "vague", "wrong")}


class GradeLearner(WordLearner):
    """Gives each grade the words that stand before it in the prompt's demos."""

    def __init__(self) -> None:
        super().__init__(tuple(KIND), {"1": 1.0})

    def likelihood(self, prompt: str, continuation: str) -> float:
        words = {word for group in KIND.values() for word in group}
        grade = continuation.strip()
        seen = set()
        for part in prompt.split("Reply: ")[1:-1]:
            text, _, rest = part.partition("Grade: ")
            seen |= set(text.split()) & words if rest[:1] == grade else set()
        last = set(prompt.rpartition("Reply: ")[2].split()) & words
        return -6.0 + 1.5 * len(last & seen) + self.bias.get(grade, 0.0)


def graded(count: int, seed: int) -> list[dspy.Example]:
    """Replies with two words of their grade each."""
    generator = random.Random(seed)
    made = []
    for number in range(count):
        grade = 1 + number % 2
        reply = f"{' '.join(generator.sample(KIND[str(grade)], 2))} n{seed}x{number}"
        made.append(dspy.Example(question="why", reply=reply, grade=grade).with_inputs("question", "reply"))
    return made


def test_a_judge_is_compiled_against_peoples_labels(tmp_path: Path) -> None:
    judge = grader(TASK, RUBRIC, (1, 2))
    engine = GradeLearner().engine()
    dev = graded(12, 2)
    compiled = cuecard.compile(
        judge,
        trainset=graded(12, 1),
        devset=dev,
        metric="exact_match",
        target=fake_target(engine),
        budget={"metric_calls": 150},
        search={"instructions": 1, "demos": [0, 4], "formats": ["chat"]},
        runs=tmp_path,
    )
    people = [float(row.grade) for row in dev]

    def alpha(metric: JudgeMetric) -> float:
        cases = [Answered({"question": row.question}, {}, {"reply": row.reply}) for row in dev]
        with dspy.context(lm=fake_target(engine).lm):
            found = [1.0 + each.score for each in metric.measure_all(cases)]
        return krippendorff_alpha([people, [float(round(value)) for value in found]], "interval")

    before, after = alpha(JudgeMetric(RUBRIC, scale=(1, 2))), alpha(JudgeMetric(scale=(1, 2), program=compiled))
    assert before <= 0.0 and after == 1.0


def test_a_judge_from_a_file_of_labels_and_as_the_metric_of_an_evaluation(tmp_path: Path) -> None:
    path = tmp_path / "graded.jsonl"
    path.write_text("".join(json.dumps(dict(row.items())) + "\n" for row in graded(16, 1)))
    people = cuecard.load_examples(path, inputs={"question": str, "reply": str}, outputs={"grade": int})
    compiled = cuecard.compile(
        grader(TASK, RUBRIC, (1, 2)),
        trainset=people,
        metric="exact_match",
        target=fake_target(GradeLearner().engine()),
        budget={"metric_calls": 30},
        search={"instructions": 1, "demos": [0, 2], "formats": ["chat"]},
        runs=tmp_path,
    )
    learner = GradeLearner()
    engine = FakeEngine(lambda *_: " clear and right\n", learner.likelihood)
    rows = [dspy.Example(question="why", reply="x").with_inputs("question")]
    found = cuecard.evaluate(echo(), rows, JudgeMetric(scale=(1, 2), program=compiled), target=fake_target(engine))
    assert found.failed == 0
    assert found.score.value == pytest.approx(found.outcomes[0].measurement.score)  # type: ignore[union-attr]
    assert 0 < found.score.value < 1


def test_a_compile_by_a_judge(tmp_path: Path) -> None:
    learner = WordLearner(bias={"billing": 2.0})

    def likelihood(prompt: str, continuation: str) -> float:
        """A judge that likes no billing; else the learner."""
        if "it is no bill" not in prompt:
            return learner.likelihood(prompt, continuation)
        right = "Queue: billing" not in prompt
        return math.log(0.9 if ("yes" in continuation) is right else 0.1)

    texts = []
    for name in ("one", "two"):
        output = tmp_path / f"{name}.yaml"
        engine = FakeEngine(learner.answer, likelihood)
        metric = JudgeMetric(criteria=["it is no bill"], fields=["queue"])
        compile_tickets(tmp_path / name, engine, metric=metric, budget={"metric_calls": 60}).write(output)
        texts.append(output.read_text())
    assert texts[0] == texts[1]
    compiled = load_spec(output).compiled
    assert compiled is not None
    assert compiled.baseline["dev"].value + 0.2 < compiled.scores["dev"].value
