"""Help: what it says, that it ends in an example, and that it needs nothing heavy."""

from __future__ import annotations

import subprocess
import sys

import pytest

from .cli_cases import cuecard

VERBS = (
    ("check",),
    ("compile",),
    ("run",),
    ("show",),
    ("eval",),
    ("diff",),
    ("ab",),
    ("explain",),
    ("export",),
    ("test",),
    ("models",),
    ("models", "list"),
    ("models", "pull"),
    ("models", "info"),
)

HELP = """\
Usage: cuecard [OPTIONS] COMMAND [ARGS]...

  Compile declarative language-model programs for one local model.

Options:
  --version   Print the version.
  --debug     With any verb: show the traceback of an error. Also:
              CUECARD_DEBUG=1.
  -h, --help  Show this message and exit.

Commands:
  check    Check a spec with all that it names.
  compile  Find the prompts with which the model does a task best.
  run      Run a program on an input, or on a file of them.
  show     Show the exact prompts of a program.
  export   Write the prompts of a program as JSON.
  eval     Score a program on examples.
  diff     Compare two programs, runs or baselines.
  ab       Run two programs on the same examples and compare them.
  explain  Tell what a compiled program owes to what.
  test     Run the tests of a spec.
  models   List, fetch and describe models.

  Example:
    $ cuecard compile examples/ticket_triage/ticket_triage.yaml
    $ cuecard run examples/ticket_triage/ticket_triage.compiled.yaml --ticket "I was charged twice"
    {"queue": "billing"}

  Exit codes: 0 fine, 1 a test or gate failed, 2 the input was wrong, 3 the run itself failed.
"""


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


@pytest.mark.parametrize("words", [("--help",), ("-h",), ()])
def test_the_whole(capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> None:
    said = cuecard(capsys, *words)
    assert (said.code, said.out.rstrip() + "\n", said.err) == (0, HELP, "")


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_a_verb_ends_in_an_example(capsys: pytest.CaptureFixture[str], verb: tuple[str, ...]) -> None:
    said = cuecard(capsys, *verb, "--help")
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith(f"Usage: cuecard {' '.join(verb)} ")
    head, found, example = said.out.partition("\n  Example")
    assert found and "Options:" in head
    assert f"$ cuecard {' '.join(verb)}" in example
    assert len([line for line in example.splitlines() if line.strip()]) > 2  # the command, and what it prints


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    said = cuecard(capsys, "--version")
    assert said.code == 0
    assert said.out.startswith("cuecard ") and said.out.count("\n") == 1


def test_help_and_wrong_words_import_nothing_heavy() -> None:
    check = f"""
import sys
from cuecard.compiler.cli import main
for words in {[[*verb, "--help"] for verb in VERBS]} + [["--help"], ["--version"], ["nope"], ["eval", "--nope"]]:
    main(words)
heavy = {{"torch", "transformers", "dspy", "optuna", "pandas", "numpy", "scipy", "yaml", "rich.progress"}}
print("heavy:", sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "heavy: []", done.stderr


def test_python_m_cuecard() -> None:
    done = subprocess.run([sys.executable, "-m", "cuecard", "nope"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: there is no verb 'nope'\n  See: cuecard --help\n"
