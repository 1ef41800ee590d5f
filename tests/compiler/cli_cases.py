"""A small spec with its data, and the command line run on it in process."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cuecard.compiler.cli import main

SPEC = """\
name: triage
description: Route a ticket.
model: smollm2-135m
signature: "ticket -> queue: Literal['billing', 'technical', 'account']"
instructions: Route the ticket.
data: {train: train.jsonl, dev: dev.jsonl, test: test.jsonl}
metric: exact_match
optimize: {budget: {metric_calls: 40}, search: {demos: [0, 2], formats: [completion], instructions: 1}}
tests:
  - {name: a refund, inputs: {ticket: money back}, assert: [{type: equals, value: billing}]}
  - {name: quality, data: test.jsonl, at_least: 0.25}
"""

QUEUES = ("billing", "technical", "account")


@dataclass(frozen=True)
class Said:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


def cuecard(capsys: pytest.CaptureFixture[str], *words: object) -> Said:
    """Run the command line in process."""
    capsys.readouterr()
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    return Said(code, captured.out, captured.err)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def tickets(name: str, count: int) -> list[dict[str, Any]]:
    """Rows whose queue is said in the ticket."""
    queues = [QUEUES[n % 3] for n in range(count)]
    return [{"ticket": f"{name} {n}: about {queue}", "queue": queue} for n, queue in enumerate(queues)]


def write_spec(folder: Path, text: str = SPEC, **changes: str) -> Path:
    """The spec in `folder` with its data; `changes` replaces a line by its key, "" takes it out."""
    lines = text.splitlines()
    for key, line in changes.items():
        place = next(i for i, old in enumerate(lines) if old.startswith(f"{key}:"))
        lines[place : place + 1] = [line] if line else []
    for name, count in {"train": 6, "dev": 8, "test": 6}.items():
        write_rows(folder / f"{name}.jsonl", tickets(name, count))
    path = folder / "triage.yaml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
