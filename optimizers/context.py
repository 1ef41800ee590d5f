"""What a strategy may be given besides the space: the program's evaluator, train, a language model, and its options.

A strategy that only draws points needs none of it. One that writes instructions asks `lm`, whose answers the run
records; one that looks at single rows runs them on `evaluator`, which counts them as the search's own, or reads
`trials`, which the search fills.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import InputError, nearest
from .base import Budget, Candidate, Evaluator, Row, Trial
from .proposers import LanguageModel


@dataclass(frozen=True)
class StrategyContext:
    """Everything a strategy is built with. Each part may be missing; a strategy does without, or proposes nothing.

    baseline: the program's own parameters; rows: train; trials: those that are over, the baseline's first, as a list
    that grows; options: the strategy's own settings, from `optimize.options`.
    """

    baseline: Candidate | None = None
    evaluator: Evaluator | None = None
    rows: Sequence[Row] = ()
    lm: LanguageModel | None = None
    trials: Sequence[Trial] = ()
    budget: Budget = field(default_factory=Budget)
    options: Mapping[str, Any] = field(default_factory=dict)
    description: str = ""

    @property
    def runs_left(self) -> float:
        """How many program runs of the budget are left."""
        if self.budget.metric_calls is None or self.evaluator is None:
            return math.inf
        return self.budget.metric_calls - self.evaluator.spent

    def counts(self, **defaults: int) -> dict[str, int]:
        """The options, whole numbers from 1, with these defaults. Raises `InputError` for any other option."""
        for name, value in self.options.items():
            if name not in defaults:
                expected = f"one of {', '.join(defaults)}" if defaults else "none"
                near = nearest(name, list(defaults)) if defaults else None
                raise InputError(
                    f"unknown option {name!r}", field="optimize.optimizer", expected=expected, nearest=near
                )
            if type(value) is not int or value < 1:
                raise InputError(
                    f"{name} is {value!r}", field="optimize.optimizer", expected="a whole number of at least 1"
                )
        return {**defaults, **self.options}
