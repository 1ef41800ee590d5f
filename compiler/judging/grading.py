"""A judge as a metric: what a rubric or a checklist says of an answer, as a score from 0 to 1.

A grade is the mean of the scale's grades under their probabilities, mapped to 0..1; a checklist's score is the mean
over its criteria of the probability of yes. A judge asks a model, so it measures many answers at once
(`evaluate.BatchMetric`); equal answers are judged once. Its own model is opened when it is first needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dspy

from ...errors import InputError, RunError
from ...metrics import Measurement, Metric, Record
from ...metrics.values import answers, labels
from ...models.address import is_address, shown
from ...models.lm import bridge_of, language_model
from ...models.target import Target
from ...models.target import target as open_target
from ...programs.predictor import adopt
from ...programs.state import FormatChoice, PredictorState, ReadOut
from ..evaluate import Answered
from ..evaluator import predictors_of
from .asking import Judgement, NoJudgement, ask
from .programs import CRITERION, NO, YES, Judge, Subject, check_scale, checker, grader

ModelLike = str | Mapping[str, Any]
Open = Callable[[ModelLike], Target]


class NoModel(InputError):
    """A judge was asked where no model runs."""


@dataclass(frozen=True)
class Grade:
    """What a judge says of one answer: a score from 0 to 1, and the judgements it comes from, one a criterion."""

    score: float
    judgements: tuple[Judgement, ...]


def _open(model: ModelLike) -> Target:
    if not isinstance(model, str):
        raise InputError("a judge's model with options needs a spec", expected="the model's name")
    if is_address(model):  # whoever wrote it decides what it is sent
        hint = "Say so in Python: Models(cuecard.target), or in the spec's `metric`."
        raise InputError(f"a judge's server {shown(model)} needs a spec", expected="a model in process", hint=hint)
    return open_target(model)


@dataclass
class Models:
    """The models that judges run on, each opened once."""

    open: Open = _open
    opened: dict[str, dspy.LM] = field(default_factory=dict)

    def lm(self, model: ModelLike) -> dspy.LM:
        """The LM of a model."""
        key = repr(model)
        if key not in self.opened:
            self.opened[key] = language_model(self.open(model).engine)
        return self.opened[key]


class JudgeMetric(Metric):
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
        program: dspy.Module | None = None,
        name: str = "judge",
    ) -> None:
        """`criteria` make it a checklist, else it grades on the `scale`.

        reference: the gold value is shown to the judge; fields: the outputs that are judged, default those that the
        example labels, or the only one; probabilities: the mean over all labels, and not the likeliest alone; model:
        what the judge runs on, default the program's own; program: a judge that was compiled, in place of the one that
        the rubric makes. Raises `InputError`.
        """
        self.name, self.fields = name, tuple(fields)
        self.rubric, self.criteria, self.scale = rubric, tuple(criteria), check_scale(scale)
        self.reference, self.probabilities, self.model = reference, probabilities, model
        self.models = models or Models()
        self.state = PredictorState(format=format or "chat", readout=ReadOut(kind="choice"))
        self._given = None if program is None else _judge_of(program)
        self._programs: dict[Subject, Judge] = {}
        self._known: dict[tuple[str, tuple[tuple[str, str], ...]], Judgement] = {}
        if not rubric.strip() and not self.criteria and program is None:
            raise InputError(
                "the judge has neither a rubric nor criteria", expected="rubric: what makes an answer good"
            )
        if any(not criterion.strip() for criterion in self.criteria):
            raise InputError("a criterion is empty", field="criteria", expected="what an answer has to meet, in words")

    def measure(self, example: Record, prediction: Record) -> Measurement:
        """See `Metric.measure`: one answer, in a batch of its own. The inputs are those that the example marks."""
        found = self.measure_all([_answered(example, prediction)])[0]
        if isinstance(found, str):
            raise RunError(found)
        return found

    def measure_all(self, cases: Sequence[Answered]) -> list[Measurement | str]:
        """See `evaluate.BatchMetric`. Runs on its own model, else on the LM of DSPy's context."""
        graded = grade_all([(self, case) for case in cases])
        return [Measurement(each.score) if isinstance(each, Grade) else str(each) for each in graded]

    @property
    def words(self) -> str:
        """The rubric: of a compiled judge, the instruction that it has learned."""
        return self.rubric if self._given is None else str(self._given.judge.signature.instructions)

    def program(self, subject: Subject) -> Judge:
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
        fields = tuple(answers(case.gold, case.prediction, self.fields, metric=self.name))
        if self.reference:
            labels(case.gold, fields, metric=self.name)
        return Subject(tuple(name for name in case.inputs if name not in fields), fields, self.reference)

    def questions(self, case: Answered) -> list[tuple[Judge, dict[str, str]]]:
        """What is asked about a case: one question, or one a criterion."""
        subject = self.subject(case)
        program = self.program(subject)
        given = subject.given(case.inputs, case.prediction, case.gold)
        if not self.criteria:
            return [(program, given)]
        return [(program, {**given, subject.free(CRITERION): criterion}) for criterion in self.criteria]

    def values(self) -> dict[str, float]:
        """What each label is worth, 0 to 1."""
        if self.criteria:
            return {YES: 1.0, NO: 0.0}
        low, high = self.scale
        return {str(grade): (grade - low) / (high - low) for grade in range(low, high + 1)}

    def grade(self, judgements: Sequence[Judgement]) -> Grade:
        """The score that the judgements of one case make."""
        values = self.values()
        scores = [each.expected(values) if self.probabilities else values[each.label] for each in judgements]
        return Grade(min(1.0, max(0.0, math.fsum(scores) / len(scores))), tuple(judgements))

    def lm(self) -> dspy.LM:
        """What it runs on. Raises `NoModel`."""
        lm = self.models.lm(self.model) if self.model is not None else dspy.settings.lm
        if bridge_of(lm) is None:
            raise NoModel(
                f"the judge {self.name!r} has no model to run on",
                hint="Name one (`model:`), or run it within dspy.context(lm=target.lm).",
            )
        assert isinstance(lm, dspy.LM), "it has a bridge"
        return lm


