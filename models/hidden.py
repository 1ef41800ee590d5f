"""Hidden states: what a model computes on the way to its next token, as features of a prompt.

A prompt's features are, for each layer that is asked for, the hidden state at its last token and the mean of the hidden
states of its tokens. They are read by forward hooks while the prompts run over one token tree, so that what prompts
share is computed once, and only those two rows a prompt and layer are kept: never a layer's states as a whole. The
pass stops behind the highest layer asked for. Nothing is taken over from one batch to the next, so that a batch's
features depend on the batch alone (and, where memory runs out, on how it was halved).

torch is imported where it is needed: the protocol is also read by parts that must start quickly.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .compute import compute
from .engine import Failure, Ledger
from .tree import IntArray, TokenTree, build

if TYPE_CHECKING:
    from torch import Tensor

    from .limits import Limits

CHUNK = 2048

FloatArray = NDArray[np.float32]
Refuse = Callable[[tuple[int, ...]], Failure | None]


@dataclass(frozen=True)
class FeatureRequest:
    """Read `prompt` (token ids, at least one) at `layers`: 1 is the first decoder layer's output, the number of
    layers the last one's, before the final norm.
    """

    prompt: tuple[int, ...]
    layers: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Features:
    """What a `FeatureRequest` gives, a row per layer in the order asked for: arrays [layers, d].

    last: the hidden state at the prompt's last token; mean: the mean over all of its tokens.
    """

    last: FloatArray
    mean: FloatArray


@runtime_checkable
class Featurizing(Protocol):
    """An engine that gives hidden states as well. A model server does not."""

    @property
    def layers(self) -> int:
        """How many decoder layers the model has."""

    def features(self, requests: Sequence[FeatureRequest]) -> list[Features | Failure]:
        """One result per request, in order."""


def layers_of(engine: object) -> int:
    """How many layers' hidden states an engine gives; 0 for one that gives none."""
    return engine.layers if isinstance(engine, Featurizing) else 0


def features_of(engine: object, requests: Sequence[FeatureRequest]) -> list[Features | Failure]:
    """`engine.features(requests)`. Raises `InputError` for an engine that gives no hidden states."""
    if not isinstance(engine, Featurizing) or not engine.layers:
        raise InputError(
            "this target does not give hidden states, which a head reads",
            expected="a model held in process whose prompts can share prefixes",
            hint="Use the model that the program was compiled for, or the program's prompt-only parameters.",
        )
    return engine.features(requests)


def decoder_layers(model: Any) -> tuple[Any, ...]:
    """The decoder layers of a transformers model, in order; none where the model does not hold them in one list."""
    from torch.nn import ModuleList

    count = model.config.get_text_config(decoder=True).num_hidden_layers
    return next((tuple(part) for part in model.modules() if isinstance(part, ModuleList) and len(part) == count), ())


def hidden_states(
    model: Any,
    requests: Sequence[FeatureRequest],
    *,
    limits: Limits,
    ledger: Ledger,
    refuse: Refuse,
    emptied: Callable[[], None] = lambda: None,
) -> list[Features | Failure]:
    """The features of each request, in order, from a model that has the tree's attention (see `architecture.prepare`).

    limits: what a batch may hold; ledger: is told what it cost; refuse: why a prompt can't be computed, or None;
    emptied: is called when memory has run out, to let go of more.
    """
    return compute(_hidden_states, model, requests, limits, ledger, refuse, emptied)


def _hidden_states(
    model: Any,
    requests: Sequence[FeatureRequest],
    limits: Limits,
    ledger: Ledger,
    refuse: Refuse,
    emptied: Callable[[], None],
) -> list[Features | Failure]:
    import torch

    from .batch_limits import halved
    from .limits import groups

    began = time.perf_counter()
    layers = decoder_layers(model)
    refused = [_refuse(request, len(layers)) or refuse(request.prompt) for request in requests]
    todo = [i for i, failure in enumerate(refused) if failure is None]
    found: dict[int, Features | Failure] = {}

    def work(group: list[int]) -> Iterator[tuple[int, Features]]:
        return zip(group, _read(model, layers, [requests[i] for i in group], ledger), strict=True)

    with torch.inference_mode():
        for group in groups(todo, lambda i: requests[i].prompt, lambda i: 0, limits):
            found |= halved(
                group, work, device=model.device, ledger=ledger, size=lambda i: len(requests[i].prompt), emptied=emptied
            )
    ledger.calls += len(requests)
    ledger.seconds += time.perf_counter() - began
    return [failure or found[i] for i, failure in enumerate(refused)]


