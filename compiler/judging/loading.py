"""From a file to a judge: a compiled program, or the spec of one, whose output is a label.

Two kinds of files hold a judge: a YAML spec with one predictor and one output of a finite type, compiled or not, and
what `cuecard.compile` writes for the judges that `grader` and `checker` make. Both are data: reading them runs no code,
and they are read from the spec's folder alone, unless that is allowed. What a label is worth follows from the labels:
whole numbers are a scale, yes and no are 1 and 0, and any others are told by `values`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import InputError, nearest
from ...files import read_bytes
from ...programs.checks import check_path
from ...programs.graph import build
from ...programs.learned import state_of
from ...programs.predictor import Predictor
from ...programs.problems import KeyProblems
from ...programs.schema import ModelSpec, Spec
from ...programs.schema import Target as MadeFor
from ...programs.spec import load_spec
from ...signatures import choices, field_types, signature
from ...signatures.labels import label_text
from ...signatures.types import shape, type_name
from .models import ModelLike
from .programs import NO, YES, Judge, JudgeProgram, SpecJudge

PART = "judge"
"""The name of a `Judge`'s only predictor."""
SURE: Mapping[str, float] = {YES: 1.0, NO: 0.0, "true": 1.0, "false": 0.0}


@dataclass(frozen=True)
class JudgeFile:
    """A judge that was read from a file.

    values: what each label is worth, 0 to 1, in the labels' order; model: what the file says that it runs on; made_for:
    the target that it was compiled for; sha256: of the file's bytes.
    """

    program: JudgeProgram
    values: Mapping[str, float]
    path: Path
    model: ModelLike | None
    made_for: MadeFor | None
    sha256: str


def load_judge(
    name: str, folder: Path | None = None, *, values: Mapping[Any, Any] | None = None, allow_outside: bool = False
) -> JudgeFile:
    """The judge in the file `name` of a spec in `folder` (None: a file that a person names, which may lie anywhere).

    values: what each label is worth, needed where the labels do not tell. Raises `InputError`.
    """
    problems = KeyProblems(None, lambda keys: None)
    trusted = allow_outside or folder is None
    check_path(folder or Path(), ("program",), name, problems, allow_outside=trusted, check_files=True)
    problems.stop()
    path = (folder or Path()) / name
    spec = load_spec(path, allow_outside=allow_outside)
    program = _of_python(spec) if spec.predictors and not spec.steps else _of_spec(spec)
    _check_texts(spec, program.input_types)
    types = field_types(program.predictor.signature)
    labels = choices(types[program.asked])
    assert labels is not None, "the program was chosen for them"
    return JudgeFile(
        program,
        label_values(labels, values, path, _line(spec)),
        path,
        _model(spec.model, path.parent),
        spec.compiled.target if spec.compiled else None,
        hashlib.sha256(read_bytes(path)).hexdigest(),
    )


def label_values(
    labels: Sequence[str],
    given: Mapping[Any, Any] | None = None,
    path: Path | None = None,
    line: int | None = None,
) -> dict[str, float]:
    """What each label is worth, from 0 to 1, in the order of `labels`. `path` and `line`: where the labels stand.

    >>> label_values(["1", "2", "3"])
    {'1': 0.0, '2': 0.5, '3': 1.0}
    """
    if given is not None:
        return _given_values(labels, given)
    if len(labels) > 1 and all(_whole(label) for label in labels):
        numbers = [int(label) for label in labels]
        low, high = min(numbers), max(numbers)
        if low < high:
            return {label: (number - low) / (high - low) for label, number in zip(labels, numbers, strict=True)}
    if len(labels) == 2 and {SURE.get(label) for label in labels} == {0.0, 1.0}:
        return {label: SURE[label] for label in labels}
    example = ", ".join(f"{label}: {place}" for place, label in enumerate(labels[:2]))
    raise InputError(
        f"what the labels {', '.join(labels)} are worth is not known",
        path=path,
        line=line,
        expected="whole numbers, or yes and no",
        hint=f"Say it where the judge is named: `values: {{{example}}}`, from 0 to 1.",
    )


