"""The read-out `span`: a text output is copied from an input, word for word, and chosen by likelihood.

Answers that stand in the text (extractive question answering, fields of a document, quotations) are what small models
invent most often when they write freely: they answer from memory, or go on from a first word that was only just the
likeliest. Here every run of words of the chosen inputs is a candidate, the engine scores those that begin well
(`models/spans.py`), and the best is taken by

    log P(span, end | prompt) - contrast * log P(span, end | prompt with its other inputs left open) + reward * tokens
    + beside * (how much it stands beside the words of the other inputs, less how much it is made of them)

Where the output may be null, null is one more candidate, with the nats `absent` in place of the reward.

The contrast takes away what any question about this text would make likely (domain-conditional PMI: Holtzman et al.
2021, arXiv 2104.08315; the content-free input is that of Zhao et al. 2021, arXiv 2102.09690); the reward per token
makes up for a longer text always being the less likely one (He et al. 2016, "Improved neural machine translation with
SMT features"). Measured on SmolLM2-135M, SQuAD questions, eight demos: greedy decoding F1 .41, under a mask that lets
only spans through .42, by total likelihood .45, with a reward .53, with both .59. The defaults are those that do well
under several prompts, with a tight limit on a span's length and without one: a reward of .35 is a little better under
some, and takes far too much where nothing limits the length. For `beside` see `beside.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

import dspy
import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..models.engine import SpanScore, Tokenizer, Turn
from ..signatures import field_types
from ..signatures.types import shape
from .formats.base import Format
from .state import SpanWeights

MARK = "\ue000"  # of Unicode's private use area: no text that is copied holds it
_PIECE = re.compile(r"\w+|\s+|[^\w\s]")  # where a span may begin and end: never inside a word
COPIED = 0.9  # the share of examples whose output stands in one input, from which on it counts as copied from there
CONTENT_FREE = "N/A"
LETTERS = 12  # more characters than this a token has on average in no text


def is_text(type_: Any) -> bool:
    """Whether an output of this type can be a span: plain text without further conditions, which may be null."""
    taken = shape(type_)
    return taken.kind == "str" and not taken.constrained


def sources_of(signature: type[dspy.Signature], chosen: Sequence[str]) -> tuple[str, ...]:
    """The inputs that spans are copied from: those chosen, or all that are text. Raises `InputError` for none."""
    texts = tuple(name for name, given in signature.input_fields.items() if shape(given.annotation).kind == "str")
    wrong = [name for name in chosen if name not in texts]
    if wrong or not texts:
        raise InputError(
            f"no text input is called {wrong[0]!r}" if wrong else "a span needs an input that is a text",
            field="readout.sources",
            expected=f"of {', '.join(texts)}" if texts else "an input of type str",
            hint="Use the read-out `text`, or name other sources.",
        )
    return tuple(chosen) or texts


def around(format_: Format, signature: type[dspy.Signature], field: str) -> tuple[str, str]:
    """What a format writes before and after the value of a text field."""
    prefix, suffix = format_.write(signature, field, MARK).split(MARK)
    return prefix, suffix


def turn_end(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The token that ends the assistant's turn in the chat template; a line's end where the template shows none."""
    turns = (Turn("user", "?"), Turn("assistant", MARK), Turn("user", "?"))
    after = tokenizer.chat(turns).partition(MARK)[2]
    return tokenizer.encode(after)[:1] or tokenizer.encode("\n")


def runs(
    tokenizer: Tokenizer, format_: Format, signature: type[dspy.Signature], field: str, texts: Sequence[str], most: int
) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]:
    """Every span of `texts` of at most `most` tokens, as `format_` writes the value of `field`, without what closes it.

    Returns the longest from each place as token ids, and for each the lengths at which a span may end
    (`SpanRequest.runs` and `cuts`). Nothing when the texts are empty.
    """
    prefix, suffix = around(format_, signature, field)

    def written(text: str) -> str:
        whole = format_.write(signature, field, f"{MARK}{text}{MARK}")  # formats trim, but not inside
        return whole[len(prefix) + len(MARK) : len(whole) - len(suffix) - len(MARK)]

    found: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    single: dict[int, str] = {}
    for text in texts:
        pieces = [(written(piece), bool(piece.strip())) for piece in _PIECE.findall(text)]
        for start, (_, solid) in enumerate(pieces):
            if solid:
                found += _from(tokenizer, prefix, pieces, start, most, single)
    return tuple(run for run, _ in found), tuple(cuts for _, cuts in found)


