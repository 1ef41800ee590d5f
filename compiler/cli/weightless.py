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
from ...models.batches import ENGINE_VERSION as PLAIN_VERSION
from ...models.batches import notice_text
from ...models.devices import choose_device, choose_dtype
from ...models.encoder_decoder import EncoderDecoderEngine
from ...models.engine import Ledger, Tokenizer
from ...models.identity import identity
from ...models.loading import ModelSource, load_config, load_settings, load_skeleton, load_tokenizer
from ...models.local import ENGINE_VERSION
from ...models.plain import why_not_shared, window_for
from ...models.quantized import FULL, KINDS, check_weights, identity_part, saved_bytes
from ...models.tokenizer import HFTokenizer

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
RECURRENT = ("linear_attention", "conv")
HEAD = "lm_head.weight"
COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")  # of an encoder-decoder's shared embedding
# BART's is a constant; T5's is left over from the code that it was trained with.
UNUSED = ("final_logits_bias", "EncDecAttention.relative_attention_bias.weight")


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

    def spans(self, requests: Sequence[Any]) -> NoReturn:
        """Raises `RunError`."""
        raise RunError("the model's weights are not open")


def tokenizer_engine(source: ModelSource) -> TokenizerEngine:
    """The tokenizer and the context window of a model. Raises `InputError` for files that cannot be used."""
    backend = load_tokenizer(source)
    tokenizer = HFTokenizer(backend, name=source.name)
    return TokenizerEngine(
        source.name,
        tokenizer,
        _engine_facts(source, load_config(source), backend).context_window,
        tuple(backend.all_special_tokens),
        backend.decode(list(tokenizer.start()), skip_special_tokens=False),
    )


@dataclass(frozen=True)
class _EngineFacts:
    """What the configuration says of the engine that a model will get. notice: see `BatchEngine.notice`."""

    context_window: int
    version: str
    notice: str | None


def _engine_facts(source: ModelSource, config: Any, backend_tokenizer: Any) -> _EngineFacts:
    """The tree's engine where the configuration speaks against nothing: the last word has a trial of the weights."""
    try:
        if not config.is_encoder_decoder:
            return _EngineFacts(context_window(config.get_text_config(), source.name), ENGINE_VERSION, None)
        why = EncoderDecoderEngine.reason
    except InputError as refused:
        why = why_not_shared(refused, source.name)
    window = window_for(config, load_settings(source), backend_tokenizer, source.name)
    return _EngineFacts(window, PLAIN_VERSION, notice_text(source.name, why))


@dataclass(frozen=True)
class Facts:
    """What a model is, and what it needs. Memory is in bytes: of the weights, and of the KV cache for one token.

    notice: what its engine does not do, as far as the configuration tells; rounded: see `loading.LoadedModel.weights`.
    """

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
    notice: str | None = None
    rounded: str = FULL


def model_facts(source: ModelSource, *, device: str = "auto", dtype: str = "auto", weights: str = FULL) -> Facts:
    """The facts of a model on this machine. Raises `InputError` for a device that is not there, damaged files, or
    weights that can't be rounded.
    """
    check_weights(weights)
    device = choose_device(device)
    dtype = choose_dtype(dtype, device)
    config = load_config(source)
    engine = _engine_facts(source, config, load_tokenizer(source))
    text = config.get_text_config(decoder=True)
    parameters = count_parameters(source.folder, tied=bool(getattr(text, "tie_word_embeddings", False)))
    return Facts(
        name=source.name,
        folder=source.folder,
        parameters=parameters,
        layers=_layers(text),
        context_window=engine.context_window,
        dtype=dtype,
        device=device,
        weights=parameters * BYTES[dtype] - _saved(source, dtype, weights),
        cache_per_token=_cached(text) * BYTES[dtype],
        identity=identity(
            source.folder,
            dtype=dtype,
            device_kind=device.partition(":")[0],
            engine_version=engine.version,
            weights=identity_part(weights),
        ),
        notice=engine.notice,
        rounded=weights,
    )


def weights_by_kind(source: ModelSource, facts: Facts) -> dict[str, int | None]:
    """The bytes of a model's weights for each kind of them; None for a kind that it can't have."""
    whole = facts.weights + _saved(source, facts.dtype, facts.rounded)
    found: dict[str, int | None] = {FULL: whole}
    for kind in KINDS:
        try:
            found[kind] = whole - _saved(source, facts.dtype, kind)
        except InputError:
            found[kind] = None
    return found


def _saved(source: ModelSource, dtype: str, weights: str) -> int:
    if weights == FULL:
        return 0
    return saved_bytes(load_skeleton(source), weights, name=source.name, itemsize=BYTES[dtype])


def _layers(text: Any) -> int:
    """How many layers write: those of the decoder where there is also an encoder."""
    return int(getattr(text, "num_decoder_layers", None) or text.num_hidden_layers)


def _cached(text: Any) -> int:
    """The numbers that a token adds to the KV cache; those that read a prompt's token in a decoder's cross-attention
    are as many. None in recurrent layers, whose state does not grow.
    """
    heads = getattr(text, "num_attention_heads", None)
    if not heads:
        return 0
    kinds = getattr(text, "layer_types", None)
    layers = sum(kind not in RECURRENT for kind in kinds) if kinds else _layers(text)
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    return int(2 * layers * (getattr(text, "num_key_value_heads", None) or heads) * width)


def count_parameters(folder: Path, *, tied: bool = False) -> int:
    """How many weights the safetensors of a folder hold, by their headers.

    tied: the output layer is the embedding, unless the files hold both and they differ (T5 1.1, FLAN-T5).
    """
    from safetensors import SafetensorError, safe_open

    shapes: dict[str, list[int]] = {}
    homes: dict[str, Path] = {}
    for path in _weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - it is no mapping
                    shapes[name], homes[name] = file.get_slice(name).get_shape(), path
        except (SafetensorError, OSError) as error:
            raise InputError(f"cannot be read: {error}", path=path) from error
    if tied and HEAD in shapes:
        twins = [name for name, shape in shapes.items() if shape == shapes[HEAD] and name != HEAD]
        if any(_middle(homes[name], name) == _middle(homes[HEAD], HEAD) for name in twins):
            shapes.pop(HEAD)
    shared = any(name.endswith("shared.weight") for name in shapes)
    left_out = (*UNUSED, *(COPIES if shared else ()))
    return sum(prod(shape) for name, shape in shapes.items() if not name.endswith(left_out))


def _middle(path: Path, name: str) -> list[float]:
    """The row in the middle of a matrix: enough to tell two embeddings apart."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        rows = file.get_slice(name)
        place = rows.get_shape()[0] // 2
        return list(rows[place : place + 1].flatten().tolist())


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
