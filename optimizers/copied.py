"""What the runs of a candidate have shown of the fields that it copied, and how often those are null."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..programs.spans import Copy
from ..programs.state import SpanChoice, SpanWeights
from .base import Candidate, Evaluator, Outcome, Row

MARGIN = 0.5  # nats beyond the last row, where every row is best left null, or none
DIGITS = 3


def last_copy(outcome: Outcome, name: str, field: str) -> Copy | None:
    """The last copy that a predictor made of a field in an outcome."""
    mine = [copy for predictor, copy in outcome.copies if predictor == name and copy.field == field]
    return mine[-1] if mine else None


def with_weights(candidate: Candidate, weights: Mapping[str, Mapping[str, SpanWeights]]) -> Candidate:
    """A candidate whose predictors have these weights for these fields."""
    states = dict(candidate.states)
    for name, fields in weights.items():
        readout = states[name].readout
        choice = readout.span or SpanChoice()
        choice = choice.model_copy(update={"fields": {**choice.fields, **fields}})
        states[name] = states[name].model_copy(update={"readout": readout.model_copy(update={"span": choice})})
    return Candidate(states)


def by_share(
    evaluator: Evaluator, candidate: Candidate, name: str, outcomes: Sequence[Outcome], rows: Sequence[Row]
) -> Candidate:
    """`candidate` with null's weights such that the predictor `name` leaves out each field as often, in what it has
    seen in `outcomes`, as `rows` do: a batch calibration of null, which takes no labels of what was seen.
    """
    columns, found = evaluator.columns(name), {}
    choice = candidate.states[name].readout.span or SpanChoice()
    for field in evaluator.signatures[name].output_fields:
        column = columns.get(field, "")
        values = [row.labels[column] for row in rows if column in row.labels]
        seen = [copy for outcome in outcomes if (copy := last_copy(outcome, name, field)) is not None and copy.null]
        weights = choice.of(field)
        bare = SpanWeights(reward=weights.reward, contrast=weights.contrast, beside=weights.beside)
        margins = sorted(copy.margin(bare)[0] for copy in seen)
        if values and margins:
            count = round(len(margins) * sum(value is None for value in values) / len(values))
            ends = [margins[0] - 2 * MARGIN, *margins, margins[-1] + 2 * MARGIN]
            null = round((ends[count] + ends[count + 1]) / 2, DIGITS)
            found[field] = bare.model_copy(update={"absent": null})
    return with_weights(candidate, {name: found}) if found else candidate


def retaken(candidate: Candidate, name: str, outcome: Outcome) -> bool:
    """Whether the predictor `name` would take other spans now than it took in an outcome."""
    choice = candidate.states[name].readout.span or SpanChoice()
    copies = (copy for predictor, copy in outcome.copies if predictor == name)
    return any(copy.best(choice.of(copy.field)) != copy.chosen for copy in copies)
