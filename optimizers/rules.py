"""Rules: what a model makes of two runs of a program on one example, a good one and a bad one (see `simba.py`).

The model is shown a step of the program, how it went in the bad run and in the good one, and is asked for advice that
goes below the step's instruction. What can't be used of an answer is told with its reason.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass

from ..programs.state import PredictorState
from .base import Outcome, Step
from .grounding import (
    CLOSE,
    OPEN,
    Ground,
    Miss,
    block,
    missed,
    misses_of,
    opening,
    values_text,
)
from .proposals import COPY, SURPLUS, Sieve, key, read_proposals
from .proposers import FailedCall
from .wording import Signature

States = dict[str, PredictorState]


@dataclass(frozen=True)
class Run:
    """One run of a program on a row that has a score."""

    outcome: Outcome
    score: float

    def step(self, name: str) -> Step | None:
        """The last call of a predictor."""
        return next((step for step in reversed(self.outcome.steps) if step.predictor == name), None)


@dataclass(frozen=True)
class Change:
    """A candidate to be: the program that is changed, how, and the best and the worst run of the row it comes of."""

    states: States
    way: str
    good: Run
    bad: Run

    @property
    def differ(self) -> bool:
        """Whether the best run is better than the worst."""
        return self.good.score > self.bad.score


def parted(
    change: Change, signatures: Mapping[str, Signature], columns: Mapping[str, Mapping[str, str]]
) -> Iterator[tuple[str, Miss]]:
    """The steps that a rule may be for, with how they went in the worst run: those that gave something else than in the
    best one, up to the first whose answer could not be read; where no run was better, every step.
    """
    for name, signature in signatures.items():
        better, worse = change.good.step(name), change.bad.step(name)
        same = worse is None if better is None else worse is not None and worse.outputs == better.outputs
        unread = worse is None and change.bad.outcome.unread is not None
        if (same and change.differ) or (worse is None and not unread):
            continue
        for miss in misses_of([change.bad.outcome], name, signature, columns[name], below=math.inf):
            yield name, miss
        if unread:
            return


def rule_prompt(ground: Ground, change: Change, miss: Miss) -> str:
    """What the model is asked; paragraphs without content are left out."""
    signature, now = ground.signature, change.states[ground.step].instructions or ""
    better = change.good.step(ground.step) if change.differ else None
    again = "" if better is None or better.inputs == miss.inputs else f"{values_text(signature, better.inputs)}\n"
    well = "" if better is None else f"{again}{values_text(signature, better.outputs, ' given')}"
    parts = [
        *opening(ground, "one rule for a step", now),
        block(f"A run that went badly (score {change.bad.score:.2f}):", [missed(signature, miss)], ""),
        block(f"A run on the same example that went well (score {change.good.score:.2f}):", [well], ""),
        "Write a rule, in one or two sentences, with which the step would do better on inputs like these: what the "
        "input is like, and what to do then, or what to avoid.",
        "It is added to the instruction and must hold for all inputs: do not repeat the example or its answer. "
        f"Put it between {OPEN} and {CLOSE}, and write nothing else.",
    ]
    return "\n\n".join(part for part in parts if part)


def read_rule(answer: str | FailedCall, now: str, judge: Sieve, echoed: Set[str]) -> tuple[str | None, Counter[str]]:
    """The first rule of an answer that can be used for the instruction `now`, and why the others can't."""
    if isinstance(answer, FailedCall):
        return None, Counter([f"call failed: {answer.reason}"])
    found: str | None = None
    dropped: Counter[str] = Counter()
    for text in read_proposals(answer):
        reason = judge.reason(text, echoed)
        reason = reason or (COPY if key(text) in key(now) else None if found is None else SURPLUS)
        if reason is None:
            found = text
        else:
            dropped[reason] += 1
    return found, dropped
