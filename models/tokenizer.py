"""A transformers tokenizer behind the engine's `Tokenizer` protocol."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import InputError
from .engine import Turn


class HFTokenizer:
    """Wraps a fast transformers tokenizer. Nothing is added or cleaned up: ids and text map back and forth as they
    are.
    """

    def __init__(self, backend: Any, *, name: str) -> None:
        self._backend = backend
        self._name = name
        begin = backend.encode("a", add_special_tokens=True)
        plain = backend.encode("a", add_special_tokens=False)
        places = (i for i in range(len(begin)) if begin[i : i + len(plain)] == plain)  # an end token may follow
        self._start = tuple(begin[: next(places, 0)])

    def encode(self, text: str) -> tuple[int, ...]:
        """See `Tokenizer.encode`."""
        return tuple(self._backend.encode(text, add_special_tokens=False, verbose=False))  # it warns of long texts

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer.decode`. Numbers that are no token have no text."""
        known = [token for token in ids if token >= 0]
        return str(self._backend.decode(known, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def chat(self, turns: Sequence[Turn], prefill: str = "") -> str:
        """See `Tokenizer.chat`. Raises `InputError` when the model has no chat template.

        Templates that write the start-of-text token themselves have it taken off: `start` gives it to every prompt.
        """
        if not getattr(self._backend, "chat_template", None):
            raise InputError(
                f"model {self._name!r} has no chat template",
                expected="a format without one",
                hint="Use the format `completion`, or a model that was tuned for chat.",
            )
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        text = self._backend.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return str(text).removeprefix(self._backend.decode(list(self._start))) + prefill

    def start(self) -> tuple[int, ...]:
        """See `Tokenizer.start`."""
        return self._start
