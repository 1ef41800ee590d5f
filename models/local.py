"""The local engine: a transformers model held in process, with shared prefixes computed once per batch.

A batch's result depends on the batch alone: what is carried over to the next (`prefixes.py`) is bit for bit what the
next would compute, so the same batch gives the same bytes again (on the same kind of device).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from .architecture import context_window, prepare
from .attention import KeyValues, Plan
from .compute import in_compute
from .constraints import Constraints
from .decode import DecodePlan, Row
from .engine import Failure, GenerateRequest, Generation, Ledger, ScoreRequest, Scores, SpanRequest, Spans, Tokenizer
from .hidden import FeatureRequest, Features, decoder_layers, hidden_states
from .limits import Limits, groups, limits_for, parts
from .prefill import chunks
from .prefixes import BLOCK, BlockPlan, PrefixCache, fill, shared_blocks
from .sampling import Sampler, log_normaliser
from .spans import first_tokens, refusal, search
from .tree import IntArray, TokenTree, build, common_prefix

ENGINE_VERSION = "2"
CHUNK = 2048
LOGIT_ROWS = 256


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
        self._model = model
        self._tokenizer = tokenizer
        self._identity, self._name = identity, name
        self._ends = frozenset(ends)
        config = model.config.get_text_config()
        self._context = context_window(config, name)
        self._vocabulary = int(config.vocab_size)
        prepare(model, name)
        self._constraints = Constraints(backend_tokenizer, self._vocabulary, tuple(sorted(ends)))
        self._limits = limits or limits_for(model)
        self._prefixes = PrefixCache(self._limits.tokens // (2 * BLOCK))
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

    @in_compute
    @torch.inference_mode()
    def score(self, requests: Sequence[ScoreRequest]) -> list[Scores | Failure]:
        """See `Engine.score`. All continuations of a request share its prompt, and each other's common prefixes."""
        began = time.perf_counter()
        results: list[Scores | Failure | None] = [self._refuse_score(request) for request in requests]
        todo = [i for i, result in enumerate(results) if result is None]
        paths = {i: [requests[i].prompt + c[:-1] for c in requests[i].continuations] for i in todo}
        added = {i: sum(map(len, requests[i].continuations)) for i in todo}
        for group in groups(todo, lambda i: requests[i].prompt, added.__getitem__, self._limits):
            prompts = [requests[i].prompt for i in group]
            counts = shared_blocks(prompts)
            known = [BLOCK * count for i, count in zip(group, counts, strict=True) for _ in paths[i]]
            tree = build([path for i in group for path in paths[i]], CHUNK, known)
            first = np.cumsum([0, *(len(paths[i]) for i in group)])[:-1]
            store = self._recall(tree, prompts, [tree.leaves[place] for place in first], counts)
            logprobs = self._score_tree(tree, store, [requests[i] for i in group])
            for i, scores in zip(group, logprobs, strict=True):
                results[i] = scores
            asked = sum(len(requests[i].prompt) + added[i] for i in group)
            unread = sum(len(paths[i]) for i in group)  # nothing is predicted from a continuation's last token
            self._ledger.prompt_tokens += asked
            self._ledger.cached_tokens += asked - unread - len(tree)
        self._ledger.calls += len(requests)
        self._ledger.seconds += time.perf_counter() - began
        return [result for result in results if result is not None]

    @in_compute
    @torch.inference_mode()
    def generate(self, requests: Sequence[GenerateRequest]) -> list[Generation | Failure]:
        """See `Engine.generate`."""
        began = time.perf_counter()
        results: list[Generation | Failure | None] = [self._refuse_generate(request) for request in requests]
        todo = [i for i, result in enumerate(results) if result is None]
        added = {i: requests[i].decoding.max_tokens for i in todo}
        for group in groups(todo, lambda i: requests[i].prompt, added.__getitem__, self._limits):
            for i, generation in zip(group, self._generate_group([requests[i] for i in group]), strict=True):
                results[i] = generation
        self._ledger.calls += len(requests)
        self._ledger.seconds += time.perf_counter() - began
        return [result for result in results if result is not None]

    @in_compute
    @torch.inference_mode()
    def spans(self, requests: Sequence[SpanRequest]) -> list[Spans | Failure]:
        """See `Engine.spans`. A prompt that the first tokens were scored after is not computed again."""
        began = time.perf_counter()
        results: list[Spans | Failure | None] = [self._refuse_spans(request) for request in requests]
        todo = [i for i, result in enumerate(results) if result is None]
        added = {i: _span_tokens(requests[i]) for i in todo}
        for group in groups(todo, lambda i: requests[i].prompt, added.__getitem__, self._limits):
            for i, spans in zip(group, self._spans_of([requests[i] for i in group]), strict=True):
                results[i] = spans
        self._ledger.calls += len(requests)
        self._ledger.seconds += time.perf_counter() - began
        return [result for result in results if result is not None]

    @property
    def layers(self) -> int:
        """See `hidden.Featurizing.layers`."""
        return len(decoder_layers(self._model))

    def features(self, requests: Sequence[FeatureRequest]) -> list[Features | Failure]:
        """See `hidden.Featurizing.features`."""

        def refuse(prompt: tuple[int, ...]) -> Failure | None:
            return self._unknown(prompt) or self._too_long(len(prompt))

        return hidden_states(self._model, requests, limits=self._limits, ledger=self._ledger, refuse=refuse)

    # What can't be computed

    def _refuse_spans(self, request: SpanRequest) -> Failure | None:
        prompts = (request.prompt, request.prompt if request.against is None else request.against)
        if not all(prompts):
            return Failure("a score needs a prompt of at least one token")
        if (wrong := refusal(request)) is not None:
            return wrong
        longest = max(map(len, prompts)) + max(map(len, request.runs)) + len(request.end)
        ends = (request.end,) if request.end else ()
        return self._unknown(*prompts, *request.runs, *ends) or self._too_long(longest)

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

    def _unknown(self, *sequences: tuple[int, ...]) -> Failure | None:
        for token in (bound for sequence in sequences for bound in (min(sequence), max(sequence))):
            if not 0 <= token < self._vocabulary:
                return Failure(f"the model has no token {token}; its vocabulary ends at {self._vocabulary - 1}")
        return None

    def _too_long(self, tokens: int) -> Failure | None:
        if tokens <= self._context:
            return None
        return Failure(f"prompt and output need {tokens} tokens, and the model's context window holds {self._context}")

    # The forward passes

    def _recall(
        self, tree: TokenTree, prompts: Sequence[tuple[int, ...]], leaves: Sequence[int], counts: Sequence[int]
    ) -> KeyValues:
        """A key-value store for `tree` that holds the blocks which its prompts share, see `prefixes.fill`."""
        store = KeyValues(len(tree))

        def compute(tokens: IntArray, positions: IntArray, plan: BlockPlan) -> None:
            self._forward(tokens, positions, plan, np.zeros(1, dtype=np.int64))

        self._ledger.reused_tokens += fill(self._prefixes, tree, prompts, leaves, counts, store, compute)
        return store

    def _prefill(self, tree: TokenTree, store: KeyValues, wanted: IntArray) -> Iterator[tuple[IntArray, Tensor]]:
        """Compute `tree` into `store`: (flat indices, logits [n, V]) per chunk for the sorted flat indices `wanted`."""
        device, dtype = self._model.device, self._model.dtype
        for plan in chunks(tree, store, CHUNK, device, dtype):
            inside = wanted[(wanted >= plan.start) & (wanted < plan.end)]
            local = inside - plan.start if len(inside) else np.zeros(1, dtype=np.int64)
            part = slice(plan.start, plan.end)
            logits = self._forward(tree.tokens[part], tree.positions[part], plan, local)
            if len(inside):
                yield inside, logits

    def _forward(
        self,
        tokens: IntArray,
        positions: IntArray,
        plan: Plan,
        keep: IntArray,
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

    def _score_tree(self, tree: TokenTree, store: KeyValues, requests: list[ScoreRequest]) -> list[Scores]:
        """Log-likelihoods, read at the places in the tree where each continuation's tokens are predicted."""
        places, targets = [], []
        leaf = iter(tree.leaves)
        for request in requests:
            for continuation in request.continuations:
                places.append(tree.tail(next(leaf), len(continuation)))
                targets.append(np.asarray(continuation, dtype=np.int64))
        flat_places, flat_targets = np.concatenate(places), np.concatenate(targets)
        found = np.zeros(len(flat_places), dtype=np.float64)
        for indices, logits in self._prefill(tree, store, np.unique(flat_places)):
            mine = np.flatnonzero((flat_places >= indices[0]) & (flat_places <= indices[-1]))
            rows = np.searchsorted(indices, flat_places[mine])
            normaliser = torch.cat([log_normaliser(part) for part in torch.split(logits, LOGIT_ROWS)]).cpu()
            where = torch.from_numpy(rows).to(logits.device), torch.from_numpy(flat_targets[mine]).to(logits.device)
            found[mine] = (logits[where].float().cpu() - normaliser[torch.from_numpy(rows)]).double().numpy()
        values = iter(found.tolist())
        return [
            Scores(tuple(tuple(next(values) for _ in continuation) for continuation in request.continuations))
            for request in requests
        ]

    def _spans_of(self, requests: list[SpanRequest]) -> list[Spans | Failure]:
        """A group's spans: its prompts, then a tree of what is scored below them for each stage of the search."""
        prompts = [request.prompt for request in requests]
        counts = shared_blocks(prompts)
        tree = build(prompts, CHUNK, [BLOCK * count for count in counts])
        store = self._recall(tree, prompts, tree.leaves, counts)
        last = np.asarray([tree.segments[leaf].end - 1 for leaf in tree.leaves])
        wanted = np.unique(last)
        logits = torch.cat([part for _, part in self._prefill(tree, store, wanted)])
        firsts = []
        for request, row in zip(requests, np.searchsorted(wanted, last).tolist(), strict=True):
            tokens = first_tokens(request)
            likely = logits[row, torch.tensor(tokens, device=logits.device)].float().tolist()
            firsts.append(dict(zip(tokens, likely, strict=True)))
        asked = sum(map(len, prompts))
        self._ledger.prompt_tokens += asked
        self._ledger.cached_tokens += asked - len(tree)
        homes = {r.against: place for place, r in enumerate(requests) if r.against is not None}
        homes |= {prompt: place for place, prompt in enumerate(prompts)}
        return search(requests, firsts, lambda questions: self._score_below(tree, store, homes, questions))

    def _score_below(
        self, tree: TokenTree, store: KeyValues, homes: Mapping[tuple[int, ...], int], questions: Sequence[ScoreRequest]
    ) -> list[Scores]:
        """Score continuations of prompts, each of which begins like the prompt of `tree` that `homes` says."""
        # A prompt's last token is computed again, since a continuation's first is predicted from there.
        leaves = [tree.leaves[homes[q.prompt]] for q in questions]
        begins = [
            (leaf, min(common_prefix(tree.tokens[tree.indices(leaf)], np.asarray(q.prompt)), len(q.prompt) - 1))
            for leaf, q in zip(leaves, questions, strict=True)
        ]
        paths = [[q.prompt + c[:-1] for c in q.continuations] for q in questions]
        known = [count for (_, count), own in zip(begins, paths, strict=True) for _ in own]
        second = build([path for own in paths for path in own], CHUNK, known)
        first = np.cumsum([0, *map(len, paths)])[:-1]
        carried = self._carry(tree, store, second, [second.leaves[place] for place in first], begins)
        scores = self._score_tree(second, carried, list(questions))
        asked = sum(len(q.prompt) + sum(map(len, q.continuations)) for q in questions)
        computed = sum(segment.end - segment.start for segment in second.segments if not segment.known)
        self._ledger.prompt_tokens += asked
        self._ledger.cached_tokens += asked - len(known) - computed
        return scores

    @staticmethod
    def _carry(
        tree: TokenTree, store: KeyValues, second: TokenTree, leaves: Sequence[int], begins: Sequence[tuple[int, int]]
    ) -> KeyValues:
        """A store for `second` that holds what `tree` has of it: `begins` has for each of `leaves` the leaf of `tree`
        whose sequence its own begins like, and for how many tokens.
        """
        carried = KeyValues(len(second))
        from_place = np.full(len(second), -1, dtype=np.int64)
        for leaf, (home, count) in zip(leaves, begins, strict=True):
            from_place[second.indices(leaf)[:count]] = tree.indices(home)[:count]
        known = np.flatnonzero(from_place >= 0)
        for layer, (keys, values) in store.layers.items():
            source = torch.from_numpy(from_place[known]).to(keys.device)
            places = torch.from_numpy(known).to(keys.device)
            carried.place(layer, places, keys.index_select(1, source), values.index_select(1, source))
        return carried

    def _generate_group(self, requests: list[GenerateRequest]) -> list[Generation | Failure]:
        prompts = [request.prompt for request in requests]
        counts = shared_blocks(prompts)
        tree = build(prompts, CHUNK, [BLOCK * count for count in counts])
        store = self._recall(tree, prompts, tree.leaves, counts)
        asked = sum(len(request.prompt) for request in requests)
        self._ledger.prompt_tokens += asked
        self._ledger.cached_tokens += asked - len(tree)
        last = np.asarray([tree.segments[leaf].end - 1 for leaf in tree.leaves])
        wanted = np.unique(last)
        logits = torch.cat([part for _, part in self._prefill(tree, store, wanted)])
        rows = [
            Row(i, tree.leaves[i], len(request.prompt), Sampler(request.decoding, request.prompt, n),
                request.decoding.max_tokens, self._matcher(request))
            for i, request in enumerate(requests)
            for n in range(request.decoding.n)
        ]  # fmt: skip
        rows.sort(key=lambda row: (tree.segments[row.leaf].start, row.order, row.sampler.sample))
        for first in range(0, len(rows), LOGIT_ROWS):
            part = rows[first : first + LOGIT_ROWS]
            places = np.searchsorted(wanted, [tree.segments[row.leaf].end - 1 for row in part])
            self._take(part, logits[torch.from_numpy(places).to(logits.device)])
        for part in parts(tree, [row for row in rows if row.finish is None], self._limits):
            self._decode(tree, store, part)
        self._ledger.generated_tokens += sum(len(row.tokens) for row in rows)
        of_request: list[list[Row]] = [[] for _ in requests]
        for row in rows:
            of_request[row.order].append(row)
        return [self._generation(own) for own in of_request]

    def _generation(self, rows: list[Row]) -> Generation | Failure:
        """A request's result, from its rows in the order of their samples."""
        for row in rows:
            if row.matcher is not None and row.matcher.error:
                return Failure(f"the grammar can't be followed: {row.matcher.error}")
        return Generation(tuple(row.sample(self._tokenizer) for row in rows))

    def _matcher(self, request: GenerateRequest) -> Any:
        return None if request.grammar is None else self._constraints.matcher(request.grammar)

    def _decode(self, tree: TokenTree, store: KeyValues, live: list[Row]) -> None:
        """Step the rows, which have their first token, until all are finished."""
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
            part, scores = rows[first : first + LOGIT_ROWS], logits[first : first + LOGIT_ROWS]
            chosen = self._choose(part, scores)
            taken = torch.tensor(chosen, device=scores.device)
            logprobs = (scores.gather(1, taken[:, None])[:, 0].float() - log_normaliser(scores)).tolist()
            for row, token, logprob in zip(part, chosen, logprobs, strict=True):
                row.take(token, logprob, self._ends, self._tokenizer)

    @staticmethod
    def _choose(rows: list[Row], logits: Tensor) -> list[int]:
        """The next token of each row; `logits` are left as they are."""
        chosen: list[int] = logits.max(dim=-1).indices.tolist()
        for place, row in enumerate(rows):
            if row.sampler.plain and row.matcher is None:
                continue
            own = logits[place].to(torch.float32, copy=True)
            if row.matcher is not None:
                own[~torch.from_numpy(row.matcher.allowed()).to(own.device)] = float("-inf")
            chosen[place] = row.sampler.choose(own)
        return chosen


def _span_tokens(request: SpanRequest) -> int:
    """About how many tokens are scored at most: twice the beam's, under one prompt or two."""
    longest = max(map(len, request.runs)) + len(request.end)
    under = 1 if request.against is None else 2
    return under * 2 * request.width * longest + (len(request.against) if request.against else 0)
