"""The labels that a program chose on the way to an answer, under the names of its outputs, for metrics that ask how
sure it was.

A choice is recorded with the labels' log-likelihoods as the model gave them, under the predictor's name and its own
field name; what is handed on are the calibrated ones, by which the label was chosen: less the learned offsets, or the
logits of the learned matrix.
"""

from __future__ import annotations

from collections.abc import Mapping

import dspy

from ..metrics.calibration import LabelChoice
from ..optimizers.base import Outcome
from ..programs.graph import Graph
from ..programs.predictor import Predictor
from ..programs.readout import Choice, calibrated


class ChoiceReader:
    """Reads the choices out of what became of examples in one program."""

    def __init__(self, program: dspy.Module) -> None:
        predictors = dict(program.named_predictors())
        self._predictors = {name: part for name, part in predictors.items() if isinstance(part, Predictor)}
        self._outputs: Mapping[str, Mapping[str, str]] | None = program.columns if isinstance(program, Graph) else None

    def of(self, outcome: Outcome) -> dict[str, LabelChoice]:
        """The last choice of each output field that was chosen among labels."""
        found: dict[str, LabelChoice] = {}
        for name, choice in outcome.choices:
            field = choice.field if self._outputs is None else self._outputs.get(name, {}).get(choice.field)
            if field is not None and name in self._predictors:
                found[field] = self._calibrated(name, choice)
        return found

    def _calibrated(self, name: str, choice: Choice) -> LabelChoice:
        readout = self._predictors[name].readout
        return LabelChoice(choice.chosen, calibrated(readout, choice.field, choice.labels, choice.totals))
