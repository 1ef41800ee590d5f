"""What a program made of a row, and what that cost: from the model now, or from a file of recorded outputs.

A recording is JSON Lines, one line for every row that was run: `program`, `inputs`, `repeat` (from 0), `target` (the
model's identity) and `model` (its name), one of `outputs`, `unread` and `error`, `choices`, `seconds` and `tokens`. It
is what `--record-outputs` writes and `--rescore` reads.

`choices` holds, for each output that was chosen among labels, the label and the log-likelihood of every label, null
where it is impossible: the calibrated ones, less the offsets or through the matrix that the program had then. So a
program that was calibrated anew is judged by what it said when it was recorded.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python

from ...errors import InputError, nearest
from ...files import write_atomic
from ...metrics.calibration import LabelChoice
from ...optimizers.base import Outcome, Row
from ...programs.graph import Graph
from ...programs.predictor import Predictor
from ...programs.problems import Problems
from ...programs.readout import Choice
from ...signatures import check_value
from ..examples import Example, canonical
from ..rows import read_rows
from .results import target_text

KEYS = (
    *("program", "target", "model", "inputs", "repeat"),
    *("outputs", "unread", "error", "choices", "seconds", "tokens"),
)
ENDINGS = ("outputs", "unread", "error")
SHOWN_ERRORS = 10

RunKey = tuple[str, int]
"""What was run: the inputs as canonical JSON, and which repeat of them, from 0."""


@dataclass(frozen=True)
class Answer:
    """What became of one run of the program: exactly one of `outputs`, `unread` and `error` is there.

    seconds: the time that its model calls took; tokens: those of their prompts and of what was generated or, as a
    label, scored. Both are None where they are not known. choices: what predictors chose among labels.
    """

    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any] | None = None
    unread: str | None = None
    error: str | None = None
    seconds: float | None = None
    tokens: int | None = None
    choices: tuple[tuple[str, Choice], ...] = ()

    def outcome(self, row: Row) -> Outcome:
        """The answer as what became of `row`."""
        return Outcome(row, None, self.outputs, self.unread, self.error, choices=self.choices)


@dataclass(frozen=True)
class Recording:
    """The answers in a file, by program and what was run.

    targets: the identities of the models that gave them; models: the same as a report writes them.
    """

    path: str
    answers: Mapping[str, Mapping[RunKey, tuple[Mapping[str, Any], int]]]
    targets: tuple[str, ...]
    models: tuple[str, ...] = ()

    def of(self, name: str, program: Graph) -> dict[RunKey, Answer]:
        """The answers of the program of that name, its outputs read by their types. Raises `InputError`."""
        problems = Problems(self.path, limit=SHOWN_ERRORS)
        makers = _makers(program)
        found = {
            key: _answer(data, line, program.output_types, makers, problems)
            for key, (data, line) in self.answers.get(name, {}).items()
        }
        problems.stop()
        return found

    def missing(self, program: str, inputs: Mapping[str, Any]) -> Answer:
        """What stands for a run that was not recorded."""
        known = "" if program in self.answers else f" of {program!r}"
        return Answer(
            inputs, error=f"{self.path} holds no outputs{known} for these inputs; record them with --record-outputs"
        )


@dataclass
class Recorder:
    """Collects what is run, to be written down. `models`: the models' names by their identities, as far as known."""

    lines: list[str] = field(default_factory=list)
    models: dict[str, str] = field(default_factory=dict)

    def add(
        self,
        program: str,
        target: str,
        row: Example,
        repeat: int,
        answer: Answer,
        choices: Mapping[str, LabelChoice] | None = None,
    ) -> None:
        """Note one run. `choices`: what was chosen among labels, by output."""
        ending = next((name, getattr(answer, name)) for name in ENDINGS if getattr(answer, name) is not None)
        data = {
            "program": program,
            "target": target,
            **({"model": self.models[target]} if self.models.get(target) else {}),
            "inputs": row.inputs,
            "repeat": repeat,
            ending[0]: ending[1],
            **({"choices": {name: _written(choice) for name, choice in choices.items()}} if choices else {}),
            "seconds": None if answer.seconds is None else round(answer.seconds, 6),
            "tokens": answer.tokens,
        }
        plain = to_jsonable_python(data, bytes_mode="base64")
        self.lines.append(json.dumps({key: plain[key] for key in KEYS if key in plain}, ensure_ascii=False))

    def write(self, path: str | PathLike[str]) -> None:
        """Write the recording. Raises `RunError`."""
        write_atomic(path, "".join(line + "\n" for line in self.lines))


def read_recording(path: str | PathLike[str]) -> Recording:
    """Read what a `Recorder` wrote. Raises `InputError`, which lists the first errors with their lines."""
    if Path(path).suffix.lower() != ".jsonl":
        raise InputError(f"found the ending {Path(path).suffix!r}", path=path, expected="a .jsonl file")
    problems = Problems(path, limit=SHOWN_ERRORS)
    rows = read_rows(Path(path), problems)
    answers: dict[str, dict[RunKey, tuple[Mapping[str, Any], int]]] = {}
    targets: dict[str, str] = {}
    for row in rows:
        if _is_run(row.value, row.line, problems):
            key = (canonical(row.value["inputs"]), int(row.value["repeat"]))
            answers.setdefault(row.value["program"], {})[key] = (row.value, row.line or 0)
            targets[row.value["target"]] = target_text(row.value.get("model") or "", row.value["target"])
    if not rows and not len(problems):
        raise InputError("the file has no rows", path=path)
    problems.stop()
    return Recording(str(path), answers, tuple(targets), tuple(targets.values()))


