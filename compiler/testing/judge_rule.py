"""Assertions by a judge: `judge` grades the output by a rubric or a checklist, `llm-rubric` asks whether it meets one.

A `judge` may also be one that was compiled: `value: {program: reply_judge.compiled.yaml}`. It is shown those of the
inputs and outputs that it has inputs for, and has to read the output that the assertion is about. `llm-rubric` is
promptfoo's name (https://www.promptfoo.dev/docs/configuration/expected-outputs/model-graded/llm-rubric/). The score is
the judge's, 0 to 1, and passes from the threshold on (default .5). A judge without a verdict makes the test one that
could not be run, never one that failed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...errors import InputError, nearest
from ...metrics.values import as_text
from ...programs.problems import InputErrors
from ..evaluate import Answered
from ..judging import JudgeMetric, NoModel
from ..judging.options import Place, judge_of
from .answers import Answer
from .rules import Given, Rule, Unjudged, Verdict, shown

THRESHOLD = 0.5
OUTPUT = "output"
OF_FILE = ("program", "values", "criteria")
RUBRIC_HINT = "A list of criteria is a checklist of `judge`."


@dataclass(frozen=True)
class JudgeRule(Rule):
    """The rule of a judge, which is asked together with the judges of other tests where it can be.

    inputs: the program's, of which a case may leave out optional ones.
    """

    metric: JudgeMetric = field(kw_only=True)
    reference: str | None = None
    inputs: tuple[str, ...] = ()

    def case(self, found: Any, answer: Answer) -> Answered:
        """What the judge is asked about: the output, under a name of its own; a compiled judge finds it by its name."""
        inputs = {**dict.fromkeys(self.inputs), **answer.inputs}
        if self.metric.file is not None:
            outputs = dict(answer.outputs or {})
            seen = self.metric.subject_of(tuple(inputs), tuple(outputs)).answers
            gold = {} if self.reference is None else dict.fromkeys(seen, self.reference)
            return Answered(inputs, gold, outputs)
        name = OUTPUT
        while name in inputs:
            name = f"judged_{name}"
        gold = {} if self.reference is None else {name: self.reference}
        return Answered(inputs, gold, {name: as_text(found)})

    def fits(self, outputs: Sequence[str], output: str) -> None:
        """Raise `InputError` where a compiled judge does not fit a program with these outputs, or this one of them."""
        file = self.metric.file
        if file is None:
            return
        subject = self.metric.subject_of(self.inputs, outputs)
        if output not in subject.answers:
            expected = f"one of {', '.join(subject.answers)}"
            raise InputError(f"the judge does not read the output {output!r}", path=file.path, expected=expected)


def judged(given: Given) -> JudgeRule:
    """The rule that the judge's score reaches the threshold. Raises `InputError`, whose `field` is the key."""
    threshold = THRESHOLD if given.threshold is None else given.threshold
    if not 0 <= threshold <= 1:
        raise given.wrong("threshold", f"found {threshold:g}", expected="0 to 1")
    metric, reference = _metric(given)

    def judge(found: Any, answer: Answer) -> Verdict:
        try:
            measured = metric.measure_all([rule.case(found, answer)])[0]
        except NoModel as error:
            raise Unjudged(f"{given.type}: {error.message}") from error
        if isinstance(measured, str):
            raise Unjudged(f"{given.type}: {measured}")
        return Verdict(measured.score >= threshold, measured.score, f"{measured.score:.3f}")

    words = f"of at least {threshold:g} by {shown(given.value)}"
    wanted = metric.words if metric.file is not None else "\n".join(_texts(given))
    rule = JudgeRule(judge, wanted, words, metric=metric, reference=reference, inputs=given.inputs)
    return rule  # `judge` needs its cases


def _texts(given: Given) -> list[str]:
    """The rubric, or the criteria. Raises `InputError`."""
    texts = [given.value] if isinstance(given.value, str) else given.value
    several = given.type == "judge"
    if not isinstance(texts, list) or not texts or not all(isinstance(one, str) and one.strip() for one in texts):
        expected = (
            "a rubric in words, or a list of criteria, or {program: FILE}" if several else "what the output has to meet"
        )
        raise given.wrong("value", f"found {shown(given.value)}", expected=expected)
    if not several and len(texts) > 1:
        raise given.wrong("value", f"found {shown(given.value)}", expected="one text", hint=RUBRIC_HINT)
    return texts


def _metric(given: Given) -> tuple[JudgeMetric, str | None]:
    """The judge, and the reference that it is shown."""
    options = dict(given.options)
    reference = options.pop("reference", None)
    if reference is not None and not isinstance(reference, str):
        raise given.wrong("options", f"reference is {shown(reference)}", expected="a text to compare the output with")
    for key in ("rubric", "field", "fields", "name", *OF_FILE):
        if key in options:
            hint = "It is the value: `value: {program: FILE}`." if key == "program" and given.type == "judge" else None
            raise given.wrong("options", f"a {given.type!r} takes no {key}", hint=hint)
    where = "options"
    if given.type == "judge" and isinstance(given.value, Mapping):
        where = "value"
        options |= _of_file(given)
    else:
        texts = _texts(given)
        checklist = given.type == "llm-rubric" or not isinstance(given.value, str)
        options |= {"criteria": texts} if checklist else {"rubric": texts[0]}
    try:
        made = judge_of(
            {**options, "reference": reference is not None, "name": given.type},
            place=Place(given.folder, given.allow_outside),
        )
        return made, reference
    except InputError as error:
        parts: dict[str, Any] = {"expected": error.expected, "nearest": error.nearest, "hint": error.hint}
        message = f"{error.field}: {error.message}" if error.field else error.message
        if error.path is not None or isinstance(error, InputErrors):  # it is about the judge's own file
            message, parts = str(error), {}
        raise given.wrong(where, message, **parts) from error


def _of_file(given: Given) -> dict[str, Any]:
    """The options that `{program: FILE}` stands for."""
    value = dict(given.value)
    unknown = next((key for key in value if key not in OF_FILE), None)
    if unknown is not None or "program" not in value:
        message = f"found {shown(given.value)}" if unknown is None else f"a judge's file has no {unknown!r}"
        expected = "{program: FILE}, with `values` where its labels are no grades"
        raise given.wrong("value", message, expected=expected, nearest=nearest(str(unknown), OF_FILE))
    return value
