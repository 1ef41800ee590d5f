"""Reading a spec: from a YAML file to a checked `Spec`, with every error told at once.

>>> spec = load_spec("ticket_triage.yaml")
>>> program = build(spec)           # graph.py
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import InputError
from .checks import check_form, check_learned, check_paths, check_predictors, check_search, check_tests
from .plan import make_plan
from .problems import KeyProblems, Problems
from .schema import (
    MAIN,
    AssertSpec,
    BudgetSpec,
    CompiledSpec,
    DataSpec,
    InputSpec,
    MetricSpec,
    ModelSpec,
    NodeSpec,
    OptimizeSpec,
    PredictorSpec,
    Score,
    SearchSpec,
    Spec,
    Target,
    TestSpec,
)
from .schema_errors import validated
from .yaml_source import Source, load_yaml

__all__ = [
    "MAIN",
    "AssertSpec",
    "BudgetSpec",
    "CompiledSpec",
    "DataSpec",
    "InputSpec",
    "MetricSpec",
    "ModelSpec",
    "NodeSpec",
    "OptimizeSpec",
    "PredictorSpec",
    "Score",
    "SearchSpec",
    "Spec",
    "Target",
    "TestSpec",
    "json_schema",
    "load_spec",
    "read_spec",
]


def load_spec(path: str | os.PathLike[str], *, allow_outside: bool = False, check_files: bool = False) -> Spec:
    """Read a spec or a compiled program from a YAML file.

    `allow_outside` lets its paths leave its folder, which a spec from a stranger must not; `check_files` asks that the
    files of examples exist. Raises `InputError`, which lists everything that is wrong, each with its line.
    """
    found = Problems(path)
    source = load_yaml(path, found)
    return read_spec(source, allow_outside=allow_outside, check_files=check_files, found=found.errors)


def read_spec(
    source: Source,
    *,
    allow_outside: bool = False,
    check_files: bool = False,
    found: Iterable[InputError] = (),
) -> Spec:
    """As `load_spec`, from YAML that was already read; `found` are errors that reading it noted.

    Without a `name`, the program is called after the file.
    """
    if isinstance(source.data, dict) and "name" not in source.data:
        stem = Path(source.path).name.partition(".")[0]
        name = stem if re.fullmatch(r"\w[\w-]*", stem) else "program"
        source = replace(source, data={"name": name, **source.data})
    problems = KeyProblems(source.path, source.line)
    for error in found:
        problems.note(error)
    spec = validated(Spec, source, problems)
    if spec is not None:
        spec._source, spec._allow_outside = source, allow_outside
        _check(spec, problems, allow_outside=allow_outside, check_files=check_files)
    problems.stop()
    assert spec is not None  # what could not be made was told
    return spec


def _check(spec: Spec, problems: KeyProblems, *, allow_outside: bool, check_files: bool) -> None:
    check_form(spec, problems)
    plan = None
    if spec.steps:
        plan = make_plan(spec, problems)
        spec._warnings = plan.warnings
        for step in plan.steps:
            check_learned(step.spec, step.extended, lambda *keys, n=step.name: spec.keys_of(n, *keys), problems)
    elif spec.predictors:
        check_predictors(spec.predictors, problems)
    check_search(spec, problems)
    check_tests(spec, plan, problems)
    check_paths(spec, problems, allow_outside=allow_outside, check_files=check_files)


def json_schema() -> dict[str, Any]:
    """The spec as a JSON schema, by which editors complete keys and check values."""
    schema = Spec.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "Cuecard spec"}
