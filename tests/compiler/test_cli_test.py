"""`cuecard test`: what it prints, its exit codes, which tests it runs and where the answers come from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeEngine, fake_target

from .cli_cases import Said, cuecard, tickets, write_rows
from .testing_cases import HEAD, engine

TESTS = """\
program: spec.yaml
tests:
  - {name: a refund, tags: [smoke], inputs: {ticket: about billing}, assert: [{type: equals, value: billing}]}
  - {name: a crash, inputs: {ticket: about technical}, assert: [{type: equals, value: billing}]}
  - {name: quality, data: rows.jsonl, baseline: base.json}
"""


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    """The engine that the verb finds; the working folder has a spec, a file of tests for it and its data."""
    made = engine()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cuecard.compiler.cli.test.open_target", lambda *_: fake_target(made))
    Path("spec.yaml").write_text(HEAD, encoding="utf-8")
    Path("triage.tests.yaml").write_text(TESTS, encoding="utf-8")
    write_rows(Path("rows.jsonl"), tickets("row", 6))
    return made


def run(capsys: pytest.CaptureFixture[str], *words: Any) -> Said:
    return cuecard(capsys, "test", *words)


def test_a_baseline_first_and_then_the_tests(asked: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    said = run(capsys, "triage.tests.yaml")
    assert (said.code, said.out) == (2, "")
    assert said.err == (
        "error: triage.tests.yaml:5: tests[2].baseline: no such file: base.json\n  Write it with --update-baseline.\n"
    )
    assert asked.batches == []
    said = run(capsys, "triage.tests.yaml", "--update-baseline", "-k", "quality")
    assert (said.code, said.err) == (0, "")
    assert (
        said.out
        == "pass  quality  exact_match 0.833 [0.436, 0.970] on 6 rows; wrote the baseline base.json\n1 passed\n"
    )
    said = run(capsys, "triage.tests.yaml")
    lines = said.out.splitlines()
    assert (said.code, said.err) == (1, "")
    assert lines[:2] == ["pass  a refund", 'fail  a crash   queue: found "technical", expected equals "billing"']
    assert lines[2].startswith("pass  quality   exact_match is not shown to be worse than the baseline: +0.000")
    assert lines[3] == "2 passed, 1 failed"


def test_a_baseline_of_other_options_is_refused(asked: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "triage.tests.yaml", "--update-baseline", "-k", "quality")
    assert "metric_digest" in json.loads(Path("base.json").read_text())
    changed = TESTS.replace("baseline:", "metric: {metric: exact_match, normalize: true}, baseline:")
    Path("triage.tests.yaml").write_text(changed, encoding="utf-8")
    said = run(capsys, "triage.tests.yaml", "-k", "quality")
    assert said.code == 2
    assert "another rubric or other options" in said.out + said.err and "--update-baseline" in said.out + said.err
    run(capsys, "triage.tests.yaml", "--update-baseline", "-k", "quality")
    assert run(capsys, "triage.tests.yaml", "-k", "quality").code == 0


def test_selection(asked: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "triage.tests.yaml", "--update-baseline")
    assert run(capsys, "triage.tests.yaml", "--tag", "smoke") == Said(0, "pass  a refund\n1 passed\n", "")
    again = run(capsys, "triage.tests.yaml", "--last-failed")
    assert again.out == 'fail  a crash  queue: found "technical", expected equals "billing"\n1 failed\n'
    Path("triage.tests.yaml").write_text(
        TESTS.replace(
            "about technical}, assert: [{type: equals, value: billing",
            "about technical}, assert: [{type: equals, value: technical",
        )
    )
    assert run(capsys, "triage.tests.yaml", "--last-failed").out == "pass  a crash\n1 passed\n"
    assert run(capsys, "triage.tests.yaml", "--last-failed").out.endswith("3 passed\n")
    assert run(capsys, "triage.tests.yaml", "--tag", "smoek").err == (
        "error: triage.tests.yaml: no test has the tag 'smoek'; expected one of smoke (did you mean 'smoke'?)\n"
    )


def test_a_folder_of_files(asked: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    Path("more.tests.yaml").write_text("\n".join(TESTS.splitlines()[:3]) + "\n", encoding="utf-8")
    run(capsys, ".", "--update-baseline")
    said = run(capsys, ".")
    assert said.code == 1
    assert [line for line in said.out.splitlines() if not line.startswith(("pass", "fail"))] == [
        "more.tests.yaml",
        "triage.tests.yaml",
        "3 passed, 1 failed",
    ]
    data = json.loads(run(capsys, ".", "--json", "-k", "refund").out)
    assert (data["name"], data["target"], data["passed"]) == (".", "fake (fake)", 2)
    assert [test["path"] for test in data["tests"]] == ["more.tests.yaml", "triage.tests.yaml"]


def test_outputs_are_recorded_and_judged_again(asked: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "triage.tests.yaml", "--update-baseline", "--record-outputs", "out.jsonl")
    calls = len(asked.batches)
    said = run(capsys, "triage.tests.yaml", "--rescore", "out.jsonl", "--json")
    data = json.loads(said.out)
    assert (said.code, data["target"], data["passed"], data["failed"]) == (1, "fake (fake)", 2, 1)
    lines = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    nameless = [{k: v for k, v in line.items() if k != "model"} for line in lines]
    write_rows(Path("old.jsonl"), nameless)
    assert json.loads(run(capsys, "triage.tests.yaml", "--rescore", "old.jsonl", "--json").out)["target"] == "fake"
    Path("triage.tests.yaml").write_text(TESTS.replace("about technical", "about account"), encoding="utf-8")
    said = run(capsys, "triage.tests.yaml", "--rescore", "out.jsonl")
    assert said.code == 3 and "error  a crash   out.jsonl holds no outputs for these inputs" in said.out
    assert said.out.endswith("2 passed, 1 could not be run\n")
    assert len(asked.batches) == calls


def test_recorded_calls_are_replayed(asked: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "triage.tests.yaml", "--update-baseline")
    before = run(capsys, "triage.tests.yaml", "--record", "calls")
    calls = len(asked.batches)
    assert run(capsys, "triage.tests.yaml", "--replay", "calls") == before
    assert len(asked.batches) == calls
    Path("spec.yaml").write_text(HEAD + "instructions: Another prompt.\n", encoding="utf-8")
    said = run(capsys, "triage.tests.yaml", "--replay", "calls")
    assert (said.code, said.out) == (2, "") and "calls" in said.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--rescore", "a.jsonl", "--replay", "b"], "found --replay beside --rescore; expected one of them"),
        (["--rescore", "a.jsonl", "--model", "x"], "found --model beside --rescore"),
        (["--rescore", "a.jsonl", "--weights", "int8"], "found --weights beside --rescore"),
        (["--replay", "b", "--dtype", "float32"], "found --dtype beside --replay"),
        (["--rescore", "a.jsonl", "--record-outputs", "b.jsonl"], "found --record-outputs beside --rescore"),
        (["--rescore", "a.jsonl"], "a.jsonl: no such file"),
        (["--record-outputs", "no/b.jsonl"], "no/b.jsonl: --record-outputs: there is no folder 'no'"),
        (["-k", "refnd"], "triage.tests.yaml: no test is called 'refnd'"),
    ],
)
def test_what_is_refused(asked: FakeEngine, capsys: pytest.CaptureFixture[str], words: list[str], told: str) -> None:
    run(capsys, "triage.tests.yaml", "--update-baseline")
    calls = len(asked.batches)
    said = run(capsys, "triage.tests.yaml", *words)
    assert (said.code, said.out) == (2, "") and said.err.startswith(f"error: {told}")
    assert len(asked.batches) == calls


def test_missing_files_and_folders(asked: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "triage.test.yaml").err.startswith("error: triage.test.yaml: no such file (did you mean")
    Path("empty").mkdir()
    assert run(capsys, "empty").err == (
        "error: empty: no tests in this folder; expected files that are called NAME.tests.yaml\n"
    )
    assert run(capsys, "spec.yaml").err == "error: spec.yaml: there are no `tests:`\n"
