"""Tiny models of the kinds that share no prefixes, with random weights, as folders of safetensors.

An encoder-decoder with T5's tokenizer (pieces of words with the space before them) or BART's (bytes), BLOOM, whose
places are biases of its attention, Mamba, which has no attention, Gemma 2, whose attention caps its scores, and BERT,
which sees what follows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiny import SENTENCES, build_tiny_tokenizer

WINDOW = 512
PAD, END = 0, 1  # of the spaced tokenizer


@functools.cache
def spaced_tokenizer() -> Any:
    """As T5's: pieces of words with the space before them, the end token behind every text, no line ends, no chat
    template. Not to be changed.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = sorted({word for sentence in SENTENCES for word in sentence.split()})
    letters = sorted({letter for word in [*words, "maybe"] for letter in word} - {"|"})
    pieces = dict.fromkeys(["\u2581", *letters, *(f"\u2581{word}" for word in words), *(word[-3:] for word in words)])
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    backend = Tokenizer(models.Unigram([*special, *((piece, -2.0 - len(piece) / 100) for piece in pieces)], unk_id=2))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", END)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="<pad>", unk_token="<unk>")


@functools.cache
def framed_tokenizer() -> Any:
    """As BART's: bytes, with a start token before every text and the end token behind it. Not to be changed."""
    from tokenizers import processors

    tokenizer = build_tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", special_tokens=[("<|im_start|>", 1), ("<|im_end|>", 2)]
    )
    return tokenizer


@functools.cache
def bare_tokenizer() -> Any:
    """As a base model's: bytes, no chat template. Not to be changed."""
    tokenizer = build_tiny_tokenizer()
    tokenizer.chat_template = None
    return tokenizer


def _t5(**changes: Any) -> Any:
    from transformers import T5Config

    return T5Config(
        vocab_size=len(spaced_tokenizer()), d_model=32, d_kv=8, d_ff=64, num_layers=3, num_decoder_layers=2,
        num_heads=4, decoder_start_token_id=PAD, n_positions=WINDOW, **changes,
    )  # fmt: skip


def _bart() -> Any:
    from transformers import BartConfig

    return BartConfig(
        vocab_size=len(framed_tokenizer()), d_model=32, encoder_layers=3, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=8, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=WINDOW,
        init_std=0.5, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=2,
        forced_eos_token_id=None,
    )  # fmt: skip


def _bloom() -> Any:
    from transformers import BloomConfig

    return BloomConfig(
        vocab_size=len(bare_tokenizer()), hidden_size=32, n_layer=2, n_head=4, initializer_range=0.3, eos_token_id=2
    )


def _mamba() -> Any:
    from transformers import MambaConfig

    return MambaConfig(
        vocab_size=len(bare_tokenizer()), hidden_size=32, num_hidden_layers=2, initializer_range=0.3, eos_token_id=2
    )


def _gemma2() -> Any:
    from transformers import Gemma2Config

    return Gemma2Config(
        vocab_size=len(bare_tokenizer()), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=WINDOW,
        initializer_range=0.3, bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip


def _bert() -> Any:
    from transformers import BertConfig

    return BertConfig(
        vocab_size=len(bare_tokenizer()), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=WINDOW, initializer_range=0.3,
    )  # fmt: skip


KINDS: dict[str, tuple[str, Callable[[], Any], Callable[[], Any]]] = {
    "t5": ("AutoModelForSeq2SeqLM", _t5, spaced_tokenizer),
    "flan-t5": ("AutoModelForSeq2SeqLM", lambda: _t5(tie_word_embeddings=False), spaced_tokenizer),
    "bart": ("AutoModelForSeq2SeqLM", _bart, framed_tokenizer),
    "bloom": ("AutoModelForCausalLM", _bloom, bare_tokenizer),
    "mamba": ("AutoModelForCausalLM", _mamba, bare_tokenizer),
    "gemma2": ("AutoModelForCausalLM", _gemma2, bare_tokenizer),
    "bert": ("AutoModelForMaskedLM", _bert, bare_tokenizer),
}


def build_kind(folder: Path, kind: str, *, seed: int = 0) -> Path:
    """Save a model of `kind`, with the weights of `seed`, and its tokenizer to `folder`, which is made."""
    import torch
    import transformers

    from cuecard.models.convert import quiet

    factory, made, tokenizer = KINDS[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, factory).from_config(made())
    for name, weight in model.named_parameters():
        if "EncDecAttention" in name:  # else a random T5 hardly looks at its prompt
            weight.data *= 2.0
    with quiet():
        model.save_pretrained(folder)
        tokenizer().save_pretrained(folder)
    return folder