def _refuse(request: FeatureRequest, count: int) -> Failure | None:
    if not request.prompt:
        return Failure("a prompt needs at least one token")
    if not request.layers:
        return Failure("features need at least one layer")
    if not count:
        return Failure("the model's decoder layers can't be found, so that its hidden states can't be read")
    for layer in request.layers:
        if not 1 <= layer <= count:
            return Failure(f"the model has no layer {layer}; it has the layers 1 to {count}")
    return None


def _read(model: Any, layers: Sequence[Any], requests: Sequence[FeatureRequest], ledger: Ledger) -> Iterator[Features]:
    """One group's features: its tree chunk by chunk through the model, up to the highest layer wanted."""
    from .attention import KeyValues
    from .prefill import chunks

    wanted = sorted({layer for request in requests for layer in request.layers})
    tree = build([request.prompt for request in requests], CHUNK)
    tap = _Tap(wanted, tree, len(requests))
    with tap.on(layers):
        for plan in chunks(tree, KeyValues(len(tree)), CHUNK, model.device, model.dtype):
            tap.chunk(plan.places)
            _forward(model, tree, plan)
            ledger.forward_passes += 1
    asked = sum(len(request.prompt) for request in requests)
    ledger.prompt_tokens += asked
    ledger.cached_tokens += asked - len(tree)
    for place, request in enumerate(requests):
        rows = [wanted.index(layer) for layer in request.layers]
        yield Features(tap.last[rows, place], tap.mean[rows, place])


def _forward(model: Any, tree: TokenTree, plan: Any) -> None:
    import torch

    device, part = model.device, plan.places
    try:
        model(
            input_ids=torch.from_numpy(tree.tokens[part])[None].to(device),
            position_ids=torch.from_numpy(tree.positions[part])[None].to(device),
            use_cache=False,
            logits_to_keep=torch.zeros(1, dtype=torch.long, device=device),
            cuecard_plan=plan,
        )
    except _EnoughError:
        return


class _EnoughError(Exception):
    """Raised by a hook where nothing above is wanted."""


class _Tap:
    """Takes the wanted rows out of the hidden states that go by.

    last, mean: [layers, prompts, d] of the wanted layers, filled chunk by chunk. A prompt's mean is a product of its
    chunk's states [T, d] and a row of weights: 1 / length at each token of the prompt, 0 elsewhere.
    """

    last: FloatArray
    mean: FloatArray

    def __init__(self, wanted: Sequence[int], tree: TokenTree, prompts: int) -> None:
        self._wanted, self._prompts = tuple(wanted), prompts
        self._paths = [tree.indices(leaf) for leaf in tree.leaves]
        self._start = 0
        self._ends: list[tuple[int, int]] = []
        self._rows: IntArray = np.zeros(0, dtype=np.int64)
        self._weights: FloatArray = np.zeros((0, 0), dtype=np.float32)

    @contextmanager
    def on(self, layers: Sequence[Any]) -> Iterator[None]:
        """Listen at the wanted ones of the model's `layers`."""
        handles = [
            layers[layer - 1].register_forward_hook(lambda module, given, output, row=row: self._take(row, output))
            for row, layer in enumerate(self._wanted)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def chunk(self, places: IntArray) -> None:
        """The next states are those of the tree's tokens at the flat indices `places`, ascending."""
        weights = np.zeros((self._prompts, len(places)), dtype=np.float32)
        self._ends = []
        for prompt, path in enumerate(self._paths):
            rows = np.flatnonzero(np.isin(places, path, assume_unique=True))
            weights[prompt, rows] = 1.0 / len(path)
            if len(rows) and places[rows[-1]] == path[-1]:
                self._ends.append((prompt, int(rows[-1])))
        self._rows = np.flatnonzero(weights.any(axis=1))
        self._weights = weights[self._rows]

    def _take(self, row: int, output: Any) -> None:
        import torch

        states: Tensor = output[0] if isinstance(output, tuple) else output
        states = states.reshape(-1, states.shape[-1])
        if not hasattr(self, "last"):
            shape = (len(self._wanted), self._prompts, states.shape[-1])
            self.last, self.mean = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.float32)
        weights = torch.from_numpy(self._weights).to(states.device)
        self.mean[row, self._rows] += (weights @ states.float()).cpu().numpy()
        if self._ends:
            places, tokens = zip(*self._ends, strict=True)
            index = torch.tensor(tokens, device=states.device)
            self.last[row, list(places)] = states.index_select(0, index).float().cpu().numpy()
        if row == len(self._wanted) - 1:
            raise _EnoughError
