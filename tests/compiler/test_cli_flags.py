"""Inputs on the command line: words into typed values."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Literal

import pytest

from cuecard.compiler.cli.flags import check_complete, read_flags, read_stdin, read_words
from cuecard.errors import InputError

TYPES: dict[str, Any] = {
    "ticket": str,
    "count": int,
    "due_date": str | None,
    "tags": list[str],
    "kind": Literal["a", "b"],
}


@pytest.mark.parametrize(
    ("words", "flags"),
    [
        ("p.yaml", []),
        ("p.yaml --a x --b y", [("--a", "x"), ("--b", "y")]),
        ("--a x p.yaml --b=y", [("--a", "x"), ("--b", "y")]),
        ("--a=x=y p.yaml", [("--a", "x=y")]),
        ("p.yaml --a --b", [("--a", "--b")]),
        ("p.yaml --a= --b", [("--a", ""), ("--b", None)]),
        ("p.yaml --a -5", [("--a", "-5")]),
    ],
)
def test_words_are_a_file_and_flags(words: str, flags: list[tuple[str, str | None]]) -> None:
    assert read_words(words.split()) == (Path("p.yaml"), flags)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("", "the program's file is missing; expected PROGRAM and --NAME VALUE for each of its inputs"),
        ("p.yaml -x", "found '-x'; expected --NAME VALUE, with NAME an input of the program"),
        ("p.yaml x y", "found 'x'; expected --NAME VALUE, with NAME an input of the program"),
    ],
)
def test_words_that_are_neither(words: str, told: str) -> None:
    with pytest.raises(InputError) as raised:
        read_words(words.split())
    assert str(raised.value) == told


def test_values_have_the_types_of_the_inputs() -> None:
    flags = [("--ticket", "5"), ("--count", "-5"), ("--due-date", "soon"), ("--tags", '["x", "y"]'), ("--kind", "b")]
    assert read_flags(flags, TYPES) == {
        "ticket": "5",
        "count": -5,
        "due_date": "soon",
        "tags": ["x", "y"],
        "kind": "b",
    }


@pytest.mark.parametrize(
    ("flag", "value", "told"),
    [
        ("--count", "five", "--count: found 'five'"),
        ("--kind", "c", "--kind: found 'c'; expected one of: a, b"),
        ("--cuont", "5", "the program has no input --cuont (did you mean '--count'?)"),
        ("--modle", "x", "the program has no input --modle (did you mean '--model'?)"),
        ("--zzz", "x", "the program has no input --zzz; expected one of ticket, count, due_date, tags, kind"),
        ("--ticket", None, "--ticket has no value; expected --ticket VALUE"),
    ],
)
def test_wrong_flags(flag: str, value: str | None, told: str) -> None:
    with pytest.raises(InputError) as raised:
        read_flags([(flag, value)], TYPES, ["--model"])
    assert str(raised.value).startswith(told)


def given(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    given(monkeypatch, '{"ticket": "hello", "count": 3, "tags": ["x"], "due_date": null}\n')
    assert read_stdin(TYPES) == {"ticket": "hello", "count": 3, "tags": ["x"], "due_date": None}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            " \n",
            "there are no inputs; expected --ticket VALUE --count VALUE --due_date VALUE --tags VALUE --kind VALUE\n"
            "  Or give a JSON object on standard input, or many rows with --input FILE.",
        ),
        ("[1]", "standard input: found list; expected a JSON object with the inputs"),
        ("{", "standard input: not valid JSON: Expecting property name enclosed in double quotes"),
        ('{"tiket": "x"}', "standard input: the program has no input 'tiket' (did you mean 'ticket'?)"),
        ('{"ticket": 5}', "standard input: ticket: found 5 (int); expected text"),
    ],
)
def test_wrong_standard_input(monkeypatch: pytest.MonkeyPatch, text: str, told: str) -> None:
    given(monkeypatch, text)
    with pytest.raises(InputError) as raised:
        read_stdin(TYPES)
    assert str(raised.value).startswith(told)


def test_only_optional_inputs_may_be_missing() -> None:
    check_complete({"ticket": "x", "count": 1, "tags": [], "kind": "a"}, TYPES)
    with pytest.raises(InputError, match="the input 'tags' is missing; expected --tags VALUE"):
        check_complete({"ticket": "x", "count": 1, "kind": "a"}, TYPES)
