"""What was found, knowing more: the dev rows join the demos that are chosen at call time.

Dev is held back while candidates are compared. Once one is chosen, its labelled rows are examples like those of train,
and the nearest of twice as many are nearer (as scikit-learn's searches fit the winner again on all rows). On dev the
new candidate is still measured fairly: a row is never among the demos of its own call (`Neighbours.nearest`), so that
its score there is that of leaving one out.
"""

from __future__ import annotations

from collections.abc import Sequence

from .base import Candidate, Evaluator, Row
from .demos import gold_values


def with_rows(evaluator: Evaluator, candidate: Candidate, rows: Sequence[Row]) -> Candidate | None:
    """`candidate` with the labelled `rows` in the pools of its near demos; None where that changes nothing.

    A predictor's pool grows where the rows have gold values for all of its fields, and no other demo has these inputs.
    """
    states = {}
    for name, state in candidate.states.items():
        if state.nearest is None:
            continue
        signature = evaluator.signatures[name]
        inputs = tuple(signature.input_fields)
        known = [[demo.get(field) for field in inputs] for demo in state.nearest.pool]
        more = []
        for row in rows:
            demo = gold_values(row, signature, evaluator.columns(name))
            given = [demo.get(field) for field in inputs]
            if len(demo) == len(signature.fields) and given not in known:
                known.append(given)
                more.append(demo)
        if more:
            grown = state.nearest.model_copy(update={"pool": (*state.nearest.pool, *more)})
            states[name] = state.model_copy(update={"nearest": grown})
    return Candidate({**candidate.states, **states}) if states else None
