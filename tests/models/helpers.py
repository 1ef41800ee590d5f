"""What the engine's tests share: small random models of many architectures, and an engine that answers from a script."""

from __future__ import annotations

import copy
import functools
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers

from cuecard.models.engine import (
    Failure,
    GenerateRequest,
    Generation,
    Ledger,
    Sample,
    ScoreRequest,
    Scores,
    SpanRequest,
    Spans,
    Tokenizer,
    Turn,
)
from cuecard.models.limits import Limits
from cuecard.models.local import LocalEngine
from cuecard.models.spans import by_scoring
from cuecard.models.tokenizer import HFTokenizer
from tiny import build_tiny_tokenizer

ENDS = (0, 2)
WINDOW = 512


@functools.cache
def tokenizer() -> Any:
    """The tiny tokenizer of transformers. Not to be changed."""
    return build_tiny_tokenizer()


def config(kind: str, **changes: Any) -> Any:
    """A small configuration; wide random weights keep the next token from being a near tie."""
    shared = {
        "vocab_size": len(tokenizer()),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": WINDOW,
        "initializer_range": 0.3,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    grouped = {**shared, "num_key_value_heads": 2}
    old = {"vocab_size": shared["vocab_size"], "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": WINDOW,
           "initializer_range": 0.3, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "llama": ("LlamaConfig", grouped),
        "qwen2": ("Qwen2Config", grouped),
        "qwen3": ("Qwen3Config", {**grouped, "head_dim": 16}),
        "gpt2": ("GPT2Config", old),
        "mixtral": ("MixtralConfig", {**grouped, "num_local_experts": 4}),
        "qwen2_moe": ("Qwen2MoeConfig", {**grouped, **experts, "shared_expert_intermediate_size": 32}),
        "gemma": ("GemmaConfig", {**grouped, "head_dim": 16}),
        "gemma2": ("Gemma2Config", {**grouped, "head_dim": 16, "sliding_window": WINDOW}),
        "gemma3": ("Gemma3TextConfig", {**grouped, "head_dim": 16, "sliding_window": WINDOW}),
        "gpt_oss": ("GptOssConfig", {**grouped, "head_dim": 16, "num_local_experts": 4, "sliding_window": WINDOW}),
        "mistral": ("MistralConfig", {**grouped, "sliding_window": WINDOW}),
        "phi3": ("Phi3Config", grouped),
        "olmo2": ("Olmo2Config", grouped),
        "cohere": ("CohereConfig", grouped),
        "glm4": ("Glm4Config", {**grouped, "head_dim": 8}),
        "starcoder2": ("Starcoder2Config", grouped),
        "gpt_neox": ("GPTNeoXConfig", shared),
        "opt": ("OPTConfig", {"vocab_size": shared["vocab_size"], "hidden_size": 32, "word_embed_proj_dim": 32,
                              "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "init_std": 0.3,
                              "max_position_embeddings": WINDOW}),
        "gptj": ("GPTJConfig", {**old, "rotary_dim": 8}),
        "gpt_neo": ("GPTNeoConfig", {"vocab_size": shared["vocab_size"], "hidden_size": 32, "num_layers": 2,
                                     "num_heads": 4, "attention_types": [[["global"], 2]], "initializer_range": 0.3,
                                     "max_position_embeddings": WINDOW}),
        "falcon": ("FalconConfig", {"vocab_size": shared["vocab_size"], "hidden_size": 32, "num_hidden_layers": 2,
                                    "num_attention_heads": 4, "initializer_range": 0.3}),
        "bloom": ("BloomConfig", {"vocab_size": shared["vocab_size"], "hidden_size": 32, "n_layer": 2, "n_head": 4}),
        "bert": ("BertConfig", shared),
        "mamba": ("MambaConfig", {"vocab_size": shared["vocab_size"], "hidden_size": 32, "num_hidden_layers": 2}),
        "lfm2": ("Lfm2Config", {**grouped, "layer_types": ["conv", "full_attention"]}),
        "deepseek_v3": ("DeepseekV3Config", {**grouped, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
                                             "qk_nope_head_dim": 8, "v_head_dim": 8, "n_routed_experts": 4,
                                             "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2,
                                             "moe_intermediate_size": 16, "first_k_dense_replace": 1}),
    }  # fmt: skip
    name, settings = kinds[kind]
    return getattr(transformers, name)(**{**settings, **changes})


@functools.cache
def _model(kind: str, seed: int, dtype: torch.dtype) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config(kind), dtype=dtype)
    if dtype != torch.float32:  # the same weights, which another type would draw differently
        model.load_state_dict(_model(kind, seed, torch.float32).state_dict())
    model.generation_config.eos_token_id = list(ENDS)
    return model.eval().requires_grad_(False)