def uncalibrated(program: Graph) -> Graph:
    """The program without its calibrations, for recorded choices, which are calibrated already."""
    copy: Graph = program.deepcopy()
    for _, part in copy.named_predictors():
        if isinstance(part, Predictor):
            part.readout = part.readout.model_copy(update={"calibration": None, "heads": {}})
    return copy


def _is_run(value: Any, line: int | None, problems: Problems) -> bool:
    """Whether a row has the keys of a run; what is wrong is noted."""
    if not isinstance(value, Mapping):
        problems.add("not a recorded run", line=line, expected="a mapping, as --record-outputs writes it")
        return False
    unknown = [key for key in value if key not in KEYS]
    if unknown:
        near = nearest(unknown[0], KEYS)
        expected = None if near else f"one of {', '.join(KEYS)}"
        problems.add(f"unknown key {unknown[0]!r}", line=line, expected=expected, nearest=near)
        return False
    kinds: dict[str, tuple[Any, str]] = {
        "program": (str, "text"),
        "target": (str, "text"),
        "inputs": (dict, "a mapping"),
        "repeat": (int, "a whole number"),
    }
    for key, (kind, expected) in kinds.items():
        if not isinstance(value.get(key), kind) or isinstance(value.get(key), bool):
            found = "nothing" if key not in value else json.dumps(value[key])[:60]
            problems.add(f"found {found}", line=line, field=key, expected=expected)
            return False
    if not isinstance(value.get("model", ""), str):
        problems.add(f"found {json.dumps(value['model'])[:60]}", line=line, field="model", expected="text")
        return False
    if sum(value.get(name) is not None for name in ENDINGS) != 1:
        problems.add("a run has one ending", line=line, expected=f"one of {', '.join(ENDINGS)}")
        return False
    return True


def _answer(
    data: Mapping[str, Any],
    line: int,
    types: Mapping[str, Any],
    makers: Mapping[str, tuple[str, str]],
    problems: Problems,
) -> Answer:
    found = Answer(data["inputs"], None, data.get("unread"), data.get("error"), data.get("seconds"), data.get("tokens"))
    outputs = data.get("outputs")
    if outputs is not None:
        found = replace(found, outputs=_typed(outputs, types, line, problems))
    given = data.get("choices", {})
    if not isinstance(given, Mapping):
        problems.add(f"found {json.dumps(given)[:60]}", line=line, field="choices", expected="a mapping by output")
        return found
    read = {name: _choice(name, choice, line, problems) for name, choice in given.items()}
    made = (
        (makers[name][0], replace(choice, field=makers[name][1]))
        for name, choice in read.items()
        if choice is not None and name in makers
    )
    return replace(found, choices=tuple(made))


def _makers(program: Graph) -> dict[str, tuple[str, str]]:
    """What makes each output: the predictor, and what it calls the output."""
    columns = program.columns
    return {
        column: (name, own)
        for name, part in program.named_predictors()
        for own, column in columns[name].items()
        if own in part.signature.output_fields
    }


def _written(choice: LabelChoice) -> dict[str, Any]:
    """A choice as a recording holds it."""
    scores = {label: score if math.isfinite(score) else None for label, score in choice.scores.items()}
    return {"label": choice.label, "scores": scores}


def _choice(output: str, given: Any, line: int, problems: Problems) -> Choice | None:
    """A choice as it was recorded; what is none is noted."""
    label, scores = (given.get("label"), given.get("scores")) if isinstance(given, Mapping) else (None, None)
    numbers = isinstance(scores, Mapping) and all(
        score is None or (isinstance(score, int | float) and not isinstance(score, bool)) for score in scores.values()
    )
    if not isinstance(scores, Mapping) or not numbers or not isinstance(label, str) or label not in scores:
        expected = "{label: ..., scores: {LABEL: its log-likelihood, or null}}"
        problems.add(f"found {json.dumps(given)[:60]}", line=line, field=f"choices.{output}", expected=expected)
        return None
    totals = tuple(-math.inf if score is None else float(score) for score in scores.values())
    return Choice(0, output, tuple(scores), totals, label, 0)


def _typed(outputs: Any, types: Mapping[str, Any], line: int, problems: Problems) -> dict[str, Any]:
    """The outputs by their types, those without one as they are; what does not fit is noted."""
    names: Iterable[str] = outputs if isinstance(outputs, Mapping) else ()
    for name in [name for name in types if name not in names]:
        near = nearest(name, [other for other in names if other not in types])
        problems.add(f"the output {name!r} is missing", line=line, field="outputs", nearest=near)
        return {}
    typed = {name: value for name, value in outputs.items() if name not in types}
    for name, kind in types.items():
        try:
            typed[name] = check_value(outputs[name], kind, field=f"outputs.{name}")
        except InputError as error:
            problems.add(error.message, line=line, field=error.field, expected=error.expected, nearest=error.nearest)
    return typed
