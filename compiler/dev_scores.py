"""The scores of a compile by example: what the chosen program made of every example of dev, kept as a baseline.

The file lies beside the compiled program and in the run's folder. It is what `cuecard diff` pairs two compiled programs
by, and can be named as the `baseline` of a gate whose data are the dev examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import dspy

from ..metrics.source import source_digest
from ..optimizers.base import Row
from ..optimizers.search import SearchResult
from ..programs.schema import Spec
from .baseline import Baseline, program_digest, read_baseline, row_key, unique_keys
from .evaluate import gold_fields
from .task import Task


def dev_scores(task: Task, result: SearchResult, spec: Spec | None = None) -> Baseline:
    """The chosen program's score of every example of dev. `spec`: the compiled one, where it is there already."""
    key_of = {id(row): key for row, key in zip(task.dev, row_keys(task.program, task.dev), strict=True)}
    rows = {key_of[id(row)]: found for row, found in zip(result.dev, result.chosen.measurements, strict=True)}
    digest = program_digest(spec) if spec is not None else ""
    return Baseline(task.metric.name, rows, digest, task.target.description.identity, source_digest(task.metric))


def row_keys(program: dspy.Module, rows: Sequence[Row]) -> list[str]:
    """The keys of rows in a baseline of a program's scores."""
    gold = gold_fields(program)
    return unique_keys(
        row_key(row.inputs, {name: value for name, value in row.labels.items() if gold is None or name in gold})
        for row in rows
    )


def scores_path(compiled: Path) -> Path:
    """Where the scores of a compiled program lie: `NAME.compiled.scores.json` beside `NAME.compiled.yaml`."""
    stem = compiled.stem if compiled.suffix.lower() in (".yaml", ".yml") else compiled.name
    return compiled.with_name(f"{stem}.scores.json")


def scores_of(compiled: Path, spec: Spec) -> Baseline | None:
    """The scores beside a compiled program; None where there are none, or those of another program or target."""
    path = scores_path(compiled)
    if spec.compiled is None or not path.is_file():
        return None
    found = read_baseline(path)
    same = (found.program, found.target) == (program_digest(spec), spec.compiled.target.identity)
    return found if same else None
