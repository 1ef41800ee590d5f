"""What can be said about a model without reading its weights: how it tokenizes, how large it is, what it will need."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, NoReturn

from ...errors import InputError, RunError
from ...models.architecture import context_window
from ...models.devices import choose_device, choose_dtype
from ...models.engine import Ledger, Tokenizer
from ...models.identity import identity
from ...models.loading import ModelSource, load_config, load_tokenizer
from ...models.local import ENGINE_VERSION
from ...models.tokenizer import HFTokenizer

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class TokenizerEngine:
    """An engine that renders prompts and answers nothing.

    special: the texts of the model's special tokens; start: the text of those that every prompt begins with.
    """

    name: str
    tokenizer: Tokenizer
    context_window: int
    special: tuple[str, ...] = ()
    start: str = ""
    identity: str = "tokenizer"
    ledger: Ledger = field(default_factory=Ledger)

    def generate(self, requests: Sequence[Any]) -> NoReturn:
        """Raises `RunError`."""
        raise RunError("the model's weights are not open")

    def score(self, requests: Sequence[Any]) -> NoReturn:
        """Raises `RunError`."""
        raise RunError("the model's weights are not open")


def tokenizer_engine(source: ModelSource) -> TokenizerEngine:
    """The tokenizer and the context window of a model. Raises `InputError` for files that cannot be used."""
    backend = load_tokenizer(source)
    tokenizer = HFTokenizer(backend, name=source.name)
    return TokenizerEngine(
        source.name,
        tokenizer,
        context_window(load_config(source).get_text_config(), source.name),
        tuple(backend.all_special_tokens),
        backend.decode(list(tokenizer.start()), skip_special_tokens=False),
    )


@dataclass(frozen=True)
class Facts:
    """What a model is, and what it needs. Memory is in bytes: of the weights, and of the KV cache for one token."""

    name: str
    folder: Path
    parameters: int
    layers: int
    context_window: int
    dtype: str
    device: str
    weights: int
    cache_per_token: int
    identity: str


def model_facts(source: ModelSource, *, device: str = "auto", dtype: str = "auto") -> Facts:
    """The facts of a model on this machine. Raises `InputError` for a device that is not there, or damaged files."""
    device = choose_device(device)
    dtype = choose_dtype(dtype, device)
    config = load_config(source).get_text_config()
    parameters = count_parameters(source.folder, tied=bool(getattr(config, "tie_word_embeddings", False)))
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Facts(
        name=source.name,
        folder=source.folder,
        parameters=parameters,
        layers=config.num_hidden_layers,
        context_window=context_window(config, source.name),
        dtype=dtype,
        device=device,
        weights=parameters * BYTES[dtype],
        cache_per_token=2 * config.num_hidden_layers * heads * width * BYTES[dtype],
        identity=identity(
            source.folder, dtype=dtype, device_kind=device.partition(":")[0], engine_version=ENGINE_VERSION
        ),
    )


def count_parameters(folder: Path, *, tied: bool = False) -> int:
    """How many weights the safetensors of a folder hold, by their headers.

    tied: the output layer is the embedding.
    """
    from safetensors import SafetensorError, safe_open

    sizes: dict[str, int] = {}
    for path in _weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - it is no mapping
                    sizes[name] = prod(file.get_slice(name).get_shape())
        except (SafetensorError, OSError) as error:
            raise InputError(f"cannot be read: {error}", path=path) from error
    if tied and len(sizes) > 1:
        sizes.pop("lm_head.weight", None)
    return sum(sizes.values())


def _weight_files(folder: Path) -> list[Path]:
    """The files that transformers would read; a folder may hold the same weights once more in another layout."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            return [folder / name for name in sorted(set(json.loads(index.read_bytes())["weight_map"].values()))]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"not an index of weights: {error}", path=index) from error
    whole = folder / "model.safetensors"
    return [whole] if whole.is_file() else sorted(folder.glob("*.safetensors"))
