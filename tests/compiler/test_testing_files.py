"""Tests from files: tables of cases, `*.tests.yaml`, which of them run, and outputs that were recorded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fakes import fake_target
from hypothesis import given
from hypothesis import strategies as st

from cuecard.compiler.testing import (
    Recorder,
    find_suites,
    read_last_failed,
    read_recording,
    read_suite,
    rescore,
    run_tests,
    select,
    write_last_failed,
)
from cuecard.compiler.testing.shorthand import read_cell
from cuecard.errors import InputError

from .testing_cases import FREE, HEAD, engine, results, says, suite_of


def with_table(folder: Path, table: str, *, name: str = "cases.csv", more: str = "", head: str = HEAD) -> None:
    (folder / name).write_text(table, encoding="utf-8")
    suite_of(folder, f"  - {{name: table, cases: {name}{more}}}\n", head)


@pytest.mark.parametrize(
    ("cell", "wanted"),
    [
        ("Paris", {"type": "equals", "value": "Paris"}),
        ("equals: Paris", {"type": "equals", "value": "Paris"}),
        ("contains:foo", {"type": "contains", "value": "foo"}),
        ("not-icontains: a: b", {"type": "not-icontains", "value": "a: b"}),
        ("contains-any: a, b", {"type": "contains-any", "value": "a, b"}),
        ("is-json", {"type": "is-json"}),
        ('is-json: {"type": "object"}', {"type": "is-json", "value": {"type": "object"}}),
        ("rouge-n(0.6): the lamp", {"type": "rouge-n", "threshold": 0.6, "value": "the lamp"}),
        ("levenshtein(2): a", {"type": "levenshtein", "threshold": 2.0, "value": "a"}),
        ("latency(500)", {"type": "latency", "threshold": 500.0}),
        ("tokens: 500", {"type": "tokens", "threshold": 500.0}),
        ('word-count: {"min": 2}', {"type": "word-count", "value": {"min": 2}}),
        ("word-count: 2", {"type": "word-count", "value": 2}),
        ("the time is 12:30", {"type": "equals", "value": "the time is 12:30"}),
        ("regex: ^a", {"type": "regex", "value": "^a"}),
    ],
)
def test_assertions_in_a_cell(cell: str, wanted: dict[str, object]) -> None:
    assert read_cell(cell).model_dump(by_alias=True, exclude_unset=True) == wanted


@pytest.mark.parametrize(
    ("cell", "told"),
    [
        ("g-eval: is polite", "there is no assertion 'g-eval' here"),
        ("contain: x", "did you mean 'contains'"),
        ("latency: soon", "found 'soon'; expected a number"),
        ("is-json: {", "not JSON"),
    ],
)
def test_cells_that_would_quietly_mean_something_else(cell: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        read_cell(cell)


@given(st.text(min_size=1))
def test_equals_is_the_way_to_write_any_text(text: str) -> None:
    spec = read_cell(f"equals: {text}")
    assert spec.type == "equals" and (spec.value == text.strip() or not text.strip())


def test_a_table_of_cases(tmp_path: Path) -> None:
    table = (
        "ticket,__expected,__expected2,__description,__metric,__threshold\n"
        "about billing,billing,not-contains: x,a refund,quality,\n"
        "about account,technical,,,quality,\n"
        "about account,technical,contains: acc,a lock,quality,0.5\n"
    )
    with_table(tmp_path, table, more=", tags: [smoke]")
    suite = read_suite(tmp_path / "spec.yaml")
    assert [note.endswith("cases.csv: the column '__metric' is not used") for note in suite.notes] == [True]
    found = results(suite)
    assert {name: result.status for name, result in found.items()} == {
        "table: a refund": "pass",
        "table: row 2": "fail",
        "table: a lock": "pass",
    }
    failed = found["table: row 2"]
    assert (failed.path, failed.line, failed.tags) == (str(tmp_path / "cases.csv"), 3, ("smoke",))
    assert failed.reason == 'queue: found "account", expected equals "technical"'
    assert [check.type for check in found["table: a refund"].checks] == ["equals", "not-contains"]


def test_columns_stand_in_the_assertions_of_the_test(tmp_path: Path) -> None:
    table = '{"ticket": "about billing", "gold": "billing", "n": 1}\n{"ticket": "about account", "gold": "billing", "n": 1}\n'
    parts = ', assert: [{type: equals, value: "{{gold}}"}, {type: contains, value: "{{ gold }}"}, {type: word-count, value: "{{n}}"}]'
    with_table(tmp_path, table, name="cases.jsonl", more=parts)
    found = list(results(read_suite(tmp_path / "spec.yaml")).values())
    assert [result.status for result in found] == ["pass", "fail"]
    assert [check.passed for check in found[1].checks] == [False, False, True]


def test_several_expectations_in_json_and_one_for_a_field(tmp_path: Path) -> None:
    head = 'signature: "q -> a: str, b: int"\nformat: {name: json}\n'
    table = '{"q": "x", "__expected:a": ["yes", "contains: e"], "__expected:b": 3}\n'
    with_table(tmp_path, table, name="cases.jsonl", head=head)
    (result,) = results(read_suite(tmp_path / "spec.yaml"), says('{"a": "yes", "b": 4}')).values()
    assert [(check.field, check.type, check.passed) for check in result.checks] == [
        ("a", "equals", True),
        ("a", "contains", True),
        ("b", "equals", False),
    ]


@pytest.mark.parametrize(
    ("table", "more", "told"),
    [
        ("ticket,__expected\nx,biling\n", "", "cases.csv:2: __expected: found 'biling'; expected one of: billing, technical, account"),
        ("ticket,__expected\nx,grade: nice\n", "", "cases.csv:2: __expected: there is no assertion 'grade' here"),
        ("ticket,__expected\nx,\n", "", "cases.csv:2: the row has no assertion"),
        ("ticket,__expcted\nx,a\n", "", "cases.csv: unknown column '__expcted'; expected one of __expected, __description, __threshold, __metric (did you mean '__expected'?)"),
        ("ticket,__expected:que\nx,a\n", "", "cases.csv: __expected:que: the program has no output 'que'"),
        ("ticket,__expected,__threshold\nx,billing,9\n", "", "cases.csv:2: __threshold: found '9'; expected 0 to 1"),
        ("tiket,__expected\nx,billing\n", "", "cases.csv: no row has the field 'ticket' (did you mean 'tiket'?)"),
        ("ticket,gold\nx,billing\n", ', assert: [{type: contains, value: "{{golt}}"}]', "spec.yaml:5: tests[0].assert[0].value: the table has no column 'golt' (did you mean 'gold'?)"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_table_is_told_where_it_stands(tmp_path: Path, table: str, more: str, told: str) -> None:
    with pytest.raises(InputError) as raised:
        with_table(tmp_path, table, more=more)
    assert str(raised.value).startswith(str(tmp_path / told))


# ---- files of tests

FILE = """\
program: spec.yaml
tests:
  - {name: a refund, tags: [smoke, money], inputs: {ticket: about billing}, assert: [{type: equals, value: billing}]}
  - {name: a crash, tags: [smoke], inputs: {ticket: about technical}, assert: [{type: equals, value: billing}]}
  - {name: quality, data: rows.jsonl, at_least: 0.5}
