"""Score against prompt length: the programs that no other one beats on both, and the rule that picks one of them.

A longer prompt (more demos, a wordier format) costs tokens and time with every call. The search looks for the best
score; what it has measured on all of dev on the way is enough to say what a shorter prompt would lose. The front holds
those trials for which no other has at least the score with fewer tokens, or a better score with no more (Pareto).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    """A trial that ran on all of dev. score: the metric's; tokens: of the prompts of a program run, the mean."""

    trial: int
    score: float
    tokens: float


@dataclass(frozen=True)
class FrontRule:
    """Which of the trials is taken: the one with the best score, unless one of these says otherwise.

    at_least: the one with the fewest tokens whose score is at least that; the best score where none has it;
    at_most_tokens: the best of those with at most so many tokens; longer ones are not tried.
    """

    at_least: float | None = None
    at_most_tokens: float | None = None

    def allows(self, tokens: float) -> bool:
        """Whether a program with so many prompt tokens may be taken."""
        return self.at_most_tokens is None or tokens <= self.at_most_tokens

    def pick(self, points: Sequence[Point]) -> Point | None:
        """The point to take, None where the rule allows none. Ties go to fewer tokens, then to the earlier trial."""
        allowed = [point for point in points if self.allows(point.tokens)]
        enough = [point for point in allowed if self.at_least is not None and point.score >= self.at_least]
        if enough:
            return min(enough, key=lambda point: (point.tokens, -point.score, point.trial))
        return min(allowed, key=lambda point: (-point.score, point.tokens, point.trial), default=None)


def front(points: Sequence[Point]) -> tuple[Point, ...]:
    """The points that no other beats, from the fewest tokens, and the lowest score, to the most."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda point: (point.tokens, -point.score, point.trial)):
        if not kept or point.score > kept[-1].score:
            kept.append(point)
    return tuple(kept)
