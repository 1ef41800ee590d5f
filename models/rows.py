"""One sample on its way, whatever engine draws it: its tokens, when it is finished, and how much its grammar masked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .choosing import Chosen
from .constraints import Matcher, fill_masks, only_tokens
from .engine import FinishReason, Sample, Tokenizer
from .sampling import Sampler


@dataclass
class Row:
    """One sample. logprobs: of the tokens, as far as the model was asked; mask: which tokens may come next, packed, see
    `constraints.fill_masks`; removed: the masked probabilities of `steps` places so far.
    """

    sampler: Sampler
    matcher: Matcher | None = None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: FinishReason | None = None
    text: str | None = None
    mask: NDArray[np.uint8] | None = None
    removed: float = 0.0
    steps: int = 0

    def take(self, token: int, ends: frozenset[int], tokenizer: Tokenizer) -> None:
        """Take the next token, and notice when it is the last."""
        self.mask = None
        if token in ends:
            self.finish = "stop"
            return
        self.tokens.append(token)
        self.sampler.took(token)
        if self.matcher is not None and (not self.matcher.take(token) or self.matcher.finished):
            self.finish = "grammar"
        if self.sampler.decoding.stop:
            self._look_for_stops(tokenizer)
        if self.finish is None and len(self.tokens) >= self.sampler.decoding.max_tokens:
            self.finish = "length"

    def choose(self, chosen: Chosen, ends: frozenset[int], tokenizer: Tokenizer) -> None:
        """`take` a token that was chosen from the model's logits."""
        count = len(self.tokens)
        self._count(chosen.masked)
        self.take(chosen.token, ends, tokenizer)
        if len(self.tokens) > count:
            self.logprobs.append(chosen.logprob)

    def know(self, logprob: float, masked: float) -> None:
        """The model's word on the next of the tokens that were taken before it was asked."""
        self._count(masked)
        self.logprobs.append(logprob)

    def sample(self, tokenizer: Tokenizer) -> Sample:
        """The finished sample."""
        text = tokenizer.decode(self.tokens) if self.text is None else self.text
        masked = self.removed / self.steps if self.steps else 0.0
        return Sample(text, tuple(self.tokens), tuple(self.logprobs), self.finish or "length", masked)

    def _count(self, masked: float) -> None:
        if self.matcher is not None:
            self.removed += masked
            self.steps += 1

    def _look_for_stops(self, tokenizer: Tokenizer) -> None:
        text = tokenizer.decode(self.tokens)
        places = [place for stop in self.sampler.decoding.stop if (place := text.find(stop)) >= 0]
        if places:
            self.text, self.finish = text[: min(places)], "stop"


def fill(rows: Sequence[Row]) -> None:
    """Fill the masks of the rows that go on and have a grammar, where they are not filled yet."""
    going = [(row, row.matcher) for row in rows if row.matcher is not None and _is_open(row)]
    for (row, _), mask in zip(going, fill_masks([matcher for _, matcher in going]), strict=True):
        row.mask = mask


def take_forced(rows: Sequence[Row], ends: frozenset[int], tokenizer: Tokenizer) -> None:
    """`fill`, and take at once the tokens that are the only ones their masks leave.

    Exactly those that a step each would take, since it would have no choice. What ends a text is left to the step.
    """
    going = [row for row in rows if row.matcher is not None and _is_open(row)]
    while going:
        fill(going)
        forced = only_tokens(np.stack([row.mask for row in going if row.mask is not None]))
        taken = []
        for row, token in zip(going, forced, strict=True):
            if token is not None and token not in ends:
                row.sampler.skip()
                row.take(token, ends, tokenizer)
                taken.append(row)
        going = [row for row in taken if _is_open(row)]


def _is_open(row: Row) -> bool:
    return row.finish is None and row.mask is None
