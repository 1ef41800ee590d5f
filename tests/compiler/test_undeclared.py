"""Outputs that are declared as text, while their gold values are a handful of labels."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import dspy
import pytest
from fakes import compile_tickets

import cuecard
from cuecard.compiler.examples import Example
from cuecard.compiler.undeclared import undeclared_labels

from .cli_cases import cuecard as run_cli
from .cli_cases import write_rows

TEXT = cuecard.signature("text -> label")


def rows(*labels: Any, times: int = 1) -> list[Example]:
    return [Example({"text": f"t{n}"}, {"label": label}, n) for n, label in enumerate(labels * times)]


def told(train: list[Example], dev: list[Example] | None = None, signature: Any = TEXT) -> list[str]:
    return undeclared_labels({"p": signature}, {"p": {"text": "text", "label": "label"}}, train, dev or [])


def test_a_handful_of_values_is_told_with_the_type_that_names_them() -> None:
    assert told(rows("no", "yes", times=10)) == [
        "p.label is declared as text, but has only 2 values in 20 examples: declared as Literal['no', 'yes'] it would be "
        "chosen among them by likelihood, and could not be unreadable"
    ]


def test_many_labels_are_told_in_brief() -> None:
    [line] = told(rows(*(f"kind {n}" for n in range(9)), times=4))
    assert "only 9 values in 36 examples: declared as Literal['kind 0', 'kind 1', ...] it" in line


def test_what_dev_adds_is_in_the_type_unless_it_is_much() -> None:
    train = rows("no", "yes", times=20)
    [line] = told(train, rows(*["no"] * 19, "maybe"))
    assert "3 values in 60 examples: declared as Literal['maybe', 'no', 'yes']" in line
    assert not told(train, rows(*["no"] * 9, "maybe"))


@pytest.mark.parametrize(
    "train",
    [
        rows("no", "yes", times=9),
        rows(*(f"kind {n}" for n in range(9)), times=3),
        rows("always this", times=40),
        rows("a" * 61, "b", times=20),
        rows(["no", "yes"], times=40),
        rows(1, 2, times=20),
    ],
    ids=["few rows", "few of each", "one value", "long", "lists of references", "numbers"],
)
def test_other_texts_are_not(train: list[Example]) -> None:
    assert told(train) == []


@pytest.mark.parametrize("signature", ["text -> label: Literal['no', 'yes']", "text -> label: str | None", "text -> x"])
def test_nor_what_is_declared_otherwise(signature: str) -> None:
    assert told(rows("no", "yes", times=10), signature=cuecard.signature(signature)) == []


def test_a_compile_and_a_check_tell_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    train = [dspy.Example(ticket=f"n{n}", queue="ab"[n % 2]).with_inputs("ticket") for n in range(24)]
    dev = [dspy.Example(ticket=f"d{n}", queue="ab"[n % 2]).with_inputs("ticket") for n in range(8)]
    with caplog.at_level(logging.WARNING, logger="cuecard"):
        compile_tickets(
            tmp_path / "runs",
            program=dspy.Predict("ticket -> queue"),
            trainset=train,
            devset=dev,
            testset=[],
            name="q",
        )
    expected = "declared as text, but has only 2 values in 32 examples: declared as Literal['a', 'b']"
    assert [expected in line for line in caplog.messages] == [True]
    write_rows(tmp_path / "train.jsonl", [dict(row) for row in train])
    write_rows(tmp_path / "dev.jsonl", [dict(row) for row in dev])
    spec = tmp_path / "q.yaml"
    spec.write_text('signature: "ticket -> queue"\ndata: {train: train.jsonl, dev: dev.jsonl}\n', encoding="utf-8")
    said = run_cli(capsys, "check", spec)
    assert said.code == 0
    assert f"main.queue is {expected}" in " ".join(said.err.split())