def grade_all(cases: Sequence[tuple[JudgeMetric, Answered]]) -> list[Grade | NoJudgement]:
    """What each judge says of its case, in order; the questions for the same model are one batch, equal ones once."""
    asked = [(metric, metric.questions(case)) for metric, case in cases]
    lms: dict[str, dspy.LM] = {}
    pending: dict[str, dict[tuple[int, Any], tuple[JudgeMetric, Any, tuple[Judge, dict[str, str]]]]] = {}
    for metric, questions in asked:
        lm = metric.lm()
        identity = _identity(lm)
        lms[identity] = lm
        for question in questions:
            key = (identity, tuple(question[1].items()))
            if key not in metric._known:
                pending.setdefault(identity, {})[id(metric), key] = (metric, key, question)
    silent: dict[tuple[int, Any], NoJudgement] = {}
    for identity, jobs in pending.items():
        said = ask([question for _, _, question in jobs.values()], lms[identity])
        for (metric, key, _), judgement in zip(jobs.values(), said, strict=True):
            if isinstance(judgement, Judgement):
                metric._known[key] = judgement
            else:
                silent[id(metric), key] = judgement
    return [_graded(metric, questions, silent) for metric, questions in asked]


def _graded(
    metric: JudgeMetric,
    questions: Sequence[tuple[Judge, dict[str, str]]],
    silent: Mapping[tuple[int, Any], NoJudgement],
) -> Grade | NoJudgement:
    identity = _identity(metric.lm())
    keys = [(identity, tuple(given.items())) for _, given in questions]
    lost = next((silent[id(metric), key] for key in keys if (id(metric), key) in silent), None)
    return lost if lost is not None else metric.grade([metric._known[key] for key in keys])


def _identity(lm: dspy.LM) -> str:
    bridge = bridge_of(lm)
    assert bridge is not None, "the judge has looked"
    return bridge.engine.identity


def _judge_of(program: dspy.Module) -> Judge:
    """A copy of a compiled judge that runs on the LM of its context."""
    inner = getattr(program, "program", program)  # a Compiled holds its program
    if not isinstance(inner, Judge):
        raise InputError(f"found {type(inner).__name__}", field="program", expected="a judge, as `grader` makes them")
    copy = adopt(inner.deepcopy())
    assert isinstance(copy, Judge), "a copy is of the same class"
    for predictor in predictors_of(copy).values():
        predictor.lm = None
    return copy


def _answered(example: Record, prediction: Record) -> Answered:
    inputs: Mapping[str, Any] = {}
    if isinstance(example, dspy.Example) and getattr(example, "_input_keys", None):
        inputs, example = dict(example.inputs().items()), example.labels()
    gold = {name: example[name] for name in example.keys()}  # noqa: SIM118 - a Record is not iterable
    return Answered(inputs, gold, {name: prediction[name] for name in prediction.keys()})  # noqa: SIM118
