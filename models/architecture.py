"""Which models the engine can run, found out by trying.

Attention over a token tree is right only for a model whose tokens meet in attention alone, whose attention is a plain
softmax taken from transformers' interface, and whose places come from `position_ids`. No configuration says all that,
so a model is tried once, on two short texts with a common start: the second must come out as it does alone, under the
model's own attention.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, RunError
from . import attention
from .attention import KeyValues
from .compute import in_compute
from .packed import pack, unpack
from .prefill import chunks
from .tree import build

TRIAL = (4, 6, 6)  # tokens of the common start, of the text beside it, and of the text that is compared
# What `_difference` may be in 32 and in 16 bits. Models that fit stay below a third of it, others come out above.
FINE, COARSE = 0.01, 0.2


def context_window(config: Any, name: str) -> int:
    """The window in which this engine's full attention equals the model's own, in tokens.

    A sliding-window model is exact up to its window, and one that changes its rotary frequencies for long texts up to
    where it does. Raises `InputError` where no window is known.
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
    return int(min([window, *_rotary_windows(config)]))


def has_experts(config: Any) -> bool:
    """Whether a model is a mixture of experts, of which each computes the tokens that are sent to it."""
    return any("expert" in name and value for name, value in config.to_dict().items())


def _rotary_windows(config: Any) -> list[int]:
    """Up to where LongRoPE's short factors hold: beyond, they would change for everything in the batch."""
    stated = getattr(config, "rope_parameters", None) or {}
    by_kind = [value for value in stated.values() if isinstance(value, dict)] or [stated]
    return [value["original_max_position_embeddings"] for value in by_kind if value.get("rope_type") == "longrope"]


@in_compute
@torch.inference_mode()
def prepare(model: Any, name: str) -> None:
    """Give `model` (transformers, in evaluation mode) the tree's attention, and see that it still computes the same.

    Its matrices are packed where that is of use, unless it can't be tried so. Raises `InputError` for a model that does
    not compute the same, and `RunError` when memory runs out; it has its own attention back then.
    """
    attention.register()
    kind = model.config.get_text_config().model_type
    start, beside, compared = np.split(_tokens(model, sum(TRIAL)), np.cumsum(TRIAL)[:-1])
    with _own_attention_back(model):
        try:
            _set_attention(model, "eager")
            alone = _alone(model, np.concatenate([start, compared]))
            if not _set_attention(model, attention.NAME):
                raise NotImplementedError("its attention is not taken from transformers' interface")
            texts = [np.concatenate([start, beside]), np.concatenate([start, compared])]
            limit = COARSE if model.dtype.itemsize < 4 else FINE
            error = _error(model, texts, alone[len(start) :], limit)
        except torch.OutOfMemoryError as cause:
            raise RunError(f"there is not enough memory to run model {name!r}: {cause}") from cause
        except Exception as cause:  # models refuse what they do not know in many ways, and each means the same
            raise _unfit(name, kind, str(cause)) from cause
        if not error <= limit:  # true of NaN as well
            raise _unfit(name, kind, "its tokens depend on more than the tokens before them in their own text")


@contextlib.contextmanager
def _own_attention_back(model: Any) -> Iterator[None]:
    """Give the model's parts the attention that they have now, where what is done in this context fails."""
    from transformers import PreTrainedModel

    parts = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    before = [(config, config._attn_implementation) for part in parts for config in _configs(part.config)]
    try:
        yield
    except BaseException:
        for config, implementation in before:  # a whole sets its parts' as well, which follow it
            config._attn_implementation = implementation
        raise


def _configs(config: Any) -> Iterator[Any]:
    """A configuration, and after it those that are part of it."""
    yield config
    for name in config.sub_configs:
        if getattr(config, name, None) is not None:
            yield from _configs(getattr(config, name))


def _set_attention(model: Any, implementation: str) -> bool:
    """Set the attention, and say whether it is set; of a model that has only its own, transformers would warn."""
    logger = logging.getLogger("transformers.modeling_utils")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        model.set_attn_implementation(implementation)
    finally:
        logger.setLevel(level)
    return bool(model.config._attn_implementation == implementation)


def _unfit(name: str, kind: str, cause: str) -> InputError:
    return InputError(
        f"model {name!r} ({kind}) can't share prefixes: {cause}",
        expected="a causal model with plain softmax attention, such as Llama, Qwen, Gemma 3 or GPT-2",
    )


def _tokens(model: Any, count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Tokens from all over the vocabulary, the same for every model of its size."""
    vocabulary = int(model.config.get_text_config().vocab_size)
    return np.random.Generator(np.random.Philox(key=0)).integers(0, vocabulary, count)


def _alone(model: Any, tokens: np.ndarray[Any, np.dtype[np.int64]]) -> Tensor:
    """Logits [T, V] of one text under the model's own attention."""
    ids = torch.from_numpy(tokens)[None].to(model.device)
    return model(input_ids=ids, use_cache=False).logits[0].float()  # type: ignore[no-any-return]


def _in_tree(model: Any, sequences: list[np.ndarray[Any, np.dtype[np.int64]]]) -> Tensor:
    """Logits [tokens of its own, V] of the last sequence, computed beside the others."""
    tree = build([sequence.tolist() for sequence in sequences])
    (plan,) = chunks(tree, KeyValues(len(tree)), len(tree), model.device, model.dtype)
    own = tree.indices(tree.leaves[-1])[TRIAL[0] :]
    output = model(
        input_ids=torch.from_numpy(tree.tokens)[None].to(model.device),
        position_ids=torch.from_numpy(tree.positions)[None].to(model.device),
        use_cache=False,
        logits_to_keep=torch.from_numpy(own).to(model.device),
        cuecard_plan=plan,
    )
    return output.logits[0].float()  # type: ignore[no-any-return]


def _error(model: Any, sequences: list[np.ndarray[Any, np.dtype[np.int64]]], alone: Tensor, limit: float) -> float:
    """How far the last sequence's logits beside the others are from those `alone`, with the model's matrices packed, or
    as they were where it can't be computed so, or not as well as the limit asks for.
    """
    if pack(model):
        with contextlib.suppress(AttributeError, NotImplementedError, RuntimeError, TypeError):
            error = _difference(_in_tree(model, sequences), alone)
            if error <= limit:
                return error
        unpack(model)
    return _difference(_in_tree(model, sequences), alone)


def _difference(ours: Tensor, theirs: Tensor) -> float:
    """How far logits [T, V] are apart, relative to the spread of each token's logits.

    The median over the tokens, because a rounding error can send a token of a mixture of experts to another expert.
    """
    if ours.shape != theirs.shape:
        return float("inf")
    spread = (theirs - theirs.mean(dim=-1, keepdim=True)).norm(dim=-1)
    return float(((ours - theirs).norm(dim=-1) / spread).median())
