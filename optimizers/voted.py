"""The candidate with votes: the one that was found, with several answers drawn wherever one is generated."""

from __future__ import annotations

from ..programs.votes import generates
from .base import Candidate, Evaluator


def with_votes(evaluator: Evaluator, candidate: Candidate, count: int) -> Candidate | None:
    """`candidate` with `count` votes for every predictor that generates an output; None where none does.

    Such a program costs about so many times the generated tokens; the prompts are computed once.
    """
    states = {}
    for name, state in candidate.states.items():
        if generates(evaluator.signatures[name], state.readout.kind, state.readout.heads):
            readout = state.readout.model_copy(update={"votes": count})
            states[name] = state.model_copy(update={"readout": readout})
    return Candidate({**candidate.states, **states}) if states else None
