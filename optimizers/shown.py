"""What the runs of a candidate have shown of its label outputs: each label's log-likelihood, beside the gold label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..programs.readout import Choice
from ..signatures import choices, write
from .base import Evaluator, Outcome, Row


@dataclass(frozen=True)
class Shown:
    """One label output in the n outcomes in which it was chosen, whose places are `rows`.

    totals: the labels' log-likelihoods [n, K]; answers: the gold labels' places [n], -1 where a row has none; channel:
    whether they are those of the inputs, see `Choice`.
    """

    labels: tuple[str, ...]
    rows: tuple[int, ...]
    totals: NDArray[np.float64]
    answers: NDArray[np.int64]
    channel: bool = False

    @property
    def known(self) -> NDArray[np.bool_]:
        """Where there is a gold label."""
        return np.asarray(self.answers >= 0)

    def chosen(self, offsets: NDArray[np.float64]) -> NDArray[np.int64]:
        """The places of the labels that are chosen, less `offsets` [K] or [n, K]."""
        return np.asarray((self.totals - offsets).argmax(axis=1))

    def right(self, offsets: NDArray[np.float64]) -> float:
        """The share of those with a gold label for which it is chosen."""
        return float(np.mean(self.chosen(offsets)[self.known] == self.answers[self.known]))


def shown(evaluator: Evaluator, name: str, outcomes: Sequence[Outcome]) -> dict[str, Shown]:
    """The label outputs of the predictor `name`, by field: those that it chose in some outcome. Where it chose several
    times in a run, the last counts.
    """
    signature, columns = evaluator.signatures[name], evaluator.columns(name)
    found = {}
    for field, output in signature.output_fields.items():
        labels = choices(output.annotation)
        made = {place: choice for place, each in enumerate(outcomes) if (choice := _last(each, name, field))}
        if labels is None or not made:
            continue
        gold = [gold_label(outcomes[place].row, columns.get(field), output.annotation) for place in made]
        found[field] = Shown(
            tuple(labels),
            tuple(made),
            np.array([choice.totals for choice in made.values()], dtype=np.float64),
            np.array([-1 if text is None else labels.index(text) for text in gold]),
            any(choice.channel for choice in made.values()),
        )
    return found


def _last(outcome: Outcome, name: str, field: str) -> Choice | None:
    mine = [choice for predictor, choice in outcome.choices if predictor == name and choice.field == field]
    return mine[-1] if mine else None


def gold_label(row: Row, column: str | None, annotation: Any) -> str | None:
    """The text of a row's value in a column; None where there is none, or no label of the type, as several are none."""
    values = {**row.inputs, **row.labels}
    return label_of(values[column], annotation) if column is not None and column in values else None


def label_of(value: Any, annotation: Any) -> str | None:
    """The text of a value; None where it is no label of the type."""
    text = write(value, annotation)
    return text if text in (choices(annotation) or ()) else None
