"""Metrics that need a model at work, wherever a metric is named: `eval`, `diff`, a test in Python, gates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fakes import FakeEngine, WordLearner, fake_target

import cuecard
from cuecard.compiler.testing import rescore
from cuecard.compiler.testing.answers import Recorder, read_recording

from .cli_cases import cuecard as command
from .testing_cases import results, suite_of

NAMES = ("calibration_error", "perplexity")
HEAD = """\
signature: "ticket -> queue: Literal['billing', 'technical', 'account']"
format: completion
readout: choice
"""


def learner() -> FakeEngine:
    return WordLearner(bias={"billing": 2.0}).engine()


def rows(folder: Path) -> None:
    lines = [{"ticket": f"refund {n}", "queue": "billing"} for n in range(3)]
    (folder / "told.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize("name", NAMES)
def test_by_name_in_eval_and_diff_and_a_test_in_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    rows(tmp_path)
    (tmp_path / "route.yaml").write_text(f"{HEAD}metric: exact_match\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cuecard.compiler.cli.eval.open_target", lambda *_, **__: fake_target(learner()))
    for place in ("a.json", "b.json"):
        said = command(capsys, "eval", "route.yaml", "--data", "told.jsonl", "--metric", name, "--scores", place)
        assert said.code == 0, said.err
        assert name in said.out
    said = command(capsys, "diff", "a.json", "b.json")
    assert (said.code, "is not known here" in said.out) == (0, False)
    given = {"baseline": "base.json", "target": fake_target(learner())}
    program = cuecard.load("route.yaml")
    cuecard.assert_not_worse(program, "told.jsonl", name, update=True, **given)
    cuecard.assert_not_worse(program, "told.jsonl", name, **given)


def test_the_nearest_name_in_eval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows(tmp_path)
    (tmp_path / "route.yaml").write_text(HEAD)
    monkeypatch.chdir(tmp_path)
    said = command(capsys, "eval", "route.yaml", "--data", "told.jsonl", "--metric", "perplexty")
    assert (said.code, "did you mean 'perplexity'" in said.err) == (2, True)


@pytest.mark.parametrize(
    ("name", "told"),
    [("calibration_error", "--replay a recording of its calls"), ("perplexity", "has no model to run on")],
)
def test_a_gate_passes_on_a_model_and_is_an_error_on_recorded_outputs(tmp_path: Path, name: str, told: str) -> None:
    rows(tmp_path)
    suite = suite_of(tmp_path, "  - {name: gate, data: told.jsonl, at_least: 0.01}\n", f"{HEAD}metric: {name}\n")
    recorder = Recorder()
    engine = learner()
    inner = engine.likelihood
    engine.likelihood = lambda prompt, text: -1.0 if prompt == "<|start|>" else inner(prompt, text)
    assert results(suite, engine, recorder=recorder)["gate"].status == "pass"
    recorder.write(tmp_path / "outputs.jsonl")
    [again] = rescore(suite, read_recording(tmp_path / "outputs.jsonl"))
    assert (again.status, told in again.reason) == ("error", True)
