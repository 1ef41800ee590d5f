"""The engine over a model server: the protocol of `engine.py`, at most so many HTTP requests at once.

Each sample is one HTTP request with a seed of its own (`n` of a server would draw with `seed`, `seed + 1`, ..., so that
the samples of neighbouring seeds are the same); greedy samples are one. Servers share the prompt of all of them in
their cache. What can be refused without asking is refused here, in words that say which server can't do what.

A server's results are as repeatable as the server: batched kernels round differently with the company, so near ties
may fall either way.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from ...seeds import derive_seed
from ..engine import (
    Decoding,
    Failure,
    GenerateRequest,
    Generation,
    Ledger,
    ScoreRequest,
    Scores,
    SpanRequest,
    Spans,
)
from ..engine_base import EngineBase
from ..spans import by_scoring
from .client import Refused
from .dialect import Dialect, Drawn, Scored
from .grammars import Speller, check
from .tokenizer import ModelTokenizer

ENGINE_VERSION = "server-2"

T = TypeVar("T")
R = TypeVar("R")


class ServerEngine(EngineBase):
    """`engine.Engine` over a model server, through its dialect.

    tokenizer: the served model's own; context_window: tokens; concurrency: HTTP requests at once, at most. In the
    ledger, a forward pass is an HTTP request, and cached tokens are what the server says, whatever batch they are of.
    The server's address is no part of the identity, nor is what the server does not tell.
    """

    def __init__(
        self, dialect: Dialect, tokenizer: ModelTokenizer, *, context_window: int, concurrency: int = 16
    ) -> None:
        self._dialect = dialect
        self._tokenizer = tokenizer
        self._context = context_window
        self._concurrency = min(concurrency, dialect.served.at_once or concurrency)
        self._identity, self._name = _identity(dialect, tokenizer, context_window), dialect.served.model
        self._ledger = Ledger()
        self._checked: dict[str, str | None] = {}
        dialect.tokenizer = tokenizer
        wanted = dialect.options.grammars
        spellings = tuple(s for s in dialect.spellings if wanted in ("auto", s.name))
        self._speller = Speller(spellings, self._try_grammar, dialect.described)

    @property
    def can_score(self) -> bool:
        """Whether the server scores a given text at all."""
        return self._dialect.scores

    @property
    def scores_inputs(self) -> bool:
        """Whether a text as long as an input is scored in one request, and not token by token."""
        return self._dialect.scores and self._dialect.scores_at_once

    def close(self) -> None:
        """Close the connections."""
        self._dialect.client.close()

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Generation | Failure]:
        """See `Engine.generate`. Raises `RunError` when the server is gone, `InputError` when it takes no key."""
        began = time.perf_counter()
        results: list[Generation | Failure | None] = [self._refuse_generate(request) for request in requests]
        grammars = [
            self._spell(request.grammar) if result is None else {}
            for request, result in zip(requests, results, strict=True)
        ]
        jobs = []
        for i, request in enumerate(requests):
            fields = grammars[i]
            if isinstance(fields, str):
                results[i] = Failure(fields)
            elif results[i] is None:
                jobs += [(i, seed, fields) for seed in _seeds(request.decoding)]
        drawn = self._at_once(lambda job: self._dialect.draw(requests[job[0]], job[1], job[2]), jobs)
        of_request: dict[int, list[Drawn | Refused]] = {}
        for job, outcome in zip(jobs, drawn, strict=True):
            of_request.setdefault(job[0], []).append(outcome)
        for i, outcomes in of_request.items():
            results[i] = self._generation(requests[i], outcomes)
        self._ledger.calls += len(requests)
        self._ledger.seconds += time.perf_counter() - began
        return [result for result in results if result is not None]

    def score(self, requests: Sequence[ScoreRequest]) -> list[Scores | Failure]:
        """See `Engine.score`. Raises as `generate` does."""
        began = time.perf_counter()
        results: list[Scores | Failure | None] = [self._refuse_score(request) for request in requests]
        jobs = [i for i, result in enumerate(results) if result is None]
        for i, outcome in zip(jobs, self._at_once(lambda i: self._dialect.score(requests[i]), jobs), strict=True):
            results[i] = self._scores(requests[i], outcome)
        self._ledger.calls += len(requests)
        self._ledger.seconds += time.perf_counter() - began
        return [result for result in results if result is not None]

    def spans(self, requests: Sequence[SpanRequest]) -> list[Spans | Failure]:
        """See `Engine.spans`. Raises as `generate` does."""
        return by_scoring(self.score, requests)

    def _at_once(self, ask: Callable[[T], R], jobs: Sequence[T]) -> list[R]:
        """Every job's answer, in order. The first error that is no job's own ends all that have not begun."""
        if not jobs:
            return []
        pool = ThreadPoolExecutor(min(self._concurrency, len(jobs)), thread_name_prefix="cuecard-server")
        try:
            return [future.result() for future in [pool.submit(ask, job) for job in jobs]]
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    # What is not asked for

    def _refuse_generate(self, request: GenerateRequest) -> Failure | None:
        refused = super()._refuse_generate(request)
        if refused is None and (reason := self._dialect.refuse(request)) is not None:
            return Failure(reason)
        return refused

    def _wrong_grammar(self, grammar: str) -> str | None:
        if grammar not in self._checked:
            self._checked[grammar] = check(grammar)
        wrong = self._checked[grammar]
        return None if wrong is None else f"the grammar can't be compiled: {wrong}"

    def _unknown(self, *sequences: tuple[int, ...]) -> Failure | None:
        least = min(map(min, sequences))
        return Failure(f"the model has no token {least}") if least < 0 else None

    # Grammars

    def _spell(self, grammar: str | None) -> dict[str, object] | str:
        return {} if grammar is None else self._speller.fields(grammar)

    def _try_grammar(self, fields: dict[str, object], most: int) -> str | Refused:
        """The text that the server writes under a grammar."""
        prompt = (*self._tokenizer.start(), *self._tokenizer.encode("Answer:"))
        request = GenerateRequest(prompt, Decoding(max_tokens=most))
        outcome = self._dialect.draw(request, 0, fields, again=False)
        return outcome if isinstance(outcome, Refused) else outcome.sample.text

    # Results, and the account

    def _generation(self, request: GenerateRequest, outcomes: list[Drawn | Refused]) -> Generation | Failure:
        drawn = [outcome for outcome in outcomes if isinstance(outcome, Drawn)]
        self._ledger.forward_passes += len(outcomes)
        self._ledger.generated_tokens += sum(len(outcome.sample.tokens) for outcome in drawn)
        if drawn:
            self._count(len(request.prompt), drawn[0].sent - drawn[0].cached)
        for outcome in outcomes:
            if isinstance(outcome, Refused):
                return self._failure(outcome)
        samples = tuple(outcome.sample for outcome in drawn)
        return Generation(samples if len(samples) == request.decoding.n else samples * request.decoding.n)

    def _scores(self, request: ScoreRequest, outcome: Scored | Failure | Refused) -> Scores | Failure:
        if isinstance(outcome, Refused):
            return self._failure(outcome)
        if isinstance(outcome, Failure):
            return outcome
        self._ledger.forward_passes += outcome.calls
        self._count(len(request.prompt) + sum(map(len, request.continuations)), outcome.sent - outcome.cached)
        return outcome.scores

    def _count(self, asked: int, computed: int) -> None:
        """A request's tokens, and how many of them the server did not compute for it."""
        self._ledger.prompt_tokens += asked
        self._ledger.cached_tokens += min(max(asked - computed, 0), asked - 1)

    def _failure(self, refused: Refused) -> Failure:
        return Failure(f"{self._dialect.described} does not answer: {refused.message}")


def _seeds(decoding: Decoding) -> list[int]:
    """A seed for each HTTP request: one a sample, or one for all where they are the same."""
    return [derive_seed(decoding.seed, number) for number in range(decoding.n if decoding.temperature > 0 else 1)]


def _identity(dialect: Dialect, tokenizer: ModelTokenizer, window: int) -> str:
    served = dialect.served
    parts = {
        "engine": ENGINE_VERSION,
        "dialect": dialect.name,
        "version": served.version,
        "model": served.model,
        "root": served.root,
        "dtype": served.dtype,
        "parameters": served.parameters,
        "facts": served.facts,
        "tokenizer": tokenizer.digest(),
        "context_window": window,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
