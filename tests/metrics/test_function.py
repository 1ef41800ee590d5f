"""Python functions as metrics: DSPy's conventions, what they may return, and how code is found."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import dspy
import pytest

from cuecard.errors import InputError
from cuecard.metrics import FunctionMetric, metric

EXAMPLE = dspy.Example(question="2 + 2?", answer="4").with_inputs("question")
PREDICTION = dspy.Prediction(answer="4", reasoning="two and two")


def two(example: Any, prediction: Any) -> bool:
    return bool(example.answer == prediction.answer)


def with_trace(example: Any, prediction: Any, trace: Any = None) -> bool:
    return bool(trace is None and example["answer"] == prediction["answer"])


def required_trace(example: Any, prediction: Any, trace: Any) -> bool:
    return with_trace(example, prediction, trace)


def gepa_style(gold: Any, pred: Any, trace: Any, pred_name: Any, pred_trace: Any) -> Any:
    return dspy.Prediction(score=float(gold.answer == pred.answer), feedback="well done")


@pytest.mark.parametrize("function", [two, with_trace, required_trace, gepa_style])
def test_dspys_calling_conventions(function: Any) -> None:
    ours = metric(function)
    assert ours.name == function.__name__
    assert ours.measure(EXAMPLE, PREDICTION).score == 1
    assert ours.measure(EXAMPLE, dspy.Prediction(answer="5")).score == 0
    assert ours.measure({"answer": "4"}, {"answer": "4"}).score == 1  # Plain mappings get attributes.


def test_dspys_own_metrics_work() -> None:
    assert metric(dspy.evaluate.answer_exact_match).measure(EXAMPLE, PREDICTION).score == 1


def test_the_range_can_be_declared() -> None:
    ours = metric({"metric": lambda example, prediction: -3, "low": -10.0, "high": 0})
    assert (ours.low, ours.high, ours.measure(EXAMPLE, PREDICTION).score) == (-10, 0, -3)
    assert ours.worst(EXAMPLE).score == -10


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ("0.5", "metric '<lambda>' returned '0.5'; expected a bool or a finite number"),
        (None, "metric '<lambda>' returned None; expected a bool or a finite number"),
        (float("nan"), "metric '<lambda>' returned nan; expected a bool or a finite number"),
        ([1], "metric '<lambda>' returned [1]; expected a bool or a finite number"),
        (
            7,
            "metric '<lambda>' returned 7.0; expected a number from 0 to 1\n"
            "  Declare another range with the options `low` and `high`.",
        ),
    ],
)
def test_results_that_are_no_score(result: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        metric(lambda example, prediction: result).measure(EXAMPLE, PREDICTION)
    assert str(caught.value) == message


def test_a_prediction_without_a_score_is_no_score() -> None:
    with pytest.raises(InputError, match=r"expected a bool or a finite number$"):
        metric(lambda example, prediction: dspy.Prediction(answer="4")).measure(EXAMPLE, PREDICTION)


def fails(example: Any, prediction: Any) -> float:
    return float(prediction.nowhere)


def test_what_a_metric_raises_is_told_with_its_place() -> None:
    with pytest.raises(InputError) as caught:
        metric(fails).measure(EXAMPLE, PREDICTION)
    line = fails.__code__.co_firstlineno + 1
    assert str(caught.value) == (
        f"{__file__}:{line}: metric 'fails' raised AttributeError: 'Prediction' object has no attribute 'nowhere'"
    )


def test_functions_that_cannot_take_an_example_and_a_prediction() -> None:
    expected = r"expected \(example, prediction\) or \(example, prediction, trace=None\)$"
    with pytest.raises(InputError, match=rf"^metric: metric '<lambda>' takes \(example\); {expected}"):
        metric(lambda example: 1)
    with pytest.raises(InputError, match=rf"takes \(a, b, c, d, e, f\); {expected}"):
        FunctionMetric(lambda a, b, c, d, e, f: 1)
    with pytest.raises(InputError, match=rf"takes \(a, b, \*, k\); {expected}"):
        FunctionMetric(lambda a, b, *, k: 1)


def test_an_impossible_range() -> None:
    with pytest.raises(
        InputError, match=r"^metric: metric 'two' has the range 1.0 to 0.0; expected finite low < high$"
    ):
        metric({"metric": two, "low": 1.0, "high": 0.0})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "words.py").write_text("def same(a, b):\n    return a.split() == b.split()\n")
    (tmp_path / "scoring.py").write_text(
        "from words import same\n"
        "from cuecard.metrics import metric\n"
        "def agrees(example, prediction, trace=None):\n"
        "    return same(example.answer, prediction.answer)\n"
        "rouge = metric('rouge_1')\n"
        "text = 'no function'\n"
    )
    (tmp_path / "json.py").write_text("def always(example, prediction):\n    return 1\n")
    (tmp_path / "broken.py").write_text("raise SystemExit('I am a script')\n")
    (tmp_path / "needs.py").write_text("import a_module_that_is_not_there\n")
    package = tmp_path / "mine"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "deep.py").write_text("def half(example, prediction):\n    return 0.5\n")
    return tmp_path


def read(reference: Any, folder: Path) -> Any:
    return metric(reference, allow_code=True, folder=folder)


def test_code_is_found_beside_the_spec(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "words", raising=False)
    before = list(sys.path)
    ours = metric("scoring:agrees", allow_code=True, path=folder / "program.yaml")
    assert ours.name == "scoring:agrees"
    assert ours.measure({"answer": "a  b"}, {"answer": "a b"}).score == 1
    assert ours.measure({"answer": "a c"}, {"answer": "a b"}).score == 0
    assert sys.path == before
    assert read({"metric": "python", "function": "scoring:agrees", "high": 2.0}, folder).high == 2
    assert read("mine.deep:half", folder).measure(EXAMPLE, PREDICTION).score == 0.5
    assert read({"metric": "scoring:rouge", "weight": 2}, folder).name == "rouge_1"


def test_a_file_beside_the_spec_wins_over_a_module_of_its_name_and_does_not_replace_it(folder: Path) -> None:
    import json

    assert read("json:always", folder).measure(EXAMPLE, PREDICTION).score == 1
    assert sys.modules["json"] is json


def test_a_module_runs_once(folder: Path) -> None:
    (folder / "counted.py").write_text("def same(a, b):\n    return 1\n")
    first, second = (read("counted:same", folder) for _ in range(2))
    assert first.function is second.function


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("scoring:agree", "metric: module 'scoring' has no 'agree' (did you mean 'agrees'?)"),
        ("scoring:text", "metric: 'scoring:text' is 'no function'; expected a function of (example, prediction)"),
        ("broken:f", "metric: importing 'broken' failed with SystemExit: I am a script"),
        (
            "needs:f",
            "metric: importing 'needs' failed with ModuleNotFoundError: No module named 'a_module_that_is_not_there'",
        ),
        ("scoring.py:agrees", "metric: there is no module 'scoring.py' in FOLDER or where Python looks"),
        ("no_such:f", "metric: there is no module 'no_such' in FOLDER or where Python looks"),
        ("a b:c", "metric: 'a b:c' is not a reference to a function; expected module:function"),
        ("scoring:", "metric: 'scoring:' is not a reference to a function; expected module:function"),
    ],
)
def test_code_that_cannot_be_used(folder: Path, monkeypatch: pytest.MonkeyPatch, reference: str, message: str) -> None:
    monkeypatch.delitem(sys.modules, "words", raising=False)
    with pytest.raises(InputError) as caught:
        read(reference, folder)
    assert str(caught.value).replace(str(folder), "FOLDER") == message


def test_nothing_is_imported_unless_code_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "leaves_a_mark.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')\ndef f(a, b): return 1\n")
    with pytest.raises(InputError, match="--allow-code"):
        metric("leaves_a_mark:f", folder=tmp_path)
    assert not (tmp_path / "mark").exists()
