"""The engine protocol: batch first, order kept, one request's failure is that request's result.

An engine takes token ids and returns tokens or log-likelihoods. Everything above (formats, read-outs, search) is
written against this protocol; the local engine implements it, and a server that speaks the OpenAI protocol can.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Literal, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field

FinishReason = Literal["stop", "length", "grammar"]


class Decoding(BaseModel):
    """The decoding settings. The defaults are greedy.

    `temperature` 0 takes the most likely token; `top_p` keeps the smallest set of tokens whose mass reaches it;
    `top_k` 0 keeps all; `min_p` drops tokens below that share of the most likely one's probability;
    `frequency_penalty` grows with a token's count in the output, `presence_penalty` does not; `repetition_penalty`
    divides positive and multiplies negative logits of every token seen in prompt or output (Keskar et al. 2019,
    section 4.1); `stop` strings end the text and are not part of it; `n` samples are drawn, each with a seed derived
    from `seed`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    max_tokens: int = Field(64, ge=1)
    temperature: float = Field(0.0, ge=0.0)
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    top_k: int = Field(0, ge=0)
    min_p: float = Field(0.0, ge=0.0, le=1.0)
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = Field(1.0, gt=0.0)
    seed: int = 0
    n: int = Field(1, ge=1)


@dataclass(frozen=True)
class GenerateRequest:
    """Continue `prompt` (token ids, at least one). `grammar` is an llguidance grammar in Lark syntax that masks
    tokens.
    """

    prompt: tuple[int, ...]
    decoding: Decoding = field(default_factory=Decoding)
    grammar: str | None = None


@dataclass(frozen=True)
class ScoreRequest:
    """The log-likelihood of each continuation (token ids, at least one each) after `prompt` (at least one token)."""

    prompt: tuple[int, ...]
    continuations: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class SpanRequest:
    """Find the spans of a text that are the likeliest continuations of `prompt`, see `spans.py`.

    runs: token ids, each the longest span from one place of the text; cuts: for each run the lengths, ascending, at
    which a span may end; end: tokens that close a span; width: of the search's beam; against: another prompt, under
    which the best spans are scored too; also: tokens that are scored beside the spans, under both prompts, as they are.
    """

    prompt: tuple[int, ...]
    runs: tuple[tuple[int, ...], ...]
    cuts: tuple[tuple[int, ...], ...]
    end: tuple[int, ...]
    width: int
    against: tuple[int, ...] | None = None
    also: tuple[int, ...] = ()


@dataclass(frozen=True)
class Sample:
    """One generated text. `logprobs` are natural logarithms, one per token, under temperature 1 without masks.

    masked: the probability, under temperature 1, of the tokens that the grammar ruled out, as the mean over the places
    where a token was chosen. Near 1, the prompt asks for something else than its grammar allows. 0 without a grammar,
    and where a model server does not tell.
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: FinishReason
    masked: float = 0.0


@dataclass(frozen=True)
class Generation:
    """What a `GenerateRequest` gives: `n` samples, in the order of their seeds."""

    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class Scores:
    """What a `ScoreRequest` gives: for each continuation, the natural log-probability of each of its tokens."""

    logprobs: tuple[tuple[float, ...], ...]

    @property
    def totals(self) -> tuple[float, ...]:
        """Each continuation's log-likelihood, in nats."""
        return tuple(sum(tokens) for tokens in self.logprobs)


@dataclass(frozen=True)
class SpanScore:
    """One span, the first `length` tokens of run `run`: its log-likelihood in nats with what closes it, after the
    prompt (`total`) and after the prompt it is held against (0 where there is none).
    """

    run: int
    length: int
    total: float
    against: float = 0.0


@dataclass(frozen=True)
class Spans:
    """What a `SpanRequest` gives: the best spans, in the order of runs and lengths; and the log-likelihoods in nats of
    what was scored beside them, the second 0 without another prompt.
    """

    scores: tuple[SpanScore, ...]
    also: tuple[float, float] | None = None


@dataclass(frozen=True)
class Failure:
    """Why one request has no result. The rest of its batch is not touched."""

    error: str


@dataclass
class Ledger:
    """What an engine has done so far. Tokens are counted once per request, by where they came from.

    prompt_tokens: tokens of all prompts and scored continuations; cached_tokens: those of them that were computed for
    another request of their batch and shared; reused_tokens: tokens that an earlier batch had computed, of those that
    are left; generated_tokens: tokens decoded; forward_passes: calls of the model; seconds: time in it.
    """

    calls: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    reused_tokens: int = 0
    generated_tokens: int = 0
    forward_passes: int = 0
    seconds: float = 0.0

    def copy(self) -> Ledger:
        """A snapshot."""
        return replace(self)

    def __sub__(self, other: Ledger) -> Ledger:
        return Ledger(**{f.name: getattr(self, f.name) - getattr(other, f.name) for f in fields(self)})

    def __add__(self, other: Ledger) -> Ledger:
        return Ledger(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})


@dataclass(frozen=True)
class Turn:
    """One message of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str


@runtime_checkable
class Tokenizer(Protocol):
    """Text to token ids and back, and the chat template."""

    def encode(self, text: str) -> tuple[int, ...]:
        """The ids of `text` alone: no start token is added, special tokens written in `text` are recognised."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens left out."""

    def chat(self, turns: Sequence[Turn], prefill: str = "") -> str:
        """The chat template applied to `turns`, ending where the assistant's next words begin, then `prefill`."""

    def start(self) -> tuple[int, ...]:
        """The ids that every prompt begins with (a start-of-text token, where the model was trained with one)."""


@runtime_checkable
class Engine(Protocol):
    """One model held ready. Calls block until the whole batch is done; they are not called from two threads at once."""

    @property
    def identity(self) -> str:
        """A content hash that names weights, tokenizer, chat template, dtype, device kind and engine version."""

    @property
    def name(self) -> str:
        """The model's name for people."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""

    @property
    def context_window(self) -> int:
        """The most tokens, prompt and output together, that the model takes."""

    @property
    def ledger(self) -> Ledger:
        """The account so far."""

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Generation | Failure]:
        """One result per request, in order."""

    def score(self, requests: Sequence[ScoreRequest]) -> list[Scores | Failure]:
        """One result per request, in order."""

    def spans(self, requests: Sequence[SpanRequest]) -> list[Spans | Failure]:
        """One result per request, in order. `spans.by_scoring` does it with `score`."""


@dataclass
class Description:
    """What a target is, for `run.json`, `cuecard models info` and the compiled program."""

    name: str
    identity: str
    device: str
    dtype: str
    parameters: int
    context_window: int
    extra: dict[str, str] = field(default_factory=dict)
