"""Which of two answers a judge prefers, as a metric and between two programs.

As a metric an answer stands against its reference: 1 where the judge prefers it in both orders, 0 where it prefers the
reference in both, and .5 for a tie or where the order decides, since then nothing is known (Zheng et al. 2023, arXiv
2306.05685, section 3.4, count such verdicts as ties). So .5 is as good as the reference. An answer that is the
reference itself is not asked about: in both orders the prompt would be the same.

Between two programs the pairs that the judge decided are what counts: the exact sign test (Conover, "Practical
Nonparametric Statistics", 3rd edition 1999, section 3.4) says how likely so uneven a split is by chance, and the
interval of the win rate is the one that this test gives (Clopper and Pearson 1934, "The use of confidence or fiducial
limits illustrated in the case of the binomial"), so that it holds .5 exactly where p is above .05.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import dspy

from ...errors import InputError
from ...metrics import Score
from ...metrics.values import answers, as_text, labels, references
from ...programs.state import FormatChoice, PredictorState, ReadOut
from ..evaluate import Answered
from .asked import AskingMetric, Grade, Question, checked_format
from .asking import Judgement, NoJudgement
from .models import ModelLike, Models
from .pairwise import Pair, Pairwise, PositionBias, compare_pairs, in_both_orders, winner
from .programs import Judge, Subject, preferrer

POINTS: Mapping[str, float] = {"a": 1.0, "b": 0.0, "tie": 0.5, "inconsistent": 0.5}
TAIL = 0.025
End = Literal["before", "after", "tie", "inconsistent", "same"]


class PreferenceMetric(AskingMetric):
    """How often a judge prefers the answer to the reference, ties and verdicts that the order decides counting half."""

    def __init__(
        self,
        rubric: str,
        *,
        fields: Sequence[str] = (),
        ties: bool = True,
        format: FormatChoice | None = None,
        model: ModelLike | None = None,
        models: Models | None = None,
        name: str = "preference",
    ) -> None:
        """`rubric`: what makes one of two answers better; `ties`: the judge may say that neither is; the rest as for
        `JudgeMetric`. Raises `InputError`.
        """
        super().__init__(name, fields, model=model, models=models)
        if not rubric.strip():
            raise InputError("the judge has no rubric", expected="rubric: what makes one of two answers better")
        self.rubric, self.ties = rubric, ties
        self.state = PredictorState(format=checked_format(format) or "chat", readout=ReadOut(kind="choice"))
        self._programs: dict[Subject, Judge] = {}

    def program(self, subject: Subject) -> Judge:
        """The judge's program for a task with these fields."""
        if subject not in self._programs:
            self._programs[subject] = preferrer(subject, self.rubric, ties=self.ties, state=self.state)
        return self._programs[subject]

    def questions(self, case: Answered) -> list[Question]:
        """See `AskingMetric.questions`: the answer first, then the reference first; nothing where they are the same."""
        fields = tuple(answers(case.gold, case.prediction, self.fields, metric=self.name))
        gold = labels(case.gold, fields, metric=self.name)
        subject = Subject(tuple(name for name in case.inputs if name not in fields), fields)
        ours = {name: as_text(case.prediction[name]) for name in fields}
        theirs = {name: as_text(references(gold[name], case.prediction[name])[0]) for name in fields}
        if ours == theirs:
            return []
        return in_both_orders(self.program(subject), subject, Pair(case.inputs, ours, theirs))

    def grade(self, judgements: Sequence[Judgement]) -> Grade:
        """See `AskingMetric.grade`."""
        if not judgements:
            return Grade(POINTS["tie"], ())
        forth, back = judgements
        return Grade(POINTS[winner(forth.label, back.label)], tuple(judgements))


