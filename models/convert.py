"""From a GGUF file to a folder of safetensors that transformers loads directly.

transformers reads GGUF itself, with two gaps that are closed here. Its tokenizers split text as GPT-2 does whenever it
does not know the file's `tokenizer.ggml.pre`, which gives wrong ids without a word: digits must stand alone for the
StarCoder family (SmolLM among them; llama.cpp, `llama-vocab.cpp`), and any other unknown splitter is refused. And it
keeps one end-of-text token, where a chat model has two: one ends a turn, the other a text.
"""

from __future__ import annotations

import contextlib
import errno
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import InputError
from .compute import in_compute

# Raised by one whenever what `convert` writes for a given file changes, so that older conversions are made again.
CONVERSION = 1

# Values of `tokenizer.ggml.pre` that transformers has no entry for, by how llama.cpp splits for them.
_DIGITS_ALONE = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"})
_LIKE_GPT2 = frozenset({"gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "roberta-bpe"})

_END_TOKENS = frozenset(
    {"<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>", "<end_of_turn>", "<|end|>", "</s>", "<eos>"}
)


@in_compute
def convert(gguf: Path, folder: Path) -> None:
    """Write the model in `gguf` to `folder` (which exists) as safetensors, with its tokenizer and chat template.

    Quantized weights become bfloat16; float files keep their type. Raises `InputError` when the file is damaged, or its
    architecture or tokenizer is not known; `OSError` when `folder` cannot be written.
    """
    import transformers  # noqa: F401  (before `quiet`: its log handler keeps the stderr that it finds)
    from safetensors import SafetensorError

    try:
        with quiet(), _silent_stderr():
            facts = _Facts(gguf)
            tokenizer = _tokenizer(gguf, facts)
            model = _model(gguf, facts, tokenizer)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # whatever a damaged or foreign file makes the readers do, the user is told the file
        raise InputError(f"cannot be converted: {error}", path=gguf, expected="a whole GGUF file") from error
    try:
        with quiet():
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        for weights in folder.glob("*.safetensors"):  # written for the owner alone, unlike the rest
            shutil.copymode(folder / "config.json", weights)
    except SafetensorError as error:
        if f"os error {errno.ENOSPC}" in str(error):
            raise OSError(errno.ENOSPC, "No space left on device", str(folder)) from error
        raise


class _Facts:
    """What the conversion needs to know from the file's metadata."""

    def __init__(self, gguf: Path) -> None:
        from gguf import GGUFReader

        reader = GGUFReader(gguf)
        matrices = {tensor.tensor_type.name for tensor in reader.tensors if len(tensor.shape) > 1}
        self.dtype = "float32" if matrices <= {"F32"} else "float16" if matrices <= {"F16", "F32"} else "bfloat16"
        self.splitter = self._value(reader, "tokenizer.ggml.pre")
        self.byte_level = self._value(reader, "tokenizer.ggml.model") == "gpt2"
        ends = (self._value(reader, f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot"))
        self.ends = [int(end) for end in ends if end is not None]

    @staticmethod
    def _value(reader: Any, key: str) -> Any:
        field = reader.get_field(key)
        return None if field is None else field.contents()


def _model(gguf: Path, facts: _Facts, tokenizer: Any) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    factory: Any = AutoModelForCausalLM
    model, report = factory.from_pretrained(
        str(gguf.parent),
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=getattr(torch, facts.dtype),
        local_files_only=True,
        output_loading_info=True,
    )
    if report["missing_keys"]:
        raise InputError(f"weights are missing: {', '.join(sorted(report['missing_keys'])[:3])}", path=gguf)
    named = [index for token, index in tokenizer.get_added_vocab().items() if token in _END_TOKENS]
    ends = list(dict.fromkeys([*facts.ends, *sorted(named)]))
    model.generation_config.eos_token_id = ends or None
    model.generation_config._from_model_config = False  # or it would be derived again, with one end only
    model.config.__dict__.pop("_model_name_or_path", None)  # the file's own title, which transformers takes for a path
    tokenizer.model_max_length = model.config.get_text_config().max_position_embeddings
    return model


def _tokenizer(gguf: Path, facts: _Facts) -> Any:
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name, local_files_only=True)
    for incidental in ("is_local", "local_files_only"):
        tokenizer.init_kwargs.pop(incidental, None)
    if not facts.byte_level or facts.splitter in {None, *_LIKE_GPT2, *GGUF_PRE_TOKENIZER_SPLITS}:
        return tokenizer
    if facts.splitter not in _DIGITS_ALONE:
        raise InputError(
            f"its tokenizer splits text by the rule {facts.splitter!r}, which is not known here",
            path=gguf,
            hint="Use the model's folder of safetensors instead.",
        )
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars from transformers while this lasts; its warnings still come through."""
    from transformers.utils import logging

    bars: Any = logging
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """The GGUF reader in transformers draws a progress bar that no setting turns off."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield
