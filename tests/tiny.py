"""A tiny chat model with random weights, made in a second without a download, as safetensors and as GGUF.

Two Llama layers of width 64 and a byte-level BPE tokenizer trained on the sentences below, with SmolLM2's special
tokens, way of splitting text (each digit alone) and chat template. Same seed, same bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

SENTENCES = (
    "A customer was charged twice for one order and asks for the money back.",
    "The application stops with an error when a large file is opened.",
    "Please change the address of my account and send me a new password.",
    "Question: what is the capital of France? Answer: the capital of France is Paris.",
    "Classify the ticket as billing, technical or account, then give the reason for it.",
    'The answer is a list of numbers: [1, 2, 3], or an object: {"queue": "billing", "score": 0.75}.',
    "Given the fields `question` and `context`, produce the field `answer`. Think step by step, then answer yes or no.",
    "You are a helpful assistant. Summarise the text in one sentence, in plain words, without adding anything new.",
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def build_tiny_model(folder: Path, *, seed: int = 0) -> Path:
    """Save the model of `seed`, its tokenizer and its chat template to `folder`, which is made, and return it."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from cuecard.models.convert import quiet

    tokenizer = build_tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.2,  # wide enough that the next token is seldom a near tie
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.generation_config.eos_token_id = [2, 0]
    model.generation_config._from_model_config = False
    with quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def build_tiny_tokenizer() -> Any:
    """The tiny model's tokenizer: at most 512 tokens, the special ones first."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=2048,
    )


def write_tiny_gguf(folder: Path, path: Path, *, quantized: bool = False, splitter: str = "smollm") -> Path:
    """Write the tiny model in `folder` as the GGUF file `path`: float32, or its matrices in 8 bits if `quantized`."""
    import json

    import gguf
    from safetensors.numpy import load_file

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    _add_tokenizer(writer, folder, splitter)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, weight in load_file(folder / "model.safetensors").items():
        count = next((count for part, count in heads.items() if part in name), None)
        if count is not None:  # llama.cpp pairs the halves of a rotary dimension next to each other
            weight = weight.reshape(count, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
        kind = None
        if quantized and weight.ndim > 1:
            kind = gguf.GGMLQuantizationType.Q8_0
            weight = gguf.quants.quantize(weight, kind)
        writer.add_tensor(names.get_name(name, (".weight",)), weight, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: Any, folder: Path, splitter: str) -> None:
    import json

    import gguf

    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(splitter)
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if token in SPECIAL else gguf.TokenType.NORMAL for token in tokens])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