def _from(
    tokenizer: Tokenizer, prefix: str, pieces: Sequence[tuple[str, bool]], start: int, most: int, single: dict[int, str]
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The run that begins with piece `start`, and one of its own for each end that its tokens do not show."""
    text, ends = prefix, []
    for place in range(start, len(pieces)):
        piece, solid = pieces[place]
        text += piece
        if solid:
            ends.append(len(text))
        if len(text) > most * LETTERS:
            break
    ids = tokenizer.encode(text)[:most]
    length, ends_at = 0, {}
    for place, token in enumerate(ids):
        if token not in single:
            single[token] = tokenizer.decode((token,))
        length += len(single[token])
        ends_at[length] = place + 1
    missed = ends
    if "".join(single[token] for token in ids) == text[:length]:
        if cuts := tuple(ends_at[end] for end in ends if end in ends_at):
            yield ids[: cuts[-1]], cuts
        missed = [end for end in ends if end < length and end not in ends_at]
    for end in missed:  # here a token holds the end of one word and the start of the next
        whole = tokenizer.encode(text[:end])
        if len(whole) > most:
            break
        yield whole, (len(whole),)


N = TypeVar("N", float, NDArray[np.float64])


def worth(total: N, against: N, length: N, beside: N, weights: SpanWeights) -> N:
    """What a span, or each of many, is chosen by, in nats.

    total, against: its log-likelihoods; length: its tokens; beside: how it stands to the other inputs, see `beside.py`.
    """
    return total - weights.contrast * against + weights.reward * length + weights.beside * beside


def null_worth(total: float, against: float, weights: SpanWeights) -> float:
    """What null is chosen by, in nats."""
    return total - weights.contrast * against + weights.absent


@dataclass(frozen=True)
class Copy:
    """What a field was copied from: the values of the spans that came through, with their scores, and those of null.

    beside: of each span, see `beside.py`; null: its log-likelihoods under both prompts, where the field may be null;
    chosen: what was taken.
    """

    predictor: int
    field: str
    values: tuple[str | None, ...]
    scores: tuple[SpanScore, ...]
    beside: tuple[float, ...]
    null: tuple[float, float] | None
    chosen: str | None

    def margin(self, weights: SpanWeights) -> tuple[float, int | None]:
        """By how many nats the best span is worth more than null, and its place: of equals the first."""
        worths = [
            worth(score.total, score.against, score.length, place, weights)
            for score, place in zip(self.scores, self.beside, strict=True)
        ]
        place = max(range(len(worths)), key=worths.__getitem__, default=None)
        if place is None or self.null is None:
            return math.inf, place
        return worths[place] - null_worth(*self.null, weights), place

    def best_place(self, weights: SpanWeights) -> int | None:
        """The place of the span that these weights take, None for null."""
        margin, place = self.margin(weights)
        return place if margin >= 0 else None

    def best(self, weights: SpanWeights) -> str | None:
        """The value that these weights take."""
        place = self.best_place(weights)
        return None if place is None else self.values[place]


_copies: ContextVar[list[Copy] | None] = ContextVar("cuecard_copies", default=None)


@contextmanager
def recorded_copies() -> Iterator[list[Copy]]:
    """Collect what predictors copy in this context."""
    seen: list[Copy] = []
    token = _copies.set(seen)
    try:
        yield seen
    finally:
        _copies.reset(token)


def record(copy: Copy) -> None:
    """Add a copy to those that are collected, where any are."""
    seen = _copies.get()
    if seen is not None:
        seen.append(copy)


def others_of(signature: type[dspy.Signature], sources: Sequence[str]) -> tuple[str, ...]:
    """The text inputs that are not copied from."""
    inputs = signature.input_fields
    return tuple(name for name in inputs if name not in sources and shape(inputs[name].annotation).kind == "str")


def left_open(signature: type[dspy.Signature], sources: Sequence[str], inputs: Mapping[str, Any]) -> dict[str, Any]:
    """`inputs` with every text that is not copied from made content-free; the same where there is none."""
    others = others_of(signature, sources)
    return {name: CONTENT_FREE if name in others else value for name, value in inputs.items()}


def copied_from(signature: type[dspy.Signature], examples: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The inputs that the text outputs of `examples` stand in, word for word; empty where they are not copies.

    Every text output must be found in one input, the same for nearly all examples (`COPIED`), and be less than all of
    it for most. Where it is null it tells nothing.
    """
    types = field_types(signature)
    outputs = [name for name in signature.output_fields if is_text(types[name])]
    found = []
    for output in outputs:
        pairs = [(str(example[output]).strip(), example) for example in examples if example.get(output)]
        shares = {
            source: sum(_inside(text, example.get(source)) for text, example in pairs) / max(1, len(pairs))
            for source in signature.input_fields
        }
        best = max(shares, key=lambda name: shares[name], default=None)
        if best is None or not pairs or shares[best] < COPIED:
            return ()
        if 2 * sum(text == str(example.get(best)).strip() for text, example in pairs) > len(pairs):
            return ()
        found.append(best)
    return tuple(dict.fromkeys(found))


def _inside(text: str, source: Any) -> bool:
    return isinstance(source, str) and text in source
