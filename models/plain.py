"""Engines for models whose prompts can't be laid over a token tree: padded batches through transformers' own forward
pass and cache.

`BatchEngine` is what such models have in common: requests become texts, texts are sorted by length and cut into batches
that fit, the samples of a batch step together and leave it when they are finished, and a batch that does not fit into
memory is halved. `PlainEngine` adds decoder-only models; `encoder_decoder.EncoderDecoderEngine` the others.
`engine_for` chooses.

Transformers' models differ in what they can do, and no configuration says all of it: recurrent ones may not know
padding, caches may not let rows go. So a model is tried once, on two short texts, against a plain forward pass of each:
can they stand in one batch though their lengths differ, and can the batch's rows be picked? Where not, only prompts of
equal length share a batch (or each has its own, as for transformers' RWKV, which is wrong for several), or finished
rows stay until the last is done.
"""

from __future__ import annotations

import inspect
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, RunError
from . import attention
from .constraints import Constraints, Matcher
from .engine import (
    Failure,
    FinishReason,
    GenerateRequest,
    Generation,
    Ledger,
    Sample,
    ScoreRequest,
    Scores,
    Tokenizer,
)
from .sampling import Sampler, log_normaliser

ENGINE_VERSION = "plain-1"
TRAINED_WINDOW = 2048  # tokens: of models that state no window and need none, such as BLOOM and Mamba
WINDOW_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "context_length", "seq_length")
CACHE_NAMES = ("past_key_values", "cache_params", "state")  # transformers', Mamba's and RWKV's
STUCK = "NoExtensionBias"  # llguidance's word
TRIAL = (3, 7, 7)  # tokens of the prompts that a model is tried on,
TRIAL_STEPS = 2  # and of what comes after each
# How far the logits of a trial may be from a plain forward pass's in 32 and in 16 bits, see `_difference`.
FINE, COARSE = 0.01, 0.2

Tokens = tuple[int, ...]
Opened = TypeVar("Opened")
T = TypeVar("T", bound="Task")
R = TypeVar("R")


@dataclass(frozen=True)
class BatchLimits:
    """What one batch may hold, padding included. rows: texts; tokens: of prompts and outputs; pairs: of tokens that
    meet in attention; logits: places whose logits are kept.
    """

    rows: int = 128
    tokens: int = 16384
    pairs: int = 1 << 24
    logits: int = 8192


