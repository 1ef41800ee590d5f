"""What stands for a metric in a fingerprint and in a baseline: the same for the same metric, and for no other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cuecard.compiler.judging import JudgeMetric, PreferenceMetric, Subject, grader, metric_of
from cuecard.compiler.judging.models import Models
from cuecard.compiler.judging.perplexity import Perplexity
from cuecard.compiler.options import source_of
from cuecard.metrics import Measurement, Metric, Record, Weighted, metric
from cuecard.metrics.calibration import CalibrationError
from cuecard.metrics.source import source_digest


def right(example: Record, prediction: Record) -> bool:
    return bool(example["answer"] == prediction["answer"])


def within(distance: int) -> Callable[[Any, Any], bool]:
    def near(example: Any, prediction: Any) -> bool:
        return abs(example["answer"] - prediction["answer"]) <= distance

    return near


class Starts:
    """A metric that is an object, and remembers what it saw."""

    def __init__(self, text: str = "a") -> None:
        self.text = text
        self.seen: list[str] = []

    def __call__(self, example: Any, prediction: Any) -> bool:
        self.seen.append(prediction["answer"])
        return bool(prediction["answer"].startswith(self.text))


class Own(Metric):
    """A user's own class."""

    name = "own"

    def __init__(self, power: int = 1) -> None:
        self.power = power

    def measure(self, example: Record, prediction: Record) -> Measurement:
        return Measurement(float(example["answer"] == prediction["answer"]) ** self.power)


class Hidden(Own):
    """One that keeps its option to itself, and a cache."""

    def __init__(self, power: int = 1) -> None:
        super().__init__()
        self._power = power
        self._cache = object()


@dataclass(frozen=True, kw_only=True)
class Fields(Metric):
    """A user's own dataclass."""

    name = "fields_right"
    strict: bool = False

    def measure(self, example: Record, prediction: Record) -> Measurement:
        return Measurement(1.0)


def compiled(rubric: str) -> Any:
    return grader(Subject(("question",), ("answer",)), rubric)


DIFFERENT: list[tuple[Callable[[], Any], Callable[[], Any]]] = [
    (lambda: JudgeMetric("Kind?"), lambda: JudgeMetric("Short?")),
    (lambda: JudgeMetric("Kind?"), lambda: JudgeMetric("Kind?", scale=(1, 3))),
    (lambda: JudgeMetric("Kind?"), lambda: JudgeMetric("Kind?", probabilities=False)),
    (lambda: JudgeMetric("Kind?"), lambda: JudgeMetric("Kind?", model="another")),
    (lambda: JudgeMetric("Kind?"), lambda: JudgeMetric("Kind?", format="completion")),
    (lambda: JudgeMetric(criteria=["is kind"]), lambda: JudgeMetric(criteria=["is kind", "is short"])),
    (lambda: JudgeMetric(program=compiled("Kind?")), lambda: JudgeMetric(program=compiled("Short?"))),
    (lambda: PreferenceMetric("Kind?"), lambda: PreferenceMetric("Kind?", ties=False)),
    (lambda: PreferenceMetric("Kind?"), lambda: JudgeMetric("Kind?")),
    (lambda: CalibrationError(bins=5), lambda: CalibrationError(bins=20)),
    (lambda: Perplexity(), lambda: Perplexity(model="another")),
    (lambda: Perplexity(), lambda: Perplexity(of="reference")),
    (lambda: metric("exact_match"), lambda: metric({"metric": "exact_match", "normalize": True})),
    (lambda: metric({"metric": "length", "max": 5}), lambda: metric({"metric": "length", "max": 6})),
    (lambda: metric(right), lambda: metric(within(0))),
    (lambda: metric(within(1)), lambda: metric(within(2))),
    (lambda: right, lambda: partial(right)),
    (lambda: partial(within, 1), lambda: partial(within, 2)),
    (lambda: Starts("a"), lambda: Starts("b")),
    (lambda: metric({"metric": right, "high": 2.0}), lambda: metric(right)),
    (lambda: Own(1), lambda: Own(2)),
    (lambda: Hidden(1), lambda: Hidden(2)),
    (lambda: Fields(), lambda: Fields(strict=True)),
    (lambda: {"metric": CalibrationError(bins=5)}, lambda: {"metric": CalibrationError(bins=20)}),
    (lambda: ["f1", JudgeMetric("Kind?")], lambda: ["f1", JudgeMetric("Short?")]),
    (lambda: [{"metric": "f1", "weight": 2}, "bleu"], lambda: ["f1", "bleu"]),
    (
        lambda: Weighted([metric("f1"), JudgeMetric("Kind?")]),
        lambda: Weighted([metric("f1"), JudgeMetric("Short?")]),
    ),
    (lambda: Weighted([metric("f1"), metric("bleu")]), lambda: Weighted([metric("f1"), metric("bleu")], [1.0, 2.0])),
]


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_other_metrics_have_other_sources_and_the_same_one_the_same(
    one: Callable[[], Any], other: Callable[[], Any]
) -> None:
    for make in (one, other):
        kept = [make(), make()]  # kept, so that the second does not get the first's address
        texts = [json.dumps(source_of(each), sort_keys=True) for each in kept]
        assert texts[0] == texts[1]
        assert " at 0x" not in texts[0]
    assert source_of(one()) != source_of(other())


