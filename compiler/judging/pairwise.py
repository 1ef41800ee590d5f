"""Which of two answers is better: every pair is judged twice, with the order swapped.

Only a verdict that both orders give counts (Zheng et al. 2023, arXiv 2306.05685, section 3.4); how often the order
decides is the judge's position bias, told as there: the share of consistent pairs, and of pairs in which the answer
that stood first, or second, was preferred both times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import dspy

from .asking import Judgement, NoJudgement, ask
from .programs import FIRST, SECOND, TIE, Judge, JudgeProgram, Subject

Winner = Literal["a", "b", "tie", "inconsistent"]
_MEANT: Mapping[tuple[str, str], Winner] = {(FIRST, SECOND): "a", (SECOND, FIRST): "b", (TIE, TIE): "tie"}


@dataclass(frozen=True)
class Pair:
    """Two answers for the same inputs."""

    inputs: Mapping[str, Any]
    a: Mapping[str, Any]
    b: Mapping[str, Any]
    reference: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PositionBias:
    """How often the order decided, as shares of the `pairs` that were judged in both orders.

    consistent: the same verdict in both orders; first, second: the answer in that place was preferred both times; the
    rest are pairs with a tie in one order only. `picked_first` is the share of all verdicts but ties that went to the
    answer shown first, .5 without bias.
    """

    pairs: int
    consistent: float
    first: float
    second: float
    picked_first: float | None


@dataclass(frozen=True)
class Pairwise:
    """The verdicts of pairs. `winners` are in their order, `NoJudgement` where either order had no verdict.

    `labels` are what was said with a first, and with b first.
    """

    winners: tuple[Winner | NoJudgement, ...]
    labels: tuple[tuple[str, str] | None, ...]

    @property
    def failed(self) -> int:
        """Pairs for which a call failed."""
        return sum(isinstance(winner, NoJudgement) and not winner.unread for winner in self.winners)

    @property
    def unread(self) -> int:
        """Pairs for which a verdict could not be read."""
        return sum(isinstance(winner, NoJudgement) and winner.unread for winner in self.winners)

    @property
    def position(self) -> PositionBias | None:
        """The position bias; None where no pair was judged."""
        there = [labels for labels in self.labels if labels is not None]
        if not there:
            return None
        picked = [label for labels in there for label in labels if label != TIE]
        return PositionBias(
            len(there),
            sum(labels in _MEANT for labels in there) / len(there),
            sum(labels == (FIRST, FIRST) for labels in there) / len(there),
            sum(labels == (SECOND, SECOND) for labels in there) / len(there),
            sum(label == FIRST for label in picked) / len(picked) if picked else None,
        )


def compare_pairs(judge: Judge, subject: Subject, pairs: Sequence[Pair], lm: dspy.LM) -> Pairwise:
    """What `judge` (see `preferrer`) says of pairs, each in both orders, all in one batch.

    Raises `RunError` when the engine dies.
    """
    questions = [question for pair in pairs for question in in_both_orders(judge, subject, pair)]
    said = ask(questions, lm)
    winners: list[Winner | NoJudgement] = []
    labels: list[tuple[str, str] | None] = []
    for forth, back in zip(said[::2], said[1::2], strict=True):
        if isinstance(forth, Judgement) and isinstance(back, Judgement):
            labels.append((forth.label, back.label))
            winners.append(winner(forth.label, back.label))
        else:
            labels.append(None)
            winners.append(forth if isinstance(forth, NoJudgement) else _lost(back))
    return Pairwise(tuple(winners), tuple(labels))


def in_both_orders(judge: Judge, subject: Subject, pair: Pair) -> list[tuple[JudgeProgram, dict[str, str]]]:
    """The two questions about a pair: a first, then b first."""
    return [
        (judge, {**subject.given(pair.inputs, one, pair.reference, f"{FIRST}_"), **_second(subject, pair, other)})
        for one, other in ((pair.a, pair.b), (pair.b, pair.a))
    ]


def winner(forth: str, back: str) -> Winner:
    """What the two labels mean together: the one said with a first, and the one with b first."""
    return _MEANT.get((forth, back), "inconsistent")


def _second(subject: Subject, pair: Pair, answer: Mapping[str, Any]) -> dict[str, str]:
    return subject.given(pair.inputs, answer, pair.reference, f"{SECOND}_")


def _lost(said: Judgement | NoJudgement) -> NoJudgement:
    assert isinstance(said, NoJudgement), "one of the two is"
    return said
