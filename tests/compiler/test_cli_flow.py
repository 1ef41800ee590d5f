"""The verbs one after the other on a tiny model: compile, run, show, eval, test; and what becomes of an interruption."""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cuecard.compiler.baseline import unseen_text
from cuecard.compiler.cli import main
from cuecard.compiler.cli.progress import Lines
from cuecard.metrics import metric, smallest_detectable_difference
from cuecard.models.target import target

from .cli_cases import QUEUES, Said, cuecard, write_rows, write_spec

TESTS = """\
tests:
  - {name: a label, inputs: {ticket: money back}, assert: [{type: regex, value: "^(billing|technical|account)$"}]}
  - {name: no label, inputs: {ticket: money back}, assert: [{type: not-is-json}, {type: starts-with, value: "?"}]}
  - {name: low floor, data: test.jsonl, at_least: 0}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Path]:
    """A folder with the spec, compiled, which always answers; the working folder while the module's tests run.

    `free.yaml` is the same task as free text, whose answers a random model's are not.
    """
    made, before = tmp_path_factory.mktemp("flow"), Path.cwd()
    model = f"model: {{id: {tiny_model}, dtype: float32, device: cpu, options: {{max_tokens: 12}}}}"
    path = write_spec(made, model=model)
    text = path.read_text(encoding="utf-8").partition("tests:")[0] + TESTS
    (made / "free.yaml").write_text(text, encoding="utf-8")
    path.write_text(text + "format: completion\nreadout: choice\n", encoding="utf-8")
    os.chdir(made)
    assert main(["compile", "triage.yaml"]) == 0
    yield made
    os.chdir(before)


def test_a_compile_says_what_it_does_and_what_came_of_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = cuecard(capsys, "compile", "triage.yaml", "--fresh", "-o", "again.yaml", "--runs", "runs")
    assert said.code == 0
    told = said.err.splitlines()
    assert told[:3] == [
        "triage on tiny (float32, cpu)",
        "examples 6 train, 8 dev, 6 test; budget 40 metric calls; seed 0",
        "run runs/triage-1",
    ]
    assert [line.partition(":")[0] for line in told if not line.startswith(" ")][3:] == [
        "baseline",
        "demos",
        "search",
        "test",
    ]
    state = json.loads(Path("runs/triage-1/run.json").read_text(encoding="utf-8"))
    lines = said.out.splitlines()
    assert lines[0] == "triage on tiny, float32, cpu"
    assert lines[2].split() == ["exact_match", "baseline", "compiled", "n", "unread"]
    for row, split in ((lines[3], "dev"), (lines[4], "test")):
        scores = [state[which][split] for which in ("baseline", "compiled")]
        texts = [f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]" for score in scores]
        assert row.startswith(split) and all(text in row for text in texts)
    assert "baseline" in lines[6]
    assert any(line.startswith("main  format ") for line in lines)
    assert '      "Route the ticket."' in lines
    ledger = state["ledger"]
    assert f"{ledger['calls']:,} model calls: {ledger['prompt_tokens']:,} prompt tokens" in said.out
    assert lines[-2:] == ["wrote  again.yaml", "run    runs/triage-1"]
    assert Path("again.yaml").read_bytes() == Path("triage.compiled.yaml").read_bytes()


def test_an_interrupted_compile_is_resumed_to_the_same_bytes(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["compile", "triage.yaml", "-o", "resumed.yaml", "--runs", "resumed"]

    def stop(self: Lines, *_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Lines, "trial", stop)
        said = cuecard(capsys, *command)
    assert said.code == 130
    assert said.err.splitlines()[-1] == "interrupted; the same command goes on where it stopped"
    assert not Path("resumed.yaml").exists()
    said = cuecard(capsys, *command)
    assert said.code == 0
    assert said.err.splitlines()[2] == "resuming the run resumed/triage-1, which has 8 recorded model calls"
    assert Path("resumed.yaml").read_bytes() == Path("triage.compiled.yaml").read_bytes()


def test_a_model_that_is_given_stands_in_the_compiled_program(
    folder: Path, capsys: pytest.CaptureFixture[str], tiny_model: Path
) -> None:
    text = Path("triage.yaml").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("model:")]
    Path("other.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    words = ["other.yaml", "--model", tiny_model, "--dtype", "float32", "--metric-calls", 8, "--runs", "r"]
    assert cuecard(capsys, "compile", *words).code == 0
    said = cuecard(capsys, "run", "other.compiled.yaml", "--ticket", "hello", "--device", "cpu")
    assert (said.code, said.err) == (0, "")  # no warning of another target: it runs on what it was compiled for


def test_run_one_input(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    said = cuecard(capsys, "run", "triage.compiled.yaml", "--ticket", "money back")
    assert (said.code, said.err) == (0, "")
    assert json.loads(said.out)["queue"] in QUEUES
    monkeypatch.setattr("sys.stdin", io.StringIO('{"ticket": "money back"}'))
    assert cuecard(capsys, "run", "triage.compiled.yaml") == said


def test_run_a_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = cuecard(capsys, "run", "triage.compiled.yaml", "--input", "dev.jsonl", "--output", "out.jsonl")
    assert (said.code, said.out, said.err) == (0, "", "8 rows: 8 answered\n")
    rows = [json.loads(line) for line in Path("out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 8 and all(row["queue"] in QUEUES for row in rows)
    printed = cuecard(capsys, "run", "triage.compiled.yaml", "--input", "dev.jsonl")
    assert printed.out == Path("out.jsonl").read_text(encoding="utf-8")


def test_rows_without_an_answer_say_why_and_the_exit_code_too(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(Path("long.jsonl"), [{"ticket": "short"}, {"ticket": "word " * 4000}])
    said = cuecard(capsys, "run", "triage.compiled.yaml", "--input", "long.jsonl")
    assert (said.code, said.err.splitlines()[-1]) == (1, "2 rows: 1 answered, 1 call failed")
    first, second = map(json.loads, said.out.splitlines())
    assert set(first) == {"queue"}
    assert "tokens without any demo" in second["error"]
    said = cuecard(capsys, "run", "free.yaml", "--input", "long.jsonl", "--output", "out.jsonl")
    assert (said.code, said.err.splitlines()[-1]) == (
        1,
        "2 rows: 0 answered, 1 answer could not be read, 1 call failed",
    )
    errors = [json.loads(line)["error"] for line in Path("out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert errors[0].startswith("the answer could not be read: ")


def test_an_answer_that_cannot_be_read_and_a_call_that_fails(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = cuecard(capsys, "run", "free.yaml", "--ticket", "hello")
    assert (said.code, said.out) == (1, "")
    assert said.err.startswith("error: the answer could not be read: ")
    said = cuecard(capsys, "run", "free.yaml", "--ticket", "word " * 4000)
    assert (said.code, said.out) == (3, "")
    assert "tokens without any demo" in said.err


def test_show_is_what_the_model_gets(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny_model: Path
) -> None:
    import cuecard as package

    opened = target(str(tiny_model), device="cpu", dtype="float32")
    program: Any = package.load("triage.compiled.yaml")
    prompt = program.main.prompt(lm=opened.lm, ticket="money back")
    monkeypatch.setattr("cuecard.models.loading._weights", None)  # the weights must not be needed
    said = cuecard(capsys, "show", "triage.compiled.yaml", "--ticket", "money back", "--tokens")
    assert (said.code, said.err) == (0, "")
    lines = said.out.splitlines()
    assert lines[0] == "triage on tiny, inputs from the command line"
    assert lines[2].startswith(f"main: {len(prompt.ids)} tokens: instruction ")
    counts = [int(part.rsplit(" ", 1)[1]) for part in lines[2].split(": ")[2].split(", ")]
    assert sum(counts) == len(prompt.ids)
    body = said.out.split("---------- prompt ----------\n")[1].split("---------- tokens ----------\n")
    assert body[0] == prompt.text + "\n"
    assert body[1] == " ".join(map(str, prompt.ids)) + "\n"


def test_show_takes_the_first_example_or_names(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = cuecard(capsys, "show", "free.yaml")
    assert said.out.startswith("triage on tiny, inputs from the first example of dev.jsonl\n")
    assert "Ticket: dev 0: about billing\n" in said.out
    assert "<|im_start|>user\n" in said.out
    text = Path("triage.yaml").read_text(encoding="utf-8")
    bare = "\n".join(line for line in text.splitlines() if line.split(":")[0] in ("name", "model", "signature"))
    Path("bare.yaml").write_text(bare + "\n", encoding="utf-8")
    said = cuecard(capsys, "show", "bare.yaml")
    assert said.out.startswith("triage on tiny, inputs from nowhere, so they stand as {NAME}\n")
    assert "Ticket: {ticket}\n" in said.out


def test_eval(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = cuecard(capsys, "eval", "triage.compiled.yaml")
    state = json.loads(next(Path(".cuecard/runs").glob("*/run.json")).read_text(encoding="utf-8"))
    score = state["compiled"]["test"]
    spread = math.sqrt(score["value"] * (1 - score["value"]) * 6 / 5)
    unseen = smallest_detectable_difference(6, sd=spread or math.sqrt(5 / 6), level=0.025)
    assert said == Said(
        0,
        "triage on tiny, float32, cpu: 6 examples of test\n"
        f"exact_match  {score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]\n"
        f"with 6 rows {unseen_text(metric('exact_match'), unseen)}\n",
        "",
    )
    said = cuecard(capsys, "eval", "triage.compiled.yaml", "--metric", "f1", "--metric", "rouge_l", "--json")
    data = json.loads(said.out)
    assert (data["name"], data["data"], data["examples"], data["unread"], data["failed"]) == ("triage", "test", 6, 0, 0)
    assert list(data["scores"]) == ["f1", "rouge_l"]
    assert data["scores"]["f1"]["value"] == pytest.approx(score["value"])
    assert data["detectable"] == {"f1": pytest.approx(unseen), "rouge_l": pytest.approx(unseen)}
    assert set(data["target"]) == {"name", "identity", "device", "dtype"}


def test_eval_counts_what_has_no_answer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(
        Path("hard.jsonl"),
        [{"ticket": "short", "queue": "billing"}, {"ticket": "word " * 4000, "queue": "billing"}],
    )
    said = cuecard(capsys, "eval", "free.yaml", "--data", "hard.jsonl")
    assert (said.code, said.out) == (
        3,
        "triage on tiny, float32, cpu: 2 examples of hard.jsonl\n"
        "exact_match  0.000 [0.000, 0.793]\n"
        "unread       1 answer could not be read\n"
        "failed       1 example with no score\n"
        "with 1 row any difference could go unseen\n",
    )
    said = cuecard(capsys, "eval", "triage.yaml", "--split", "train")
    assert said.out.startswith("triage on tiny, float32, cpu: 6 examples of train\n")


def test_a_weighted_metric_is_shown_with_its_parts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = Path("triage.compiled.yaml").read_text(encoding="utf-8")
    metrics = "metric: [exact_match, {metric: bleu, weight: 3}]"
    Path("two.yaml").write_text(text.replace("metric: exact_match", metrics), encoding="utf-8")
    data = json.loads(cuecard(capsys, "eval", "two.yaml", "--json").out)
    assert list(data["scores"]) == ["0.25 exact_match + 0.75 bleu", "exact_match", "bleu"]
    whole, exact, bleu = (score["value"] for score in data["scores"].values())
    assert whole == pytest.approx(0.25 * exact + 0.75 * bleu)


def test_another_target_than_the_one_compiled_for_is_a_warning(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = cuecard(capsys, "run", "triage.compiled.yaml", "--ticket", "x", "--dtype", "bfloat16")
    assert said.err == (
        "warning: the program was compiled for another target (tiny, float32, cpu); this is tiny, bfloat16, cpu\n"
    )


def test_the_tests_of_the_spec(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = cuecard(capsys, "test", "triage.compiled.yaml")
    lines = said.out.splitlines()
    assert (said.code, said.err) == (1, "")
    assert lines[0] == "pass  a label"
    assert lines[1].startswith('fail  no label   queue: found "') and lines[1].endswith('expected starts-with "?"')
    assert (
        lines[2].startswith("pass  low floor  exact_match 0.")
        and "on 6 rows, at least 0; " in lines[2]
        and lines[2].endswith(" could go unseen")
    )
    assert lines[3:] == ["2 passed, 1 failed"]
    assert cuecard(capsys, "test", "triage.compiled.yaml", "-k", "label").code == 1
    said = cuecard(capsys, "test", "triage.compiled.yaml", "-k", "a label", "--json")
    data = json.loads(said.out)
    assert (said.code, data["passed"], data["failed"], data["errors"], data["skipped"]) == (0, 1, 0, 0, 0)
    (test,) = data["tests"]
    assert (test["name"], test["status"], test["reason"], test["kind"], test["score"]) == (
        "a label",
        "pass",
        "",
        "case",
        1,
    )
    assert test["inputs"] == {"ticket": "money back"} and test["checks"][0]["type"] == "regex"


def test_a_test_that_cannot_run_is_an_error(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = Path("triage.yaml").read_text(encoding="utf-8").partition("tests:")[0]
    long = "word " * 4000
    tests = f"tests:\n  - {{name: long, inputs: {{ticket: {long}}}, assert: [{{type: is-json}}]}}\n"
    Path("long.yaml").write_text(head + tests, encoding="utf-8")
    said = cuecard(capsys, "test", "long.yaml")
    assert said.code == 3
    assert said.out.startswith("error  long  the prompt has ") and said.out.endswith("1 could not be run\n")