def test_what_a_source_looks_like() -> None:
    assert source_of("f1") == "f1"
    assert source_of(metric("f1")) == {"class": "F1"}
    assert source_of(CalibrationError(bins=5, fields=("queue",))) == {
        "class": "CalibrationError",
        "bins": 5,
        "fields": ["queue"],
    }
    found = source_of(JudgeMetric("Kind?", model={"id": "judge"}, models=Models()))
    assert (found["class"], found["rubric"], found["model"]) == ("JudgeMetric", "Kind?", {"id": "judge"})
    assert "models" not in found
    assert source_of(Weighted([metric("f1"), CalibrationError(bins=5)]))["metrics"] == [
        {"class": "F1"},
        {"class": "CalibrationError", "bins": 5},
    ]


def test_code_stands_as_its_text() -> None:
    assert source_of(right).startswith("def right(example: Record")
    assert "self.power" in source_of(Own())["code"]
    assert "code" not in source_of(metric("f1"))


def test_what_a_metric_has_seen_does_not_count() -> None:
    asked, judge = Starts(), JudgeMetric("Kind?")
    before = source_of(asked), source_of(judge)
    asked({}, {"answer": "apple"})
    judge.program(Subject(("question",), ("answer",)))
    assert (source_of(asked), source_of(judge)) == before


def test_options_at_their_defaults_are_left_out() -> None:
    assert source_of(metric({"metric": "exact_match", "normalize": False})) == {"class": "ExactMatch"}
    assert source_digest(CalibrationError(bins=10)) == source_digest(CalibrationError())
    assert source_of(JudgeMetric("Kind?", scale=(1, 5), name="judge")) == source_of(JudgeMetric("Kind?"))


JUDGE = """\
signature: "question, answer -> grade: Literal[1, 2, 3]"
instructions: {rubric}
readout: choice
"""


def test_a_compiled_judge_is_what_its_file_holds_wherever_it_lies(tmp_path: Path) -> None:
    for folder, rubric in (("a", "Kind?"), ("b", "Kind?"), ("c", "Short?")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "judge.yaml").write_text(JUDGE.format(rubric=rubric))
    first, same, other = (
        source_digest(metric_of({"judge": {"program": "judge.yaml"}}, folder=tmp_path / folder)) for folder in "abc"
    )
    assert first == same != other


def test_a_source_is_the_same_in_every_process() -> None:
    told = (
        "from cuecard.compiler.judging import JudgeMetric\n"
        "from cuecard.metrics import Weighted, metric\n"
        "from cuecard.metrics.source import source_digest\n"
        "print(source_digest(Weighted([JudgeMetric('Kind?'), metric('bleu')])))\n"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    done = subprocess.run([sys.executable, "-c", told], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == source_digest(Weighted([JudgeMetric("Kind?"), metric("bleu")]))


def test_a_metric_that_holds_itself_is_told_all_the_same() -> None:
    ours = Own()
    ours.power = ours  # type: ignore[assignment]
    assert source_of(ours)["power"] == "(itself)"
