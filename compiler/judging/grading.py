"""A judge as a metric: what a rubric, a checklist or a compiled judge says of an answer, as a score from 0 to 1.

A grade is the mean of the scale's grades under their probabilities, mapped to 0..1; a checklist's score is the mean
over its criteria of the probability of yes; a compiled judge's the mean of what its labels are worth. What all metrics
that ask a judge have in common is in `asked.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import dspy

from ...errors import InputError, nearest
from ...metrics.values import answers, labels
from ...programs.predictor import adopt
from ...programs.state import FormatChoice, PredictorState, ReadOut
from ...signatures import choices, field_types
from ...signatures.types import shape
from ..evaluate import Answered
from ..evaluator import predictors_of
from .asked import AskingMetric, Grade, Question, checked_format
from .asking import Judgement
from .loading import JudgeFile, label_values
from .models import ModelLike, Models
from .programs import CRITERION, NO, YES, JudgeProgram, Subject, check_scale, checker, grader


class JudgeMetric(AskingMetric):
    """How good a judge finds an answer, 0 to 1."""

    def __init__(
        self,
        rubric: str = "",
        *,
        criteria: Sequence[str] = (),
        scale: tuple[int, int] = (1, 5),
        reference: bool = False,
        fields: Sequence[str] = (),
        probabilities: bool = True,
        format: FormatChoice | None = None,
        model: ModelLike | None = None,
        models: Models | None = None,
        program: dspy.Module | JudgeFile | None = None,
        name: str = "judge",
    ) -> None:
        """`criteria` make it a checklist, else it grades on the `scale`.

        reference: the gold value is shown to the judge; fields: the outputs that are judged, default those that the
        example labels, or the only one; probabilities: the mean over all labels, and not the likeliest alone; model:
        what the judge runs on, default what the program's file names, then the judged program's own; program: a judge
        that was compiled, in place of the one that the rubric makes: it is shown those of the task's inputs, outputs
        and references that it has inputs for, by name. Raises `InputError`.
        """
        file = program if isinstance(program, JudgeFile) else None
        given = file.program if file else program
        named = model if model is not None else file.model if file else None
        made_for = file.made_for if file and model is None else None
        super().__init__(name, fields, model=named, models=models, made_for=made_for)
        self.file, self.rubric, self.criteria, self.scale = file, rubric, tuple(criteria), check_scale(scale)
        self.reference, self.probabilities = reference, probabilities
        self._given = None if given is None else _judge_of(given)
        own = self._given.predictor.state.format if self._given is not None else "chat"
        self.state = PredictorState(format=checked_format(format) or own, readout=ReadOut(kind="choice"))
        self._values = file.values if file else None if self._given is None else _worth(self._given)
        self._programs: dict[Subject, JudgeProgram] = {}
        if not rubric.strip() and not self.criteria and program is None:
            raise InputError(
                "the judge has neither a rubric nor criteria", expected="rubric: what makes an answer good"
            )
        if any(not criterion.strip() for criterion in self.criteria):
            raise InputError("a criterion is empty", field="criteria", expected="what an answer has to meet, in words")

    @property
    def words(self) -> str:
        """The rubric: of a compiled judge, the instruction that it has learned."""
        return self.rubric if self._given is None else self._given.words

    @property
    def sees_reference(self) -> bool:
        """Whether it is shown the gold value; of a compiled judge, as far as its inputs' names tell."""
        if self._given is None:
            return self.reference
        names = [name.removeprefix("judge_") for name in self._given.inputs]
        return any(name == "reference" or name.startswith("reference_") for name in names)

    def program(self, subject: Subject) -> JudgeProgram:
        """The judge's program for a task with these fields."""
        if self._given is not None:
            return self._given
        if subject not in self._programs:
            made = (
                checker(subject, self.rubric, self.state)
                if self.criteria
                else grader(subject, self.rubric, self.scale, self.state)
            )
            self._programs[subject] = made
        return self._programs[subject]

    def subject(self, case: Answered) -> Subject:
        """The fields that are judged in a case. Raises `InputError` when one is missing."""
        if self._given is not None:
            subject = self.subject_of(tuple(case.inputs), tuple(case.prediction))
        else:
            fields = tuple(answers(case.gold, case.prediction, self.fields, metric=self.name))
            subject = Subject(tuple(name for name in case.inputs if name not in fields), fields, self.reference)
        if subject.reference:
            labels(case.gold, subject.answers, metric=self.name)
        return subject

    def subject_of(self, inputs: Sequence[str], outputs: Sequence[str]) -> Subject:
        """What a compiled judge sees of a task with these fields. Raises `InputError` for an input that nothing fills.

        Without a compiled judge there is nothing to match: the judge is made for the task.
        """
        judge = self._given
        if judge is None:
            return Subject(tuple(inputs), self.fields or tuple(outputs), self.reference)
        wanted = next((name for name in self.fields if name not in judge.inputs), None)
        if wanted is not None:
            near = nearest(wanted, judge.inputs)
            expected = f"one of its inputs {', '.join(judge.inputs)}"
            raise self._unfit(f"the judge does not read the field {wanted!r}", expected=expected, nearest=near)
        seen = tuple(name for name in self.fields or outputs if name in judge.inputs and name in outputs)
        subject = Subject(tuple(name for name in inputs if name not in seen), seen)
        references = [subject.reference_of(name) for name in seen]
        criterion = [subject.free(CRITERION)] if self.criteria else []
        if any(name not in judge.inputs for name in criterion):
            hint = "Leave out `criteria`, or name a judge that `checker` made."
            raise self._unfit("the judge reads no criterion", hint=hint)
        known = [*subject.inputs, *outputs, *references, *criterion]
        asked = [name for name, kind in judge.input_types.items() if not shape(kind).optional]
        unknown = next((name for name in asked if name not in known), None)
        if unknown is not None:
            hint = "A judge's inputs are called as the task's fields are; a gold value is `reference`."
            hint = "It reads a `criterion`: give `criteria`." if unknown == CRITERION else hint
            near, expected = nearest(unknown, known), f"one of {', '.join(known)}"
            message = f"the judge's input {unknown!r} is no field of the task"
            raise self._unfit(message, expected=expected, nearest=near, hint=hint)
        if not seen:
            expected = f"an input called {' or '.join(outputs)}" if outputs else "a program with an output"
            raise self._unfit("the judge reads no output of the task", expected=expected)
        return Subject(subject.inputs, seen, any(name in judge.inputs for name in references))

    def _unfit(self, message: str, **parts: str | None) -> InputError:
        return InputError(message, path=None if self.file is None else self.file.path, **parts)  # type: ignore[arg-type]

    def questions(self, case: Answered) -> list[Question]:
        """See `AskingMetric.questions`: one question, or one a criterion."""
        subject = self.subject(case)
        program = self.program(subject)
        given = subject.given(case.inputs, case.prediction, case.gold)
        if self._given is not None:
            given = {name: given[name] for name in program.inputs if name in given}
        if not self.criteria:
            return [(program, given)]
        return [(program, {**given, subject.free(CRITERION): criterion}) for criterion in self.criteria]

    def values(self) -> dict[str, float]:
        """What each label is worth, 0 to 1."""
        if self._values is not None:
            return dict(self._values)
        if self.criteria:
            return {YES: 1.0, NO: 0.0}
        low, high = self.scale
        return {str(grade): (grade - low) / (high - low) for grade in range(low, high + 1)}

    def grade(self, judgements: Sequence[Judgement]) -> Grade:
        """See `AskingMetric.grade`."""
        values: Mapping[str, float] = self.values()
        scores = [each.expected(values) if self.probabilities else values[each.label] for each in judgements]
        return Grade(min(1.0, max(0.0, math.fsum(scores) / len(scores))), tuple(judgements))


def _worth(judge: JudgeProgram) -> dict[str, float]:
    return label_values(choices(field_types(judge.predictor.signature)[judge.asked]) or ())


def _judge_of(program: dspy.Module) -> JudgeProgram:
    """A copy of a compiled judge that runs on the LM of its context."""
    inner = getattr(program, "program", program)  # a Compiled holds its program
    if not isinstance(inner, JudgeProgram):
        raise InputError(f"found {type(inner).__name__}", field="program", expected="a judge, as `grader` makes them")
    copy = adopt(inner.deepcopy())
    assert isinstance(copy, JudgeProgram), "a copy is of the same class"
    for predictor in predictors_of(copy).values():
        predictor.lm = None
    return copy
