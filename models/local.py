"""The local engine: a transformers model held in process, with shared prefixes computed once per batch.

A batch's result depends on the batch alone: nothing is carried over to the next, so the same batch gives the same
bytes again (on the same kind of device). Batches too large for memory are cut in the sorted order of their prompts,
which keeps what is shared together.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from . import attention
from .attention import KeyValues
from .constraints import Constraints
from .decode import DecodePlan, Row
from .engine import Failure, GenerateRequest, Generation, Ledger, Sample, ScoreRequest, Scores, Tokenizer
from .prefill import ChunkPlan, chunks
from .sampling import Sampler
from .tree import TokenTree, build, common_prefix

ENGINE_VERSION = "1"
CHUNK = 2048
LOGIT_ROWS = 256


@dataclass(frozen=True)
class Limits:
    """What a batch may hold. tokens: unique tokens whose keys and values are kept; rows: samples that decode
    together.
    """

    tokens: int = 32768
    rows: int = 256


class LocalEngine:
    """`engine.Engine` over a transformers causal language model.

    model: in evaluation mode, on its device, in its dtype; tokenizer: see `tokenizer.HFTokenizer`; ends: the token
    ids that end a text. Raises `InputError` for an architecture whose attention can't be shared.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer,
        *,
        identity: str,
        name: str,
        ends: Sequence[int],
        backend_tokenizer: Any = None,
        limits: Limits | None = None,
    ) -> None:
        attention.register()
        self._model = model
        self._tokenizer = tokenizer
        self._identity, self._name = identity, name
        self._ends = frozenset(ends)
        config = model.config.get_text_config()
        self._context = _context_window(config, name)
        model.set_attn_implementation(attention.NAME)
        self._constraints = Constraints(backend_tokenizer, int(config.vocab_size), tuple(sorted(ends)))
        self._limits = limits or _limits_for(config, model)
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

    @torch.inference_mode()
    def score(self, requests: Sequence[ScoreRequest]) -> list[Scores | Failure]:
        """See `Engine.score`. All continuations of a request share its prompt, and each other's common prefixes."""
        began = time.perf_counter()
        results: list[Scores | Failure | None] = [self._refuse_score(request) for request in requests]
        todo = [i for i, result in enumerate(results) if result is None]
        paths = {i: [requests[i].prompt + c[:-1] for c in requests[i].continuations] for i in todo}
        for group in self._groups(
            todo, lambda i: requests[i].prompt, lambda i: sum(map(len, requests[i].continuations))
        ):
            tree = build([path for i in group for path in paths[i]], CHUNK)
            logprobs = self._score_tree(tree, [requests[i] for i in group])
            for i, scores in zip(group, logprobs, strict=True):
                results[i] = scores
            asked = sum(len(path) for i in group for path in paths[i])
            self._ledger.prompt_tokens += asked
            self._ledger.cached_tokens += asked - len(tree)
        self._ledger.calls += len(requests)
        self._ledger.seconds += time.perf_counter() - began
        return [result for result in results if result is not None]

    @torch.inference_mode()
    def generate(self, requests: Sequence[GenerateRequest]) -> list[Generation | Failure]:
        """See `Engine.generate`."""
        began = time.perf_counter()
        results: list[Generation | Failure | None] = [self._refuse_generate(request) for request in requests]
        todo = [i for i, result in enumerate(results) if result is None]
        for group in self._groups(todo, lambda i: requests[i].prompt, lambda i: requests[i].decoding.max_tokens):
            for i, generation in zip(group, self._generate_group([requests[i] for i in group]), strict=True):
                results[i] = generation
        self._ledger.calls += len(requests)
        self._ledger.seconds += time.perf_counter() - began
        return [result for result in results if result is not None]

    # What can't be computed

    def _refuse_score(self, request: ScoreRequest) -> Failure | None:
        if not request.prompt or not request.continuations or not all(request.continuations):
            return Failure("a score needs a prompt and continuations of at least one token each")
        longest = len(request.prompt) + max(map(len, request.continuations))
        return self._too_long(longest)

    def _refuse_generate(self, request: GenerateRequest) -> Failure | None:
        if not request.prompt:
            return Failure("a prompt needs at least one token")
        if request.grammar is not None:
            try:
                self._constraints.matcher(request.grammar)
            except InputError as error:
                return Failure(str(error))
        return self._too_long(len(request.prompt) + request.decoding.max_tokens)

    def _too_long(self, tokens: int) -> Failure | None:
        if tokens <= self._context:
            return None
        return Failure(f"prompt and output need {tokens} tokens, and the model's context window holds {self._context}")

    def _groups(self, todo: list[int], prompt: Any, extra: Any) -> Iterator[list[int]]:
        """Cut a batch into groups that fit in memory, in the sorted order of their prompts (stable for equal
        prompts).
        """
        group: list[int] = []
        tokens = 0
        last: np.ndarray[Any, np.dtype[np.int64]] | None = None
        for i in sorted(todo, key=lambda i: (prompt(i), i)):
            current = np.asarray(prompt(i), dtype=np.int64)
            new = len(current) - (common_prefix(last, current) if last is not None else 0) + extra(i)
            if group and (tokens + new > self._limits.tokens or len(group) >= self._limits.rows):
                yield group
                group, tokens, new = [], 0, len(current) + extra(i)
            group.append(i)
            tokens += new
            last = current
        if group:
            yield group

    # The forward passes

    def _prefill(self, tree: TokenTree, wanted: np.ndarray[Any, np.dtype[np.int64]]) -> tuple[KeyValues, Iterator[Any]]:
        """The key-value store of `tree`, and an iterator that computes it: (flat indices, logits [n, V]) per chunk
        for the sorted flat indices `wanted`.
        """
        store = KeyValues(len(tree))
        device, dtype = self._model.device, self._model.dtype

        def run() -> Iterator[tuple[np.ndarray[Any, np.dtype[np.int64]], Tensor]]:
            for plan in chunks(tree, store, CHUNK, device, dtype):
                inside = wanted[(wanted >= plan.start) & (wanted < plan.end)]
                local = inside - plan.start if len(inside) else np.zeros(1, dtype=np.int64)
                logits = self._forward(
                    tree.tokens[plan.start : plan.end], tree.positions[plan.start : plan.end], plan, local
                )
                if len(inside):
                    yield inside, logits

        return store, run()

    def _forward(
        self,
        tokens: np.ndarray[Any, np.dtype[np.int64]],
        positions: np.ndarray[Any, np.dtype[np.int64]],
        plan: ChunkPlan | DecodePlan,
        keep: np.ndarray[Any, np.dtype[np.int64]],
    ) -> Tensor:
        device = self._model.device
        output = self._model(
            input_ids=torch.from_numpy(tokens)[None].to(device),
            position_ids=torch.from_numpy(positions)[None].to(device),
            use_cache=False,
            logits_to_keep=torch.from_numpy(keep).to(device),
            cuecard_plan=plan,
        )
        self._ledger.forward_passes += 1
        return output.logits[0]  # type: ignore[no-any-return]

    def _score_tree(self, tree: TokenTree, requests: list[ScoreRequest]) -> list[Scores]:
        """Log-likelihoods, read at the places in the tree where each continuation's tokens are predicted."""
        places, targets = [], []
        leaf = iter(tree.leaves)
        for request in requests:
            for continuation in request.continuations:
                places.append(tree.indices(next(leaf))[len(request.prompt) - 1 :])
                targets.append(np.asarray(continuation, dtype=np.int64))
        flat_places, flat_targets = np.concatenate(places), np.concatenate(targets)
        found = np.zeros(len(flat_places), dtype=np.float64)
        _, passes = self._prefill(tree, np.unique(flat_places))
        for indices, logits in passes:
            mine = np.flatnonzero((flat_places >= indices[0]) & (flat_places <= indices[-1]))
            rows = np.searchsorted(indices, flat_places[mine])
            normaliser = torch.cat([torch.logsumexp(part.float(), dim=-1) for part in logits.split(LOGIT_ROWS)]).cpu()
            where = torch.from_numpy(rows).to(logits.device), torch.from_numpy(flat_targets[mine]).to(logits.device)
            found[mine] = (logits[where].float().cpu() - normaliser[torch.from_numpy(rows)]).double().numpy()
        values = iter(found.tolist())
        return [
            Scores(tuple(tuple(next(values) for _ in continuation) for continuation in request.continuations))
            for request in requests
        ]

    def _generate_group(self, requests: list[GenerateRequest]) -> list[Generation]:
        tree = build([request.prompt for request in requests], CHUNK)
        asked = sum(len(request.prompt) for request in requests)
        self._ledger.prompt_tokens += asked
        self._ledger.cached_tokens += asked - len(tree)
        last = np.asarray([tree.segments[leaf].end - 1 for leaf in tree.leaves])
        wanted = np.unique(last)
        store, passes = self._prefill(tree, wanted)
        logits = torch.cat([part for _, part in passes])
        rows = [
            Row(i, tree.leaves[i], len(request.prompt), Sampler(request.decoding, request.prompt, n),
                request.decoding.max_tokens, self._matcher(request))
            for i, request in enumerate(requests)
            for n in range(request.decoding.n)
        ]  # fmt: skip
        rows.sort(key=lambda row: (tree.segments[row.leaf].start, row.order, row.sampler.sample))
        samples: dict[int, dict[int, Sample]] = {i: {} for i in range(len(requests))}
        for first in range(0, len(rows), self._limits.rows):
            part = rows[first : first + self._limits.rows]
            start = np.searchsorted(wanted, [tree.segments[row.leaf].end - 1 for row in part])
            self._decode(tree, store, part, logits[torch.from_numpy(start).to(logits.device)])
            for row in part:
                samples[row.order][row.sampler.sample] = row.sample(self._tokenizer)
                self._ledger.generated_tokens += len(row.tokens)
        return [Generation(tuple(samples[i][n] for n in sorted(samples[i]))) for i in range(len(requests))]

    def _matcher(self, request: GenerateRequest) -> Any:
        return None if request.grammar is None else self._constraints.matcher(request.grammar)

    def _decode(self, tree: TokenTree, store: KeyValues, rows: list[Row], logits: Tensor) -> None:
        """Step `rows` until all are finished. `logits` [rows, V] are those after each row's prompt."""
        self._take(rows, logits)
        live = [row for row in rows if row.finish is None]
        if not live:
            return
        plan = DecodePlan(tree, store, live)
        while live:
            plan.begin()
            tokens = np.asarray([row.tokens[-1] for row in live], dtype=np.int64)
            positions = np.asarray([row.length + len(row.tokens) - 1 for row in live], dtype=np.int64)
            logits = self._forward(tokens, positions, plan, np.arange(len(live)))
            plan.end()
            self._take([row for row in live if row.finish is None], logits, [row.finish is None for row in live])
            going = [place for place, row in enumerate(live) if row.finish is None]
            if not going or len(going) <= 0.75 * len(live):
                live = [live[place] for place in going]
                if live:
                    plan.keep(going)

    def _take(self, rows: list[Row], logits: Tensor, mine: list[bool] | None = None) -> None:
        """Choose the next token of every row; with `mine`, the rows' logits are those where it is true."""
        if mine is not None and not all(mine):
            logits = logits[torch.tensor(mine, device=logits.device)]
        for first in range(0, len(rows), LOGIT_ROWS):
            part, scores = rows[first : first + LOGIT_ROWS], logits[first : first + LOGIT_ROWS].float()
            normaliser = torch.logsumexp(scores, dim=-1)
            chosen = self._choose(part, scores)
            taken = torch.tensor(chosen, device=scores.device)
            logprobs = (scores.gather(1, taken[:, None])[:, 0] - normaliser).tolist()
            for row, token, logprob in zip(part, chosen, logprobs, strict=True):
                row.take(token, logprob, self._ends, self._tokenizer)

    @staticmethod
    def _choose(rows: list[Row], logits: Tensor) -> list[int]:
        """The next token of each row; `logits` are left as they are."""
        masked = [place for place, row in enumerate(rows) if row.matcher is not None]
        limited = logits
        if masked:
            allowed = np.stack([rows[place].matcher.allowed() for place in masked])  # type: ignore[union-attr]
            limited = logits.clone()
            index = torch.tensor(masked, device=logits.device)
            forbidden = ~torch.from_numpy(allowed).to(logits.device)
            limited[index] = limited[index].masked_fill(forbidden, float("-inf"))
        best = torch.argmax(limited, dim=-1).tolist()
        return [
            best[place] if row.sampler.plain else row.sampler.choose(limited[place].clone())
            for place, row in enumerate(rows)
        ]


def _context_window(config: Any, name: str) -> int:
    """The window in which this engine's full attention equals the model's own.

    A sliding-window model is exact up to its window. Raises `InputError` where no window is known.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise InputError(
            f"model {name!r} is an encoder-decoder", expected="a decoder-only model", hint="Choose a causal model."
        )
    window = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    if window is None:
        raise InputError(f"model {name!r} ({config.model_type}) states no context window in its config")
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds - {"full_attention", "sliding_attention"}:
        raise InputError(
            f"model {name!r} has layers of the kinds {sorted(kinds)}", expected="full or sliding attention"
        )
    sliding = getattr(config, "sliding_window", None)
    if sliding and ("sliding_attention" in kinds or getattr(config, "use_sliding_window", True)):
        window = min(window, sliding)
    return int(window)


def _limits_for(config: Any, model: Any) -> Limits:
    """As many tokens as a share of the device's memory holds: a quarter of what is free on a GPU, 2 GiB elsewhere."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    per_token = 2 * config.num_hidden_layers * heads * width * model.dtype.itemsize
    budget = torch.cuda.mem_get_info(model.device)[0] // 4 if model.device.type == "cuda" else 2 << 30
    return Limits(tokens=max(4096, int(budget // per_token)))
