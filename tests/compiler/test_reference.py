"""The reference without a language model: measured by the task's metric where it can be, and told to the user."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import dspy
import pytest
from fakes import LABELS, FakeEngine, Triage, compile_tickets, examples, says, tickets

import cuecard
from cuecard.compiler import reference
from cuecard.compiler.cli.summary import summary
from cuecard.compiler.data import from_dspy
from cuecard.compiler.evaluator import same_names
from cuecard.compiler.examples import Example
from cuecard.compiler.reference import constant_scores, reference_scores
from cuecard.metrics import Measurement, Metric, Score, metric
from cuecard.optimizers.base import Budget
from cuecard.programs.graph import build
from cuecard.programs.predictor import adopt
from cuecard.programs.spec import load_spec

LABELLED = "ticket -> queue: Literal['billing', 'technical', 'account']"


def rows(count: int, seed: int) -> Any:
    return from_dspy(tickets(count, seed))


def scores_of(program: dspy.Module, by: Any = "exact_match", train: Any = None, **splits: Any) -> dict[str, float]:
    program = adopt(program)
    found = reference_scores(
        program,
        metric(by),
        same_names(program),
        rows(60, 1) if train is None else train,
        splits or {"dev": rows(30, 2), "test": rows(30, 3)},
        seed=0,
        interval_seed=0,
    )
    return {split: score.value for split, score in found.items()}


# ---- in a compile


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> cuecard.Compiled:
    sets = {"trainset": tickets(48, 1), "devset": tickets(24, 2), "testset": tickets(24, 3)}
    return compile_tickets(tmp_path_factory.mktemp("runs"), FakeEngine(says(" hm")), budget=Budget(trials=1), **sets)


def test_it_stands_in_the_run_and_in_the_summary(done: cuecard.Compiled) -> None:
    compilation = done.compilation
    assert set(compilation.reference) == {"dev", "test"}
    assert compilation.reference["dev"].value > 0.8 and compilation.reference["test"].n == 24
    state = json.loads(compilation.folder.run.read_text())
    assert state["reference"] == {split: score.as_dict() for split, score in compilation.reference.items()}
    lines = list(summary(compilation))
    place = next(i for i, line in enumerate(lines) if line.startswith("without a language model (TF-IDF, logistic"))
    dev, test = (compilation.reference[split] for split in ("dev", "test"))
    assert lines[place].endswith(
        f": dev {dev.value:.3f} [{dev.low:.3f}, {dev.high:.3f}], test {test.value:.3f} [{test.low:.3f}, {test.high:.3f}]"
    )
    assert lines[place + 1] == (
        "That is no worse on test than the compiled program: this task may need no language model."
    )


def test_where_the_program_is_better_nothing_more_is_told(done: cuecard.Compiled) -> None:
    compilation = done.compilation
    best = Score(value=1.0, low=0.9, high=1.0, n=24)
    better = replace(compilation, compiled={**compilation.compiled, "test": best})
    worse = {**compilation.reference, "test": replace(best, value=0.5)}
    told = [line for line in summary(replace(better, reference=worse)) if "language model" in line]
    assert len(told) == 1 and "test 0.500 [0.900, 1.000]" in told[0]


def test_one_answer_for_every_row_stands_beside_it(done: cuecard.Compiled) -> None:
    compilation = done.compilation
    assert json.loads(compilation.folder.run.read_text())["constant"]["test"]["n"] == 24
    same = compilation.compiled["test"]
    lines = list(summary(replace(compilation, constant={"test": same})))
    place = next(i for i, line in enumerate(lines) if line.startswith("the most frequent answer for every row: test "))
    assert lines[place + 1].startswith("That is no worse on test than the compiled program: this task is not learned")


def test_without_train_or_without_labels_there_is_none(tmp_path: Path) -> None:
    compiled = compile_tickets(tmp_path, FakeEngine(says(" hm")), budget=Budget(trials=1), trainset=())
    told = json.loads(compiled.compilation.folder.run.read_text())
    assert told["reference"] == told["constant"] == {}
    assert "language model" not in "\n".join(summary(compiled.compilation))


# ---- where it can be compared


def test_it_learns_from_train_and_is_measured_on_the_splits_that_have_rows() -> None:
    found = scores_of(Triage())
    assert found["dev"] > 0.8 and found["test"] > 0.8
    assert list(scores_of(Triage(), dev=rows(9, 2), test=rows(1, 3)[:0])) == ["dev"]
    assert scores_of(Triage()) == found


def test_it_is_measured_by_the_tasks_own_metric() -> None:
    right = scores_of(Triage())["dev"]
    assert scores_of(Triage(), [{"metric": "exact_match", "field": "queue"}, "accuracy"])["dev"] == pytest.approx(right)
    labels = {"metric": "macro_f1", "labels": list(LABELS)}
    assert scores_of(Triage(), labels)["dev"] == pytest.approx(right, abs=0.1)
    no_two = [{"metric": "exact_match", "weight": 3}, {"metric": "exact_match", "normalize": True}]
    assert scores_of(Triage(), no_two)["dev"] == pytest.approx(right)


def test_a_function_may_look_at_anything_that_the_program_gives() -> None:
    def same(example: Any, prediction: Any) -> bool:
        return bool(example.queue == prediction.queue)

    program = dspy.Predict(cuecard.signature(LABELLED))
    assert scores_of(program, same) == scores_of(program)
    assert scores_of(Triage(), same) == {}, "what a module gives besides is not known"
    assert scores_of(dspy.ChainOfThought(cuecard.signature(LABELLED)), same) == {}, "nor is the reasoning"


def test_a_chain_of_thought_is_compared_by_its_label() -> None:
    assert scores_of(dspy.ChainOfThought(cuecard.signature(LABELLED)))["dev"] > 0.8


class Alien(Metric):
    """A metric that is of no kind that is known: it asks somebody."""

    name = "alien"

    def measure(self, example: Any, prediction: Any) -> Measurement:
        raise AssertionError("it is not asked")


class Two(dspy.Module):
    """Two predictors."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (dspy.Predict(cuecard.signature(LABELLED)) for _ in range(2))


