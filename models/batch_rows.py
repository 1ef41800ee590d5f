"""The texts of a batch: what is asked of the model, how far each sample is, and which texts hold what is scored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .engine import Failure, GenerateRequest, Generation, Sample, ScoreRequest, Tokenizer
from .rows import Row

# llguidance's words for a text that must come next and that no token begins, before and after a token was tried.
STUCK, FORCED = "NoExtensionBias", "forced bytes: got"

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Task:
    """One text to compute: `prompt`, at most `room` tokens after it, and at `read` places the logits (0: the last)."""

    prompt: Tokens
    room: int
    read: int


@dataclass(frozen=True)
class Draw(Task):
    """One sample to draw."""

    request: GenerateRequest
    sample: int


@dataclass(frozen=True)
class Path(Task):
    """`tokens` after the prompt, and which log-probabilities are asked for: (tokens before it, token)."""

    tokens: Tokens
    picks: tuple[tuple[int, int], ...]


def result(row: Row, tokenizer: Tokenizer) -> Sample | Failure:
    """The finished sample of a row, or why there is none."""
    if row.matcher is not None and (error := row.matcher.error):
        tried = FORCED in error
        cause = "the model has no token for what comes next" if tried or error == STUCK else error
        before = tokenizer.decode(row.tokens[:-1] if tried else row.tokens)
        return Failure(f"the grammar can't be followed after {before!r}: {cause}")
    return row.sample(tokenizer)


class Batch(ABC):
    """Texts on their way through a model. `logits` [rows, V] are of each row's next token."""

    logits: Tensor

    @abstractmethod
    def step(self, tokens: Sequence[int]) -> None:
        """Give every row its next token."""

    @abstractmethod
    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows, in this order; one that is named twice is there twice."""


def pick_rows(cache: Any, rows: Tensor) -> Any:
    """The cache of these rows: one of transformers', which is changed, or a list of tensors [rows, ...]."""
    if hasattr(cache, "reorder_cache"):
        cache.reorder_cache(rows)
        return cache
    return [states.index_select(0, rows) for states in cache]


def score_paths(requests: Iterable[ScoreRequest]) -> tuple[list[Path], dict[Tokens, dict[Tokens, tuple[int, int]]]]:
    """The texts that hold all continuations, and for each prompt's continuation its text and its place in the picks.

    Nothing is predicted from a continuation's last token, and what begins another text of its prompt is part of that.
    """
    asked: dict[Tokens, dict[Tokens, dict[Tokens, None]]] = {}
    for request in requests:
        of_prompt = asked.setdefault(request.prompt, {})
        for continuation in request.continuations:
            of_prompt.setdefault(continuation[:-1], {})[continuation] = None
    paths: list[Path] = []
    homes: dict[Tokens, dict[Tokens, tuple[int, int]]] = {}
    for prompt, of_prompt in asked.items():
        homes[prompt] = {}
        picks: list[tuple[int, int]] = []
        tokens = sorted(of_prompt)  # where one begins others, the next is one of them
        for path, following in zip(tokens, [*tokens[1:], None], strict=True):
            for continuation in of_prompt[path]:
                homes[prompt][continuation] = len(paths), len(picks)
                picks.extend(enumerate(continuation))
            if following is None or following[: len(path)] != path:
                paths.append(Path(prompt, len(path), len(path) + 1, path, tuple(picks)))
                picks = []
    return paths, homes


def joined(samples: Sequence[Sample | Failure]) -> Generation | Failure:
    """A request's result, from its samples' results."""
    found: list[Sample] = []
    for sample in samples:
        if isinstance(sample, Failure):
            return sample
        found.append(sample)
    return Generation(tuple(found))


def repeats(sized: Iterable[tuple[Any, int]]) -> int:
    """The sizes of the items, without each one's first."""
    pairs = list(sized)
    return sum(size for _, size in pairs) - sum(dict(pairs).values())
