"""Grammars as token masks, through llguidance."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

KEPT = 512  # grammars of spans are as many as there are inputs


@dataclass
class Constraints:
    """Compiles each grammar once for a tokenizer, keeps the last `KEPT`, and hands out fresh matchers.

    tokenizer: a transformers fast tokenizer; vocabulary: the width of the model's logits; ends: the end-of-text tokens.
    """

    tokenizer: Any
    vocabulary: int
    ends: tuple[int, ...]
    _ready: Any = None
    _compiled: OrderedDict[str, Any] = field(default_factory=OrderedDict)

    def matcher(self, grammar: str) -> Matcher:
        """A matcher at the start of `grammar` (Lark syntax). Raises `InputError` when the grammar can't be compiled."""
        from llguidance import LLMatcher

        if grammar not in self._compiled:
            matcher = LLMatcher(self._tokens(), LLMatcher.grammar_from_lark(grammar), log_level=0)
            if matcher.is_error():
                raise InputError(f"the grammar can't be compiled: {matcher.get_error()}", field="grammar")
            self._compiled[grammar] = matcher
            if len(self._compiled) > KEPT:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(grammar)
        return Matcher(self._compiled[grammar].deep_copy(), self.vocabulary)

    def _tokens(self) -> Any:
        """The tokenizer as llguidance wants it. Raises `InputError` where it can't be had."""
        from llguidance.hf import from_tokenizer

        if self._ready is None:
            try:
                self._ready = from_tokenizer(self.tokenizer, n_vocab=self.vocabulary, eos_token=list(self.ends))
            except ValueError as error:
                raise InputError(
                    f"no grammar can be used with this model: {error}",
                    expected="a fast tokenizer whose tokens the model all has, and a token that ends a text",
                ) from error
        return self._ready


@dataclass
class Matcher:
    """Where one sample stands in its grammar."""

    state: Any
    vocabulary: int

    def allowed(self) -> NDArray[np.bool_]:
        """Which tokens may come next, bool [V]."""
        bits = np.frombuffer(self.state.compute_bitmask(), dtype=np.uint8)
        return np.unpackbits(bits, bitorder="little")[: self.vocabulary].astype(bool)

    def take(self, token: int) -> bool:
        """Take a token; False when the grammar refuses it (which the mask rules out)."""
        return bool(self.state.consume_token(token))

    @property
    def finished(self) -> bool:
        """Whether nothing but the end can follow; also after an error."""
        return bool(self.state.is_stopped())

    @property
    def error(self) -> str:
        """Why the grammar could not be followed to here (it became too complex, say); empty while all is well."""
        return str(self.state.get_error()).partition("\n<state>")[0]


def fill_masks(matchers: Sequence[Matcher]) -> NDArray[np.uint8]:
    """Which tokens may come next for each matcher, a bit a token (the first token is the lowest bit): uint8 [n, bytes].

    They are computed in llguidance's own threads, side by side.
    """
    from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask_par

    if not matchers:
        return np.zeros((0, 0), dtype=np.uint8)
    masks = allocate_token_bitmask(len(matchers), max(matcher.vocabulary for matcher in matchers))
    states = [(matcher.state, place) for place, matcher in enumerate(matchers)]
    fill_next_token_bitmask_par(_executor(), states, masks)
    return masks.view(np.uint8)


def only_tokens(masks: NDArray[np.uint8]) -> list[int | None]:
    """For each mask of `fill_masks` the token that it leaves where it leaves just one."""
    places = np.argmax(masks, axis=1)
    last = masks[np.arange(len(masks)), places]
    single = (np.count_nonzero(masks, axis=1) == 1) & (last & (last - 1) == 0)
    tokens = places * 8 + np.log2(np.maximum(last, 1)).astype(np.int64)
    return [int(token) if one else None for token, one in zip(tokens, single, strict=True)]


@functools.cache
def _executor() -> Any:
    from llguidance import LLExecutor

    return LLExecutor()
