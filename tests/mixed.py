"""Requests of every kind for any engine, some of which must fail, and ways to ask them; for soaks.

The mix is drawn with a seed: scores, greedy and sampled texts, constrained ones, spans, and requests that no engine can
answer. Prompts begin with one of a few long texts that change as the mix goes on, so that prefixes are shared, carried
over and dropped; the requests that fail lie between those that must not notice.
"""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from cuecard.models.engine import (
    Decoding,
    Engine,
    Failure,
    GenerateRequest,
    Generation,
    ScoreRequest,
    Scores,
    SpanRequest,
    Spans,
)
from cuecard.models.gather import Gatherer, RequestFailed
from tiny import SENTENCES

Request = GenerateRequest | ScoreRequest | SpanRequest
Result = Generation | Scores | Spans | Failure
Prompt = tuple[int, ...]

KINDS = {"score": 4, "greedy": 4, "sampled": 4, "constrained": 3, "spans": 2, "failing": 3}
GRAMMARS = (
    ('start: "yes" | "no" | "maybe later"\n', "yes|no|maybe later", 20),
    ("start: /[0-9]{3}-[0-9]{4}/\n", "[0-9]{3}-[0-9]{4}", 20),
    (
        'start: "{\\"queue\\": \\"" ("billing" | "technical") "\\", \\"score\\": " /[0-9]{1,2}/ "}"\n',
        '{"queue": "(billing|technical)", "score": [0-9]{1,2}}',
        60,
    ),
)
STEM_LIFE = 60  # requests after which one of the long beginnings is another
STEMS = 4
UNKNOWN = 10**9


@dataclass(frozen=True)
class Mixed:
    """A request, of which kind it is, and what its text must match where it has a grammar."""

    kind: str
    request: Request
    pattern: str | None = None

    def wrong(self, result: Result) -> str | None:
        """Why this can't be the request's result, or None."""
        if self.kind == "failing" or isinstance(result, Failure):
            good = self.kind == "failing" and isinstance(result, Failure) and bool(result.error.strip())
            return None if good else f"a request of the kind {self.kind!r} gave {result}"
        if isinstance(self.request, ScoreRequest) and isinstance(result, Scores):
            fits = [len(logprobs) for logprobs in result.logprobs] == [len(c) for c in self.request.continuations]
        elif isinstance(self.request, GenerateRequest) and isinstance(result, Generation):
            fits = self._fits(self.request.decoding, result)
        else:
            fits = isinstance(self.request, SpanRequest) and isinstance(result, Spans) and bool(result.scores)
        return None if fits else f"{self.request} gave {result}"

    def _fits(self, decoding: Decoding, result: Generation) -> bool:
        return len(result.samples) == decoding.n and all(
            len(sample.tokens) == len(sample.logprobs) <= decoding.max_tokens
            and not any(stop in sample.text for stop in decoding.stop)
            and (self.pattern is None or re.fullmatch(self.pattern, sample.text) is not None)
            for sample in result.samples
        )


