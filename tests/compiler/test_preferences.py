"""Which of two answers is better: as a metric against the reference, and between two programs with `cuecard ab`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest
from fakes import FakeEngine, WordLearner, compile_tickets, fake_target
from scipy.stats import binomtest

from cuecard.compiler.evaluate import Answered
from cuecard.compiler.from_spec import spec_metric
from cuecard.compiler.judging import PreferenceMetric, metric_of, prefer, preference_in
from cuecard.compiler.judging.preference import sign_test, win_rate
from cuecard.compiler.testing import read_suite, run_tests
from cuecard.errors import InputError
from cuecard.metrics import Weighted
from cuecard.programs.spec import load_spec

from .cli_cases import cuecard, write_rows

RUBRIC = "Which reply is kinder?"
PLAIN = """\
signature: question -> reply
instructions: Answer.
format: completion
"""


def kinder(first: str, second: str) -> str:
    """The longer one; what has `odd` in it goes by its place."""
    if "odd" in first + second:
        return "first"
    return "tie" if len(first) == len(second) else "first" if len(first) > len(second) else "second"


def judging(of: Callable[[str, str], str] = kinder, **options: Any) -> FakeEngine:
    """Says again what was asked, with what the instruction adds: `-ly` or nothing; judges pairs by `of`."""

    def likelihood(prompt: str, label: str) -> float:
        shown = [prompt.rpartition(f"{place} reply: ")[2].splitlines()[0] for place in ("First", "Second")]
        return 0.0 if label.strip() == of(*(text.replace("<|end|>", "") for text in shown)) else -5.0

    def answer(prompt: str, *_: Any) -> str:
        asked = prompt.rpartition("Question: ")[2].splitlines()[0]
        return f" {asked} kindly\n" if "Be kind." in prompt and "same" not in asked else f" {asked}\n"

    return FakeEngine(answer, likelihood, **options)


def case(reply: str, reference: Any = "middle") -> Answered:
    return Answered({"question": "why"}, {"reply": reference}, {"reply": reply})


def scores(engine: FakeEngine, *cases: Answered, **options: Any) -> list[Any]:
    metric = PreferenceMetric(RUBRIC, **options)
    with dspy.context(lm=fake_target(engine).lm):
        found = metric.measure_all(cases)
    return [each if isinstance(each, str) else each.score for each in found]


# ---- as a metric


def test_a_win_is_1_a_loss_0_and_what_the_order_decides_half() -> None:
    engine = judging()
    found = scores(engine, case("longer one"), case("short"), case("middle"), case("equals"), case("odd"))
    assert found == [1.0, 0.0, 0.5, 0.5, 0.5]
    assert [len(batch) for batch in engine.batches] == [8]  # "middle" is the reference itself


def test_equal_answers_are_asked_about_once() -> None:
    engine = judging()
    assert scores(engine, case("longer one"), case("longer one")) == [1.0, 1.0]
    assert [len(batch) for batch in engine.batches] == [2]


def test_of_several_references_the_first() -> None:
    assert scores(judging(), case("short", ["tiny", "a long reference"])) == [1.0]


def test_without_ties_the_judge_has_to_choose() -> None:
    engine = judging(lambda *_: "first")
    assert scores(engine, case("longer one"), ties=False) == [0.5]
    assert {len(request.continuations) for batch in engine.batches for request in batch} == {2}


def test_a_verdict_that_is_missing_is_no_score() -> None:
    engine = judging()
    engine.failure = lambda request: "too hot" if "hot" in engine.tokenizer.text(request.prompt) else None
    assert scores(engine, case("hot"), case("longer one")) == ["the judge failed: too hot", 1.0]


def test_a_judge_without_any_sense_of_quality_scores_half() -> None:
    assert scores(judging(lambda *_: "second"), *[case(f"reply {n}") for n in range(5)]) == [0.5] * 5


def test_without_a_reference_there_is_nothing_to_compare_with() -> None:
    with pytest.raises(InputError, match="reply"):
        scores(judging(), Answered({"question": "why"}, {}, {"reply": "so"}))


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("preference", "metric: the judge has no rubric; expected {metric: preference, rubric: what makes one of two"),
        ({"preference": {"rubrik": "x"}}, "a preference has no option 'rubrik' (did you mean 'rubric'?)"),
        ({"preference": {"rubric": " "}}, "metric: the judge has no rubric"),
        ({"preference": {"rubric": "x", "ties": 3}}, "metric.ties: found 3"),
        ({"preference": {"rubric": "x", "scale": [1, 5]}}, "a preference has no option 'scale'"),
        ({"preference": "x", "weight": 0}, "the weight 0"),
    ],
)
def test_what_a_spec_says_wrong(spec: Any, told: str) -> None:
    with pytest.raises(InputError) as caught:
        metric_of(spec, path="spec.yaml", line=7)
    assert told in str(caught.value)
    assert str(caught.value).startswith("spec.yaml:7: ")


def test_every_way_to_write_it_in_a_spec(tmp_path: Path) -> None:
    for written in (
        f"{{preference: {RUBRIC!r}}}",
        f"{{preference: {{rubric: {RUBRIC!r}}}}}",
        f"{{metric: preference, rubric: {RUBRIC!r}}}",
    ):
        path = tmp_path / "spec.yaml"
        path.write_text(f"signature: question -> reply\nmetric: {written}\n")
        spec = load_spec(path)
        metric = spec_metric(spec)
        assert isinstance(metric, PreferenceMetric) and metric.rubric == RUBRIC
        assert spec.to_data()["metric"] == {"metric": "preference", "rubric": RUBRIC}


def test_in_a_weighted_sum() -> None:
    metric = metric_of([{"preference": RUBRIC, "weight": 3}, "exact_match"])
    found = preference_in(metric)
    assert isinstance(metric, Weighted) and found is not None and found.rubric == RUBRIC
    assert preference_in(metric_of("exact_match")) is None


def test_in_a_gate(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(
        f"signature: question -> reply\nformat: completion\nmetric: {{preference: {RUBRIC!r}}}\n"
        "tests:\n  - {name: gate, data: rows.jsonl, at_least: 0.5}\n"
    )
    rows = [{"question": f"a long question {n}", "reply": reply} for n, reply in enumerate(("short", "x" * 40, "hot"))]
    write_rows(tmp_path / "rows.jsonl", rows[:2])
    suite = read_suite(tmp_path / "spec.yaml")
    engine = judging()
    (found,) = run_tests(suite, fake_target(engine).lm)
    assert (found.status, found.score) == ("pass", 0.5)
    assert [len(batch) for batch in engine.batches] == [2, 4]
    write_rows(tmp_path / "rows.jsonl", rows)
    engine = judging()
    engine.failure = lambda request: "too hot" if "reply: hot" in engine.tokenizer.text(request.prompt) else None
    (found,) = run_tests(read_suite(tmp_path / "spec.yaml"), fake_target(engine).lm)
    assert (found.status, found.reason) == ("error", "1 of 3 examples failed: the judge failed: too hot")


def test_an_evaluation_by_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Path("spec.yaml").write_text(PLAIN + f"data: {{dev: dev.jsonl}}\nmetric: {{preference: {RUBRIC!r}}}\n")
    rows = [{"question": f"a long question {n}", "reply": "short" if n else "x" * 40} for n in range(4)]
    write_rows(Path("dev.jsonl"), rows)
    monkeypatch.setattr("cuecard.compiler.cli.eval.open_target", lambda *_: fake_target(judging()))
    found = json.loads(cuecard(capsys, "eval", "spec.yaml", "--json").out)
    assert found["scores"]["preference"]["value"] == 0.75


def test_a_compile_by_it(tmp_path: Path) -> None:
    """The judge likes no bills: the program, which sends everything to billing, loses against most references."""
    learner = WordLearner(bias={"billing": 2.0})

    def likelihood(prompt: str, continuation: str) -> float:
        if "Second queue: " not in prompt:
            return learner.likelihood(prompt, continuation)
        shown = [prompt.rpartition(f"{place} queue: ")[2].splitlines()[0] for place in ("First", "Second")]
        bills = ["billing" in text for text in shown]
        better = "tie" if bills[0] == bills[1] else "second" if bills[0] else "first"
        return 0.0 if continuation.strip() == better else -5.0

    metric = PreferenceMetric("no bills", fields=["queue"])
    made = compile_tickets(tmp_path, FakeEngine(learner.answer, likelihood), metric=metric, budget={"metric_calls": 60})
    scores = made.compilation.baseline["dev"].value, made.compilation.compiled["dev"].value
    assert 0.0 <= scores[0] < scores[1] <= 1.0


# ---- statistics


def test_the_sign_test_and_its_interval_are_scipys() -> None:
    """Every split of up to 99 pairs: 5,049 of them."""
    assert (sign_test(0, 0), win_rate(0, 0)) == (1.0, None)
    for n in range(1, 100):
        for wins in range(n + 1):
            losses, theirs = n - wins, binomtest(wins, n)
            assert sign_test(wins, losses) == pytest.approx(theirs.pvalue)
            ours, interval = win_rate(wins, losses), theirs.proportion_ci(method="exact")
            assert ours is not None and (ours.value, ours.n) == (wins / n, n)
            assert (ours.low, ours.high) == (pytest.approx(interval.low), pytest.approx(interval.high))
            assert (ours.low <= 0.5 <= ours.high) is (sign_test(wins, losses) > 0.05)


def test_what_two_programs_rows_come_to() -> None:
    rows: list[Any] = [
        ({"question": "a"}, {"reply": "short"}, {"reply": "longer one"}),
        ({"question": "b"}, {"reply": "longer one"}, {"reply": "short"}),
        ({"question": "c"}, {"reply": "same"}, {"reply": "same"}),
        ({"question": "d"}, {"reply": "odd"}, {"reply": "one"}),
        ({"question": "e"}, None, {"reply": "read"}),
        ({"question": "f"}, None, None),
        ({"question": "g"}, {"reply": "hot"}, {"reply": "warm"}),
    ]
    engine = judging()
    engine.failure = lambda request: "too hot" if "hot" in engine.tokenizer.text(request.prompt) else None
    found = prefer(PreferenceMetric(RUBRIC), rows, ["reply"], fake_target(engine).lm)
    assert found.ends == ("after", "before", "same", "inconsistent", "after", "same", None)
    assert (found.failed, found.lost, found.first_failure) == (1, 2, "the judge failed: too hot")
    assert found.win_rate is not None and found.win_rate.value == pytest.approx(2 / 3)
    assert found.position is not None and found.position.pairs == 3
    assert [len(batch) for batch in engine.batches] == [8]


# ---- cuecard ab


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text(PLAIN)
    Path("b.yaml").write_text(PLAIN.replace("Answer.", "Be kind."))
    asked = [*(f"question {n}" for n in range(6)), "odd", "same"]
    write_rows(Path("rows.jsonl"), [{"question": text} for text in asked])
    write_rows(Path("gold.jsonl"), [{"question": text, "reply": text} for text in asked])

    def go(*words: Any, engine: FakeEngine | None = None, data: str = "rows.jsonl") -> Any:
        made = engine or judging()
        monkeypatch.setattr("cuecard.compiler.cli.ab.open_target", lambda *_: fake_target(made))
        return cuecard(capsys, "ab", "a.yaml", "b.yaml", "--data", data, *words)

    return go


def test_ab_by_a_judge_needs_no_gold_values(run: Any) -> None:
    said = run("--judge", RUBRIC)
    assert (said.code, said.err) == (0, "")
    lines = said.out.splitlines()
    start = lines.index('judge: "Which reply is kinder?"')
    assert lines[start + 1 : start + 9] == [
        "  6                     prefers after, in both orders",
        "  0                     prefers before, in both orders",
        "  0                     tie, in both orders",
        "  1                     inconsistent: the order decided",
        "  1                     the same answer: not asked",
        "  1.000 [0.541, 1.000]  of 6 decided for after; sign test: p = 0.031",
        "  0.857                 of the pairs: the same verdict in both orders",
        "  0.571                 of all verdicts for the one shown first; 0.500 is no bias",
    ]
    assert "prefers after: 6 examples" in lines
    assert '  "question 0"  "question 0" -> "question 0 kindly"' in lines


def test_ab_by_a_judge_as_json(run: Any) -> None:
    found = json.loads(run("--judge", RUBRIC, "--json").out)
    judge = found["judge"]
    assert (judge["wins"], judge["losses"], judge["ties"], judge["inconsistent"], judge["same"]) == (6, 0, 0, 1, 1)
    assert judge["win_rate"] == {"value": 1.0, "low": pytest.approx(0.5407, abs=1e-4), "high": 1.0, "n": 6}
    assert judge["p_value"] == 2 / 2**6
    assert judge["position"]["consistent"] == pytest.approx(6 / 7)
    assert judge["rows"][0] == {"row": "example 1", "preferred": "after"}
    assert judge["rows"][-1] == {"row": "example 8", "preferred": "same"}
    assert (found["comparisons"], found["failed"]) == ([], 0)


def test_metrics_and_the_judge_stand_beside_each_other_where_there_is_gold(run: Any) -> None:
    for name in ("a.yaml", "b.yaml"):
        Path(name).write_text(Path(name).read_text() + "metric: exact_match\n")
    found = json.loads(run("--judge", RUBRIC, "--json", data="gold.jsonl").out)
    assert found["comparisons"][0]["metric"] == "exact_match"
    assert found["judge"]["wins"] == 6
    said = run("--judge", RUBRIC, "--json")
    assert said.err == "note: the data lack gold values, so that the judge alone compares\n"
    assert json.loads(said.out)["comparisons"] == []
    assert run("--judge", RUBRIC, "--metric", "exact_match").code == 2


def test_the_specs_own_preference_is_asked_without_being_told(run: Any) -> None:
    for name in ("a.yaml", "b.yaml"):
        Path(name).write_text(Path(name).read_text() + f"metric: {{preference: {{rubric: {RUBRIC!r}, ties: false}}}}\n")
    found = json.loads(run("--json", data="gold.jsonl").out)
    assert (found["judge"]["rubric"], found["judge"]["wins"]) == (RUBRIC, 6)
    (against_gold,) = found["comparisons"]
    assert (against_gold["metric"], against_gold["before"]["value"]) == ("preference", 0.5)
    assert against_gold["after"]["value"] == (6 * 1.0 + 2 * 0.5) / 8
    other = json.loads(run("--judge", "Another?", "--json", data="gold.jsonl").out)
    assert other["judge"]["rubric"] == "Another?"


def test_a_failed_call_of_the_judge_ends_with_3_and_is_counted(run: Any) -> None:
    engine = judging()
    engine.failure = lambda request: (
        "too hot" if "reply: question 3 kindly" in engine.tokenizer.text(request.prompt) else None
    )
    said = run("--judge", RUBRIC, "--json", engine=engine)
    judge = json.loads(said.out)["judge"]
    assert (said.code, judge["failed"], judge["wins"]) == (3, 1, 5)
    assert judge["rows"][3]["preferred"] is None


def test_what_is_asked_for_wrongly(run: Any) -> None:
    assert "error: --judge: the judge has no rubric" in run("--judge", " ").err
    for name in ("a.yaml", "b.yaml"):
        Path(name).write_text(Path(name).read_text() + "metric: exact_match\n")
    assert "found --judge-model without a judge" in run("--judge-model", "x", data="gold.jsonl").err
    Path("a.yaml").write_text(PLAIN)
    said = run()
    assert (said.code, "there is no `metric:`" in said.err) == (2, True)


def test_the_preference_of_the_documentation_can_be_read(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "judges.md").read_text(encoding="utf-8")
    block = text.partition("## Better than the reference?")[2].partition("```yml\n")[2].partition("```")[0]
    (tmp_path / "spec.yaml").write_text("signature: question -> reply\n" + block)
    assert isinstance(spec_metric(load_spec(tmp_path / "spec.yaml")), PreferenceMetric)
