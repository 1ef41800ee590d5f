"""`cuecard eval` with a judge, and `--judge-check`: position bias, length bias, agreement with people."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeEngine, fake_target

from cuecard.compiler.evaluate import Answered
from cuecard.compiler.from_spec import spec_metric
from cuecard.compiler.judging import JudgeMetric, judge_in
from cuecard.compiler.judging.bias import pairs_of
from cuecard.compiler.testing import Case, read_suite

from .cli_cases import cuecard, write_rows

SPEC = """\
name: replies
signature: question -> reply
format: completion
data: {dev: dev.jsonl}
metric: {judge: {rubric: How kind it is, scale: [1, 3]}}
"""


class Liking:
    """Says again what was asked; `good` answers get a 3, others a 1, and `wordy` more of it a word; of two answers the
    one that `prefers` names.
    """

    def __init__(self, wordy: float = 0.0, prefers: Callable[[str, str], str] = lambda *_: "first") -> None:
        self.wordy, self.prefers = wordy, prefers

    def answer(self, prompt: str, *_: Any) -> str:
        return f" {prompt.rpartition('Question: ')[2].splitlines()[0]}\n"

    def likelihood(self, prompt: str, continuation: str) -> float:
        label = continuation.strip()
        if "Second reply: " in prompt:
            shown = [prompt.rpartition(f"{place} reply: ")[2].splitlines()[0] for place in ("First", "Second")]
            return 0.0 if label == self.prefers(*shown) else -9.0
        reply = prompt.rpartition("Reply: ")[2].splitlines()[0]
        wanted = 3.0 if "good" in reply else 1.0 + self.wordy * len(reply.split())
        return -20 * abs(int(label) - wanted)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.chdir(tmp_path)
    Path("replies.yaml").write_text(SPEC)
    write_rows(
        Path("dev.jsonl"), [{"question": f"{word} {n}", "reply": "x"} for n, word in enumerate(("good", "bad", "so"))]
    )

    def go(liking: Liking, *words: Any, failure: Callable[[str], bool] = lambda prompt: False) -> Any:
        engine = FakeEngine(liking.answer, liking.likelihood)
        engine.failure = lambda request: "too hot" if failure(engine.tokenizer.text(request.prompt)) else None
        monkeypatch.setattr("cuecard.compiler.cli.eval.open_target", lambda *_: fake_target(engine))
        return cuecard(capsys, "eval", "replies.yaml", *words)

    return go


def test_a_score_by_a_judge(run: Any) -> None:
    said = run(Liking(), "--scores", "base.json", "--json")
    assert (said.code, said.err) == (0, "")
    assert json.loads(said.out)["scores"]["judge"]["value"] == pytest.approx(1 / 3, abs=1e-6)
    assert len(json.loads(Path("base.json").read_text())["rows"]) == 3


def test_position_and_length(run: Any) -> None:
    said = run(Liking(wordy=0.05), "--judge-check")
    assert (said.code, said.err) == (0, "")
    lines = said.out.splitlines()
    assert lines[0] == "judge of replies on fake, float32, cpu: 3 examples of dev"
    assert lines[1] == "position  0.000                    of 3 pairs: the same verdict in both orders"
    assert lines[2] == "          1.000                    the one shown first, both times"
    assert lines[4] == "          1.000                    of all verdicts for the one shown first; 0.500 is no bias"
    assert lines[5].startswith("length    +0.")
    fair = json.loads(run(Liking(prefers=lambda a, b: "first" if a > b else "second"), "--judge-check", "--json").out)
    assert fair["position"] == {"pairs": 3, "consistent": 1.0, "first": 0.0, "second": 0.0, "picked_first": 0.5}
    assert fair["length"]["padded"] == pytest.approx(fair["length"]["plain"])
    assert fair["length"]["correlation"] is None
    assert (fair["labels"], fair["failed"], fair["unread"]) == (None, 0, 0)


def test_a_judge_that_likes_length_is_found_out(run: Any) -> None:
    found = json.loads(run(Liking(wordy=0.1), "--judge-check", "--json").out)["length"]
    assert found["answers"] == 3
    assert found["padded"] > found["plain"] + 0.1
    assert found["correlation"] > 0.5


def test_agreement_with_people_is_measured_on_the_datas_own_answers(run: Any) -> None:
    human = [("good one", 3), ("bad one", 1), ("bad two", 1), ("good two", 1)]
    write_rows(Path("graded.jsonl"), [{"question": "q", "reply": text, "human": grade} for text, grade in human])
    found = json.loads(run(Liking(), "--judge-check", "--data", "graded.jsonl", "--labels", "human", "--json").out)[
        "labels"
    ]
    assert (found["n"], found["accuracy"], found["kappa"]) == (4, 0.75, 0.5)
    assert found["weighted_kappa"] == pytest.approx(0.5)
    assert found["alpha"] == pytest.approx(1 - 7 * 2 / (2 * 3 * 5))
    text = run(Liking(), "--judge-check", "--data", "graded.jsonl", "--labels", "human").out
    assert "people    0.750" in text and "Krippendorff's alpha, ordinal" in text


def test_failed_calls_are_counted_and_are_no_scores(run: Any) -> None:
    said = run(Liking(), "--judge-check", "--json", failure=lambda prompt: "Reply: bad" in prompt)
    assert said.code == 3
    found = json.loads(said.out)
    assert found["length"]["answers"] == 2
    assert (found["failed"], found["first_failure"]) == (3, "the judge failed: too hot")


def test_what_is_asked_for_wrongly(run: Any) -> None:
    assert run(Liking(), "--labels", "human").err.startswith("error: found --labels without --judge-check")
    said = run(Liking(), "--judge-check", "--labels", "human")
    assert (said.code, said.out) == (2, "")
    assert "--labels: example 1 has no column 'human'" in said.err
    write_rows(Path("graded.jsonl"), [{"question": "q", "reply": "r", "human": 4}])
    said = run(Liking(), "--judge-check", "--data", "graded.jsonl", "--labels", "human")
    assert "--labels: found 4 on example 1; expected one of 1, 2, 3" in said.err
    Path("replies.yaml").write_text(SPEC.replace("{judge: {rubric: How kind it is, scale: [1, 3]}}", "exact_match"))
    assert "there is no judge in the spec's `metric:`" in run(Liking(), "--judge-check").err
    Path("replies.yaml").write_text(
        SPEC.replace("judge: {rubric: How kind it is, scale: [1, 3]}", "preference: Which one")
    )
    assert "`preference` cannot be checked: --judge-check takes a `judge`" in run(Liking(), "--judge-check").err


def test_judges_in_a_list_are_told_apart_by_name(run: Any) -> None:
    two = "[{judge: {rubric: Kind, scale: [1, 3]}}, {judge: {rubric: Short, scale: [1, 3]}}]"
    Path("replies.yaml").write_text(SPEC.replace("{judge: {rubric: How kind it is, scale: [1, 3]}}", two))
    said = run(Liking())
    assert (said.code, said.out) == (2, "")
    assert (
        "metric: two metrics are called 'judge'\n  Give each a name: `{judge: {name: tone, rubric: ...}}`." in said.err
    )
    named = two.replace("Short,", "Short, name: short,")
    Path("replies.yaml").write_text(SPEC.replace("{judge: {rubric: How kind it is, scale: [1, 3]}}", named))
    assert list(json.loads(run(Liking(), "--json").out)["scores"]) == ["0.5 judge + 0.5 short", "judge", "short"]
    others = "[{metric: length, max: 3}, {metric: length, max: 1}]"
    Path("replies.yaml").write_text(SPEC.replace("{judge: {rubric: How kind it is, scale: [1, 3]}}", others))
    assert list(json.loads(run(Liking(), "--json").out)["scores"])[1:] == ["length", "length #2"]


def test_an_answer_that_is_a_list_is_compared_as_a_whole() -> None:
    metric = JudgeMetric("Which is kinder?")
    cases = [
        Answered({"question": "q"}, {"replies": ["a", "b"]}, {"replies": ["c", "d"]}),
        Answered({"question": "q"}, {"replies": ["e", "f"]}, {"replies": "c"}),
    ]
    assert [pair.b for pair in pairs_of(metric, cases)] == [{"replies": "a\nb"}, {"replies": "e"}]


def test_the_specs_in_the_documentation_can_be_read(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "judges.md").read_text()
    blocks = re.findall(r"```yaml\n(.*?)```", text, re.S)
    path = tmp_path / "replies.yaml"
    path.write_text("signature: question -> reply\n" + "".join(blocks))
    suite = read_suite(path)
    (case,) = suite.tests
    assert isinstance(case, Case) and len(case.assertions) == 4
    assert judge_in(spec_metric(suite.spec)) is not None
