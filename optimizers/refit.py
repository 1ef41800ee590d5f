"""Dev's rows among the demos that are chosen at call time.

The nearest of twice as many demos are nearer. On dev a candidate is still measured fairly where a predictor is given
the program's own inputs: a row is never among the demos of its own call (`Neighbours.nearest`), so that its score is
that of leaving one out. So a search chooses from dev's rows from the start (`held`), and what was found in another way
is given them in the end (`with_rows`, as scikit-learn's searches fit the winner again on all rows). A predictor that is
given what another has made, or inputs that the program has changed, could be shown a row's own gold values: the one is
left as it is, the other is seen from the calls (`changed`). A search then runs the candidate again with train's demos
alone; in the end it is dropped.
"""

from __future__ import annotations

from collections.abc import Sequence

from .base import Candidate, Evaluator, Outcome, Row
from .demos import Demo, gold_values


def with_rows(
    evaluator: Evaluator, candidate: Candidate, rows: Sequence[Row], written: Candidate | None = None
) -> Candidate | None:
    """`candidate` with the labelled `rows` in the pools of its near demos; None where that changes nothing.

    A predictor's pool grows where the rows have gold values for all of its fields, and no other demo has these inputs;
    those of the program as `written` stay as they are.
    """
    states = {}
    for name, state in candidate.states.items():
        if state.nearest is None or (written is not None and written.states[name].nearest == state.nearest):
            continue
        more = held(evaluator, name, state.nearest.pool, rows)
        if more:
            grown = state.nearest.model_copy(update={"pool": (*state.nearest.pool, *more)})
            states[name] = state.model_copy(update={"nearest": grown})
    return Candidate({**candidate.states, **states}) if states else None


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
        if state.nearest is not None and changed(evaluator, name, outcomes):
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
