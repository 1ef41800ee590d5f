"""Gathers the calls of many threads into full batches.

DSPy programs call the model one request at a time. Threads that run programs side by side announce themselves
(`worker`); a batch is flushed when every announced thread waits for an answer, never by a clock, and its requests are
put in the order of their workers. So batches are full, and what is in them does not depend on thread timing. Calls
from threads that did not announce themselves are answered at once, together with whatever such calls came while the
engine was busy.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, cast

from ..errors import CuecardError, RunError
from .engine import Engine, Failure, GenerateRequest, Generation, ScoreRequest, Scores, SpanRequest, Spans
from .hidden import FeatureRequest, Features, features_of

Request = GenerateRequest | ScoreRequest | SpanRequest | FeatureRequest
Result = Generation | Scores | Spans | Features


class RequestFailed(RunError):
    """The engine could not answer one request; the rest of its batch was not touched."""


class EngineFailed(RunError):
    """The engine broke: there is no use in asking it again."""


class _Call:
    """What one thread waits for: requests of one kind, and their results."""

    def __init__(self, requests: Sequence[Request], order: tuple[int, int] | None) -> None:
        self.requests = requests
        self.order = order
        self.results: Sequence[Result | Failure] | None = None
        self.error: BaseException | None = None

    @property
    def done(self) -> bool:
        return self.results is not None or self.error is not None


class Gatherer:
    """Blocking single calls on an engine, batched across threads."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._condition = threading.Condition()
        self._announced = 0
        self._calls: list[_Call] = []
        self._strays: list[_Call] = []
        self._busy = False
        self._local = threading.local()
        # An engine that is no torch model is always called in this one thread, and not by whichever caller comes last.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="cuecard-engine")

    def __deepcopy__(self, memo: object) -> Gatherer:
        return self  # copying a program must not copy the model's weights

    @contextmanager
    def worker(self) -> Iterator[None]:
        """Announce this thread: until it leaves, no batch is flushed unless it waits too. See `working_on`."""
        with self._condition:
            self._announced += 1
        try:
            yield
        finally:
            with self._condition:
                self._announced -= 1
                self._local.order = None
                self._condition.notify_all()

    @property
    def item(self) -> int | None:
        """The item that this thread works on; None in a thread that has not said."""
        return getattr(self._local, "order", None)

    def working_on(self, order: int) -> None:
        """This worker's next calls belong to the item `order`, which fixes their place in a batch."""
        self._local.order = order
        self._local.count = 0

    def generate(self, request: GenerateRequest) -> Generation:
        """One request's generation. Raises `RequestFailed` when it has none."""
        return cast(Generation, self._call(request))

    def score(self, request: ScoreRequest) -> Scores:
        """One request's scores. Raises `RequestFailed` when it has none."""
        return self.score_all([request])[0]

    def score_all(self, requests: Sequence[ScoreRequest]) -> list[Scores]:
        """The scores of several requests, which stand in one batch. Raises `RequestFailed` when one has none."""
        return cast(list[Scores], self._calls_of(requests))

    def spans(self, request: SpanRequest) -> Spans:
        """One request's spans. Raises `RequestFailed` when it has none."""
        return cast(Spans, self._call(request))

    def features(self, request: FeatureRequest) -> Features:
        """One request's hidden states. Raises `RequestFailed` when it has none, `InputError` where the engine can't."""
        return cast(Features, self._call(request))

    def _call(self, request: Request) -> Result:
        return self._calls_of([request])[0]

    def _calls_of(self, requests: Sequence[Request]) -> list[Result]:
        if not requests:
            return []
        order = self.item
        if order is None:
            call = _Call(requests, None)
        else:
            call = _Call(requests, (order, self._local.count))
            self._local.count += 1
        with self._condition:
            (self._strays if call.order is None else self._calls).append(call)
            self._condition.notify_all()
            try:
                while not call.done:
                    batch = self._next_batch()
                    if batch:
                        self._flush(batch)
                    else:
                        self._condition.wait()
            except BaseException:  # interrupted while waiting: nobody wants the answer any more
                for queue in (self._calls, self._strays):
                    queue[:] = [other for other in queue if other is not call]
                raise
        if call.error is not None:
            raise call.error
        found: list[Result] = []
        for result in call.results or ():
            if isinstance(result, Failure):
                raise RequestFailed(result.error)
            found.append(result)
        return found

    def _next_batch(self) -> list[_Call]:
        """The calls to flush now, taken out of their queue; called with the lock held."""
        if self._busy:
            return []
        if self._strays:
            batch, self._strays = self._strays, []
            return batch
        if self._calls and len(self._calls) >= self._announced:
            batch, self._calls = sorted(self._calls, key=lambda call: call.order or (0, 0)), []
            return batch
        return []

    def _flush(self, batch: list[_Call]) -> None:
        self._busy = True
        self._condition.release()
        try:
            self._thread.submit(_answer, self.engine, batch).result()
        finally:
            self._condition.acquire()
            self._busy = False
            self._condition.notify_all()


def _answer(engine: Engine, batch: Sequence[_Call]) -> None:
    """Answer every call of a batch. An engine that breaks gives each of its calls the cause."""
    kinds: list[tuple[type, Callable[[Any], Sequence[Result | Failure]]]] = [
        (GenerateRequest, engine.generate),
        (ScoreRequest, engine.score),
        (SpanRequest, engine.spans),
        (FeatureRequest, lambda requests: features_of(engine, requests)),
    ]
    try:
        for kind, ask in kinds:
            mine = [call for call in batch if isinstance(call.requests[0], kind)]
            if mine:
                asked = [request for call in mine for request in call.requests]
                results = iter([result for _, result in zip(asked, ask(asked), strict=True)])
                for call in mine:
                    call.results = list(itertools.islice(results, len(call.requests)))
    except BaseException as error:
        cause = error if isinstance(error, CuecardError) else EngineFailed(f"the engine broke: {_told(error)}")
        if cause is not error:
            cause.__cause__ = error
        for call in batch:
            if not call.done:
                call.error = cause
        if not isinstance(error, Exception):
            raise


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
