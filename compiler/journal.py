"""The journal of a run: every model call, written down batch by batch, and answered from there when the run is
resumed.

`calls.jsonl` holds one line per batch (what it cost) and one line per call in it. A batch is written with one write,
after it is done; a batch that was cut short by a kill is cut off when the journal is opened. Because an engine's
batch depends on nothing but the batch, and the run asks for the same batches again, a resumed run gets the same
answers to the last bit, and goes on where the journal ends. Time is replayed too: the clock stands, at every batch,
where it stood then.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..errors import InputError, RunError
from ..models.engine import (
    Engine,
    Failure,
    GenerateRequest,
    Generation,
    Ledger,
    Sample,
    ScoreRequest,
    Scores,
    SpanRequest,
    Spans,
    SpanScore,
    Tokenizer,
)
from ..models.hidden import FeatureRequest, Features, features_of, layers_of

Request = GenerateRequest | ScoreRequest | SpanRequest | FeatureRequest
Result = Generation | Scores | Spans | Features | Failure
R = TypeVar("R", GenerateRequest, ScoreRequest, SpanRequest, FeatureRequest)

HEAD = b'{"batch":'  # how the line that begins a batch begins


class Clock:
    """Seconds of a run's work, over all its lives: it stands still between a kill and the resumption."""

    def __init__(self) -> None:
        self._base = 0.0
        self._since = time.monotonic()

    def now(self) -> float:
        """Seconds since the run began."""
        return self._base + time.monotonic() - self._since

    def set(self, seconds: float) -> None:
        """Go on from `seconds`."""
        self._base, self._since = seconds, time.monotonic()


@dataclass(frozen=True)
class _Batch:
    number: int
    elapsed: float
    ledger: Ledger


class JournaledEngine:
    """An `Engine` that writes down what another one answers, and answers what is written down itself.

    Raises `RunError` when the journal can't be written (the disk is full), and `InputError` when what stands in it is
    not a journal. A `Failure` is written down like any other result.
    """

    def __init__(self, engine: Engine, path: Path, clock: Clock) -> None:
        self._engine = engine
        self._path = path
        self._clock = clock
        self._ledger = Ledger()
        self._known: dict[str, tuple[Result, int]] = {}
        self._batches: dict[int, _Batch] = {}
        self._replayed: set[int] = set()
        self._load()

    @property
    def identity(self) -> str:
        """See `Engine.identity`."""
        return self._engine.identity

    @property
    def name(self) -> str:
        """See `Engine.name`."""
        return self._engine.name

    @property
    def tokenizer(self) -> Tokenizer:
        """See `Engine.tokenizer`."""
        return self._engine.tokenizer

    @property
    def context_window(self) -> int:
        """See `Engine.context_window`."""
        return self._engine.context_window

    @property
    def can_score(self) -> bool:
        """Whether the engine scores a given text at all; some servers can't."""
        return bool(getattr(self._engine, "can_score", True))

    @property
    def scores_inputs(self) -> bool:
        """Whether inputs can be scored as they can be generated from, which the read-out `channel` needs: not by an
        encoder-decoder, whose inputs are not what it writes, nor where a server scores token by token.
        """
        return self.can_score and bool(getattr(self._engine, "scores_inputs", True))

    @property
    def ledger(self) -> Ledger:
        """What the run has cost over all its lives, replayed batches included."""
        return self._ledger

    @property
    def recorded(self) -> int:
        """How many calls the journal held when it was opened."""
        return self._recorded

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Generation | Failure]:
        """See `Engine.generate`."""
        return self._answer(requests, self._engine.generate)  # type: ignore[return-value]

    def score(self, requests: Sequence[ScoreRequest]) -> list[Scores | Failure]:
        """See `Engine.score`."""
        return self._answer(requests, self._engine.score)  # type: ignore[return-value]

    def spans(self, requests: Sequence[SpanRequest]) -> list[Spans | Failure]:
        """See `Engine.spans`."""
        return self._answer(requests, self._engine.spans)  # type: ignore[return-value]

    @property
    def layers(self) -> int:
        """How many layers' hidden states the engine can give; 0 where it gives none."""
        return layers_of(self._engine)

    def features(self, requests: Sequence[FeatureRequest]) -> list[Features | Failure]:
        """See `Featurizing.features`."""
        return self._answer(requests, lambda asked: features_of(self._engine, asked))  # type: ignore[return-value]

    def _answer(self, requests: Sequence[R], ask: Callable[[Sequence[R]], Sequence[Result]]) -> list[Result]:
        keys = [self._key(request) for request in requests]
        missing: dict[str, R] = {}
        for key, request in zip(keys, requests, strict=True):
            if key in self._known:
                self._replay(self._known[key][1])
            else:
                missing.setdefault(key, request)
        if missing:
            before = self._engine.ledger.copy()
            results = ask(list(missing.values()))
            self._write(missing, results, self._engine.ledger - before)
        return [self._known[key][0] for key in keys]

    def _key(self, request: Request) -> str:
        digest = hashlib.sha256(self.identity.encode())
        if isinstance(request, GenerateRequest):
            rest: Any = ["generate", request.decoding.model_dump(mode="json"), request.grammar]
        elif isinstance(request, ScoreRequest):
            rest = ["score", request.continuations]
        elif isinstance(request, FeatureRequest):
            rest = ["features", request.layers]
        else:
            rest = ["spans", *_spans_of(request)]
        digest.update(json.dumps([request.prompt, rest], separators=(",", ":")).encode())
        return digest.hexdigest()[:32]

    def _replay(self, number: int) -> None:
        """Account for a recorded batch the first time that one of its answers is used."""
        if number in self._batches and number not in self._replayed:
            self._replayed.add(number)
            batch = self._batches[number]
            self._ledger = self._ledger + batch.ledger
            self._clock.set(batch.elapsed)

    # The file

    def _write(self, requests: dict[str, R], results: Sequence[Result], cost: Ledger) -> None:
        number = max(self._batches, default=-1) + 1
        batch = _Batch(number, round(self._clock.now(), 3), cost)
        lines = [{"batch": number, "calls": len(requests), "elapsed": batch.elapsed, "ledger": asdict(cost)}]
        previous: tuple[int, ...] = ()
        for (key, request), result in zip(requests.items(), results, strict=True):
            lines.append({"key": key, **_describe(request, previous, self.tokenizer), **_plain(result)})
            previous = request.prompt
            self._known[key] = (result, number)
        self._batches[number] = batch
        self._replayed.add(number)
        self._ledger = self._ledger + cost
        text = "".join(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in lines)
        self._append(text.encode("utf-8", "surrogatepass"))

    def _append(self, content: bytes) -> None:
        """Add whole lines, or, where there is no room for them, nothing: others may write before the run ends."""
        size = self._path.stat().st_size if self._path.exists() else 0
        try:
            with self._path.open("ab") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                os.truncate(self._path, size)
            raise RunError(
                f"can't write the record of model calls: {error.strerror}",
                path=self._path,
                hint="Make room on the disk and start the same command again: the run resumes where it stopped.",
            ) from error

    def _load(self) -> None:
        """Read the journal up to its last whole batch, and cut off what follows."""
        data = self._path.read_bytes() if self._path.exists() else b""
        lines = data.splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n"):
            lines.pop()
        heads = [place for place, line in enumerate(lines) if line.startswith(HEAD)]
        whole = 0
        for first, end in pairwise(sorted({0, *heads, len(lines)})):
            try:
                self._take(lines[first:end])
            except (ValueError, TypeError, LookupError) as error:
                if end < len(lines):
                    raise InputError(
                        "not a record of model calls",
                        path=self._path,
                        line=first + 1,
                        expected="a batch with all its calls",
                        hint="Remove the run's folder, or compile with --fresh.",
                    ) from error
                break
            whole += sum(map(len, lines[first:end]))
        if whole < len(data):
            os.truncate(self._path, whole)
        self._recorded = len(self._known)

    def _take(self, lines: Sequence[bytes]) -> None:
        """Read one batch: its head, then its calls. Raises what Python raises for lines that are something else."""
        head, *records = map(json.loads, lines)
        if len(records) != head["calls"]:
            raise ValueError("the batch is not whole")
        batch = _Batch(int(head["batch"]), float(head["elapsed"]), Ledger(**head["ledger"]))
        known = {record["key"]: (_result(record), batch.number) for record in records}
        self._batches[batch.number] = batch
        self._known.update(known)