def random_model(kind: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    """A model of `config(kind)` with the weights of `seed`: a copy, so that it can be changed."""
    return copy.deepcopy(_model(kind, seed, dtype))


def engine_over(model: Any, limits: Limits | None = None, ends: Sequence[int] = ENDS) -> LocalEngine:
    """The local engine over a model with the tiny tokenizer."""
    return LocalEngine(
        model,
        HFTokenizer(tokenizer(), name="random"),
        identity=f"random-{model.config.model_type}",
        name="random",
        ends=ends,
        backend_tokenizer=tokenizer(),
        limits=limits,
    )


def random_tokens(source: random.Random, count: int) -> tuple[int, ...]:
    """Tokens that are neither special nor the end of a text."""
    return tuple(source.randrange(3, len(tokenizer())) for _ in range(count))


def family(lengths: Sequence[int], seed: int = 0, tail: int = 12) -> list[tuple[int, ...]]:
    """Prompts that share the first `lengths[i]` tokens of one long text, and go on for up to `tail` tokens of their own."""
    source = random.Random(seed)
    text = random_tokens(source, max(lengths, default=0))
    return [text[:length] + random_tokens(source, source.randint(0 if length else 1, tail)) for length in lengths]


@torch.inference_mode()
def plain_logprobs(model: Any, prompt: Sequence[int], continuation: Sequence[int]) -> list[float]:
    """The log-probability of each token of `continuation` in one plain forward pass."""
    logits = model(input_ids=torch.tensor([[*prompt, *continuation]]), use_cache=False).logits[0]
    logprobs = torch.log_softmax(logits.double(), dim=-1)
    return [float(logprobs[len(prompt) - 1 + i, token]) for i, token in enumerate(continuation)]


@torch.inference_mode()
def plain_greedy(model: Any, prompt: Sequence[int], tokens: int, ends: Sequence[int] = ENDS) -> tuple[int, ...]:
    """transformers' own greedy continuation, without the token that ends it."""
    ids = torch.tensor([prompt])
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=tokens, pad_token_id=2
    )
    found = output[0, len(prompt) :].tolist()
    return tuple(found[: next((i for i, token in enumerate(found) if token in ends), len(found))])


class LetterTokenizer:
    """One token a character: enough of a tokenizer for an engine that answers from a script."""

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(map(ord, text))

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))

    def chat(self, turns: Sequence[Turn], prefill: str = "") -> str:
        return "".join(f"<{turn.role}>{turn.content}\n" for turn in turns) + f"<assistant>{prefill}"

    def start(self) -> tuple[int, ...]:
        return ()


Script = Callable[[GenerateRequest, int], str | Failure]


@dataclass
class ScriptedEngine:
    """An engine whose texts a function gives (of the request and the number of the sample); it keeps every batch.

    A score is the negative of the continuation's token. `trouble` is raised by the next batch, once.
    """

    script: Script = lambda request, sample: "ok"
    context_window: int = 10_000
    trouble: BaseException | None = None
    batches: list[list[Any]] = field(default_factory=list)
    identity: str = "scripted"
    name: str = "scripted"
    tokenizer: Tokenizer = field(default_factory=LetterTokenizer)
    ledger: Ledger = field(default_factory=Ledger)
    busy: threading.Lock = field(default_factory=threading.Lock)

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Generation | Failure]:
        self._began(requests)
        try:
            return [self._generation(request) for request in requests]
        finally:
            self.busy.release()

    def score(self, requests: Sequence[ScoreRequest]) -> list[Scores | Failure]:
        self._began(requests)
        try:
            return [Scores(tuple(tuple(-float(t) for t in c) for c in request.continuations)) for request in requests]
        finally:
            self.busy.release()

    def spans(self, requests: Sequence[SpanRequest]) -> list[Spans | Failure]:
        return by_scoring(self.score, requests)

    def _generation(self, request: GenerateRequest) -> Generation | Failure:
        samples = []
        for number in range(request.decoding.n):
            text = self.script(request, number)
            if isinstance(text, Failure):
                return text
            samples.append(Sample(text, self.tokenizer.encode(text), (0.0,) * len(text), "stop"))
        return Generation(tuple(samples))

    def _began(self, requests: Sequence[Any]) -> None:
        assert self.busy.acquire(blocking=False), "an engine is not called from two threads at once"
        self.batches.append(list(requests))
        if self.trouble is not None:
            error, self.trouble = self.trouble, None
            self.busy.release()
            raise error
