"""Dev's rows among the demos that are chosen at call time, and among those of each label.

The nearest of twice as many demos are nearer, and a label is known better by twice as many examples. On dev a candidate
is still measured fairly where a predictor is given the program's own inputs: a row is never among the demos of its own
call (`Predictor.shown`), so that its score is that of leaving one out. So a search chooses near demos from dev's rows
from the start (`held`), and what was found in another way is given them in the end (`with_rows`, as scikit-learn's
searches fit the winner again on all rows). Under the read-out `channel` that is always in the end: the row's own
label's prompt is then no longer what other rows have, and is computed for it alone (`dearer`).

A predictor that is given what another has made, or inputs that the program has changed, could be shown a row's own gold
values: the one is left as it is, the other is seen from the calls (`changed`). A search then runs the candidate again
with train's demos alone; in the end it is dropped.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from ..errors import CuecardError
from ..metrics import Metric
from ..programs.channel import first_of_each
from ..programs.readout import first_calls
from .base import Candidate, Evaluator, Outcome, Row, Trial
from .demos import Demo, gold_values

NOTHING: Mapping[str, int] = MappingProxyType({})
BEHIND = 0.1  # of a metric's range: what twice the demos of each label were seen to make up for


def with_rows(
    evaluator: Evaluator,
    candidate: Candidate,
    rows: Sequence[Row],
    written: Candidate | None = None,
    per_label: Mapping[str, int] = NOTHING,
) -> Candidate | None:
    """`candidate` with the labelled `rows` in the pools of its near demos, and among the demos of each label; None
    where that changes nothing.

    A predictor's demos grow where the rows have gold values for all of its fields, and no other demo has these inputs;
    those of the program as `written` stay as they are. per_label: how many demos a label may have under the read-out
    `channel`, by predictor; those that are not named stay as they are.
    """
    states = {}
    for name, state in candidate.states.items():
        own = None if written is None else written.states[name]
        if state.nearest is not None and (own is None or own.nearest != state.nearest):
            more = held(evaluator, name, state.nearest.pool, rows)
            if more:
                grown = state.nearest.model_copy(update={"pool": (*state.nearest.pool, *more)})
                states[name] = state.model_copy(update={"nearest": grown})
        elif state.readout.kind == "channel" and per_label.get(name) and (own is None or own.demos != state.demos):
            every = (*state.demos, *held(evaluator, name, state.demos, rows))
            demos = tuple(map(dict, first_of_each(evaluator.signatures[name], every, per_label[name])))
            if len(demos) > len(state.demos):
                most = state.readout.per_label and per_label[name]
                readout = state.readout.model_copy(update={"per_label": most})
                states[name] = state.model_copy(update={"demos": demos, "readout": readout})
    return Candidate({**candidate.states, **states}) if states else None


def to_refit(
    evaluator: Evaluator,
    chosen: Trial,
    other: Trial | None,
    rows: Sequence[Row],
    written: Candidate | None = None,
    per_label: Mapping[str, int] = NOTHING,
) -> tuple[Trial, Candidate] | None:
    """The trial whose demos the rows join in the end, and what it becomes: the chosen one, or where that has no use
    for them, as near demos that have had them from the start, `other`, the best of those with a prompt for each label,
    which had train's alone, unless it is far behind.
    """
    for trial in (chosen,) if other is None else (chosen, other):
        grown = with_rows(evaluator, trial.candidate, rows, written, per_label)
        if grown is not None:
            return (trial, grown) if hopeful(evaluator.metric, trial, chosen) else None
    return None


def hopeful(metric: Metric, trial: Trial, best: Trial) -> bool:
    """Whether a trial is so little behind the best that more demos might make it better."""
    return (best.score or 0.0) - (trial.estimate or 0.0) <= BEHIND * (metric.high - metric.low)


def by_label(candidate: Candidate) -> bool:
    """Whether a predictor has a prompt for each label, whose demos dev's rows can join."""
    return any(state.readout.kind == "channel" for state in candidate.states.values())


def dearer(evaluator: Evaluator, candidate: Candidate, grown: Candidate, rows: Sequence[Row]) -> float:
    """How many times as long one of the `rows` takes under `grown`, which `with_rows` made of `candidate`, by the
    tokens that are computed for it alone: those that follow the row's own place among the demos of its label.
    """
    signatures = evaluator.signatures
    labels = [first_calls(signatures[n], s) for n, s in grown.states.items() if s.readout.kind == "channel"]
    if labels:
        with contextlib.suppress(CuecardError):  # a prompt that is too long: its run has said so
            own = evaluator.own_tokens(candidate, rows)
            more = evaluator.prompt_tokens(grown, rows) - evaluator.prompt_tokens(candidate, rows)
            return 1.0 + more / (2 * max(labels) * max(1.0, own))
    return 1.0


def held(evaluator: Evaluator, name: str, pool: Sequence[Demo], rows: Sequence[Row]) -> tuple[Demo, ...]:
    """What labelled `rows` add to the pool of a predictor's near demos: those that have gold values for all of its
    fields, and inputs that no other demo has.
    """
    signature, columns = evaluator.signatures[name], evaluator.columns(name)
    inputs = tuple(signature.input_fields)
    known = {repr([demo.get(field) for field in inputs]) for demo in pool}
    more = []
    for row in rows:
        if any(columns.get(field, "") not in row.inputs for field in inputs):
            continue  # what another predictor has made
        demo = gold_values(row, signature, columns)
        given = repr([demo.get(field) for field in inputs])
        if len(demo) == len(signature.fields) and given not in known:
            known.add(given)
            more.append(demo)
    return tuple(more)


def shown_itself(evaluator: Evaluator, grown: Candidate, outcomes: Sequence[Outcome]) -> str | None:
    """Why a row may have been among the demos of its own call; None where it was not.

    A row is kept from its own call by its inputs, so the calls must have been given the rows' inputs as they are.
    """
    for name, state in grown.states.items():
        by_inputs = state.nearest is not None or state.readout.kind == "channel"
        if by_inputs and changed(evaluator, name, outcomes):
            return f"{name} is given other inputs than a row has, and could be shown the row's own answer"
    return None


def changed(evaluator: Evaluator, name: str, outcomes: Sequence[Outcome]) -> bool:
    """Whether a predictor was given other inputs than its rows have."""
    columns = evaluator.columns(name)
    for outcome in outcomes:
        own = {
            field: outcome.row.inputs.get(columns.get(field, "")) for field in evaluator.signatures[name].input_fields
        }
        for step in outcome.steps:
            if step.predictor == name and {field: step.inputs.get(field) for field in own} != own:
                return True
    return False
