"""The engine for decoder-only models whose prompts can't be laid over a token tree: padded batches.

`engine_for` chooses between it and the one for encoder-decoders.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from .batch_limits import BatchLimits
from .batch_rows import Batch, Tokens, pick_rows
from .batches import BatchEngine
from .encoder_decoder import EncoderDecoderEngine, framing
from .engine import Tokenizer

TRAINED_WINDOW = 2048  # tokens: of models that state no window and need none, such as BLOOM and Mamba
WINDOW_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "context_length", "seq_length")
CACHE_NAMES = ("past_key_values", "cache_params", "state")  # transformers', Mamba's and RWKV's


class PlainEngine(BatchEngine[list[Tokens]]):
    """A decoder-only model: prompts stand on the right of a padded batch when texts are written, on the left when they
    are read, where a causal model needs no mask.
    """

    def _window(self) -> int:
        return _stated_window(self._model.config.get_text_config())

    def _open(self, prompts: Sequence[Tokens]) -> list[Tokens]:
        return list(prompts)

    def _begin(self, opened: list[Tokens], places: Sequence[int]) -> Batch:
        least = 2 if self._can.pads else 1  # some models take a single token for a step after what they saw last
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


def why_not_shared(refused: InputError, name: str) -> str:
    """What the tree engine's refusal of the model `name` says of it, for `engine_for`."""
    told = re.sub(rf"^model {re.escape(repr(name))}( \(\w+\))? ", "it ", refused.message).partition("\n")[0]
    return told.removeprefix("it can't share prefixes: ")


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
    """The engine for a model that the tree engine refused, see `BatchEngine`; its `notice` says what that costs.

    why: see `why_not_shared`; an encoder-decoder has a reason of its own.
    """
    kind: type[BatchEngine[Any]] = EncoderDecoderEngine if model.config.is_encoder_decoder else PlainEngine
    return kind(
        model,
        tokenizer,
        identity=identity,
        name=name,
        ends=ends,
        backend_tokenizer=backend_tokenizer,
        limits=limits,
        why=None if model.config.is_encoder_decoder else why,
    )


def window_for(config: Any, settings: Any, backend_tokenizer: Any, name: str) -> int:
    """The context window of `engine_for`'s engine, from the model's configuration and generation settings alone."""
    if config.is_encoder_decoder:
        return framing(config, settings, backend_tokenizer, name).window(config, name)
    return _stated_window(config.get_text_config())


def _stated_window(config: Any) -> int:
    stated = [value for name in WINDOW_NAMES if (value := getattr(config, name, None))]
    return min([stated[0] if stated else TRAINED_WINDOW, *_short_windows(config)])


def _short_windows(config: Any) -> list[int]:
    """Up to where LongRoPE's short factors hold: beyond, they would change for everything in the batch."""
    stated = getattr(config, "rope_parameters", None) or {}
    by_kind = [value for value in stated.values() if isinstance(value, dict)] or [stated]
    return [value["original_max_position_embeddings"] for value in by_kind if value.get("rope_type") == "longrope"]


def _parameters(model: Any) -> frozenset[str]:
    """What the model's forward pass takes."""
    return frozenset(inspect.signature(model.forward).parameters)
