"""`cuecard check`: exactly what it prints for what is right, and for everything that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from .cli_cases import SPEC, Said, cuecard, tickets, write_rows, write_spec

FOUND = """\
triage: Route a ticket.
model     smollm2-135m
inputs    ticket: str
node      main: predict, ticket: str -> queue: Literal['billing', 'technical', 'account']
outputs   queue: Literal['billing', 'technical', 'account']
data      6 train, 8 dev, 6 test
metric    exact_match
optimize  joint, 40 metric calls, seed 0
tests     2 tests
ok
"""
NO_MODEL = "warning: the model 'smollm2-135m' is not on this machine; run: cuecard models pull smollm2-135m\n"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, cuecard_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def check(capsys: pytest.CaptureFixture[str], **changes: str) -> Said:
    write_spec(Path(), **changes)
    return cuecard(capsys, "check", "triage.yaml")


def test_what_was_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert check(capsys) == Said(0, FOUND, NO_MODEL)


def test_a_bare_program(capsys: pytest.CaptureFixture[str]) -> None:
    Path("bare.yaml").write_text("signature: question -> answer\n", encoding="utf-8")
    assert cuecard(capsys, "check", "bare.yaml").out == (
        "bare\n"
        "model     smollm2-135m (the default)\n"
        "inputs    question: str\n"
        "node      main: predict, question: str -> answer: str\n"
        "outputs   answer: str\n"
        "data      none (a compile needs some)\n"
        "metric    none (a compile needs one)\n"
        "optimize  joint, 2,000 metric calls, seed 0\n"
        "tests     0 tests\n"
        "ok\n"
    )


def test_a_compiled_python_program(capsys: pytest.CaptureFixture[str]) -> None:
    text = (
        "predictors: {ask.predict: {signature: 'q -> a: int', instructions: Ask.}}\n"
        "compiled:\n"
        "  target: {identity: abc, name: tiny, dtype: float32, device: cpu}\n"
        "  kept: baseline\n"
        "  baseline: {dev: {value: 0.25, low: 0.1, high: 0.5, n: 20}}\n"
        "  scores: {dev: {value: 0.5, low: 0.3, high: 0.7, n: 20}}\n"
    )
    Path("python.yaml").write_text(text, encoding="utf-8")
    lines = cuecard(capsys, "check", "python.yaml").out.splitlines()
    assert lines[2] == "predictor  ask.predict: q: str -> a: int"
    assert lines[-3:] == [
        "compiled   for tiny, float32, cpu; kept the baseline",
        "           dev 0.250 [0.100, 0.500] -> 0.500 [0.300, 0.700], n = 20",
        "ok",
    ]


def test_unused_columns_and_nodes_are_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    write_spec(Path())
    write_rows(Path("dev.jsonl"), [{**row, "id": n} for n, row in enumerate(tickets("dev", 8))])
    said = cuecard(capsys, "check", "triage.yaml")
    assert (said.code, said.err) == (0, "warning: dev.jsonl: nothing uses the column 'id'\n" + NO_MODEL)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"metric": "metrik: exact_match"}, "triage.yaml:7: metrik: unknown key (did you mean 'metric'?)"),
        (
            {"metric": "metric: exact_mach"},
            "triage.yaml:7: metric: there is no metric 'exact_mach'; expected one of accuracy, bleu, "
            "calibration_error, chrf, contains, exact_match, f1, json_fields, length, levenshtein, macro_f1, mcc, numeric, "
            "perplexity, python, regex, rouge_1, rouge_2, rouge_l, rouge_lsum, set_f1, similarity, span_f1, ter, "
            "weighted (did you mean 'exact_match'?)",
        ),
        (
            {"optimize": "optimize: {optimizer: joit}"},
            "triage.yaml:8: optimize.optimizer: unknown optimizer 'joit'; expected one of joint, random, labeled_few_shot, "
            "bootstrap_few_shot, bootstrap_random, knn_few_shot, copro, mipro, gepa, simba, or dspy.NAME "
            "(did you mean 'joint'?)",
        ),
        (
            {"data": "data: {train: train.jsonl, dev: devs.jsonl}"},
            "triage.yaml:6: data.dev: no such file: devs.jsonl (did you mean 'dev.jsonl'?)",
        ),
        (
            {"data": "data: {dev: ../dev.jsonl}"},
            "triage.yaml:6: data.dev: '../dev.jsonl' leads out of the spec's folder\n"
            "  Use a path inside it, or allow this with --allow-outside if you trust the spec.",
        ),
        (
            {"signature": "signature: 'ticket -> queue: in'"},
            "triage.yaml:4: signature: queue: found 'in', which is not a type; expected str, bool, int, float, Decimal, "
            "date, datetime, time, UUID, Any, Literal[...], list[...], dict[str, ...], Optional[...] or Annotated[...]",
        ),
    ],
)
def test_a_wrong_spec(capsys: pytest.CaptureFixture[str], changes: dict[str, str], told: str) -> None:
    said = check(capsys, **changes)
    assert said == Said(2, "", f"error: {told}\n")


def test_a_missing_spec(capsys: pytest.CaptureFixture[str]) -> None:
    write_spec(Path())
    said = cuecard(capsys, "check", "triag.yaml")
    assert said == Said(2, "", "error: triag.yaml: no such file (did you mean 'triage.yaml'?)\n")


def test_a_bad_row_and_a_label_outside_the_literal_are_told_together(capsys: pytest.CaptureFixture[str]) -> None:
    write_spec(Path())
    with Path("dev.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"ticket": "x", "queue": "biling"}\n{"ticket": "y"}\n{"ticket": \n')
    said = cuecard(capsys, "check", "triage.yaml")
    assert (said.code, said.out) == (2, "")
    assert said.err == (
        "error: dev.jsonl:9: queue: found 'biling'; expected one of: billing, technical, account "
        "(did you mean 'billing'?)\n"
        "error: dev.jsonl:10: the field 'queue' is missing\n"
        "error: dev.jsonl:11: not valid JSON: Expecting value, at column 11\n"
    )


def test_errors_beyond_the_first_ten_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    write_spec(Path())
    write_rows(Path("dev.jsonl"), [{"ticket": f"{n}", "queue": "none"} for n in range(14)])
    said = cuecard(capsys, "check", "triage.yaml")
    assert said.err.count("error: dev.jsonl:") == 10
    assert said.err.endswith("... and 4 more\n")


def test_an_empty_file(capsys: pytest.CaptureFixture[str]) -> None:
    write_spec(Path())
    Path("dev.jsonl").write_text("", encoding="utf-8")
    assert cuecard(capsys, "check", "triage.yaml") == Said(2, "", "error: dev.jsonl: the file has no rows\n")


def test_what_is_wrong_in_several_places_is_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    spec = SPEC.replace("type: equals", "type: equal").replace("metric: exact_match", "metric: exact")
    write_spec(Path(), spec)
    Path("dev.jsonl").write_text("", encoding="utf-8")
    said = cuecard(capsys, "check", "triage.yaml")
    assert said.code == 2
    assert [line.split(": ")[1] for line in said.err.splitlines()] == ["dev.jsonl", "triage.yaml:7", "triage.yaml:10"]


def test_code_is_not_run_unless_it_is_allowed(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.py").write_text("def score(example, prediction):\n    return 1.0\n", encoding="utf-8")
    said = check(capsys, metric="metric: mine:score")
    assert said.code == 2 and "--allow-code" in said.err
    assert cuecard(capsys, "check", "triage.yaml", "--allow-code").code == 0
