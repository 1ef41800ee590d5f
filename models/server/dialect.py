"""What the engine asks of a dialect: one kind of server, its endpoints, its names for settings, and what it can't do.

A dialect puts a request into a server's words and reads the answer back. It honours a setting exactly as
`engine.Decoding` defines it or refuses the request; nothing is dropped in silence, and every setting is sent, because
servers have defaults of their own (from the model's generation_config.json, or llama.cpp's min_p of 0.05).

A log-probability that a server does not tell, or tells for another distribution than the model's own at temperature 1,
is `UNKNOWN` (not a number): a sum with it is seen to be no score.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from ..engine import Decoding, Failure, FinishReason, GenerateRequest, Sample, ScoreRequest, Scores
from .client import Client, Refused
from .grammars import Spelling
from .tokenizer import ModelTokenizer

UNKNOWN = math.nan
NEUTRAL = Decoding()

T = TypeVar("T")


@dataclass(frozen=True)
class Served:
    """What a server says about the model it serves. Empty or None where it does not say.

    version: the server's; root: where it has the model from; context_window: tokens of prompt and output together;
    parameters: how many weights; dtype: theirs; at_once: requests beyond which more at once only wait; facts: more that
    tells two models, or two ways to serve one, apart.
    """

    model: str
    version: str = ""
    root: str = ""
    context_window: int | None = None
    parameters: int = 0
    dtype: str = ""
    at_once: int | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Options:
    """What the user decides about a server. seeds: whether a server that can't seed its sampling may sample all the
    same; grammars: `auto`, a spelling's name, or `none`.
    """

    grammars: str = "auto"
    unseeded: bool = False


@dataclass(frozen=True)
class Drawn:
    """One sample, and what it cost: prompt tokens sent, and how many of them came from the server's cache."""

    sample: Sample
    sent: int
    cached: int


@dataclass(frozen=True)
class Scored:
    """A request's scores, and what they cost: tokens sent over all calls, how many were cached, and the calls."""

    scores: Scores
    sent: int
    cached: int
    calls: int


class Dialect(ABC):
    """One kind of server. Made once for a target; `draw` and `score` are called by many threads at once.

    Subclasses set `name`, `spellings`, and whether the server scores texts (`scores`), and each in one request
    (`scores_at_once`); `tokenizer` is set by whoever makes the engine, before the first call.
    """

    name: ClassVar[str]
    spellings: ClassVar[tuple[Spelling, ...]] = ()
    scores: ClassVar[bool] = False
    scores_at_once: ClassVar[bool] = True
    tokenizer: ModelTokenizer

    def __init__(self, client: Client, served: Served, options: Options) -> None:
        self.client, self.served, self.options = client, served, options

    @classmethod
    @abstractmethod
    def describe(cls, client: Client, cards: list[dict[str, Any]], model: str | None) -> Served:
        """What the server says about `model`, or its only model. cards: the `data` of `/v1/models`.

        Raises `InputError` when the model is not there, or none is named and several are.
        """

    @abstractmethod
    def refuse(self, request: GenerateRequest) -> str | None:
        """Why the server can't answer as it is asked, or None. Grammars are the engine's business."""

    @abstractmethod
    def draw(
        self, request: GenerateRequest, seed: int, grammar: dict[str, Any], *, again: bool = True
    ) -> Drawn | Refused:
        """One sample of `request`, drawn with `seed`. grammar: the fields that a spelling made of the request's."""

    def score(self, request: ScoreRequest) -> Scored | Failure | Refused:
        """The continuations' log-likelihoods."""
        return Failure(
            f"{self.described} can't score a given text; use the read-outs `text` or `constrained`, or a server that "
            f"can (vLLM, SGLang, llama.cpp)"
        )

    @property
    def described(self) -> str:
        """The server for people: `the vLLM server at http://localhost:8000`."""
        return f"the {self.name} server at {self.client.url}"

    def refuse_set(self, decoding: Decoding, reasons: dict[str, str]) -> str | None:
        """The refusal of the first setting in `reasons` that is not left at its neutral value."""
        for setting, reason in reasons.items():
            value = getattr(decoding, setting)
            if value != getattr(NEUTRAL, setting):
                return f"{self.described} can't honour {setting}={value:g}: {reason}"
        return None

    def refuse_unseeded(self, decoding: Decoding, how: str) -> str | None:
        """The refusal of a sampled text by a server that does not seed its sampling."""
        if decoding.temperature == 0 or self.options.unseeded:
            return None
        return (
            f"{self.described} does not draw with the seed that it is given, so a text at temperature "
            f"{decoding.temperature:g} can't be repeated; {how}, use temperature 0, or allow it (`unseeded: true`)"
        )


def finished(reason: Any, *, stop: str = "stop", length: str = "length") -> FinishReason | None:
    """A server's finish reason as ours; None for one that is no end of a text (`abort`, `error`)."""
    return "stop" if reason == stop else "length" if reason == length else None


def ordered(stops: tuple[str, ...]) -> tuple[str, ...]:
    """Stop strings for a server that ends a text at the first of the list that it finds, and leaves it there.

    The longest go first: any other that begins earlier then stands whole in the text, for `cut` to find.
    """
    return tuple(sorted(stops, key=len, reverse=True))


def cut(text: str, stops: tuple[str, ...]) -> str:
    """`text` up to the first stop string in it."""
    return text[: min((place for stop in stops if (place := text.find(stop)) >= 0), default=len(text))]


def read(body: Callable[[], T | Refused]) -> T | Refused:
    """What `body` reads from an answer, or the refusal of an answer that is not of the form it should be."""
    try:
        return body()
    except (LookupError, TypeError, ValueError) as error:
        return Refused(200, f"the server's answer is not of its dialect's form: {type(error).__name__}: {error}")
