"""How errors end: one line on standard error and an exit code, never a traceback unless one is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cuecard.compiler.cli import main
from cuecard.errors import InputError, RunError

from .cli_cases import Said, cuecard, write_spec


@pytest.fixture(autouse=True)
def here(tmp_path: Path, cuecard_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CUECARD_DEBUG", raising=False)
    write_spec(tmp_path)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("compil t.yaml", "there is no verb 'compil' (did you mean 'compile'?)\n  See: cuecard --help"),
        ("models inf", "there is no verb 'inf' (did you mean 'info'?)\n  See: cuecard models --help"),
        ("check", "missing argument 'SPEC'\n  See: cuecard check --help"),
        ("check a.yaml b.yaml", "got unexpected extra argument(s) (b.yaml)\n  See: cuecard check --help"),
        (
            "compile triage.yaml --metirc-calls 3",
            "there is no option --metirc-calls (did you mean '--metric-calls'?)\n  See: cuecard compile --help",
        ),
        (
            "compile triage.yaml --metric-calls 0",
            "invalid value for '--metric-calls'; expected greater than or equal to 1\n  See: cuecard compile --help",
        ),
        ("compile triage.yaml --seconds -1", "--seconds: found -1; expected a number above 0"),
        (
            "compile triage.yaml -o nope/x.yaml",
            "nope/x.yaml: --output: there is no folder 'nope'; expected a file in a folder that exists",
        ),
        ("compile triag.yaml", "triag.yaml: no such file (did you mean 'triage.yaml'?)"),
        (
            "compile triage.yaml",
            "the model 'smollm2-135m' is not on this machine\n  run: cuecard models pull smollm2-135m",
        ),
        (
            "compile triage.yaml --model smolm2-135m",
            "no model is called 'smolm2-135m'; expected smollm2-135m, a folder, a .gguf file, or a hub id like "
            "org/name (did you mean 'smollm2-135m'?)",
        ),
        ("run triage.yaml --tickt hello", "the program has no input --tickt (did you mean '--ticket'?)"),
        ("run triage.yaml --modle tiny", "the program has no input --modle (did you mean '--model'?)"),
        ("eval triage.yaml --nope", "there is no option --nope\n  See: cuecard eval --help"),
        ("run triage.yaml --xyzzy a", "the program has no input --xyzzy; expected one of ticket"),
        ("run triage.yaml hello", "found 'hello'; expected --NAME VALUE, with NAME an input of the program"),
        ("run triage.yaml --ticket", "--ticket has no value; expected --ticket VALUE"),
        ("run triage.yaml --ticket a --ticket b", "--ticket is given twice"),
        (
            "run --ticket triage.yaml",
            "the program's file is missing; expected PROGRAM and --NAME VALUE for each of its inputs",
        ),
        ("run triage.yaml --ticket a --input dev.jsonl", "found --ticket beside --input; expected one of them"),
        ("run triage.yaml --ticket a --output b", "found --output without --input; expected --input FILE"),
        ("run triage.yaml --input devs.jsonl", "devs.jsonl: no such file (did you mean 'dev.jsonl'?)"),
        (
            "eval triage.yaml --split tset",
            "--split: found 'tset'; expected train, dev or test (did you mean 'test'?)",
        ),
        ("eval triage.yaml --split dev --data dev.jsonl", "found --split beside --data; expected one of them"),
        ("eval triage.yaml --data nope.csv", "nope.csv: no such file"),
        (
            "test triage.yaml -k refnd",
            "triage.yaml: no test is called 'refnd'; expected part of a test's name (did you mean 'a refund'?)",
        ),
        ("show triage.yaml --tiket a", "the program has no input --tiket (did you mean '--ticket'?)"),
        ("show triage.yaml --predictor mian", "--predictor: found 'mian'; expected one of main (did you mean 'main'?)"),
        (
            "models pull smollm2",
            "no model is called 'smollm2'; expected one of smollm2-135m (did you mean 'smollm2-135m'?)",
        ),
        (
            "models info ./nope",
            "./nope: there is no such file or folder; expected a folder of safetensors or a .gguf file",
        ),
    ],
)
def test_wrong_input(capsys: pytest.CaptureFixture[str], words: str, told: str) -> None:
    assert cuecard(capsys, *words.split()) == Said(2, "", f"error: {told}\n")


def test_a_spec_without_tests_has_none_to_run(capsys: pytest.CaptureFixture[str]) -> None:
    Path("bare.yaml").write_text("signature: question -> answer\n", encoding="utf-8")
    assert cuecard(capsys, "test", "bare.yaml") == Said(2, "", "error: bare.yaml: there are no `tests:`\n")


def broken(error: BaseException) -> Any:
    def load_spec(*_: Any, **__: Any) -> Any:
        raise error

    return load_spec


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (InputError("no", path="a.yaml", line=3, hint="Do."), 2, "error: a.yaml:3: no\n  Do.\n"),
        (RunError("the disk is full"), 3, "error: the disk is full\n"),
        (MemoryError(), 3, "error: there is not enough memory\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_how_an_error_ends(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, told: str
) -> None:
    monkeypatch.setattr("cuecard.programs.spec.load_spec", broken(error))
    assert cuecard(capsys, "check", "triage.yaml") == Said(code, "", told)


def test_a_defect_is_told_in_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cuecard.programs.spec.load_spec", broken(KeyError("a\nb")))
    said = cuecard(capsys, "check", "triage.yaml")
    assert (said.code, said.out, said.err.count("\n")) == (3, "", 1)
    assert said.err.startswith("error: a defect of Cuecard, please report it: KeyError: 'a\\nb' (test_cli_errors.py:")


@pytest.mark.parametrize("where", ["before", "after", "environment"])
def test_debug_adds_the_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    words = {"before": ["--debug", "check", "no.yaml"], "after": ["check", "no.yaml", "--debug"]}
    if where == "environment":
        monkeypatch.setenv("CUECARD_DEBUG", "1")
    said = cuecard(capsys, *words.get(where, ["check", "no.yaml"]))
    assert said.code == 2
    assert said.err.startswith("Traceback (most recent call last):")
    assert said.err.endswith("error: no.yaml: no such file\n")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("compile triage.yaml", "interrupted; the same command goes on where it stopped\n"),
        ("compile triage.yaml --fresh", "interrupted; the same command without --fresh goes on where it stopped\n"),
        ("eval triage.yaml", "interrupted\n"),
    ],
)
def test_an_interruption_says_what_resumes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: str, told: str
) -> None:
    monkeypatch.setattr("cuecard.compiler.from_spec.open_target", broken(KeyboardInterrupt()))
    assert cuecard(capsys, *words.split()) == Said(130, "", told)


def test_a_reader_that_goes_away_is_no_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cuecard.compiler.cli.check.say", broken(BrokenPipeError(32, "Broken pipe")))
    monkeypatch.setattr("sys.stdout", open("/dev/null", "w"))  # noqa: SIM115 - `main` puts another in its place
    assert main(["check", "triage.yaml"]) == 141
    assert capsys.readouterr().err == ""
