"""Gathers the calls of many threads into full batches.

DSPy programs call the model one request at a time. Threads that run programs side by side announce themselves
(`worker`); a batch is flushed when every announced thread waits for an answer, never by a clock, and its requests are
put in the order of their workers. So batches are full, and what is in them does not depend on thread timing. Calls
from threads that did not announce themselves are answered at once, together with whatever such calls came while the
engine was busy.
"""

from __future__ import annotations

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
    def __init__(self, request: Request, order: tuple[int, int] | None) -> None:
        self.request = request
        self.order = order
        self.result: Result | Failure | None = None
        self.error: BaseException | None = None

    @property
    def done(self) -> bool:
        return self.result is not None or self.error is not None


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
        return cast(Scores, self._call(request))

    def spans(self, request: SpanRequest) -> Spans:
        """One request's spans. Raises `RequestFailed` when it has none."""
        return cast(Spans, self._call(request))

    def features(self, request: FeatureRequest) -> Features:
        """One request's hidden states. Raises `RequestFailed` when it has none, `InputError` where the engine can't."""
        return cast(Features, self._call(request))

    def _call(self, request: Request) -> Result:
        order = self.item
        if order is None:
            call = _Call(request, None)
        else:
            call = _Call(request, (order, self._local.count))
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
        if isinstance(call.result, Failure):
            raise RequestFailed(call.result.error)
        return cast("Result", call.result)

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
            mine = [call for call in batch if isinstance(call.request, kind)]
            if mine:
                for call, result in zip(mine, ask([call.request for call in mine]), strict=True):
                    call.result = result
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
