"""Metrics that ask a judge: what they have in common, and how the questions of many of them become one batch.

A metric says what is asked about an answer (`questions`) and what the judgements make of it (`grade`). All questions
for the same model are one batch, after the answers are there (`evaluate.BatchMetric`); equal questions are asked once,
and a metric remembers what was said, since the trials of a compile give many equal answers.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dspy

from ...errors import InputError, RunError
from ...metrics import Measurement, Metric, Record
from ...models.address import shown
from ...models.lm import bridge_of
from ...programs.formats import format_named
from ...programs.schema import Target as MadeFor
from ...programs.state import FormatChoice
from ..evaluate import Answered
from .asking import Judgement, NoJudgement, ask
from .models import ModelLike, Models, NoModel, check_model
from .programs import JudgeProgram

logger = logging.getLogger("cuecard")

Question = tuple[JudgeProgram, dict[str, str]]
Key = tuple[str, tuple[tuple[str, str], ...]]


@dataclass(frozen=True)
class Grade:
    """What a judge says of one answer: a score from 0 to 1, and the judgements it comes from, one a question."""

    score: float
    judgements: tuple[Judgement, ...]


class AskingMetric(Metric):
    """A metric from 0 to 1 whose scores come from a judge.

    model: what the judge runs on, None for the LM of DSPy's context; made_for: the target that the judge was compiled
    for, where `model` is only what its file names: the context's LM goes before it where it is that one, and what it
    runs on instead is warned of. Raises `InputError` for a `model` that is none.
    """

    def __init__(
        self,
        name: str,
        fields: Sequence[str] = (),
        *,
        model: ModelLike | None = None,
        models: Models | None = None,
        made_for: MadeFor | None = None,
    ) -> None:
        check_model(model)
        self.name, self.fields = name, tuple(fields)
        self.model, self.models = model, models or Models()
        self._made_for, self._warned = made_for, False
        self._known: dict[Key, Judgement] = {}

    @abstractmethod
    def questions(self, case: Answered) -> list[Question]:
        """What is asked about a case, and whom; nothing where the answer needs no judge."""

    @abstractmethod
    def grade(self, judgements: Sequence[Judgement]) -> Grade:
        """The score that the judgements of one case make, which are in the order of its questions."""

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
    def model_name(self) -> str | None:
        """What it says that it runs on, in a word; None for the LM of the context."""
        told = self.model.get("server") or self.model.get("id") if isinstance(self.model, Mapping) else self.model
        return None if told is None else shown(told)

    def open_model(self) -> None:
        """See `evaluate.OwnModel`."""
        if self.model is not None:
            self.lm()

    def lm(self) -> dspy.LM:
        """What it runs on. Warns once where that is not what the judge was compiled for. Raises `NoModel`."""
        lm = dspy.settings.lm
        bridge = bridge_of(lm)
        made_for = self._made_for
        here = made_for is not None and bridge is not None and bridge.engine.identity == made_for.identity
        if self.model is not None and not here:
            lm = self.models.lm(self.model)
            bridge = bridge_of(lm)
        if bridge is None:
            raise NoModel(
                f"the judge {self.name!r} has no model to run on",
                hint="Name one (`model:`), or run it within dspy.context(lm=target.lm).",
            )
        if made_for is not None and bridge.engine.identity != made_for.identity and not self._warned:
            self._warned = True
            theirs = ", ".join(part for part in (made_for.name, made_for.dtype, made_for.device) if part)
            told = f"the judge {self.name!r} was compiled for another target ({theirs or made_for.identity})"
            logger.warning(f"{told}; it runs on {bridge.engine.name}")
        assert isinstance(lm, dspy.LM), "it has a bridge"
        return lm


def grade_all(cases: Sequence[tuple[AskingMetric, Answered]]) -> list[Grade | NoJudgement]:
    """What each judge says of its case, in order; the questions for the same model are one batch, equal ones once."""
    asked = [(metric, metric.questions(case)) for metric, case in cases]
    lms: dict[str, dspy.LM] = {}
    pending: dict[str, dict[tuple[int, Key], tuple[AskingMetric, Key, Question]]] = {}
    for metric, questions in asked:
        lm = metric.lm()
        identity = _identity(lm)
        lms[identity] = lm
        for question in questions:
            key = (identity, tuple(question[1].items()))
            if key not in metric._known:
                pending.setdefault(identity, {})[id(metric), key] = (metric, key, question)
    silent: dict[tuple[int, Key], NoJudgement] = {}
    for identity, jobs in pending.items():
        said = ask([question for _, _, question in jobs.values()], lms[identity])
        for (metric, key, _), judgement in zip(jobs.values(), said, strict=True):
            if isinstance(judgement, Judgement):
                metric._known[key] = judgement
            else:
                silent[id(metric), key] = judgement
    return [_graded(metric, questions, silent) for metric, questions in asked]


def checked_format(choice: FormatChoice | None) -> FormatChoice | None:
    """A judge's `format`. Raises `InputError`, whose `field` is that, for one that there is not."""
    if choice is not None:
        try:
            format_named(choice)
        except InputError as error:
            parts: dict[str, Any] = {"expected": error.expected, "nearest": error.nearest, "hint": error.hint}
            raise InputError(error.message, field="format", **parts) from None
    return choice


def _graded(
    metric: AskingMetric, questions: Sequence[Question], silent: Mapping[tuple[int, Key], NoJudgement]
) -> Grade | NoJudgement:
    identity = _identity(metric.lm())
    keys = [(identity, tuple(given.items())) for _, given in questions]
    lost = next((silent[id(metric), key] for key in keys if (id(metric), key) in silent), None)
    return lost if lost is not None else metric.grade([metric._known[key] for key in keys])


def _identity(lm: dspy.LM) -> str:
    bridge = bridge_of(lm)
    assert bridge is not None, "the judge has looked"
    return bridge.engine.identity


def _answered(example: Record, prediction: Record) -> Answered:
    inputs: Mapping[str, Any] = {}
    if isinstance(example, dspy.Example) and getattr(example, "_input_keys", None):
        inputs, example = dict(example.inputs().items()), example.labels()
    gold = {name: example[name] for name in example.keys()}  # noqa: SIM118 - a Record is not iterable
    return Answered(inputs, gold, {name: prediction[name] for name in prediction.keys()})  # noqa: SIM118