@pytest.mark.parametrize(
    ("program", "by"),
    [
        (lambda: Triage(), lambda: Alien()),
        (lambda: Two(), lambda: "exact_match"),
        (lambda: dspy.Predict(cuecard.signature("ticket -> queue: str")), lambda: "exact_match"),
        (
            lambda: dspy.Predict(cuecard.signature(f"{LABELLED}, n: int")),
            lambda: {"metric": "exact_match", "fields": ["queue", "n"]},
        ),
        (lambda: Triage(), lambda: ["exact_match", Alien()]),
    ],
)
def test_where_it_cannot_be_compared_there_is_none(program: Any, by: Any) -> None:
    assert scores_of(program(), by()) == {}


def test_a_field_beside_the_labels_is_compared_only_where_the_metric_asks_for_it() -> None:
    program = cuecard.signature(f"{LABELLED}, why: str")
    told = [dspy.Example(**row, why="so").with_inputs("ticket") for row in tickets(30, 1)]
    train = from_dspy(told)
    assert scores_of(dspy.Predict(program), train=train, dev=train) == {}
    by = {"metric": "exact_match", "field": "queue"}
    assert scores_of(dspy.Predict(program), by, train=train, dev=train)["dev"] == 1.0


def test_typed_labels_are_given_as_the_program_gives_them() -> None:
    signature = cuecard.signature("text -> short: bool, size: Literal[1, 2]")
    data = examples(40, short=lambda n: n % 2 == 0, size=lambda n: 1 + n % 2)
    found = scores_of(dspy.Predict(signature), train=data, dev=data)
    assert set(found) == {"dev"} and 0.0 <= found["dev"] <= 1.0
    seen: list[Any] = []

    def keep(example: Any, prediction: Any) -> float:
        seen.append((type(prediction.short), type(prediction.size)))
        return 0.0

    scores_of(dspy.Predict(signature), keep, train=data, dev=data[:1])
    assert seen == [(bool, int)]


