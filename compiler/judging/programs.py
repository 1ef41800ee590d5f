"""Judge programs: a rubric in plain words as the instruction of a predictor over the fields of the task that is judged.

A judge sees the task's inputs, the answer and, where it compares with one, the reference, all as text and under the
task's own names. Its output is a label: a grade, yes or no, or which of two answers is better. It is a `dspy.Module`
like any other, so that it can be compiled against labels that people gave.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dspy

from ...errors import InputError
from ...metrics.values import as_text
from ...programs.graph import Graph
from ...programs.predictor import Predictor
from ...programs.state import PredictorState, ReadOut
from ...signatures import field_types, signature

GRADE, MET, BETTER = "grade", "met", "better"
CRITERION = "criterion"
YES, NO = "yes", "no"
FIRST, SECOND, TIE = "first", "second", "tie"
MOST_GRADES = 101
CHECKLIST = "Say whether the answer meets the criterion."


@dataclass(frozen=True)
class Subject:
    """Which fields a judge sees: the task's inputs, the outputs that are the answer, maybe a reference of each."""

    inputs: tuple[str, ...]
    answers: tuple[str, ...]
    reference: bool = False

    def free(self, name: str) -> str:
        """`name`, or a longer name that none of the task's fields has."""
        while name in self.inputs or name in self.answers:
            name = f"judge_{name}"
        return name

    def reference_of(self, answer: str) -> str:
        """The name of the reference of an answer."""
        return self.free("reference" if len(self.answers) == 1 else f"reference_{answer}")

    def given(
        self, inputs: Mapping[str, Any], answer: Mapping[str, Any], reference: Mapping[str, Any], prefix: str = ""
    ) -> dict[str, str]:
        """What the judge is given. `prefix` stands before the names of the answers."""
        values = {name: as_text(inputs[name]) for name in self.inputs}
        if self.reference:
            values |= {self.reference_of(name): as_text(reference[name]) for name in self.answers}
        return values | {self.free(prefix + name) if prefix else name: as_text(answer[name]) for name in self.answers}


class JudgeProgram(dspy.Module):
    """A program of one predictor, whose output `field` is a label."""

    field: str

    @property
    def predictor(self) -> Predictor:
        """What calls the model."""
        raise NotImplementedError

    @property
    def input_types(self) -> dict[str, Any]:
        """The fields that it reads, with their types."""
        raise NotImplementedError

    @property
    def inputs(self) -> tuple[str, ...]:
        """The fields that it reads."""
        return tuple(self.input_types)

    @property
    def asked(self) -> str:
        """What the predictor calls the output `field`."""
        return self.field

    @property
    def words(self) -> str:
        """The rubric: of a compiled judge, the instruction that it has learned."""
        return str(self.predictor.signature.instructions)


class Judge(JudgeProgram):
    """A judge made in Python: its only part is its predictor."""

    def __init__(self, made: type[dspy.Signature], field: str, state: PredictorState | None = None) -> None:
        super().__init__()
        self.field = field
        self.judge = Predictor(made, state or PredictorState(readout=ReadOut(kind="choice")))

    @property
    def predictor(self) -> Predictor:
        """See `JudgeProgram.predictor`."""
        return self.judge

    @property
    def input_types(self) -> dict[str, Any]:
        """See `JudgeProgram.input_types`."""
        types = field_types(self.judge.signature)
        return {name: types[name] for name in self.judge.signature.input_fields}

    def forward(self, **inputs: Any) -> dspy.Prediction:
        """The label."""
        return self.judge(**inputs)


class SpecJudge(JudgeProgram):
    """A judge written as a spec. `field` is an output of the spec's program."""

    def __init__(self, graph: Graph, field: str) -> None:
        super().__init__()
        self.field = field
        self.graph = graph

    @property
    def predictor(self) -> Predictor:
        """See `JudgeProgram.predictor`."""
        return next(part for _, part in self.graph.named_predictors() if isinstance(part, Predictor))

    @property
    def input_types(self) -> dict[str, Any]:
        """See `JudgeProgram.input_types`."""
        return dict(self.graph.input_types)

    @property
    def asked(self) -> str:
        """See `JudgeProgram.asked`."""
        (columns,) = self.graph.columns.values()
        outputs = self.predictor.signature.output_fields
        return next(name for name, column in columns.items() if column == self.field and name in outputs)

    def forward(self, **inputs: Any) -> dspy.Prediction:
        """The label, beside whatever else the program says."""
        return self.graph(**inputs)


def grader(
    subject: Subject, rubric: str, scale: tuple[int, int] = (1, 5), state: PredictorState | None = None
) -> Judge:
    """A judge that gives a grade from `scale[0]`, the worst, to `scale[1]`, the best.

    >>> grader(Subject(("ticket",), ("reply",)), "How helpful is the reply?").judge.signature.output_fields.keys()
    dict_keys(['grade'])
    """
    low, high = check_scale(scale)
    grades = ", ".join(map(str, range(low, high + 1)))
    field = subject.free(GRADE)
    names = [*subject.inputs, *_references(subject), *subject.answers]
    told = {field: f"a grade from {low} (worst) to {high} (best)"}
    return _judge(names, field, grades, rubric, told, state)


def checker(subject: Subject, rubric: str = "", state: PredictorState | None = None) -> Judge:
    """A judge that says yes or no to one criterion, its last input: all criteria share the prompt before it."""
    field = subject.free(MET)
    names = [*subject.inputs, *_references(subject), *subject.answers, subject.free(CRITERION)]
    return _judge(names, field, f"'{YES}', '{NO}'", rubric or CHECKLIST, {}, state)


def preferrer(subject: Subject, rubric: str, *, ties: bool = True, state: PredictorState | None = None) -> Judge:
    """A judge that says which of two answers is better: the first, the second or, with `ties`, neither."""
    field = subject.free(BETTER)
    answers = [subject.free(f"{place}_{name}") for place in (FIRST, SECOND) for name in subject.answers]
    labels = ", ".join(f"'{label}'" for label in ((FIRST, SECOND, TIE) if ties else (FIRST, SECOND)))
    return _judge([*subject.inputs, *_references(subject), *answers], field, labels, rubric, {}, state)


def check_scale(scale: Sequence[int]) -> tuple[int, int]:
    """The scale's ends. Raises `InputError`."""
    whole = len(scale) == 2 and all(isinstance(end, int) and not isinstance(end, bool) for end in scale)
    if not whole or not scale[0] < scale[1] < scale[0] + MOST_GRADES:
        expected = f"[lowest, highest], two whole numbers less than {MOST_GRADES} apart, such as [1, 5]"
        raise InputError(f"found the scale {list(scale)!r}", field="scale", expected=expected)
    return scale[0], scale[1]


def _references(subject: Subject) -> Iterable[str]:
    return [subject.reference_of(name) for name in subject.answers] if subject.reference else []


def _judge(
    names: Sequence[str], field: str, labels: str, rubric: str, told: Mapping[str, str], state: PredictorState | None
) -> Judge:
    if not rubric.strip():
        raise InputError("the rubric is empty", field="rubric", expected="what makes an answer good, in plain words")
    made = signature(f"{', '.join(names)} -> {field}: Literal[{labels}]", rubric, descriptions=told)
    return Judge(made, field, state)
