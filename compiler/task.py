"""What a compile is asked for (`Task`), who is told how it goes (`Reporter`), and what it came to (`Compilation`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import dspy

from ..metrics.base import Metric
from ..metrics.statistics import Score
from ..models.target import Target
from ..optimizers.base import Budget, Candidate, Row, Trial
from ..optimizers.front import FrontRule
from ..optimizers.search import SearchResult
from ..optimizers.stopping import StopRules
from ..optimizers.storages import Address
from ..programs.schema import SearchSpec
from .evaluator import Columns
from .run_folder import RunFolder


@dataclass(frozen=True)
class Task:
    """Everything that decides a compile. `columns` maps predictor -> field -> the data's column of gold values;
    `proposer` is asked for instructions, in place of the target; `description` says what the program is for; `study`
    is the address of a study that other processes may search with, which is `study_of` this (see `shared.py`).
    """

    name: str
    program: dspy.Module
    metric: Metric
    train: Sequence[Row]
    dev: Sequence[Row]
    test: Sequence[Row]
    target: Target
    columns: Columns
    budget: Budget
    seed: int = 0
    stop: StopRules = field(default_factory=StopRules)
    choose: FrontRule = field(default_factory=FrontRule)
    optimizer: str = "joint"
    search: SearchSpec = field(default_factory=SearchSpec)
    fingerprint: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    proposer: Target | None = None
    description: str = ""
    study: Address | None = None
    study_of: Mapping[str, str] = field(default_factory=dict)

    @property
    def data(self) -> dict[str, str]:
        """Split -> SHA-256 of its rows, where that is known."""
        named = {"train": self.train, "dev": self.dev, "test": self.test}
        return {name: digest for name, rows in named.items() if (digest := getattr(rows, "sha256", ""))}


class Reporter(Protocol):
    """Who is told how a compile goes."""

    def begin(self, task: Task, folder: RunFolder, recorded: int) -> None:
        """The run begins in `folder`, which holds `recorded` model calls of its earlier lives."""

    def phase(self, name: str, share: float) -> None:
        """A phase begins: `baseline`, `demos`, `search`, `test`. `share` of the budget is spent."""

    def runs(self, done: int, seconds: float) -> None:
        """So many program runs are done, so many seconds into the run."""

    def trial(self, trial: Trial, share: float, seconds: float) -> None:
        """A trial is over; `trial.best` says whether it is the best so far."""

    def stopping(self, reason: str) -> None:
        """The user wants the search to end, by a `file` or an `interrupt`: it does after the block that is running."""


@dataclass(frozen=True)
class Compilation:
    """What a compile came to. Scores are by split, `dev` and `test` (where there is a test split).

    `unread`: how many test answers could not be read, of the baseline and of the compiled program; `reference`: the
    scores of TF-IDF and logistic regression on the same rows, by split, where they can be compared; `constant`: those
    of the most frequent answer for every row (`reference.py`).
    """

    task: Task
    result: SearchResult
    baseline: Mapping[str, Score]
    compiled: Mapping[str, Score]
    unread: Mapping[str, int]
    ledger: Mapping[str, Any]
    spent: Mapping[str, int]
    seconds: float
    folder: RunFolder
    reference: Mapping[str, Score] = field(default_factory=dict)
    constant: Mapping[str, Score] = field(default_factory=dict)

    @property
    def candidate(self) -> Candidate:
        """The parameters that were chosen."""
        return self.result.chosen.candidate
