"""The contracts of the search: candidates, outcomes, the evaluator it is given, and what a strategy is.

The search knows a program only through an `Evaluator`, which runs a candidate on examples. A strategy proposes points
of a search space and is told how each fared; it never calls the model itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import dspy

from ..metrics.base import Measurement, Metric
from ..models.engine import Ledger
from ..models.hidden import Features
from ..programs.readout import Choice
from ..programs.spans import Copy
from ..programs.state import PredictorState


class Row(Protocol):
    """One example, as the search sees it."""

    @property
    def id(self) -> int:
        """Its place in its data set."""

    @property
    def inputs(self) -> Mapping[str, Any]:
        """The program's inputs."""

    @property
    def labels(self) -> Mapping[str, Any]:
        """The gold outputs, and the gold values of intermediate fields where the data has them."""


@dataclass(frozen=True)
class Candidate:
    """One value for every learnable parameter of every predictor, by the predictor's name."""

    states: Mapping[str, PredictorState]

    @property
    def digest(self) -> str:
        """A short content hash."""
        plain = {name: state.model_dump(mode="json") for name, state in sorted(self.states.items())}
        return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Step:
    """One predictor call within a program run."""

    predictor: str
    inputs: Mapping[str, Any]
    outputs: Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What became of one example. Exactly one of these holds:

    - the program answered: `prediction` and `measurement` are there;
    - the model's text could not be read: `unread` says why, and `measurement` is the metric's worst;
    - a call failed: `error` says why, and there is no measurement.
    """

    row: Row
    measurement: Measurement | None = None
    prediction: Mapping[str, Any] | None = None
    unread: str | None = None
    error: str | None = None
    steps: tuple[Step, ...] = ()
    choices: tuple[tuple[str, Choice], ...] = ()
    copies: tuple[tuple[str, Copy], ...] = ()


@dataclass(frozen=True)
class FieldFeatures:
    """Features of rows at `layers`, and the rows' gold labels, as text."""

    layers: tuple[int, ...]
    features: tuple[Features, ...]
    answers: tuple[str, ...]


class Evaluator(Protocol):
    """Runs candidates of one program on examples with one metric, and counts what it spends."""

    @property
    def signatures(self) -> Mapping[str, type[dspy.Signature]]:
        """Each predictor's signature, by name, in the program's order."""

    @property
    def metric(self) -> Metric:
        """The metric."""

    @property
    def spent(self) -> int:
        """Program runs so far (a metric call each)."""

    @property
    def ledger(self) -> Ledger:
        """What the run's model calls have cost so far, those before an interruption included."""

    def elapsed(self) -> float:
        """Seconds since the run began, the time before an interruption included."""

    def run(self, candidate: Candidate, rows: Sequence[Row]) -> list[Outcome]:
        """The outcome of each row, in order."""

    def run_many(self, candidates: Sequence[Candidate], rows: Sequence[Row]) -> list[list[Outcome]]:
        """Each candidate's outcome of each row, in order. They run side by side: their calls fill the same batches."""

    def probe(self, candidate: Candidate, predictor: str, inputs: Mapping[str, Any]) -> list[Choice]:
        """The choices that one predictor makes for `inputs`, outside the program."""

    def features(self, candidate: Candidate, predictor: str, field: str, rows: Sequence[Row]) -> FieldFeatures | None:
        """The hidden states that a head for an output field would read, of the rows that hold the predictor's inputs
        and the field's gold value; None where the target gives none, or no row holds them.
        """

    def own_tokens(self, candidate: Candidate, rows: Sequence[Row]) -> float:
        """The mean number of prompt tokens of a program run that no other row's prompt begins with: what a run costs
        beside others.
        """

    def prompt_tokens(self, candidate: Candidate, rows: Sequence[Row]) -> float:
        """The mean number of prompt tokens of a program run on `rows`: what the prompt costs."""

    def columns(self, predictor: str) -> Mapping[str, str]:
        """Which column of the data holds the gold value of a predictor's field, where one does."""


LIMITS = ("metric_calls", "model_calls", "tokens", "seconds")


def spending(evaluator: Evaluator) -> dict[str, float]:
    """What a run has used up so far, by the names in `LIMITS`."""
    ledger = evaluator.ledger
    tokens = ledger.prompt_tokens + ledger.generated_tokens
    return {
        "metric_calls": evaluator.spent,
        "model_calls": ledger.calls,
        "tokens": tokens,
        "seconds": evaluator.elapsed(),
    }


@dataclass(frozen=True)
class Budget:
    """When the search stops, whichever comes first.

    metric_calls: program runs; seconds: since the run began; trials: the baseline included; model_calls: what the model
    is asked, the same thing twice counted once; tokens: of all prompts, shared or not, and of what is generated, as a
    server would bill them.
    """

    metric_calls: int | None = None
    seconds: float | None = None
    trials: int | None = None
    model_calls: int | None = None
    tokens: int | None = None

    @property
    def limits(self) -> dict[str, float]:
        """The limits that are set, but for trials, by the names in `LIMITS`."""
        return {name: limit for name in LIMITS if (limit := getattr(self, name)) is not None}

    def spent_on(self, evaluator: Evaluator, trials: int) -> str | None:
        """Which limit is reached, None while none is."""
        if self.trials is not None and trials >= self.trials:
            return "trials"
        spent = spending(evaluator)
        return next((name for name, limit in self.limits.items() if spent[name] >= limit), None)

    def share(self, evaluator: Evaluator, trials: int) -> float:
        """How much of it is used up, 0 to 1."""
        spent = spending(evaluator)
        used = [trials / self.trials] if self.trials else [0.0]
        used += [spent[name] / limit for name, limit in self.limits.items() if limit]
        return min(1.0, max(used))


@dataclass(frozen=True)
class Proposal:
    """A point of the search space: `params` by dimension, `key` for the strategy's own books."""

    params: Mapping[str, Any]
    key: int


class Strategy(Protocol):
    """What chooses the next point. One instance serves one search; it draws only from its own seeded generator."""

    def propose(self) -> Proposal | None:
        """The next point, or None when there is nothing left to try, or nothing before the points that are out are
        known. Several points may be out at once.
        """

    def observe(self, proposal: Proposal, value: float, best: bool) -> None:
        """How the point fared: its estimated score on all of dev, and whether it is the best so far."""


@dataclass(frozen=True)
class Trial:
    """One line of `trials.jsonl`. `status`: `complete` (ran on all of dev), `dropped` (behind after `examples`),
    `failed` (`reason`). `score` is the aggregate on the examples seen, `estimate` the one for all of dev; `place` says
    which process of a shared study ran it, None for this one.
    """

    number: int
    params: Mapping[str, Any]
    candidate: Candidate
    status: str
    examples: int
    score: float | None
    estimate: float | None
    unread: int = 0
    reason: str | None = None
    best: bool = False
    measurements: tuple[Measurement, ...] = field(default=(), repr=False)
    place: int | None = None


@runtime_checkable
class Sharing(Strategy, Protocol):
    """A strategy that may share a study with other processes."""

    def others(self) -> Sequence[tuple[Proposal, Trial]]:
        """What others have run since this was last asked, before a generation is drawn. `observe` is told of each."""

    def share(self, trial: Trial) -> None:
        """A trial of this process is over: the others may learn of it."""
