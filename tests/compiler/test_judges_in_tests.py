"""Judges in tests: the assertions `judge` and `llm-rubric`, gates, batches, and what a missing verdict is."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeEngine

from cuecard.compiler.testing import rescore
from cuecard.compiler.testing.answers import Recorder, read_recording
from cuecard.compiler.testing.shorthand import read_cell
from cuecard.errors import InputError

from .testing_cases import results, suite_of

HEAD = """\
signature: question -> reply
format: completion
metric: {judge: {rubric: How kind it is, scale: [1, 2]}}
"""


def judging(**options: Any) -> FakeEngine:
    """Says again what was asked; finds an output good in so far as it says so: `good`, `fair`, or else bad."""

    def likelihood(prompt: str, continuation: str) -> float:
        said = prompt.rpartition("utput: ")[2] if "utput: " in prompt else prompt.rpartition("Reply: ")[2]
        sure = 0.9 if "good" in said else 0.6 if "fair" in said else 0.1
        label = continuation.strip()
        return math.log(sure if label in ("yes", "2") else 1 - sure)

    return FakeEngine(
        lambda prompt, *_: f" {prompt.rpartition('Question: ')[2].splitlines()[0]}\n", likelihood, **options
    )


def test_assertions_by_a_judge_are_one_batch(tmp_path: Path) -> None:
    suite = suite_of(
        tmp_path,
        """\
  - {name: good, inputs: {question: good}, assert: [{type: judge, value: How kind it is, options: {scale: [1, 2]}}]}
  - {name: fair, inputs: {question: fair}, assert: [{type: judge, value: How kind it is, options: {scale: [1, 2]}, threshold: 0.7}]}
  - {name: bad, inputs: {question: bad}, assert: [{type: llm-rubric, value: is kind}]}
  - {name: "not", inputs: {question: bad}, assert: [{type: not-llm-rubric, value: is kind}]}
  - {name: list, inputs: {question: good}, assert: [{type: assert-set, assert: [{type: judge, value: [is kind, is short]}]}]}
""",
        HEAD,
    )
    engine = judging()
    found = results(suite, engine)
    assert {name: each.status for name, each in found.items()} == {
        "good": "pass",
        "fair": "fail",
        "bad": "fail",
        "not": "pass",
        "list": "pass",
    }
    assert found["fair"].reason == 'reply: found "fair" (0.600), expected judge of at least 0.7 by "How kind it is"'
    assert found["good"].score == pytest.approx(0.9)
    assert len(engine.batches) == 2
    assert len(engine.batches[1]) == 6


def test_the_reference_of_an_assertion(tmp_path: Path) -> None:
    row = (
        "  - {name: a, inputs: {question: good}, assert: [{type: judge, value: Same, options: {reference: so good}}]}\n"
    )
    engine = judging()
    suite = suite_of(tmp_path, row.replace("reference: so good", "reference: so good, scale: [1, 2]"), HEAD)
    assert results(suite, engine)["a"].status == "pass"
    assert "Reference: so good" in engine.prompts()[-1]


def test_a_gate_by_the_specs_judge(tmp_path: Path) -> None:
    lines = [{"question": text, "reply": "x"} for text in ("good 1", "good 2", "fair 3")]
    (tmp_path / "kind.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    suite = suite_of(tmp_path, "  - {name: gate, data: kind.jsonl, at_least: 0.5}\n", HEAD)
    engine = judging()
    found = results(suite, engine)["gate"]
    assert (found.status, found.score) == ("pass", pytest.approx(0.8))
    assert [len(batch) for batch in engine.batches] == [3, 3]


def test_a_judge_that_fails_makes_an_error_and_no_failure(tmp_path: Path) -> None:
    (tmp_path / "kind.jsonl").write_text('{"question": "good", "reply": "x"}\n{"question": "hot", "reply": "x"}\n')
    suite = suite_of(
        tmp_path,
        """\
  - {name: case, inputs: {question: hot}, assert: [{type: llm-rubric, value: is kind}]}
  - {name: gate, data: kind.jsonl, at_least: 0.5}
""",
        HEAD,
    )
    engine = judging()
    shown = ("Output: hot", "Reply: hot")
    engine.failure = lambda request: (
        "too hot" if any(text in engine.tokenizer.text(request.prompt) for text in shown) else None
    )
    found = results(suite, engine)
    assert (found["case"].status, found["case"].reason) == ("error", "llm-rubric: the judge failed: too hot")
    assert (found["gate"].status, found["gate"].reason) == (
        "error",
        "1 of 2 examples failed: the judge failed: too hot",
    )


def test_recorded_outputs_need_a_model_for_the_judge(tmp_path: Path) -> None:
    (tmp_path / "kind.jsonl").write_text('{"question": "good", "reply": "x"}\n')
    suite = suite_of(
        tmp_path,
        """\
  - {name: case, inputs: {question: good}, assert: [{type: llm-rubric, value: is kind}]}
  - {name: gate, data: kind.jsonl, at_least: 0.5}
""",
        HEAD,
    )
    recorder = Recorder()
    results(suite, judging(), recorder=recorder)
    recorder.write(tmp_path / "outputs.jsonl")
    found = {each.name: each for each in rescore(suite, read_recording(tmp_path / "outputs.jsonl"))}
    assert (found["case"].status, found["gate"].status) == ("error", "error")
    assert "has no model to run on" in found["case"].reason and "has no model to run on" in found["gate"].reason


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("{type: judge}", "the key 'value' is missing"),
        ("{type: judge, value: 3}", "expected a rubric in words, or a list of criteria"),
        ("{type: llm-rubric, value: [a, b]}", "A list of criteria is a checklist of `judge`"),
        ("{type: judge, value: x, threshold: 2}", "threshold: found 2; expected 0 to 1"),
        ("{type: judge, value: x, options: {scal: [1, 2]}}", "did you mean 'scale'"),
        ("{type: judge, value: x, options: {scale: [2, 1]}}", "options: scale: found the scale [2, 1]"),
        ("{type: judge, value: x, options: {rubric: y}}", "a 'judge' takes no rubric"),
        ("{type: judge, value: x, options: {reference: 3}}", "reference is 3"),
        ("{type: judge, value: x, options: {format: chatt}}", "options: format: unknown format 'chatt'"),
        ("{type: judge, value: x, options: {model: {id: a, dtype: half}}}", "options: model.dtype: found 'half'"),
    ],
)
def test_what_an_assertion_says_wrong(tmp_path: Path, written: str, told: str) -> None:
    with pytest.raises(InputError) as caught:
        suite_of(tmp_path, f"  - {{name: a, inputs: {{question: q}}, assert: [{written}]}}\n", HEAD)
    assert told in str(caught.value)


def test_in_a_cell_of_a_table() -> None:
    found = read_cell("llm-rubric(0.8): is polite")
    assert (found.type, found.value, found.threshold) == ("llm-rubric", "is polite", 0.8)


def test_a_judges_model_that_is_not_there_is_told_before_anything_runs(tmp_path: Path) -> None:
    row = "  - {name: a, inputs: {question: q}, assert: [{type: judge, value: x, options: {model: no-such-model}}]}\n"
    engine = judging()
    with pytest.raises(InputError, match="no model is called 'no-such-model'"):
        results(suite_of(tmp_path, row, HEAD), engine)
    assert not engine.batches