def batch_limits(model: Any) -> BatchLimits:
    """As much as a share of the device's memory holds: a quarter of a GPU's, 2 GiB elsewhere.

    Of all its memory, not of what is free now: how a batch is cut decides its results' last bits.
    """
    config = model.config.get_text_config()
    on_gpu = model.device.type == "cuda"
    budget = torch.cuda.get_device_properties(model.device).total_memory // 4 if on_gpu else 2 << 30
    width = config.hidden_size * model.dtype.itemsize
    per_token = (2 * (getattr(config, "num_hidden_layers", None) or 32) + 16) * width  # keys, values and activations
    heads = getattr(config, "num_attention_heads", None) or 32
    return BatchLimits(
        rows=256 if on_gpu else 128,
        tokens=min(max(2048, budget // per_token), 1 << 16),
        pairs=max(1 << 20, budget // (12 * heads)),  # scores and weights, some of them in float32
        logits=max(64, budget // (12 * config.vocab_size)),
    )


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


@dataclass
class Row:
    """One sample on its way."""

    sampler: Sampler
    matcher: Matcher | None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: FinishReason | None = None
    text: str | None = None

    def take(self, token: int, logprob: float, ends: frozenset[int], tokenizer: Tokenizer) -> None:
        """Take the next token, and notice when it is the last."""
        if token in ends:
            self.finish = "stop"
            return
        self.tokens.append(token)
        self.logprobs.append(logprob)
        self.sampler.took(token)
        if self.matcher is not None and (not self.matcher.take(token) or self.matcher.finished):
            self.finish = "grammar"
        settings = self.sampler.decoding
        if settings.stop:
            text = tokenizer.decode(self.tokens)
            places = [place for stop in settings.stop if (place := text.find(stop)) >= 0]
            if places:
                self.text, self.finish = text[: min(places)], "stop"
        if self.finish is None and len(self.tokens) >= settings.max_tokens:
            self.finish = "length"

    def result(self, tokenizer: Tokenizer) -> Sample | Failure:
        """The finished sample."""
        if self.matcher is not None and self.matcher.error:
            cause = "the model has no token for what comes next" if self.matcher.error == STUCK else self.matcher.error
            return Failure(f"the grammar can't be followed after {tokenizer.decode(self.tokens)!r}: {cause}")
        text = tokenizer.decode(self.tokens) if self.text is None else self.text
        return Sample(text, tuple(self.tokens), tuple(self.logprobs), self.finish or "length")


class Batch(ABC):
    """Texts on their way through a model. `logits` [rows, V] are of each row's next token."""

    logits: Tensor

    @abstractmethod
    def step(self, tokens: Sequence[int]) -> None:
        """Give every row its next token."""

    @abstractmethod
    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows, in this order; one that is named twice is there twice."""


class BatchEngine(ABC, Generic[Opened]):
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
        self._pads = self._joins = self._selects = False
        _restore_attention(model)
        self._try_out()
        self._ledger = Ledger()

    @property
    def identity(self) -> str:
        """See `Engine.identity`."""
        return self._identity

    @property
    def name(self) -> str:
        """See `Engine.name`."""
        return self._name

    @property
    def tokenizer(self) -> Tokenizer:
        """See `Engine.tokenizer`."""
        return self._tokenizer

    @property
    def context_window(self) -> int:
        """See `Engine.context_window`."""
        return self._context

    @property
    def ledger(self) -> Ledger:
        """See `Engine.ledger`."""
        return self._ledger

    @property
    def model(self) -> Any:
        """The transformers model."""
        return self._model

    @property
    def notice(self) -> str:
        """One line for people: what this engine does not do."""
        return f"{self._name} shares no prefixes: {self._why}; every prompt is computed in full"

    @torch.inference_mode()
    def score(self, requests: Sequence[ScoreRequest]) -> list[Scores | Failure]:
        """See `Engine.score`. Continuations of a prompt of which one begins as another are read from one text."""
        began = time.perf_counter()
        refused = [self._refuse_score(request) for request in requests]
        taken = [request for request, failure in zip(requests, refused, strict=True) if failure is None]
        paths, homes = _paths(taken)
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
        answers = {request: _generation(samples) for request, samples in own.items()}
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

    # What can't be computed

    def _refuse_score(self, request: ScoreRequest) -> Failure | None:
        if not request.prompt or not request.continuations or not all(request.continuations):
            return Failure("a score needs a prompt and continuations of at least one token each")
        longest = len(request.prompt) + max(map(len, request.continuations))
        return self._unknown(request.prompt, *request.continuations) or self._too_long(longest)

    def _refuse_generate(self, request: GenerateRequest) -> Failure | None:
        if not request.prompt:
            return Failure("a prompt needs at least one token")
        if request.grammar is not None:
            try:
                self._constraints.matcher(request.grammar)
            except InputError as error:
                return Failure(str(error))
        return self._unknown(request.prompt) or self._too_long(len(request.prompt) + request.decoding.max_tokens)

    def _unknown(self, *sequences: Tokens) -> Failure | None:
        for token in (bound for sequence in sequences for bound in (min(sequence), max(sequence))):
            if not 0 <= token < self._vocabulary:
                return Failure(f"the model has no token {token}; its vocabulary ends at {self._vocabulary - 1}")
        return None

    def _too_long(self, tokens: int) -> Failure | None:
        if tokens <= self._context:
            return None
        return Failure(f"prompt and output need {tokens} tokens, and the model's context window holds {self._context}")

    # Batches

    def _run(self, tasks: Sequence[T], work: Callable[[Opened, list[int], list[T]], Sequence[R]]) -> list[R | Failure]:
        """What `work` gives for each task, given opened prompts, each task's place among them, and the tasks."""
        found: dict[int, R | Failure] = {}
        for group in self._groups(tasks):
            self._attempt(tasks, group, work, found)
        return [found[i] for i in range(len(tasks))]

    def _attempt(
        self,
        tasks: Sequence[T],
        group: list[int],
        work: Callable[[Opened, list[int], list[T]], Sequence[R]],
        found: dict[int, R | Failure],
    ) -> None:
        """Put the results of `group` into `found`; where memory runs out, half by half."""
        try:
            places: dict[Tokens, int] = {}
            for i in group:
                places.setdefault(tasks[i].prompt, len(places))
            opened = self._open(list(places))
            for part in self._parts(tasks, group):
                own = [tasks[i] for i in part]
                found.update(zip(part, work(opened, [places[task.prompt] for task in own], own), strict=True))
            return
        except (RuntimeError, MemoryError) as error:
            if not _out_of_memory(error):
                raise
            cause = str(error).partition("\n")[0]
        opened = None  # type: ignore[assignment]  # what failed is let go before the next try
        _release(self._model.device)
        left = [i for i in group if i not in found]
        if len(left) == 1:
            size = len(tasks[left[0]].prompt) + tasks[left[0]].room
            found[left[0]] = Failure(f"there is not enough memory for a text of {size} tokens: {cause}")
        elif left:
            half = (len(left) + 1) // 2
            self._attempt(tasks, left[:half], work, found)
            self._attempt(tasks, left[half:], work, found)

    def _groups(self, tasks: Sequence[Task]) -> Iterator[list[int]]:
        """Cut the tasks, sorted by their prompts' lengths, into groups that fit. No prompt is in two groups."""
        by_prompt: dict[Tokens, list[int]] = {}
        for i in sorted(range(len(tasks)), key=lambda i: (len(tasks[i].prompt), tasks[i].prompt, i)):
            by_prompt.setdefault(tasks[i].prompt, []).append(i)
        group: list[int] = []
        for prompt, members in by_prompt.items():
            joined = group + members
            mixed = group and not self._pads and len(tasks[group[0]].prompt) != len(prompt)
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
        if not read and not self._joins:
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
        if not self._selects or len(distinct) == len(places):
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
                return [row.result(self._tokenizer) for row in rows]
            if self._selects and len(going) < len(live):
                batch.keep(going)
                live = [live[place] for place in going]
            batch.step([row.tokens[-1] if row.tokens else self._pad for row in live])

    def _take(self, rows: list[Row], logits: Tensor) -> None:
        """Choose the next token of every row that is not finished; `logits` are left as they are."""
        going = [place for place, row in enumerate(rows) if row.finish is None]
        if len(going) < len(rows):
            logits = logits[torch.tensor(going, device=logits.device)]
        chosen: list[int] = logits.argmax(dim=-1).tolist()
        for place, row in enumerate(rows[i] for i in going):
            if row.sampler.plain and row.matcher is None:
                continue
            own = logits[place].to(torch.float32, copy=True)
            if row.matcher is not None:
                own[~torch.from_numpy(row.matcher.allowed()).to(own.device)] = float("-inf")
            chosen[place] = row.sampler.choose(own)
        taken = torch.tensor(chosen, device=logits.device)
        logprobs = (logits.gather(1, taken[:, None])[:, 0].float() - log_normaliser(logits)).tolist()
        for place, token, logprob in zip(going, chosen, logprobs, strict=True):
            rows[place].take(token, logprob, self._ends, self._tokenizer)

    # The trial

    @torch.inference_mode()
    def _try_out(self) -> None:
        """Find out what the model can do in a batch, see the module's docstring."""
        numbers = np.random.Generator(np.random.Philox(key=0)).integers(0, self._vocabulary, (3, max(TRIAL) + 2))
        texts = [
            (tuple(row[:length].tolist()), tuple(row[-TRIAL_STEPS:].tolist()))
            for row, length in zip(numbers, TRIAL, strict=True)
        ]
        try:
            alone = [self._alone(prompt, path).float() for prompt, path in texts]
            opened = self._open([prompt for prompt, _ in texts])
            read = list(self._predict(opened, range(len(texts)), [path for _, path in texts]))
        except Exception as cause:  # models refuse what they do not know in many ways, and each means the same
            raise self._unfit(cause) from cause
        if any(not self._close(ours, theirs) for ours, theirs in zip(read, alone, strict=True)):
            raise self._unfit("its tokens depend on those after them, or on the texts beside them")
        trouble: Exception | str | None = None
        for kinds in (slice(0, 2), slice(1, 3), slice(1, 2)):  # of different lengths, of equal length, one alone
            trouble = self._trouble(texts[kinds], alone[kinds])
            if trouble is None:
                break
        else:
            raise self._unfit(trouble) from (trouble if isinstance(trouble, Exception) else None)
        self._pads, self._joins = kinds.start == 0, kinds.stop - kinds.start > 1
        self._selects = self._joins and self._trouble(texts[kinds], alone[kinds], pick=True) is None

    def _trouble(
        self, texts: Sequence[tuple[Tokens, Tokens]], alone: Sequence[Tensor], *, pick: bool = False
    ) -> Exception | str | None:
        """What goes wrong when these texts take their steps in one batch, and its rows are picked meanwhile."""
        rows = list(range(len(texts)))
        got: dict[int, list[Tensor]] = {row: [] for row in rows}
        try:
            batch = self._begin(self._open([prompt for prompt, _ in texts]), rows)
            for step in range(TRIAL_STEPS + 1):
                for text, logits in zip(rows, batch.logits, strict=True):
                    got[text] = [*got[text][:step], logits]
                if pick and step < TRIAL_STEPS:
                    rows = ([1, 0, 1], [0, 1])[step]
                    batch.keep(([1, 0, 1], [1, 2])[step])
                if step < TRIAL_STEPS:
                    batch.step([texts[text][1][step] for text in rows])
        except Exception as cause:  # as above; a cause that matters is told by the caller
            if _out_of_memory(cause):
                raise self._unfit(cause) from cause
            return cause
        if all(self._close(torch.stack(got[text]), alone[text]) for text in got):
            return None
        return "its cache does not give what a forward pass over the whole text gives"

    def _close(self, ours: Tensor, theirs: Tensor) -> bool:
        tolerance = COARSE if self._model.dtype.itemsize < 4 else FINE
        return ours.shape == theirs.shape and _difference(ours.float(), theirs.float()) <= tolerance  # False for NaN

    def _unfit(self, cause: Exception | str | None) -> InputError | RunError:
        if isinstance(cause, Exception) and _out_of_memory(cause):
            return RunError(f"there is not enough memory to run model {self._name!r}: {cause}")
        kind, told = self._model.config.model_type, str(cause).partition("\n")[0] or type(cause).__name__
        return InputError(
            f"model {self._name!r} ({kind}) can't be run in batches: {told}", hint="Choose another model."
        )


class PlainEngine(BatchEngine[list[Tokens]]):
    """A decoder-only model: prompts stand on the right of a padded batch when texts are written, on the left when they
    are read, where a causal model needs no mask.
    """

    def _window(self) -> int:
        config = self._model.config.get_text_config()
        stated = [value for name in WINDOW_NAMES if (value := getattr(config, name, None))]
        return min([stated[0] if stated else TRAINED_WINDOW, *_short_windows(config)])

    def _open(self, prompts: Sequence[Tokens]) -> list[Tokens]:
        return list(prompts)

    def _begin(self, opened: list[Tokens], places: Sequence[int]) -> Batch:
        least = 2 if self._pads else 1  # some models take a single token for a step after what they saw last
        return _Texts(self._model, self._forward, [opened[place] for place in places], self._pad, least)

    def _predict(self, opened: list[Tokens], places: Sequence[int], paths: Sequence[Tokens]) -> Iterator[Tensor]:
        texts = [opened[place] + path for place, path in zip(places, paths, strict=True)]
        first = [len(opened[place]) - 1 for place in places]
        width, low = max(map(len, texts)), min(first)
        ids = torch.full((len(texts), width), self._pad)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = torch.tensor(text)
        wanted = {}
        if "logits_to_keep" in _parameters(self._model):
            wanted["logits_to_keep"] = torch.arange(low, width, device=self._model.device)
        logits = self._forward(input_ids=ids.to(self._model.device), use_cache=False, **wanted).logits
        start = low if wanted else 0
        for row, text in enumerate(texts):
            yield logits[row, first[row] - start : len(text) - start]

    def _alone(self, prompt: Tokens, path: Tokens) -> Tensor:
        ids = torch.tensor([prompt + path], device=self._model.device)
        logits: Tensor = self._forward(input_ids=ids, use_cache=False).logits
        return logits[0, len(prompt) - 1 :]


class _Texts(Batch):
    """Prompts padded on the left, and transformers' cache of them, under the name that the model has for it."""

    def __init__(
        self, model: Any, forward: Callable[..., Any], prompts: Sequence[Tokens], pad: int, least: int
    ) -> None:
        from transformers import DynamicCache

        self._model, self._forward, self._accepted = model, forward, _parameters(model)
        width = max(least, *map(len, prompts))
        ids, mask = torch.full((len(prompts), width), pad), torch.zeros(len(prompts), width, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        self._mask = mask.to(model.device)
        self._cache: dict[str, Any] = {}
        if "past_key_values" in self._accepted:
            self._cache["past_key_values"] = DynamicCache(config=model.config.get_text_config(decoder=True))
        self._run(ids.to(model.device), first=True)

    def step(self, tokens: Sequence[int]) -> None:
        ids = torch.tensor(tokens, device=self._mask.device)[:, None]
        self._mask = torch.cat([self._mask, torch.ones_like(ids)], dim=1)
        self._run(ids, first=False)

    def keep(self, rows: Sequence[int]) -> None:
        index = torch.tensor(rows, device=self._mask.device)
        self._mask, self.logits = self._mask[index], self.logits[index]
        self._cache = {name: pick_rows(cache, index) for name, cache in self._cache.items()}

    def _run(self, ids: Tensor, *, first: bool) -> None:
        given: dict[str, Any] = {"attention_mask": self._mask, "use_cache": True, **self._cache}
        if "position_ids" in self._accepted:
            given["position_ids"] = (self._mask.cumsum(dim=-1) - 1).clamp_(min=0)[:, -ids.shape[1] :]
        if "logits_to_keep" in self._accepted:
            given["logits_to_keep"] = 1
        inputs = self._model.prepare_inputs_for_generation(
            ids, next_sequence_length=ids.shape[1], is_first_iteration=first, **given
        )
        output = self._forward(**inputs)
        self.logits = output.logits[:, -1]
        self._cache.update({name: output[name] for name in CACHE_NAMES if output.get(name) is not None})


def engine_for(
    model: Any,
    tokenizer: Tokenizer,
    *,
    identity: str,
    name: str,
    ends: Sequence[int],
    backend_tokenizer: Any = None,
    limits: BatchLimits | None = None,
    why: str | None = None,
) -> BatchEngine[Any]:
    """The engine for a model that the tree engine refused, see `BatchEngine`; its `notice` says what that costs."""
    from .encoder_decoder import EncoderDecoderEngine

    kind: type[BatchEngine[Any]] = EncoderDecoderEngine if model.config.is_encoder_decoder else PlainEngine
    return kind(
        model,
        tokenizer,
        identity=identity,
        name=name,
        ends=ends,
        backend_tokenizer=backend_tokenizer,
        limits=limits,
        why=why,
    )


def pick_rows(cache: Any, rows: Tensor) -> Any:
    """The cache of these rows: one of transformers', which is changed, or a list of tensors [rows, ...]."""
    if hasattr(cache, "reorder_cache"):
        cache.reorder_cache(rows)
        return cache
    return [states.index_select(0, rows) for states in cache]


def _paths(requests: Iterable[ScoreRequest]) -> tuple[list[Path], dict[Tokens, dict[Tokens, tuple[int, int]]]]:
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


def _generation(samples: Sequence[Sample | Failure]) -> Generation | Failure:
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


def _short_windows(config: Any) -> list[int]:
    """Up to where LongRoPE's short factors hold: beyond, they would change for everything in the batch."""
    stated = getattr(config, "rope_parameters", None) or {}
    by_kind = [value for value in stated.values() if isinstance(value, dict)] or [stated]
    return [value["original_max_position_embeddings"] for value in by_kind if value.get("rope_type") == "longrope"]


def _restore_attention(model: Any) -> None:
    """Give the model its own attention back, where a trial of the tree's has left that."""
    if model.config.get_text_config()._attn_implementation == attention.NAME:
        model.set_attn_implementation(model.get_correct_attn_implementation(None))


def _parameters(model: Any) -> frozenset[str]:
    """What the model's forward pass takes."""
    return frozenset(inspect.signature(model.forward).parameters)


def first_of(value: int | Sequence[int] | None, otherwise: int | None = None) -> int | None:
    """A token that a configuration gives alone or as the first of several, or `otherwise`."""
    if isinstance(value, int):
        return value
    return value[0] if value else otherwise


def _difference(ours: Tensor, theirs: Tensor) -> float:
    """How far logits [T, V] are apart, relative to the spread of each token's logits: the median over the tokens,
    because a rounding error can send a token of a mixture of experts to another expert.
    """
    spread = (theirs - theirs.mean(dim=-1, keepdim=True)).norm(dim=-1)
    return float(((ours - theirs).norm(dim=-1) / spread).median())


def _out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; some devices say so in words only."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("out of memory", "can't allocate memory")
    )


def _release(device: torch.device) -> None:
    """Give what the failed batch held back to the device."""
    backend: Any = getattr(torch, device.type, None)
    if hasattr(backend, "empty_cache"):
        backend.empty_cache()
