"""When a search ends before its budget: its goal is reached, or nothing better has been found for long."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .base import Trial

Asked = Callable[[], str | None]
"""Why the user wants the search to end now; None while nobody does."""


@dataclass(frozen=True)
class StopRules:
    """score: the best program so far has this score on dev; trials_without_gain: so many trials in a row found none
    that is better. A rule that is None never ends a search.
    """

    score: float | None = None
    trials_without_gain: int | None = None

    def reached(self, best: Trial, trials: int) -> str | None:
        """Which rule ends a search whose best is `best`, after so many trials, the baseline's included."""
        if self.score is not None and best.score is not None and best.score >= self.score:
            return "score"
        return "no_gain" if self.room(best, trials) == 0 else None

    def room(self, best: Trial, trials: int) -> int | None:
        """How many trials without a gain there may be yet; None for any number."""
        if self.trials_without_gain is None:
            return None
        return max(0, self.trials_without_gain - (trials - 1 - best.number))
