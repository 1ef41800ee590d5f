"""Assertions by a judge: `judge` grades the output by a rubric or a checklist, `llm-rubric` asks whether it meets one.

`llm-rubric` is promptfoo's name
(https://www.promptfoo.dev/docs/configuration/expected-outputs/model-graded/llm-rubric/). The score is the judge's, 0 to
1, and passes from the threshold on (default .5). A judge without a verdict makes the test one that could not be run,
never one that failed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ...errors import InputError
from ...metrics.values import as_text
from ..evaluate import Answered
from ..judging import JudgeMetric, NoModel
from ..judging.reading import judge_of
from .answers import Answer
from .rules import Given, Rule, Unjudged, Verdict, shown

THRESHOLD = 0.5
OUTPUT = "output"
RUBRIC_HINT = "A list of criteria is a checklist of `judge`."


@dataclass(frozen=True)
class JudgeRule(Rule):
    """The rule of a judge, which is asked together with the judges of other tests where it can be."""

    metric: JudgeMetric = field(kw_only=True)
    reference: str | None = None

    def case(self, found: Any, answer: Answer) -> Answered:
        """What the judge is asked about."""
        name = OUTPUT
        while name in answer.inputs:
            name = f"judged_{name}"
        gold = {} if self.reference is None else {name: self.reference}
        return Answered(answer.inputs, gold, {name: as_text(found)})


def judged(given: Given) -> JudgeRule:
    """The rule that the judge's score reaches the threshold. Raises `InputError`, whose `field` is the key."""
    threshold = THRESHOLD if given.threshold is None else given.threshold
    if not 0 <= threshold <= 1:
        raise given.wrong("threshold", f"found {threshold:g}", expected="0 to 1")
    texts = [given.value] if isinstance(given.value, str) else given.value
    several = given.type == "judge"
    if not isinstance(texts, list) or not texts or not all(isinstance(one, str) and one.strip() for one in texts):
        expected = "a rubric in words, or a list of criteria" if several else "what the output has to meet, in words"
        raise given.wrong("value", f"found {shown(given.value)}", expected=expected)
    if not several and len(texts) > 1:
        raise given.wrong("value", f"found {shown(given.value)}", expected="one text", hint=RUBRIC_HINT)
    metric, reference = _metric(given, texts)

    def judge(found: Any, answer: Answer) -> Verdict:
        try:
            measured = metric.measure_all([rule.case(found, answer)])[0]
        except NoModel as error:
            raise Unjudged(f"{given.type}: {error.message}") from error
        if isinstance(measured, str):
            raise Unjudged(f"{given.type}: {measured}")
        return Verdict(measured.score >= threshold, measured.score, f"{measured.score:.3f}")

    words = f"of at least {threshold:g} by {shown(given.value)}"
    rule = JudgeRule(judge, "\n".join(texts), words, metric=metric, reference=reference)  # `judge` needs its cases
    return rule


def _metric(given: Given, texts: list[str]) -> tuple[JudgeMetric, str | None]:
    """The judge, and the reference that it is shown."""
    options = dict(given.options)
    reference = options.pop("reference", None)
    if reference is not None and not isinstance(reference, str):
        raise given.wrong("options", f"reference is {shown(reference)}", expected="a text to compare the output with")
    for key in ("rubric", "criteria", "field", "fields", "name"):
        if key in options:
            raise given.wrong("options", f"a {given.type!r} takes no {key}")
    checklist = given.type == "llm-rubric" or not isinstance(given.value, str)
    options |= {"criteria": texts} if checklist else {"rubric": texts[0]}
    try:
        return judge_of({**options, "reference": reference is not None, "name": given.type}), reference
    except InputError as error:
        message = f"{error.field}: {error.message}" if error.field else error.message
        raise given.wrong("options", message, expected=error.expected, nearest=error.nearest) from error
