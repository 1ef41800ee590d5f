"""How likely the gold answers are under a predictor's prompt, for predictors that write their answers.

Each gold value is scored as the format would write it, after what would stand before it in the answer: gold values of
earlier outputs, or the program's own where the examples hold none (a rationale). The inputs are those that the
predictor got in the program's own run, or, where it did not get that far, the gold ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import dspy

from ..models.engine import Failure, ScoreRequest
from ..models.lm import bridge_of
from ..optimizers.base import Outcome
from ..optimizers.demos import gold_values
from ..programs.predictor import Predictor
from ..programs.prompt import PromptTooLong
from ..programs.readout import Call

Answer = tuple[str, Any, Mapping[str, Any]]
Case = tuple[Mapping[str, Any], Sequence[Answer]]


def gold_likelihoods(
    name: str, versions: Sequence[Predictor], lm: dspy.LM, columns: Mapping[str, str], outcomes: Sequence[Outcome]
) -> tuple[list[list[float | None]], str | None]:
    """For each version of the predictor `name` and each row, the gold answer's log-likelihood in nats per token; None
    where the row holds no gold value, or its prompt does not fit. And why there is none at all, if so.

    columns: field -> the column of its gold value; outcomes: of the program's own run.
    """
    cases = [_case(name, versions[0].signature, columns, outcome) for outcome in outcomes]
    asked: list[ScoreRequest] = []
    places: list[list[list[int]]] = []
    for part in versions:
        mine = []
        for case in cases:
            requests = _requests(part, lm, case) if case is not None else []
            mine.append(list(range(len(asked), len(asked) + len(requests))))
            asked += requests
        places.append(mine)
    if not asked:
        return [[None] * len(outcomes) for _ in versions], "no example has a gold value of its outputs"
    bridge = bridge_of(lm)
    assert bridge is not None, "the program has run on it"
    scored = bridge.engine.score(asked)
    refused = [each.error for each in scored if isinstance(each, Failure)]
    why = refused[0] if len(refused) == len(scored) else None
    return [[_per_token([scored[place] for place in row]) for row in mine] for mine in places], why


def _case(name: str, signature: type[dspy.Signature], columns: Mapping[str, str], outcome: Outcome) -> Case | None:
    """What the predictor is given on a row, and the gold values with what stands before each."""
    step = next((step for step in reversed(outcome.steps) if step.predictor == name), None)
    gold = gold_values(outcome.row, signature, columns)
    given = gold if step is None else step.inputs
    inputs = {field: given[field] for field in signature.input_fields if field in given}
    if step is None and len(inputs) < len(signature.input_fields):
        return None
    own = {} if step is None else step.outputs
    answers: list[Answer] = []
    before: dict[str, Any] = {}
    for field in signature.output_fields:
        if field in gold:
            answers.append((field, gold[field], dict(before)))
        elif field not in own:
            break
        before[field] = gold.get(field, own.get(field))
    return inputs, answers


def _requests(part: Predictor, lm: dspy.LM, case: Case) -> list[ScoreRequest]:
    """A request for each gold value; none where a prompt does not fit."""
    inputs, answers = case
    bridge = bridge_of(lm)
    assert bridge is not None, "the program has run on it"
    call = Call(bridge.gatherer, part.format, part.signature, part.shown(part.demos, inputs), inputs, part.state)
    found = []
    for field, value, before in answers:
        ids = bridge.engine.tokenizer.encode(part.format.write(part.signature, field, value))
        if not ids:
            continue
        try:
            prompt = call.prompt(part.format.lead(part.signature, field, before), len(ids))
        except PromptTooLong:
            return []
        found.append(ScoreRequest(prompt.ids, (ids,)))
    return found


def _per_token(scored: Sequence[Any]) -> float | None:
    """Nats per token over all of a row's gold values; None where one of them has no score."""
    if not scored or any(isinstance(each, Failure) for each in scored):
        return None
    tokens = [value for each in scored for value in each.logprobs[0]]
    return math.fsum(tokens) / len(tokens)