def _given_values(labels: Sequence[str], given: Mapping[Any, Any]) -> dict[str, float]:
    named = {label_text(key): value for key, value in given.items()}
    for label, value in named.items():
        if label not in labels:
            near = nearest(label, labels)
            expected = None if near else f"one of {', '.join(labels)}"
            raise InputError(f"the judge has no label {label!r}", field="values", expected=expected, nearest=near)
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number or not 0 <= value <= 1:
            raise InputError(f"found {value!r}", field=f"values.{label}", expected="a number from 0 to 1")
    missing = next((label for label in labels if label not in named), None)
    if missing is not None:
        expected = f"all of {', '.join(labels)}"
        raise InputError(f"the label {missing!r} has no value", field="values", expected=expected)
    if len(set(named.values())) == 1:
        raise InputError("every label has the same value", field="values", expected="at least two values")
    return {label: float(named[label]) for label in labels}


def _whole(label: str) -> bool:
    return label.removeprefix("-").isdecimal() and label.isascii()


def _of_spec(spec: Spec) -> SpecJudge:
    """The judge that a YAML spec's program is."""
    graph = build(spec)
    parts = [part for _, part in graph.named_predictors()]
    if len(parts) != 1 or not isinstance(parts[0], Predictor):
        raise InputError(
            f"the program calls the model in {len(parts)} places",
            path=spec.path,
            line=spec.line("nodes"),
            expected="one: a judge is a single predictor",
        )
    (columns,) = graph.columns.values()
    made = [column for field, column in columns.items() if field in parts[0].signature.output_fields]
    labelled = [name for name in made if name in graph.output_types and choices(graph.output_types[name])]
    _check_label(spec, labelled, [*graph.output_types])
    return SpecJudge(graph, labelled[0])


def _of_python(spec: Spec) -> Judge:
    """The judge that was compiled from what `grader` or `checker` made: its class holds no code but the predictor's."""
    learned = spec.predictors or {}
    if list(learned) != [PART] or learned[PART].signature is None:
        raise InputError(
            "this file was compiled from a Python program, which it does not hold",
            path=spec.path,
            line=spec.line("predictors"),
            expected="what `grader` or `checker` made, or a spec with a `signature`",
        )
    made = signature(learned[PART].signature or "", learned[PART].instructions, path=spec.path)
    types = field_types(made)
    labelled = [name for name in made.output_fields if choices(types[name])]
    _check_label(spec, labelled, list(made.output_fields))
    return Judge(made, labelled[0], state_of(learned[PART], made, spec.model, spec.folder))


def _check_label(spec: Spec, labelled: Sequence[str], outputs: Sequence[str]) -> None:
    if len(labelled) == 1:
        return
    found = (
        f"the outputs {', '.join(labelled)} are labels" if labelled else f"no output is a label: {', '.join(outputs)}"
    )
    expected = "one output with a finite set of values, such as grade: Literal[1, 2, 3, 4, 5]"
    raise InputError(found, path=spec.path, line=_line(spec), expected=expected)


def _check_texts(spec: Spec, types: Mapping[str, Any]) -> None:
    """Raise `InputError` for an input that is no text: a judge is shown all that it sees as text."""
    wrong = next((name for name, kind in types.items() if shape(kind).kind not in ("str", "any")), None)
    if wrong is not None:
        message = f"the judge's input {wrong!r} is {type_name(types[wrong])}"
        raise InputError(message, path=spec.path, line=_line(spec), expected="str: a judge sees everything as text")


def _line(spec: Spec) -> int | None:
    key = next((key for key in ("signature", "nodes", "predictors") if getattr(spec, key) is not None), None)
    return None if key is None else spec.line(key)


def _model(model: ModelSpec | None, folder: Path) -> ModelLike | None:
    """The model that a judge's file names. What lies beside that file is named by its path."""
    if model is None:
        return None
    given = {key: getattr(model, key) for key in ModelSpec.model_fields if key in model.model_fields_set}
    given = {key: value for key, value in given.items() if value is not None and key != "options"}
    for key in ("id", "tokenizer"):
        if key in given and (folder / given[key]).exists():
            given[key] = str((folder / given[key]).resolve())
    return given["id"] if set(given) == {"id"} else given