def _describe(request: Request, previous: tuple[int, ...], tokenizer: Tokenizer) -> dict[str, Any]:
    """The request: how many leading tokens it shares with the one before it, the rest, and the rest's text for
    people.
    """
    shared = 0
    for ours, theirs in zip(request.prompt, previous, strict=False):
        if ours != theirs:
            break
        shared += 1
    rest = request.prompt[shared:]
    plain: dict[str, Any] = {"shared": shared, "prompt": rest, "text": tokenizer.decode(rest)}
    if isinstance(request, ScoreRequest):
        return {**plain, "continuations": request.continuations}
    if isinstance(request, FeatureRequest):
        return {**plain, "layers": request.layers}
    if isinstance(request, SpanRequest):
        known = {"end": request.end, "width": request.width, **({"also": request.also} if request.also else {})}
        return {**plain, "runs": len(request.runs), **known, "against": request.against is not None}
    settings = request.decoding.model_dump(mode="json", exclude_defaults=True)
    return {**plain, "decoding": settings, **({"grammar": request.grammar} if request.grammar else {})}


def _plain(result: Result) -> dict[str, Any]:
    if isinstance(result, Failure):
        return {"failure": result.error}
    if isinstance(result, Scores):
        return {"scores": result.logprobs}
    if isinstance(result, Spans):
        scores = [[score.run, score.length, score.total, score.against] for score in result.scores]
        return {"spans": scores, **({"also": result.also} if result.also else {})}
    if isinstance(result, Features):
        both = np.stack([result.last, result.mean]).astype("<f4")
        return {"features": base64.b64encode(both.tobytes()).decode(), "width": both.shape[2]}
    return {"samples": [asdict(sample) for sample in result.samples]}


def _spans_of(request: SpanRequest) -> tuple[Any, ...]:
    return request.runs, request.cuts, request.end, request.width, request.against, request.also


def _result(record: dict[str, Any]) -> Result:
    if "failure" in record:
        return Failure(record["failure"])
    if "scores" in record:
        return Scores(tuple(tuple(tokens) for tokens in record["scores"]))
    if "features" in record:
        numbers = np.frombuffer(base64.b64decode(record["features"]), dtype="<f4").astype(np.float32)
        last, mean = numbers.reshape(2, -1, record["width"])
        return Features(last, mean)
    if "spans" in record:
        also = record.get("also")
        return Spans(tuple(SpanScore(*score) for score in record["spans"]), tuple(also) if also else None)
    return Generation(
        tuple(
            Sample(
                sample["text"],
                tuple(sample["tokens"]),
                tuple(sample["logprobs"]),
                sample["finish"],
                sample.get("masked", 0.0),  # journals of older versions do not have it
            )
            for sample in record["samples"]
        )
    )