def mixed_requests(engine: Engine, count: int, seed: int = 0) -> Iterator[Mixed]:
    """`count` requests that `engine` is asked, the same for the same seed."""
    source = random.Random(seed)
    stems = [_words(engine, source, 300) for _ in range(STEMS)]
    for number in range(count):
        if number % STEM_LIFE == STEM_LIFE - 1:
            stems[number // STEM_LIFE % STEMS] = _words(engine, source, 300)
        stem = source.choice(stems)[: source.choice((0, 20, 140, 270, 300))]
        prompt = engine.tokenizer.start() + stem + _words(engine, source, source.randint(1, 30))
        (kind,) = source.choices(tuple(KINDS), tuple(KINDS.values()))
        yield _MAKERS[kind](engine, source, prompt[: engine.context_window - 100], number)


def _words(engine: Engine, source: random.Random, count: int) -> Prompt:
    ids: Prompt = ()
    while len(ids) < count:
        ids += engine.tokenizer.encode(" " + " ".join(source.sample(source.choice(SENTENCES).split(), 5)))
    return ids[:count]


def _score(engine: Engine, source: random.Random, prompt: Prompt, number: int) -> Mixed:
    long = _words(engine, source, source.randint(2, 8))
    others = [long[:1], (*long[:-1], 7), _words(engine, source, 3), long]
    return Mixed("score", ScoreRequest(prompt, (long, *source.sample(others, source.randint(0, 4)))))


def _greedy(engine: Engine, source: random.Random, prompt: Prompt, number: int) -> Mixed:
    return Mixed("greedy", GenerateRequest(prompt, Decoding(max_tokens=source.randint(1, 12))))


def _sampled(engine: Engine, source: random.Random, prompt: Prompt, number: int) -> Mixed:
    decoding = Decoding(
        max_tokens=source.randint(1, 12),
        temperature=source.choice((0.3, 1.0, 2.0)),
        top_p=source.choice((0.5, 0.9, 1.0)),
        top_k=source.choice((0, 5, 40)),
        min_p=source.choice((0.0, 0.05)),
        stop=source.choice(((), ("a",), ("the", "."))),
        frequency_penalty=source.choice((0.0, 0.5)),
        presence_penalty=source.choice((0.0, 0.5)),
        repetition_penalty=source.choice((1.0, 1.2)),
        seed=number,
        n=source.choice((1, 1, 2, 3)),
    )
    return Mixed("sampled", GenerateRequest(prompt, decoding))


def _constrained(engine: Engine, source: random.Random, prompt: Prompt, number: int) -> Mixed:
    grammar, pattern, room = source.choice(GRAMMARS)
    if source.random() < 0.7:  # a grammar of an input's own: so many that an engine has to drop some
        grammar, pattern, room = f'start: "ticket {number}" | "none"\n', f"ticket {number}|none", 20
    decoding = Decoding(max_tokens=room, temperature=source.choice((0.0, 1.0)), seed=number, n=source.choice((1, 2)))
    return Mixed("constrained", GenerateRequest(prompt, decoding, grammar), pattern)


def _span_request(engine: Engine, source: random.Random, prompt: Prompt) -> SpanRequest:
    text = _words(engine, source, source.randint(4, 20))
    runs = tuple(text[place : place + 6] for place in range(len(text)))
    cuts = tuple(tuple(range(1, len(run) + 1)) for run in runs)
    against = _words(engine, source, 10) if source.random() < 0.5 else None
    return SpanRequest(prompt, runs, cuts, engine.tokenizer.encode("\n"), source.choice((1, 2, 6)), against)


def _spans(engine: Engine, source: random.Random, prompt: Prompt, number: int) -> Mixed:
    return Mixed("spans", _span_request(engine, source, prompt))


def _failing(engine: Engine, source: random.Random, prompt: Prompt, number: int) -> Mixed:
    few, spans = Decoding(max_tokens=4, seed=number), _span_request(engine, source, prompt)
    return Mixed(
        "failing",
        source.choice(
            (
                GenerateRequest((), few),
                GenerateRequest(prompt, Decoding(max_tokens=engine.context_window)),
                GenerateRequest((*prompt, UNKNOWN), few),
                GenerateRequest((-1, *prompt), few),
                GenerateRequest(prompt, few, f"start: nothing{number}\n"),
                ScoreRequest(prompt, ()),
                ScoreRequest(prompt, ((5,), ())),
                ScoreRequest(prompt, ((5,) * engine.context_window,)),
                ScoreRequest(prompt, ((5, UNKNOWN),)),
                replace(spans, runs=(), cuts=()),
                replace(spans, width=0),
                replace(spans, cuts=((99,),) * len(spans.runs)),
            )
        ),
    )


_MAKERS = {
    "score": _score,
    "greedy": _greedy,
    "sampled": _sampled,
    "constrained": _constrained,
    "spans": _spans,
    "failing": _failing,
}


def ask_at_once(engine: Engine, asked: Sequence[Mixed]) -> list[Result]:
    """The results in order, from one call of the engine for each of its methods."""
    found: dict[int, Any] = {}
    for kind, ask in ((GenerateRequest, engine.generate), (ScoreRequest, engine.score), (SpanRequest, engine.spans)):
        places = [place for place, mixed in enumerate(asked) if isinstance(mixed.request, kind)]
        found |= zip(places, ask([asked[place].request for place in places]), strict=True)  # type: ignore[operator]
    return [found[place] for place in range(len(asked))]


def ask_in_threads(
    gatherer: Gatherer, asked: Sequence[Mixed], threads: int = 4, announced: bool = True
) -> list[Result]:
    """The results in order, each request from one of `threads` threads. announced: they wait for one another."""
    found: dict[int, Result] = {}
    together = threading.Barrier(threads)

    def work(first: int) -> None:
        together.wait()
        for place in range(first, len(asked), threads):
            if announced:
                gatherer.working_on(place)
            found[place] = _answer(gatherer, asked[place].request)

    def announce(first: int) -> None:
        with gatherer.worker():
            work(first)

    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(announce if announced else work, first) for first in range(threads)]:
            done.result()
    return [found[place] for place in range(len(asked))]


def _answer(gatherer: Gatherer, request: Request) -> Result:
    try:
        if isinstance(request, GenerateRequest):
            return gatherer.generate(request)
        return gatherer.score(request) if isinstance(request, ScoreRequest) else gatherer.spans(request)
    except RequestFailed as error:
        return Failure(error.message)


def waiting(gatherer: Gatherer) -> int:
    """How many calls have no answer yet."""
    return len(gatherer._calls) + len(gatherer._strays)
