"""The local engine: a transformers model held in process, with shared prefixes computed once per batch.

A batch's result depends on the batch alone: what is carried over to the next (`prefixes.py`) is bit for bit what the
next would compute, so the same batch gives the same bytes again (on the same kind of device). A batch is cut into
groups by limits that do not change. Only a group that runs out of device memory is halved and done again: then results
are the same again for the same cut, and the cut depends on the memory that was free.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from .architecture import context_window, has_experts, prepare
from .attention import KeyValues, Plan
from .batch_limits import halved
from .blocks import BlockPlan, Stacks, fill
from .choosing import choose, forced
from .compute import in_compute, side_by_side
from .constraints import Constraints
from .decode import DecodePlan, Question, TreeRow, split
from .engine import Failure, GenerateRequest, Generation, Ledger, ScoreRequest, Scores, SpanRequest, Spans, Tokenizer
from .engine_base import Capacity, HeldEngine
from .hidden import FeatureRequest, Features, decoder_layers, hidden_states
from .limits import Limits, fitting, groups, limits_for, waiting_groups
from .prefill import ChunkPlan, waves
from .prefixes import BLOCK, PrefixCache, shared_blocks
from .rows import take_forced
from .sampling import Sampler, log_normaliser
from .spans import first_tokens, refusal, search
from .tree import IntArray, TokenTree, build, common_prefix

ENGINE_VERSION = "11"
CHUNK = 2048
LOGIT_ROWS = 64

T = TypeVar("T", GenerateRequest, ScoreRequest, SpanRequest)
R = TypeVar("R")


class LocalEngine(HeldEngine):
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
        self._stacks = Stacks(self._compute_blocks, apart=not has_experts(config))
        self._ledger = Ledger()

    @in_compute
    @torch.inference_mode()
    def score(self, requests: Sequence[ScoreRequest]) -> list[Scores | Failure]:
        """See `Engine.score`. All continuations of a request share its prompt, and each other's common prefixes."""

        def added(request: ScoreRequest) -> int:
            return sum(map(len, request.continuations))

        return self._answer(requests, self._refuse_score, added, self._score_group)

    @in_compute
    @torch.inference_mode()
    def generate(self, requests: Sequence[GenerateRequest]) -> list[Generation | Failure]:
        """See `Engine.generate`."""

        def added(request: GenerateRequest) -> int:
            return request.decoding.max_tokens

        def cut(todo: list[int]) -> Iterator[list[int]]:
            return waiting_groups(todo, lambda i: requests[i].prompt, lambda i: requests[i].decoding.n, self._limits)

        return self._answer(requests, self._refuse_generate, added, self._generate_group, cut)

    @in_compute
    @torch.inference_mode()
    def spans(self, requests: Sequence[SpanRequest]) -> list[Spans | Failure]:
        """See `Engine.spans`. A prompt that the first tokens were scored after is not computed again."""
        return self._answer(requests, self._refuse_spans, _span_tokens, self._spans_of)

    @property
    def capacity(self) -> Capacity:
        """See `HeldEngine.capacity`."""
        return Capacity(self._limits.tokens, self._limits.rows)

    @property
    def layers(self) -> int:
        """See `hidden.Featurizing.layers`."""
        return len(decoder_layers(self._model))

    def features(self, requests: Sequence[FeatureRequest]) -> list[Features | Failure]:
        """See `hidden.Featurizing.features`."""

        def refuse(prompt: tuple[int, ...]) -> Failure | None:
            return self._unknown(prompt) or self._too_long(len(prompt))

        return hidden_states(
            self._model,
            requests,
            limits=self._limits,
            ledger=self._ledger,
            refuse=refuse,
            emptied=self._prefixes.clear,
        )

    def _answer(
        self,
        requests: Sequence[T],
        refuse: Callable[[T], Failure | None],
        added: Callable[[T], int],
        compute: Callable[[list[T]], Sequence[R | Failure]],
        cut: Callable[[list[int]], Iterator[list[int]]] | None = None,
    ) -> list[R | Failure]:
        """Each request's failure, or what `compute` gives for it in a group that fits. added: tokens after a prompt;
        cut: how to form groups that need no room for what is added.
        """
        began = time.perf_counter()
        refused = [refuse(request) for request in requests]
        todo = [i for i, failure in enumerate(refused) if failure is None]
        found: dict[int, R | Failure] = {}

        def work(group: list[int]) -> Iterator[tuple[int, R | Failure]]:
            return zip(group, compute([requests[i] for i in group]), strict=True)

        fitting_groups = (
            cut(todo) if cut else groups(todo, lambda i: requests[i].prompt, lambda i: added(requests[i]), self._limits)
        )
        for group in fitting_groups:
            found |= halved(
                group,
                work,
                device=self._model.device,
                ledger=self._ledger,
                size=lambda i: len(requests[i].prompt) + added(requests[i]),
                emptied=self._prefixes.clear,
            )
        self._ledger.calls += len(requests)
        self._ledger.seconds += time.perf_counter() - began
        return [failure or found[i] for i, failure in enumerate(refused)]

    # What can't be computed

    def _refuse_spans(self, request: SpanRequest) -> Failure | None:
        prompts = (request.prompt, request.prompt if request.against is None else request.against)
        if not all(prompts):
            return Failure("a score needs a prompt of at least one token")
        if (wrong := refusal(request)) is not None:
            return wrong
        scored = max(max(map(len, request.runs)) + len(request.end), len(request.also))
        unknown = self._unknown(*prompts, *request.runs, request.end + request.also)
        return unknown or self._too_long(max(map(len, prompts)) + scored)

    # The forward passes

    def _recall(
        self, tree: TokenTree, prompts: Sequence[tuple[int, ...]], leaves: Sequence[int], counts: Sequence[int]
    ) -> KeyValues:
        """A key-value store for `tree` that holds the blocks which its prompts share, see `blocks.fill`."""
        store, device = KeyValues(len(tree)), self._model.device
        given = fill(self._prefixes, tree, prompts, leaves, counts, store, self._stacks, device)
        self._ledger.reused_tokens += given
        return store

    def _compute_blocks(self, plans: Sequence[BlockPlan]) -> None:
        """Run the model over the tokens of each plan."""
        nowhere = np.zeros(1, dtype=np.int64)
        jobs = [partial(self._forward, plan.tokens, plan.positions, plan, nowhere) for plan in plans]
        self._ledger.forward_passes += len(jobs)
        if self._model.device.type == "cpu":
            side_by_side(jobs)
        else:
            for job in jobs:
                job()

    def _prefill(self, tree: TokenTree, store: KeyValues, wanted: IntArray) -> Iterator[tuple[IntArray, Tensor]]:
        """Compute `tree` into `store`: (flat indices, logits [n, V]) per chunk for the sorted flat indices `wanted`.

        The chunks come in any order, a chunk's indices are ascending.
        """
        device, dtype = self._model.device, self._model.dtype

        def through(plan: ChunkPlan) -> tuple[IntArray, Tensor]:
            inside = wanted[np.isin(wanted, plan.places, assume_unique=True)]
            rows = np.searchsorted(plan.places, inside) if len(inside) else np.zeros(1, dtype=np.int64)
            return inside, self._forward(tree.tokens[plan.places], tree.positions[plan.places], plan, rows)

        for wave in waves(tree, store, CHUNK, device, dtype):
            self._ledger.forward_passes += len(wave)
            for inside, logits in side_by_side([partial(through, plan) for plan in wave]):
                if len(inside):
                    yield inside, logits

    def _ends_of(self, prompts: Sequence[tuple[int, ...]]) -> tuple[TokenTree, KeyValues, list[int], Tensor]:
        """The prompts computed: their tree and its store, and for each prompt the row of the logits [n, V] that stands
        at its end.
        """
        counts = shared_blocks(prompts)
        tree = build(prompts, CHUNK, [BLOCK * count for count in counts])
        store = self._recall(tree, prompts, tree.leaves, counts)
        asked = sum(map(len, prompts))
        self._ledger.prompt_tokens += asked
        self._ledger.cached_tokens += asked - len(tree)
        last = np.asarray([tree.segments[leaf].end - 1 for leaf in tree.leaves])
        wanted = np.unique(last)
        parts = list(self._prefill(tree, store, wanted))
        places = np.concatenate([inside for inside, _ in parts])
        row_of = np.empty(len(tree), dtype=np.int64)
        row_of[places] = np.arange(len(places))
        return tree, store, row_of[last].tolist(), torch.cat([logits for _, logits in parts])

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
        return output.logits[0]  # type: ignore[no-any-return]

    def _score_group(self, requests: list[ScoreRequest]) -> list[Scores]:
        prompts = [request.prompt for request in requests]
        counts = shared_blocks(prompts)
        paths = [[request.prompt + c[:-1] for c in request.continuations] for request in requests]
        known = [BLOCK * count for own, count in zip(paths, counts, strict=True) for _ in own]
        tree = build([path for own in paths for path in own], CHUNK, known)
        first = np.cumsum([0, *map(len, paths)])[:-1]
        store = self._recall(tree, prompts, [tree.leaves[place] for place in first], counts)
        scores = self._score_tree(tree, store, requests)
        asked = sum(len(request.prompt) + sum(map(len, request.continuations)) for request in requests)
        self._ledger.prompt_tokens += asked
        # Nothing is predicted from a continuation's last token, so that it is not computed.
        self._ledger.cached_tokens += asked - len(known) - len(tree)
        return scores

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
            mine = np.flatnonzero(np.isin(flat_places, indices))
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
        tree, store, rows, logits = self._ends_of(prompts)
        firsts = []
        for request, row in zip(requests, rows, strict=True):
            tokens = first_tokens(request)
            likely = logits[row, torch.tensor(tokens, device=logits.device)].float().tolist()
            firsts.append(dict(zip(tokens, likely, strict=True)))
        homes = {r.against: place for place, r in enumerate(requests) if r.against is not None}
        homes |= {prompt: place for place, prompt in enumerate(prompts)}
        return search(requests, firsts, lambda questions: self._score_below(tree, store, homes, questions))

    def _score_below(
        self, tree: TokenTree, store: KeyValues, homes: Mapping[tuple[int, ...], int], questions: Sequence[ScoreRequest]
    ) -> list[Scores]:
        """Score continuations of prompts, each of which begins like the prompt of `tree` that `homes` says."""
        # A prompt's last token is computed again, since a continuation's first is predicted from there.
        begins = []
        for question in questions:
            home = tree.indices(tree.leaves[homes[question.prompt]])
            alike = common_prefix(tree.tokens[home], np.asarray(question.prompt))
            begins.append(home[: min(alike, len(question.prompt) - 1)])
        paths = [[q.prompt + c[:-1] for c in q.continuations] for q in questions]
        known = [len(begin) for begin, own in zip(begins, paths, strict=True) for _ in own]
        second = build([path for own in paths for path in own], CHUNK, known)
        first = np.cumsum([0, *map(len, paths)])[:-1]
        carried = self._carry(store, second, [second.leaves[place] for place in first], begins)
        scores = self._score_tree(second, carried, list(questions))
        asked = sum(len(q.prompt) + sum(map(len, q.continuations)) for q in questions)
        computed = sum(segment.end - segment.start for segment in second.segments if not segment.known)
        self._ledger.prompt_tokens += asked
        self._ledger.cached_tokens += asked - len(known) - computed
        return scores

    @staticmethod
    def _carry(store: KeyValues, second: TokenTree, leaves: Sequence[int], begins: Sequence[IntArray]) -> KeyValues:
        """A store for the tree `second` that holds what `store` has of it: `begins` says for each of `leaves` where the
        first tokens of its sequence stand there.
        """
        carried = KeyValues(len(second))
        from_place = np.full(len(second), -1, dtype=np.int64)
        for leaf, begin in zip(leaves, begins, strict=True):
            from_place[second.indices(leaf)[: len(begin)]] = begin
        known = np.flatnonzero(from_place >= 0)
        for layer, (keys, values) in store.layers.items():
            source = torch.from_numpy(from_place[known]).to(keys.device)
            places = torch.from_numpy(known).to(keys.device)
            carried.place(layer, places, keys.index_select(1, source), values.index_select(1, source))
        return carried

    def _generate_group(self, requests: list[GenerateRequest]) -> list[Generation | Failure]:
        tree, store, places, logits = self._ends_of([request.prompt for request in requests])
        rows = [
            TreeRow(Sampler(request.decoding, request.prompt, n), self._matcher(request),
                    order=i, leaf=tree.leaves[i], length=len(request.prompt))
            for i, request in enumerate(requests)
            for n in range(request.decoding.n)
        ]  # fmt: skip
        rows.sort(key=lambda row: (tree.segments[row.leaf].start, row.order, row.sampler.sample))
        take_forced(rows, self._ends, self._tokenizer)
        self._take(rows, [row.question(places[row.order], 0) for row in rows], logits)
        del logits
        self._decode(tree, store, [row for row in rows if not row.done])
        self._ledger.generated_tokens += sum(len(row.tokens) for row in rows)
        of_request: list[list[TreeRow]] = [[] for _ in requests]
        for row in rows:
            of_request[row.order].append(row)
        return [self._generation(own) for own in of_request]

    def _generation(self, rows: list[TreeRow]) -> Generation | Failure:
        """A request's result, from its rows in the order of their samples."""
        for row in rows:
            if row.matcher is not None and row.matcher.error:
                return Failure(f"the grammar can't be followed: {row.matcher.error}")
        return Generation(tuple(row.sample(self._tokenizer) for row in rows))

    def _matcher(self, request: GenerateRequest) -> Any:
        return None if request.grammar is None else self._constraints.matcher(request.grammar)

    def _decode(self, tree: TokenTree, store: KeyValues, waiting: list[TreeRow]) -> None:
        """Step the rows, which have their first token, until nothing is left to be asked for any: as many at once as
        fit, in their order, and the next ones join when a quarter of those is done.
        """
        common = split(tree, waiting)
        plan = DecodePlan(common, store)
        while True:
            going = [place for place, row in enumerate(plan.rows) if not row.done]
            if len(going) <= 0.75 * len(plan.rows):
                count = fitting(common, [plan.rows[place] for place in going], waiting, self._limits)
                if not going and not count:
                    return
                plan.change(going, waiting[:count])
                waiting = waiting[count:]
            self._step(plan)

    def _step(self, plan: DecodePlan) -> None:
        """Have the model read what is next for each row of the plan, and take what comes after it."""
        live = plan.rows
        runs = [row.unread(max(1, CHUNK // len(live))) for row in live]
        counts = [len(run) for run in runs]
        plan.begin(counts)
        first = [row.length + (len(row.tokens) - 1 if row.done else row.read) for row in live]
        positions = np.concatenate([np.arange(at, at + n) for at, n in zip(first, counts, strict=True)])
        tokens = np.asarray([token for run in runs for token in run], dtype=np.int64)
        self._ledger.forward_passes += 1
        logits = self._forward(tokens, positions, plan, np.arange(len(tokens)))
        plan.end([place for place, row in enumerate(live) if row.done])
        questions, place = [], 0
        for row, count in zip(live, counts, strict=True):
            if not row.done:
                questions += [row.question(place + i, row.read + i + 1) for i in range(count)]
                row.read += count
            place += count
        self._take(live, questions, logits)

    def _take(self, rows: Sequence[TreeRow], questions: Sequence[Question], logits: Tensor) -> None:
        """Answer the rows' questions from `logits` [n, V]: the model's word on what was forced, and then the choice of
        what comes next.
        """
        known = [question for question in questions if question.token is not None]
        for first in range(0, len(known), LOGIT_ROWS):
            part = known[first : first + LOGIT_ROWS]
            tokens = [question.token for question in part if question.token is not None]
            for question, chosen in zip(part, forced(tokens, _at(logits, part)), strict=True):
                question.row.know(chosen.logprob, chosen.masked)
        unknown = [question for question in questions if question.token is None]
        for first in range(0, len(unknown), LOGIT_ROWS):
            part = unknown[first : first + LOGIT_ROWS]
            own = [question.row for question in part]
            samplers, masks = [row.sampler for row in own], [row.mask for row in own]
            for row, chosen in zip(own, choose(samplers, masks, _at(logits, part)), strict=True):
                row.choose(chosen, self._ends, self._tokenizer)
        take_forced(rows, self._ends, self._tokenizer)


def _at(logits: Tensor, questions: Sequence[Question]) -> Tensor:
    """The rows of `logits` in which the questions are answered; no copy where they stand side by side."""
    places = [question.place for question in questions]
    if places == list(range(places[0], places[0] + len(places))):
        return logits[places[0] : places[0] + len(places)]
    return logits[torch.tensor(places, device=logits.device)]


def _span_tokens(request: SpanRequest) -> int:
    """About how many tokens are scored at most: twice the beam's, under one prompt or two."""
    longest = max(map(len, request.runs)) + len(request.end)
    under = 1 if request.against is None else 2
    return under * 2 * request.width * longest + (len(request.against) if request.against else 0)