@dataclass(frozen=True)
class Preferences:
    """What a judge said of the answers of two programs, `before` and `after`, to the same rows.

    ends: how each row ended, None where there is no verdict, which `failed` and `unread` count; lost: rows that ended
    without a question, since one answer could not be read; win_rate: after's share of the rows that were decided,
    with its 95 % interval, None where none was; p_value: of the sign test, two-sided.
    """

    rubric: str
    ends: tuple[End | None, ...]
    position: PositionBias | None
    win_rate: Score | None
    p_value: float
    failed: int
    unread: int
    lost: int
    first_failure: str = ""

    def count(self, end: End) -> int:
        """How many rows ended so."""
        return sum(each == end for each in self.ends)

    def as_dict(self, rows: Sequence[str]) -> dict[str, Any]:
        """All of it as JSON holds it; `rows` are the names of the rows."""
        return {
            "rubric": self.rubric,
            "wins": self.count("after"),
            "losses": self.count("before"),
            "ties": self.count("tie"),
            "inconsistent": self.count("inconsistent"),
            "same": self.count("same"),
            "unreadable_answers": self.lost,
            "failed": self.failed,
            "unread": self.unread,
            "first_failure": self.first_failure,
            "win_rate": None if self.win_rate is None else self.win_rate.as_dict(),
            "p_value": self.p_value,
            "position": None if self.position is None else asdict(self.position),
            "rows": [{"row": row, "preferred": end} for row, end in zip(rows, self.ends, strict=True)],
        }


Answers = tuple[Mapping[str, Any], Mapping[str, Any] | None, Mapping[str, Any] | None]
"""A row's inputs, and the two programs' answers; None for one that could not be read."""


def prefer(judge: PreferenceMetric, rows: Sequence[Answers], fields: Sequence[str], lm: dspy.LM) -> Preferences:
    """What the judge says of two programs' answers, each pair in both orders, all in one batch.

    fields: the outputs that are judged. An answer that could not be read loses against one that could. Raises
    `RunError` when the engine dies.
    """
    known: dict[int, End] = {}
    pairs: dict[int, Pair] = {}
    for place, (inputs, before, after) in enumerate(rows):
        if before is None or after is None:
            known[place] = "same" if before is after else "before" if after is None else "after"
            continue
        ours, theirs = ({name: as_text(given[name]) for name in fields} for given in (before, after))
        if ours == theirs:
            known[place] = "same"
        else:
            pairs[place] = Pair(inputs, ours, theirs)
    subject = Subject(tuple(name for name in (rows[0][0] if rows else ()) if name not in fields), tuple(fields))
    with dspy.context(lm=lm):
        on = judge.lm()
    said = compare_pairs(judge.program(subject), subject, list(pairs.values()), on) if pairs else Pairwise((), ())
    meant: Mapping[str, End] = {"a": "before", "b": "after", "tie": "tie", "inconsistent": "inconsistent"}
    found = {
        place: None if isinstance(end, NoJudgement) else meant[end]
        for place, end in zip(pairs, said.winners, strict=True)
    }
    ends = tuple(known[place] if place in known else found[place] for place in range(len(rows)))
    wins, losses = (sum(end == side for end in ends) for side in ("after", "before"))
    silent = [end for end in said.winners if isinstance(end, NoJudgement)]
    return Preferences(
        judge.rubric,
        ends,
        said.position,
        win_rate(wins, losses),
        sign_test(wins, losses),
        said.failed,
        said.unread,
        sum(before is None or after is None for _, before, after in rows),
        str(silent[0]) if silent else "",
    )


def sign_test(wins: int, losses: int) -> float:
    """The two-sided p-value of the exact sign test: how likely so uneven a split is if both sides are as good.

    >>> sign_test(9, 1)
    0.021484375
    """
    n, most = wins + losses, max(wins, losses)
    at_least = sum(math.comb(n, k) for k in range(most, n + 1))
    return min(1.0, 2 * at_least / (1 << n))


def win_rate(wins: int, losses: int) -> Score | None:
    """The share of wins with its exact 95 % interval; None where nothing was decided."""
    from scipy.special import betaincinv

    n = wins + losses
    if not n:
        return None
    low = float(betaincinv(wins, losses + 1, TAIL)) if wins else 0.0
    high = float(betaincinv(wins + 1, losses, 1 - TAIL)) if losses else 1.0
    return Score(wins / n, low, high, n)
