"""What a judge is worth: its position bias, its length bias and, where people gave grades, how far it agrees with them.

Position: pairs of different answers to the same inputs (the answer and its reference or, where these are equal, the
answer to another example), in both orders, see `pairwise.py`. Length: every answer as it is and said again once and
twice, which makes it longer and no better ("repetitive" padding, Zheng et al. 2023, arXiv 2306.05685, section 3.3): how
much the grade changes, and how it correlates with the number of words once each answer's own mean is taken off both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...errors import InputError
from ...metrics import Measurement, bootstrap
from ...metrics.values import as_text, references
from ...signatures.labels import label_text
from ..evaluate import Answered
from .agreement import Agreement, agreement
from .asked import Grade, grade_all
from .asking import NoJudgement
from .grading import JudgeMetric
from .pairwise import Pair, PositionBias, compare_pairs
from .programs import NO, YES, preferrer

REPEATS = 3
AGAIN = "To say it again: "
COMPARE = "Say which of the two answers is better."


@dataclass(frozen=True)
class LengthBias:
    """How grades follow length at equal quality.

    plain, padded: the mean score of the answers as they are and of their longest padding; low, high: the 95 %
    bootstrap interval of `padded - plain`; correlation: of score and words within answers, None where no score changed.
    """

    answers: int
    plain: float
    padded: float
    low: float
    high: float
    correlation: float | None


@dataclass(frozen=True)
class JudgeCheck:
    """What was measured. `failed` and `unread` count verdicts that are missing everywhere else."""

    position: PositionBias | None
    length: LengthBias | None
    labels: Agreement | None
    failed: int
    unread: int
    first_failure: str = ""


def check_judge(
    metric: JudgeMetric, cases: Sequence[Answered], *, human: Sequence[Any] | None = None, seed: int = 0
) -> JudgeCheck:
    """Measure a judge on answers, on the LM that it runs on.

    human: what people said of each answer, by the judge's own labels (grades of its scale; yes or no, for one
    criterion). Raises `InputError`, and `RunError` when the engine dies.
    """
    if not cases:
        raise InputError("there are no answers to judge")
    wanted = None if human is None else human_labels(metric, human)
    graded = grade_all([(metric, case) for case in padded_cases(metric, cases)])
    rows = [graded[first : first + REPEATS] for first in range(0, len(graded), REPEATS)]
    pairs = pairs_of(metric, cases)
    compared = None
    if pairs:
        subject = metric.subject(cases[0])
        rubric = "\n".join([*filter(None, [metric.words]), *metric.criteria, COMPARE])
        compared = compare_pairs(preferrer(subject, rubric, state=metric.state), subject, pairs, metric.lm())
    lost = [each for each in graded if isinstance(each, NoJudgement)]
    lost += [each for each in (compared.winners if compared else ()) if isinstance(each, NoJudgement)]
    return JudgeCheck(
        compared.position if compared else None,
        _length(metric, cases, rows, seed),
        None if wanted is None else _agreement(metric, [row[0] for row in rows], wanted),
        sum(not each.unread for each in lost),
        sum(each.unread for each in lost),
        next((str(each) for each in lost), ""),
    )


def padded_cases(metric: JudgeMetric, cases: Sequence[Answered]) -> list[Answered]:
    """Every case as it is, then with its answer said again, once and twice."""
    made = []
    for case in cases:
        fields = metric.subject(case).answers
        for times in range(REPEATS):
            texts = {name: as_text(case.prediction[name]) for name in fields}
            longer = {name: f" {AGAIN}".join([text] * (times + 1)) for name, text in texts.items()}
            made.append(replace(case, prediction={**case.prediction, **longer}))
    return made


def pairs_of(metric: JudgeMetric, cases: Sequence[Answered]) -> list[Pair]:
    """A pair for each case: its answer, and its reference or else the nearest other case's answer that differs."""
    found = []
    for place, case in enumerate(cases):
        subject = metric.subject(case)
        fields = subject.answers
        ours = {name: as_text(case.prediction[name]) for name in fields}
        others = [case.gold] if not subject.reference else []  # a judge that sees the reference knows it again
        others += [other.prediction for other in (*cases[place + 1 :], *cases[:place])]
        for other in others:
            if all(name in other for name in fields):
                theirs = {name: as_text(references(other[name], case.prediction[name])[0]) for name in fields}
                if theirs != ours:
                    found.append(Pair(case.inputs, ours, theirs, case.gold))
                    break
    return found


def human_labels(metric: JudgeMetric, human: Sequence[Any]) -> list[str]:
    """People's labels as the judge's own. Raises `InputError` for one that is none of them."""
    if len(metric.criteria) > 1:
        expected = "a scale, or a single criterion"
        raise InputError("the labels of several criteria cannot be told apart", field="--labels", expected=expected)
    known, made = list(metric.values()), []
    for row, given in enumerate(human, start=1):
        text = label_text(given) if isinstance(given, bool) else as_text(given).strip()
        text = {"true": YES, "false": NO}.get(text, text) if text not in known else text
        if isinstance(given, float) and given.is_integer():
            text = str(int(given))
        if text not in known:
            message = f"found {given!r} on example {row}"
            raise InputError(message, field="--labels", expected=f"one of {', '.join(known)}")
        made.append(text)
    return made


def _length(
    metric: JudgeMetric, cases: Sequence[Answered], rows: Sequence[Sequence[Grade | NoJudgement]], seed: int
) -> LengthBias | None:
    padded = padded_cases(metric, cases)
    counts = [_words(metric, case) for case in padded]
    x: list[float] = []
    y: list[float] = []
    ends: list[tuple[float, float]] = []
    for place, row in enumerate(rows):
        scores = [each.score for each in row if isinstance(each, Grade)]
        if len(scores) < REPEATS:
            continue
        words = counts[place * REPEATS : (place + 1) * REPEATS]
        x += [count - math.fsum(words) / REPEATS for count in words]
        y += [score - math.fsum(scores) / REPEATS for score in scores]
        ends.append((scores[0], scores[-1]))
    if not ends:
        return None
    n = len(ends)
    low, high = bootstrap([Measurement(last - first) for first, last in ends], metric, seed=seed)
    first, last = (math.fsum(each[side] for each in ends) / n for side in (0, 1))
    return LengthBias(n, first, last, low, high, _correlation(x, y))


def _words(metric: JudgeMetric, case: Answered) -> int:
    fields: Sequence[str] = metric.subject(case).answers
    values: Mapping[str, Any] = case.prediction
    return sum(len(as_text(values[name]).split()) for name in fields)


def _correlation(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Pearson's, of values whose means are 0 already."""
    spread = math.sqrt(math.fsum(a * a for a in x) * math.fsum(b * b for b in y))
    return math.fsum(a * b for a, b in zip(x, y, strict=True)) / spread if spread > 1e-12 else None


def _agreement(metric: JudgeMetric, graded: Sequence[Grade | NoJudgement], human: Sequence[str]) -> Agreement | None:
    """The labels nearest to the judge's scores, beside people's; None where no verdict is there.

    Labels that are worth the same are the same label.
    """
    values = metric.values()
    first = {value: label for label, value in reversed(list(values.items()))}
    order = [first[value] for value in sorted(first)] if not metric.criteria else None
    ours, theirs = [], []
    for each, label in zip(graded, human, strict=True):
        if isinstance(each, Grade):
            nearest = min(values, key=lambda name: (abs(values[name] - each.score), name))
            ours.append(first[values[nearest]])
            theirs.append(first[values[label]])
    return agreement(ours, theirs, order=order) if ours else None
