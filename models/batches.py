"""Engines that compute every prompt in full: padded batches through transformers' own forward pass and cache.

`BatchEngine` is what all of them share: requests become texts (`batch_rows.py`), texts are sorted by length and cut
into batches that fit (`batch_limits.py`), the samples of a batch step together and leave it when they are finished, and
a batch that does not fit into memory is halved. What the model can do in a batch is found out once, by trying
(`batch_trial.py`). `plain.PlainEngine` adds decoder-only models, `encoder_decoder.EncoderDecoderEngine` the others.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from .batch_limits import BatchLimits, batch_limits, halved
from .batch_rows import Batch, Draw, Path, Task, Tokens, joined, repeats, result, score_paths
from .batch_trial import Abilities, Trial
from .choosing import choose
from .compute import in_compute
from .constraints import Constraints
from .engine import (
    Failure,
    GenerateRequest,
    Generation,
    Ledger,
    Sample,
    ScoreRequest,
    Scores,
    SpanRequest,
    Spans,
    Tokenizer,
)
from .engine_base import Capacity, HeldEngine
from .rows import Row, fill
from .sampling import Sampler, log_normaliser
from .spans import by_scoring

ENGINE_VERSION = "plain-2"

Opened = TypeVar("Opened")
T = TypeVar("T", bound=Task)
R = TypeVar("R")


class BatchEngine(HeldEngine, ABC, Generic[Opened]):
    """`engine.Engine` in plain batches; `Opened` is what is computed once for several prompts.

    model: in evaluation mode, on its device, in its dtype; tokenizer: see `tokenizer.HFTokenizer`; ends: the token ids
    that end a text; why: the reason why no prefixes are shared, for people. Raises `InputError` for a model that
    computes something else in a batch than alone, and `RunError` when memory runs out.
    """

    reason = "its attention can't be laid over a token tree"

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer,
        *,
        identity: str,
        name: str,
        ends: Sequence[int],
        backend_tokenizer: Any = None,
        limits: BatchLimits | None = None,
        why: str | None = None,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._identity, self._name, self._why = identity, name, why or self.reason
        self._ends = frozenset(ends)
        config = model.config.get_text_config()
        self._vocabulary = int(config.vocab_size)
        pad = first_of(getattr(config, "pad_token_id", None))
        self._pad = pad if pad is not None and 0 <= pad < self._vocabulary else 0
        self._constraints = Constraints(backend_tokenizer, self._vocabulary, tuple(sorted(ends)))
        self._limits = limits or batch_limits(model)
        self._ledger = Ledger()
        self._set_up(backend_tokenizer)
        self._context = self._window()
        self._can = Abilities()  # until it is known
        self._can = Trial(model, name, self._vocabulary, self._open, self._begin, self._predict, self._alone).run()
        self._ledger = Ledger()

    @property
    def capacity(self) -> Capacity:
        """See `HeldEngine.capacity`."""
        return Capacity(self._limits.tokens, self._limits.rows)

    @property
    def notice(self) -> str:
        """One line for people: what this engine does not do."""
        return notice_text(self._name, self._why)

    @in_compute
    @torch.inference_mode()
    def score(self, requests: Sequence[ScoreRequest]) -> list[Scores | Failure]:
        """See `Engine.score`. Continuations of a prompt of which one begins as another are read from one text."""
        began = time.perf_counter()
        refused = [self._refuse_score(request) for request in requests]
        taken = [request for request, failure in zip(requests, refused, strict=True) if failure is None]
        paths, homes = score_paths(taken)
        found = self._run(paths, self._read)

        def answer(request: ScoreRequest) -> Scores | Failure:
            logprobs = []
            for continuation in request.continuations:
                path, start = homes[request.prompt][continuation]
                values = found[path]
                if isinstance(values, Failure):
                    return values
                logprobs.append(tuple(values[start : start + len(continuation)]))
            return Scores(tuple(logprobs))

        self._ledger.prompt_tokens += sum(len(r.prompt) + sum(map(len, r.continuations)) for r in taken)
        self._ledger.cached_tokens += self._repeated(taken)
        self._ledger.calls += len(requests)
        self._ledger.seconds += time.perf_counter() - began
        return [failure or answer(request) for request, failure in zip(requests, refused, strict=True)]

    def spans(self, requests: Sequence[SpanRequest]) -> list[Spans | Failure]:
        """See `Engine.spans`."""
        return by_scoring(self.score, requests)

    @in_compute
    @torch.inference_mode()
    def generate(self, requests: Sequence[GenerateRequest]) -> list[Generation | Failure]:
        """See `Engine.generate`. Equal requests are computed once."""
        began = time.perf_counter()
        refused = [self._refuse_generate(request) for request in requests]
        taken = [request for request, failure in zip(requests, refused, strict=True) if failure is None]
        draws = [
            Draw(request.prompt, request.decoding.max_tokens, 0, request, sample)
            for request in dict.fromkeys(taken)
            for sample in range(request.decoding.n)
        ]
        own: dict[GenerateRequest, list[Sample | Failure]] = {}
        for draw, sample in zip(draws, self._run(draws, self._decode), strict=True):
            own.setdefault(draw.request, []).append(sample)
        answers = {request: joined(samples) for request, samples in own.items()}
        results = [failure or answers[request] for request, failure in zip(requests, refused, strict=True)]
        self._ledger.prompt_tokens += sum(len(request.prompt) for request in taken)
        self._ledger.cached_tokens += repeats((request.prompt, len(request.prompt)) for request in taken)
        self._ledger.generated_tokens += sum(
            len(sample.tokens) for result in results if isinstance(result, Generation) for sample in result.samples
        )
        self._ledger.calls += len(requests)
        self._ledger.seconds += time.perf_counter() - began
        return results

    # What a kind of model adds

    @abstractmethod
    def _window(self) -> int:
        """See `Engine.context_window`."""

    @abstractmethod
    def _open(self, prompts: Sequence[Tokens]) -> Opened:
        """What is computed once for `prompts`, whatever comes after them."""

    @abstractmethod
    def _begin(self, opened: Opened, places: Sequence[int]) -> Batch:
        """A batch with a row for each of `places` among the opened prompts, where the first token is to be chosen."""

    @abstractmethod
    def _predict(self, opened: Opened, places: Sequence[int], paths: Sequence[Tokens]) -> Iterator[Tensor]:
        """For each path after the prompt at its place: the logits [len(path) + 1, V] of its tokens and the next."""

    @abstractmethod
    def _alone(self, prompt: Tokens, path: Tokens) -> Tensor:
        """What `_predict` gives, from a forward pass of one text without padding and cache."""

    def _set_up(self, backend_tokenizer: Any) -> None:
        """Make what the methods below need."""

    def _repeated(self, requests: Sequence[ScoreRequest]) -> int:
        """How many of the prompts' tokens were computed for another of these requests."""
        return repeats((request, len(request.prompt)) for request in requests)

    def _forward(self, **inputs: Any) -> Any:
        self._ledger.forward_passes += 1
        return self._model(**inputs, return_dict=True)

    # Batches

    def _run(self, tasks: Sequence[T], work: Callable[[Opened, list[int], list[T]], Sequence[R]]) -> list[R | Failure]:
        """What `work` gives for each task, given opened prompts, each task's place among them, and the tasks."""

        def attempt(group: list[int]) -> Iterator[tuple[int, R]]:
            places: dict[Tokens, int] = {}
            for i in group:
                places.setdefault(tasks[i].prompt, len(places))
            opened = self._open(list(places))
            for part in self._parts(tasks, group):
                own = [tasks[i] for i in part]
                yield from zip(part, work(opened, [places[task.prompt] for task in own], own), strict=True)

        found: dict[int, R | Failure] = {}
        for group in self._groups(tasks):
            found |= halved(
                group,
                attempt,
                device=self._model.device,
                ledger=self._ledger,
                size=lambda i: len(tasks[i].prompt) + tasks[i].room,
            )
        return [found[i] for i in range(len(tasks))]

    def _groups(self, tasks: Sequence[Task]) -> Iterator[list[int]]:
        """Cut the tasks, sorted by their prompts' lengths, into groups that fit. No prompt is in two groups."""
        by_prompt: dict[Tokens, list[int]] = {}
        for i in sorted(range(len(tasks)), key=lambda i: (len(tasks[i].prompt), tasks[i].prompt, i)):
            by_prompt.setdefault(tasks[i].prompt, []).append(i)
        group: list[int] = []
        for prompt, members in by_prompt.items():
            joined = group + members
            mixed = group and not self._can.pads and len(tasks[group[0]].prompt) != len(prompt)
            if group and (mixed or len(joined) > self._most(tasks, joined)):
                yield group
                joined = members
            group = joined
        if group:
            yield group

    def _parts(self, tasks: Sequence[Task], group: list[int]) -> Iterator[list[int]]:
        """A group in slices that fit: one prompt may have more samples than a batch may hold."""
        size = self._most(tasks, group)
        for first in range(0, len(group), size):
            yield group[first : first + size]

    def _most(self, tasks: Sequence[Task], group: Sequence[int]) -> int:
        """How many texts like these a batch may hold, at least one."""
        lengths = [len(tasks[i].prompt) for i in group]
        width = max(lengths) + max(tasks[i].room for i in group)
        read = max(tasks[i].read for i in group)
        if not read and not self._can.joins:
            return 1
        logits = read + max(lengths) - min(lengths) if read else 1
        limits = self._limits
        return max(1, min(limits.rows, limits.tokens // width, limits.pairs // width**2, limits.logits // logits))

    # Scores

    def _read(self, opened: Opened, places: list[int], paths: list[Path]) -> list[list[float]]:
        """The log-probabilities that each path asks for."""
        found = []
        predictions = self._predict(opened, places, [path.tokens for path in paths])
        for path, logits in zip(paths, predictions, strict=True):
            where, tokens = torch.tensor(path.picks, device=logits.device).unbind(dim=1)
            found.append((logits[where, tokens].float() - log_normaliser(logits)[where]).tolist())
        return found

    # Decoding

    def _start(self, opened: Opened, places: list[int]) -> Batch:
        """`_begin`, with equal prompts computed once where the model's rows can be picked."""
        distinct = list(dict.fromkeys(places))
        if not self._can.selects or len(distinct) == len(places):
            return self._begin(opened, places)
        batch = self._begin(opened, distinct)
        row_of = {place: row for row, place in enumerate(distinct)}
        batch.keep([row_of[place] for place in places])
        return batch

    def _decode(self, opened: Opened, places: list[int], draws: list[Draw]) -> list[Sample | Failure]:
        rows = [
            Row(
                Sampler(draw.request.decoding, draw.prompt, draw.sample),
                None if draw.request.grammar is None else self._constraints.matcher(draw.request.grammar),
            )
            for draw in draws
        ]
        batch, live = self._start(opened, places), rows
        while True:
            self._take(live, batch.logits)
            going = [place for place, row in enumerate(live) if row.finish is None]
            if not going:
                return [result(row, self._tokenizer) for row in rows]
            if self._can.selects and len(going) < len(live):
                batch.keep(going)
                live = [live[place] for place in going]
            batch.step([row.tokens[-1] if row.tokens else self._pad for row in live])

    def _take(self, rows: list[Row], logits: Tensor) -> None:
        """Choose the next token of every row that is not finished; `logits` are left as they are."""
        going = [place for place, row in enumerate(rows) if row.finish is None]
        if len(going) < len(rows):
            logits = logits[torch.tensor(going, device=logits.device)]
        fill(rows)
        own = [rows[place] for place in going]
        for row, chosen in zip(
            own, choose([row.sampler for row in own], [row.mask for row in own], logits), strict=True
        ):
            row.choose(chosen, self._ends, self._tokenizer)


def notice_text(name: str, why: str) -> str:
    """What people are told of a model that is run in plain batches."""
    return f"{name} shares no prefixes: {why}; every prompt is computed in full"


def first_of(value: int | Sequence[int] | None, otherwise: int | None = None) -> int | None:
    """A token that a configuration gives alone or as the first of several, or `otherwise`."""
    if isinstance(value, int):
        return value
    return value[0] if value else otherwise