"""


def file_of_tests(folder: Path, text: str = FILE, name: str = "triage.tests.yaml") -> Path:
    suite_of(folder, "  - {name: own, inputs: {ticket: about billing}, assert: [{type: is-json}]}\n")
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_a_file_of_tests_has_its_own_tests_and_lines(tmp_path: Path) -> None:
    suite = read_suite(file_of_tests(tmp_path))
    found = results(suite)
    assert [(result.status, result.line) for result in found.values()] == [("pass", 3), ("fail", 4), ("pass", 5)]
    assert {result.path for result in found.values()} == {str(tmp_path / "triage.tests.yaml")}


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("program: spec.yaml\n", "", "{file}:1: the key 'program' is missing"),
        ("spec.yaml", "spek.yaml", "{file}:1: program: no such file: spek.yaml (did you mean 'spec.yaml'?)"),
        ("spec.yaml", "../spec.yaml", "{file}:1: program: '../spec.yaml' leads out of the spec's folder"),
        ("tests:", "test:", "{file}:2: test: unknown key (did you mean 'tests'?)"),
        ("{ticket: about billing}", "{tiket: x}", "{file}:3: tests[0].inputs.tiket: the program has no input 'tiket'"),
        ("type: equals", "type: equal", "{file}:3: tests[0].assert[0].type: there is no assertion 'equal'"),
        ("rows.jsonl", "row.jsonl", "{file}:5: tests[2].data: no such file: row.jsonl"),
    ],
)
def test_what_is_wrong_with_a_file_of_tests(tmp_path: Path, old: str, new: str, told: str) -> None:
    file = file_of_tests(tmp_path, FILE.replace(old, new, 1))
    with pytest.raises(InputError) as raised:
        read_suite(file)
    assert str(raised.value).startswith(told.format(file=file))


def test_a_folder_stands_for_its_files_in_order(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no tests in this folder; expected files that are called NAME.tests.yaml"):
        find_suites(tmp_path)
    for name in ("b.tests.yaml", "a.tests.yml"):
        file_of_tests(tmp_path, name=name)
    (tmp_path / "deep").mkdir()
    file_of_tests(tmp_path / "deep")
    (tmp_path / ".hidden").mkdir()
    file_of_tests(tmp_path / ".hidden")
    found = [str(path.relative_to(tmp_path)) for path in find_suites(tmp_path)]
    assert found == ["a.tests.yml", "b.tests.yaml", "deep/triage.tests.yaml"]


# ---- which tests run


def test_tests_are_chosen_by_name_and_tag(tmp_path: Path) -> None:
    suite = read_suite(file_of_tests(tmp_path))

    def names(**wanted: object) -> list[str]:
        return [test.name for part in select([suite], **wanted) for test in part.tests]  # type: ignore[arg-type]

    assert names(name="a ") == ["a refund", "a crash"]
    assert names(tags=("smoke",)) == ["a refund", "a crash"]
    assert names(tags=("money", "none")) == ["a refund"]
    assert names(name="crash", tags=("smoke",)) == ["a crash"]
    for wanted, told in [
        ({"name": "qualty"}, "no test is called 'qualty'; expected part of a test's name .did you mean 'quality'"),
        ({"tags": ("smok",)}, "no test has the tag 'smok'; expected one of money, smoke .did you mean 'smoke'"),
        ({"name": "crash", "tags": ("money",)}, "no test has the tag 'money'"),
    ]:
        with pytest.raises(InputError, match=told):
            names(**wanted)


def test_what_failed_last_time_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    suite = read_suite(file_of_tests(tmp_path))
    found = run_tests(suite, fake_target(engine()).lm)
    assert read_last_failed() == frozenset()
    write_last_failed([(str(tmp_path / "other.tests.yaml"), found[1]), *((suite.path, result) for result in found)])
    failed = read_last_failed()
    assert failed == {("triage.tests.yaml", "a crash"), ("other.tests.yaml", "a crash")}
    assert [test.name for part in select([suite], failed=failed) for test in part.tests] == ["a crash"]
    write_last_failed([("triage.tests.yaml", next(result for result in found if result.status == "pass"))])
    assert read_last_failed() == failed
    assert [len(part.tests) for part in select([suite], failed=frozenset())] == [3]
    Path(".cuecard/last-failed.json").write_text("{}")
    with pytest.raises(InputError, match="not a list of tests"):
        read_last_failed()


def test_a_run_without_failures_makes_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    suite = read_suite(file_of_tests(tmp_path))
    found = run_tests(suite, fake_target(engine()).lm)
    write_last_failed([(suite.path, found[0])])
    assert not Path(".cuecard").exists()


# ---- recorded outputs


def recorded(folder: Path) -> Path:
    recorder = Recorder()
    run_tests(read_suite(file_of_tests(folder)), fake_target(engine()).lm, target="fake", recorder=recorder)
    recorder.write(folder / "out.jsonl")
    return folder / "out.jsonl"


def test_recorded_outputs_are_judged_without_a_model(tmp_path: Path) -> None:
    path = recorded(tmp_path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == 8 and lines[0]["inputs"] == {"ticket": "about billing"}
    assert (lines[0]["outputs"], lines[0]["program"], lines[0]["target"], lines[0]["repeat"]) == (
        {"queue": "billing"},
        "spec",
        "fake",
        0,
    )
    suite = read_suite(tmp_path / "triage.tests.yaml")
    recording = read_recording(path)
    before, after = run_tests(suite, fake_target(engine()).lm), rescore(suite, recording)
    assert recording.targets == ("fake",)
    assert [(one.name, one.status, one.reason, one.checks) for one in after] == [
        (one.name, one.status, one.reason, one.checks) for one in before
    ]
    other = FILE.replace(
        "value: billing}]}\n  - {name: a crash",
        "value: account}, {type: latency, threshold: 60000}]}\n  - {name: a crash",
    ).replace("metric: exact_match", "metric: f1")
    changed = rescore(read_suite(file_of_tests(tmp_path, other)), recording)
    assert [result.status for result in changed] == ["fail", "fail", "pass"]
    assert changed[0].reason == 'queue: found "billing", expected equals "account"'


def test_what_was_not_recorded_is_an_error_of_its_test(tmp_path: Path) -> None:
    recording = read_recording(recorded(tmp_path))
    new = FILE.replace("about technical", "about a new thing")
    found = rescore(read_suite(file_of_tests(tmp_path, new)), recording)
    assert [result.status for result in found] == ["pass", "error", "pass"]
    assert (
        found[1].reason
        == f"{tmp_path / 'out.jsonl'} holds no outputs for these inputs; record them with --record-outputs"
    )


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("[1]", "out.jsonl:1: not a recorded run; expected a mapping, as --record-outputs writes it"),
        ('{"input": {}}', "out.jsonl:1: unknown key 'input' (did you mean 'inputs'?)"),
        ('{"program": "spec", "target": "", "inputs": 3}', "out.jsonl:1: inputs: found 3; expected a mapping"),
        ('{"program": "spec", "target": "", "inputs": {}, "repeat": 0}', "out.jsonl:1: a run has one ending; expected one of outputs, unread, error"),
        ('{"program": "spec", "target": "", "inputs": {}, "repeat": 0, "outputs": {"queu": 1}}', "out.jsonl:1: outputs: the output 'queue' is missing (did you mean 'queu'?)"),
        ('{"program": "spec", "target": "", "inputs": {}, "repeat": 0, "outputs": {"queue": "biling"}}', "out.jsonl:1: outputs.queue: found 'biling'; expected one of: billing, technical, account (did you mean 'billing'?)"),
    ],
)  # fmt: skip
def test_what_is_no_recording(tmp_path: Path, line: str, told: str) -> None:
    suite = read_suite(file_of_tests(tmp_path))
    (tmp_path / "out.jsonl").write_text(line + "\n")
    with pytest.raises(InputError) as raised:
        rescore(suite, read_recording(tmp_path / "out.jsonl"))
    assert str(raised.value) == str(tmp_path / told)


def test_outputs_of_free_text_are_recorded_whole(tmp_path: Path) -> None:
    suite = suite_of(tmp_path, "  - {name: a, inputs: {question: Grüße}, assert: [{type: contains, value: ü}]}\n", FREE)
    recorder = Recorder()
    run_tests(suite, fake_target(says("Grüße, zurück")).lm, recorder=recorder)
    recorder.write(tmp_path / "out.jsonl")
    assert "Grüße, zurück" in (tmp_path / "out.jsonl").read_text(encoding="utf-8")
    assert rescore(suite, read_recording(tmp_path / "out.jsonl"))[0].status == "pass"
