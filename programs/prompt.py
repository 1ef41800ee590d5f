"""The exact prompt of a predictor: text and token ids, fitted into the context window.

When a prompt and the room its output needs do not fit, demos are dropped from the front, one at a time (the ones
nearest to the input stay); how many is said in the prompt and logged. A prompt that does not fit without demos is an
error.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import dspy

from ..errors import RunError
from ..models.engine import Engine
from .formats.base import Format, Values

logger = logging.getLogger("cuecard")


class PromptTooLong(RunError):
    """The prompt does not fit into the context window even without demos."""


@dataclass(frozen=True)
class Prompt:
    """text: as the model gets it, special tokens written out; ids: its tokens; demos: how many demos it shows;
    dropped: how many were left out because they did not fit.
    """

    text: str
    ids: tuple[int, ...]
    demos: int
    dropped: int = 0


def render(engine: Engine, format: Format, signature: type[dspy.Signature], demos: Sequence[Values], inputs: Values,
           opening: str = "", room: int = 0) -> Prompt:  # fmt: skip
    """The prompt for `inputs`, with `opening` as the start of the answer, and `room` tokens left for what follows.

    Raises `PromptTooLong`.
    """
    if room >= engine.context_window:
        raise PromptTooLong(
            f"the output may take {room} tokens",
            expected=f"fewer than {engine.context_window}, the context window of {engine.name}",
            hint="Lower max_tokens.",
        )

    def tokenize(shown: Sequence[Values]) -> tuple[str, tuple[int, ...]]:
        head = format.head(signature, shown, inputs)
        text = engine.tokenizer.chat(head.turns, opening) if head.turns else head.text + opening
        return text, engine.tokenizer.start() + engine.tokenizer.encode(text)

    return _fit(tokenize, list(demos), engine.context_window - room, engine)


def _fit(
    tokenize: Callable[[Sequence[Values]], tuple[str, tuple[int, ...]]], demos: list[Values], limit: int, engine: Engine
) -> Prompt:
    text, ids = tokenize(demos)
    dropped = 0
    while len(ids) > limit and dropped < len(demos):
        dropped += 1
        text, ids = tokenize(demos[dropped:])
    if len(ids) > limit:
        raise PromptTooLong(
            f"the prompt has {len(ids)} tokens without any demo",
            expected=f"at most {limit} (the context window of {engine.name} is {engine.context_window})",
            hint="Shorten the input or the instruction, or lower max_tokens.",
        )
    if dropped:
        logger.warning(
            "dropped %d of %d demos: the prompt did not fit into %d tokens of %s's context window",
            dropped, len(demos), limit, engine.name,
        )  # fmt: skip
    return Prompt(text, ids, len(demos) - dropped, dropped)
