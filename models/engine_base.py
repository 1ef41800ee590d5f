"""What every engine here has, and refuses in the same words: its properties, and what can't be computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from .constraints import Constraints
from .engine import Failure, GenerateRequest, Generation, Ledger, ScoreRequest, Tokenizer


class EngineBase:
    """The part of `engine.Engine` that is the same for a model in process and one behind a server.

    A subclass sets the attributes below, and says which grammars and which tokens there are.
    """

    _identity: str
    _name: str
    _tokenizer: Tokenizer
    _context: int
    _ledger: Ledger

    @property
    def identity(self) -> str:
        """See `Engine.identity`."""
        return self._identity

    @property
    def name(self) -> str:
        """See `Engine.name`."""
        return self._name

    @property
    def tokenizer(self) -> Tokenizer:
        """See `Engine.tokenizer`."""
        return self._tokenizer

    @property
    def context_window(self) -> int:
        """See `Engine.context_window`."""
        return self._context

    @property
    def ledger(self) -> Ledger:
        """See `Engine.ledger`."""
        return self._ledger

    def _wrong_grammar(self, grammar: str) -> str | None:
        """Why `grammar` can't be used, or None."""
        raise NotImplementedError

    def _unknown(self, *sequences: tuple[int, ...]) -> Failure | None:
        """The failure of a request with a token that the model does not have."""
        raise NotImplementedError

    def _refuse_score(self, request: ScoreRequest) -> Failure | None:
        if not request.prompt or not request.continuations or not all(request.continuations):
            return Failure("a score needs a prompt and continuations of at least one token each")
        longest = len(request.prompt) + max(map(len, request.continuations))
        return self._unknown(request.prompt, *request.continuations) or self._too_long(longest)

    def _refuse_generate(self, request: GenerateRequest) -> Failure | None:
        if not request.prompt:
            return Failure("a prompt needs at least one token")
        if request.grammar is not None and (wrong := self._wrong_grammar(request.grammar)) is not None:
            return Failure(wrong)
        return self._unknown(request.prompt) or self._too_long(len(request.prompt) + request.decoding.max_tokens)

    def _too_long(self, tokens: int) -> Failure | None:
        if tokens <= self._context:
            return None
        return Failure(f"prompt and output need {tokens} tokens, and the model's context window holds {self._context}")


@dataclass(frozen=True)
class Capacity:
    """What one batch may hold. tokens: whose keys and values are kept; rows: texts that are written side by side."""

    tokens: int
    rows: int


class HeldEngine(EngineBase):
    """An engine whose model is held in process."""

    _model: Any
    _vocabulary: int
    _constraints: Constraints

    @property
    def model(self) -> Any:
        """The transformers model."""
        return self._model

    @property
    def capacity(self) -> Capacity:
        """The largest batch that the engine makes of the requests it is given."""
        raise NotImplementedError

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Generation | Failure]:
        """See `Engine.generate`."""
        raise NotImplementedError

    def _wrong_grammar(self, grammar: str) -> str | None:
        try:
            self._constraints.matcher(grammar)
        except InputError as error:
            return str(error)
        return None

    def _unknown(self, *sequences: tuple[int, ...]) -> Failure | None:
        for token in (bound for sequence in sequences for bound in (min(sequence), max(sequence))):
            if not 0 <= token < self._vocabulary:
                return Failure(f"the model has no token {token}; its vocabulary ends at {self._vocabulary - 1}")
        return None
