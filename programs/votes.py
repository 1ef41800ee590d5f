"""Votes: several answers are drawn for one call, and the one is taken that most agree with.

For values (labels, numbers, lists) that is a majority vote: self-consistency (Wang et al. 2022, arXiv 2203.11171). For
texts, which are seldom drawn twice, an answer's votes are its likeness to the others by sentence BLEU: minimum Bayes
risk decoding (Eikema and Aziz 2020, arXiv 2005.10283). The reasoning that leads to an answer has no vote. The first
answer is drawn as it would be without votes, and wins ties.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import dspy

from ..errors import ReadError
from ..seeds import derive_seed
from ..signatures import choices, field_types
from ..signatures.types import shape
from .spans import is_text
from .state import CHOOSING, PredictorState

TEMPERATURE = 0.5  # of the further answers, where the call's own is lower
REASONING = "reasoning"

Answer = dict[str, Any]


def voters(state: PredictorState, count: int) -> list[PredictorState]:
    """The parameters under which each of `count` answers is drawn; the first are the call's own."""
    readout, own = state.readout.model_copy(update={"votes": None}), state.decoding
    found = []
    for place in range(count):
        changes: dict[str, Any] = {"n": 1}
        if place:
            seed = derive_seed(own.seed, "vote", place)
            changes |= {"temperature": max(own.temperature, TEMPERATURE), "seed": seed}
        found.append(state.model_copy(update={"readout": readout, "decoding": own.model_copy(update=changes)}))
    return found


def elected(signature: type[dspy.Signature], draw: Sequence[Callable[[], Answer]]) -> Answer:
    """The answer that most agree with, of those that can be read. Raises the first `ReadError` where none can."""
    answers, unread = [], []
    for make in draw:
        try:
            answers.append(make())
        except ReadError as error:
            unread.append(error)
    if not answers:
        raise unread[0]
    return answers[pick(signature, answers)]


def pick(signature: type[dspy.Signature], answers: Sequence[Mapping[str, Any]]) -> int:
    """Which answer the others are most like: the mean over output fields, the first of equals.

    >>> pick(signature("question -> answer: int"), [{"answer": 3}, {"answer": 4}, {"answer": 4}])
    1
    """
    types = field_types(signature)
    fields = [name for name in signature.output_fields if name != REASONING] or list(signature.output_fields)
    votes = [0.0] * len(answers)
    for field in fields:
        alike = _bleu if shape(types[field]).kind == "str" else _equal
        values = [answer.get(field) for answer in answers]
        for mine, value in enumerate(values):
            votes[mine] += sum(alike(value, other) for place, other in enumerate(values) if place != mine)
    return max(range(len(answers)), key=lambda place: (round(votes[place], 9), -place))


def most_alike(texts: Sequence[str]) -> int:
    """Which text the others are most like, by the mean sentence BLEU against each; the first of equals."""
    votes = [
        sum(_bleu(text, other) for place, other in enumerate(texts) if place != mine) for mine, text in enumerate(texts)
    ]
    return max(range(len(texts)), key=lambda place: (round(votes[place], 9), -place))


def _equal(one: Any, other: Any) -> float:
    return float(one == other)


def _bleu(one: Any, other: Any) -> float:
    """Sentence BLEU, 0 to 1, of as many n-grams as there are words for."""
    from sacrebleu.metrics.bleu import BLEU

    if one is None or other is None:
        return _equal(one, other)
    return float(BLEU(effective_order=True).sentence_score(str(one), [str(other)]).score) / 100


def generates(signature: type[dspy.Signature], kind: str, heads: Collection[str] = ()) -> bool:
    """Whether any output is generated under a read-out of this kind, and so drawn anew by each vote."""
    types = field_types(signature)

    def taken(name: str) -> bool:
        if kind in CHOOSING:
            return bool(choices(types[name]))
        return is_text(types[name]) if kind == "span" else kind == "head" and name in heads

    return not all(map(taken, signature.output_fields))