def test_of_several_references_the_first_is_learned_and_all_are_compared() -> None:
    several = [{**row, "queue": [row["queue"], "billing"]} for row in tickets(30, 1)]
    train = from_dspy([dspy.Example(**row).with_inputs("ticket") for row in several])
    assert scores_of(Triage(), train=train, dev=train)["dev"] == 1.0


def test_one_label_in_train_is_nothing_to_learn() -> None:
    train = from_dspy([row for row in tickets(30, 1) if row.queue == "billing"])
    assert scores_of(Triage(), train=train, dev=rows(9, 2)) == {}


def test_of_many_rows_a_part_is_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted: list[int] = []
    real = reference.fit_reference

    def counting(texts: Any, *rest: Any, **options: Any) -> Any:
        fitted.append(len(texts))
        return real(texts, *rest, **options)

    monkeypatch.setattr(reference, "fit_reference", counting)
    monkeypatch.setattr(reference, "MOST_ROWS", 20)
    assert scores_of(Triage(), train=rows(60, 1))["dev"] > 0.4
    assert fitted == [20]


def test_the_columns_of_a_spec_are_its_outputs(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(
        "inputs: {ticket: str}\n"
        "nodes:\n"
        f'  route: {{signature: "{LABELLED}", inputs: {{ticket: "${{inputs.ticket}}"}}}}\n'
        'outputs: {team: "${route.queue}"}\n',
        encoding="utf-8",
    )
    program = build(load_spec(path))
    data = from_dspy([dspy.Example(ticket=r["ticket"], team=r["queue"]).with_inputs("ticket") for r in tickets(30, 1)])
    found = reference_scores(
        program, metric(lambda e, p: e.team == p.team), program.columns, data, {"dev": data}, seed=0, interval_seed=0
    )
    assert found["dev"].value == 1.0


# ---- one answer for every row


def given(*labels: dict[str, Any], several: frozenset[str] = frozenset()) -> list[Example]:
    return [Example({"ticket": f"t{n}"}, each, n, several=several) for n, each in enumerate(labels)]


def constant(train: Any, test: Any, by: Any = "exact_match") -> float | None:
    program = adopt(dspy.Predict(cuecard.signature("ticket -> queue: str, order: Optional[str]")))
    found = constant_scores(program, metric(by), train, {"dev": [], "test": test}, interval_seed=0)
    return found["test"].value if found else None


def test_the_most_frequent_value_of_each_output_is_given_for_every_row() -> None:
    train = given(*({"queue": "ab"[n % 3 == 0], "order": f"A{n}" if n % 5 == 0 else None} for n in range(30)))
    test = given({"queue": "a", "order": None}, {"queue": "b", "order": None}, {"queue": "b", "order": "A9"})
    assert constant(train, test) == pytest.approx((1 + 0.5 + 0) / 3)
    assert constant(train, test, [{"metric": "exact_match", "field": "order"}]) == pytest.approx(2 / 3)


def test_texts_of_which_none_is_frequent_have_none() -> None:
    train = given(*({"queue": f"q{n}", "order": None} for n in range(30)))
    assert constant(train, train) is None
    assert constant(given(), train) is None


def test_of_several_references_the_first_is_given() -> None:
    train = given(*({"queue": ["a", str(n)]} for n in range(12)), several=frozenset({"queue"}))
    assert constant(train, given({"queue": "a"}, {"queue": "c"})) == 0.5


def test_what_looks_at_more_than_values_has_none() -> None:
    train = given(*({"queue": "a", "order": None} for _ in range(9)))
    assert constant(train, train, Alien()) is None
    assert constant(train, train, lambda example, prediction: True) is None


def test_lists_that_no_field_says_are_references_are_one_answer() -> None:
    several = [
        dspy.Example(ticket=f"t{n}", queue=["billing", "account"][: 1 + n % 2]).with_inputs("ticket") for n in range(20)
    ]
    found = constant_scores(
        adopt(Triage()), metric("exact_match"), from_dspy(several), {"dev": from_dspy(several)}, interval_seed=0
    )
    assert set(found) == {"dev"} and 0.0 <= found["dev"].value <= 1.0
