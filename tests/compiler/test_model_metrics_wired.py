"""Metrics that need a model at work, wherever a metric is named: `eval`, `diff`, a test in Python, gates."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from fakes import FakeEngine, WordLearner, fake_target

import cuecard
from cuecard.compiler.testing import rescore
from cuecard.compiler.testing.answers import Recorder, read_recording
from cuecard.errors import InputError
from cuecard.models.engine import ScoreRequest

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


def test_an_answer_without_a_score_by_one_metric_has_one_by_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [{"question": f"{'long ' * 40 * (n == 1)}q{n}", "answer": "q0"} for n in range(4)]
    (tmp_path / "told.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "echo.yaml").write_text("signature: question -> answer\nformat: completion\nmetric: exact_match\n")
    monkeypatch.chdir(tmp_path)

    def open_target(*_: object) -> object:
        engine = FakeEngine(lambda prompt, *_: f" {prompt.rpartition('Question: ')[2].splitlines()[0]}\n")
        engine.failure = lambda request: (
            "too long" if isinstance(request, ScoreRequest) and len(request.continuations[0]) > 30 else None
        )
        return fake_target(engine)

    monkeypatch.setattr("cuecard.compiler.cli.eval.open_target", open_target)
    words = ("eval", "echo.yaml", "--data", "told.jsonl", "--metric", "exact_match", "--metric", "perplexity")
    said = command(capsys, *words)
    assert said.code == 3, said.err
    assert "exact_match  0.250 [" in said.out
    assert "failed       1 example with no score by perplexity: the perplexity is not known: too long" in said.out
    found = json.loads(command(capsys, *words, "--json").out)
    assert (found["failed"], found["scores"]["exact_match"]["n"], found["scores"]["perplexity"]["n"]) == (1, 4, 3)


def test_the_nearest_name_in_eval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows(tmp_path)
    (tmp_path / "route.yaml").write_text(HEAD)
    monkeypatch.chdir(tmp_path)
    said = command(capsys, "eval", "route.yaml", "--data", "told.jsonl", "--metric", "perplexty")
    assert (said.code, "did you mean 'perplexity'" in said.err) == (2, True)


def test_perplexity_passes_on_a_model_and_is_an_error_on_recorded_outputs(tmp_path: Path) -> None:
    rows(tmp_path)
    suite = suite_of(tmp_path, "  - {name: gate, data: told.jsonl, at_least: 0.01}\n", f"{HEAD}metric: perplexity\n")
    recorder = Recorder()
    engine = learner()
    inner = engine.likelihood
    engine.likelihood = lambda prompt, text: -1.0 if prompt == "<|start|>" else inner(prompt, text)
    assert results(suite, engine, recorder=recorder)["gate"].status == "pass"
    recorder.write(tmp_path / "outputs.jsonl")
    [again] = rescore(suite, read_recording(tmp_path / "outputs.jsonl"))
    assert (again.status, "has no model to run on" in again.reason) == ("error", True)


CALIBRATED = """\
readout:
  kind: choice
  calibration: {method: batch, offsets: {queue: {billing: 1.5, technical: 0.5, account: -0.25}}}
"""
GATE = "  - {name: gate, data: told.jsonl, at_least: 0.01}\n"


def recorded_calibration(folder: Path, readout: str) -> tuple[str, Path]:
    """What a gate by the calibration error said on a model, and the recording of its outputs."""
    rows(folder)
    head = HEAD.replace("readout: choice\n", readout)
    suite = suite_of(folder, GATE, f"{head}metric: calibration_error\n")
    recorder = Recorder()
    gate = results(suite, learner(), recorder=recorder)["gate"]
    recorder.write(folder / "outputs.jsonl")
    assert gate.status == "pass", gate.reason
    return gate.reason, folder / "outputs.jsonl"


@pytest.mark.parametrize("readout", ["readout: choice\n", CALIBRATED])
def test_the_calibration_error_is_the_same_on_recorded_choices(tmp_path: Path, readout: str) -> None:
    said, path = recorded_calibration(tmp_path, readout)
    line = json.loads(path.read_text().splitlines()[0])
    assert line["choices"]["queue"]["label"] == line["outputs"]["queue"]
    assert set(line["choices"]["queue"]["scores"]) == {"billing", "technical", "account"}
    suite = suite_of(tmp_path, GATE, f"{HEAD.replace('readout: choice', readout)}metric: calibration_error\n")
    [again] = rescore(suite, read_recording(path))
    assert (again.status, again.reason) == ("pass", said)
    anew = f"{HEAD.replace('readout: choice', CALIBRATED.replace('1.5', '9.0'))}metric: calibration_error\n"
    [other] = rescore(suite_of(tmp_path, GATE, anew), read_recording(path))
    assert other.reason == said, "another calibration does not change what was said"


def test_an_impossible_label_is_recorded_as_null(tmp_path: Path) -> None:
    rows(tmp_path)
    suite = suite_of(tmp_path, GATE, f"{HEAD}metric: calibration_error\n")
    recorder, engine = Recorder(), learner()
    inner = engine.likelihood
    engine.likelihood = lambda prompt, text: -math.inf if "account" in text else inner(prompt, text)
    before = results(suite, engine, recorder=recorder)["gate"]
    recorder.write(tmp_path / "outputs.jsonl")
    line = json.loads((tmp_path / "outputs.jsonl").read_text().splitlines()[0])
    assert line["choices"]["queue"]["scores"]["account"] is None
    assert rescore(suite, read_recording(tmp_path / "outputs.jsonl"))[0].reason == before.reason


def test_a_recording_of_an_older_version_says_what_it_lacks(tmp_path: Path) -> None:
    _, path = recorded_calibration(tmp_path, "readout: choice\n")
    old = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({k: v for k, v in line.items() if k != "choices"}) + "\n" for line in old))
    suite = suite_of(tmp_path, GATE, f"{HEAD}metric: calibration_error\n")
    [again] = rescore(suite, read_recording(path))
    assert again.status == "error"
    assert "a recording of --record-outputs without `choices` was made by an older version" in again.reason


@pytest.mark.parametrize(
    ("choices", "told"),
    [
        (3, "choices: found 3; expected a mapping by output"),
        ({"queue": {"label": "billing"}}, "choices.queue: found"),
        ({"queue": {"label": "billing", "scores": {"account": -1.0}}}, "choices.queue: found"),
        ({"queue": {"label": "billing", "scores": {"billing": "high"}}}, "choices.queue: found"),
        ({"queue": {"label": ["billing"], "scores": {"billing": -1.0}}}, "choices.queue: found"),
    ],
)
def test_choices_that_are_none(tmp_path: Path, choices: object, told: str) -> None:
    _, path = recorded_calibration(tmp_path, "readout: choice\n")
    lines = path.read_text().splitlines()
    path.write_text(json.dumps({**json.loads(lines[0]), "choices": choices}) + "\n" + "\n".join(lines[1:]) + "\n")
    suite = suite_of(tmp_path, GATE, f"{HEAD}metric: calibration_error\n")
    with pytest.raises(InputError) as raised:
        rescore(suite, read_recording(path))
    assert f"outputs.jsonl:1: {told}" in str(raised.value)
