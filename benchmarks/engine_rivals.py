"""The engines of the benchmark, each ready to answer a workload: ours, and what a user could use instead.

Every engine decodes greedily and gives exactly as many tokens as asked: end tokens are unknown to ours and to
transformers, and llama.cpp's token stream does not stop at them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from engine_workloads import Prompt

from cuecard.errors import RunError
from cuecard.models.engine import Decoding, Failure, GenerateRequest
from cuecard.models.loading import LoadedModel, find, load, load_config, load_tokenizer
from cuecard.models.local import LocalEngine
from cuecard.models.tokenizer import HFTokenizer

Run = Callable[[Sequence[Prompt], int], list[list[int]]]
Ready = Callable[[dict[str, Any]], AbstractContextManager[Run]]

BATCH = 16
PAD = 0
LLAMA_WINDOW = 2048

# Models with random weights: the shapes of Llama 3.2 1B and Llama 3 8B, and one for a quick look.
SHAPES = {
    "tiny": {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 49152, "tie_word_embeddings": True},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False},
}  # fmt: skip


def random_config(size: str) -> Any:
    """The configuration of the random model `size`."""
    from transformers import LlamaConfig

    return LlamaConfig(**SHAPES[size], max_position_embeddings=8192, bos_token_id=None, eos_token_id=None)


def config_of(plan: dict[str, Any]) -> Any:
    """The configuration of the plan's model, without its weights."""
    if plan["random_weights"]:
        return random_config(plan["random_weights"])
    return load_config(find(plan["model"])).get_text_config()


def open_model(plan: dict[str, Any]) -> LoadedModel:
    """The plan's model on its device; random weights are drawn there, with the tokenizer of `plan["model"]`."""
    from transformers import AutoModelForCausalLM

    source = find(plan["model"])
    if not plan["random_weights"]:
        return load(source, device=plan["device"], dtype=plan["dtype"])
    torch.manual_seed(0)
    config = random_config(plan["random_weights"])
    factory: Any = AutoModelForCausalLM
    with torch.device(plan["device"]):
        model = factory.from_config(config, dtype=getattr(torch, plan["dtype"]))
    model.eval().requires_grad_(False)
    return LoadedModel(model, load_tokenizer(source), config, plan["device"], plan["dtype"], source)


def cuecard_engine(loaded: LoadedModel) -> LocalEngine:
    """Our engine as `cuecard.target` makes it, but for the end tokens, of which it is told none."""
    tokenizer = HFTokenizer(loaded.tokenizer, name=loaded.source.name)
    return LocalEngine(loaded.model, tokenizer, identity="benchmark", name=loaded.source.name, ends=())


def cuecard_ready(engine: LocalEngine) -> Ready:
    """Ours: all requests in one call."""

    def run(prompts: Sequence[Prompt], output: int) -> list[list[int]]:
        requests = [GenerateRequest(tuple(prompt), Decoding(max_tokens=output)) for prompt in prompts]
        outputs = []
        for result in engine.generate(requests):
            if isinstance(result, Failure):
                raise RunError(result.error)
            outputs.append(list(result.samples[0].tokens))
        return outputs

    @contextmanager
    def ready(workload: dict[str, Any]) -> Iterator[Run]:
        yield run

    return ready


def generate_ready(loaded: LoadedModel) -> Ready:
    """transformers' `generate`: the requests sorted by length, in left-padded batches."""
    from transformers import GenerationConfig

    model = loaded.model
    model.generation_config = GenerationConfig(do_sample=False, pad_token_id=PAD)

    @torch.inference_mode()
    def run(prompts: Sequence[Prompt], output: int) -> list[list[int]]:
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        outputs: list[list[int]] = [[] for _ in prompts]
        for first in range(0, len(order), BATCH):
            batch = order[first : first + BATCH]
            width = max(len(prompts[i]) for i in batch)
            ids = torch.tensor([[PAD] * (width - len(prompts[i])) + list(prompts[i]) for i in batch])
            real = torch.tensor([[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in batch])
            found = model.generate(ids.to(model.device), attention_mask=real.to(model.device), max_new_tokens=output)
            for i, tokens in zip(batch, found[:, width:].tolist(), strict=True):
                outputs[i] = tokens
        return outputs

    @contextmanager
    def ready(workload: dict[str, Any]) -> Iterator[Run]:
        yield run

    return ready


def continuous_ready(loaded: LoadedModel, settings: dict[str, Any]) -> Ready:
    """transformers' continuous batching over a paged cache that shares whole pages of a prefix.

    The manager is made anew for each workload, whose size it is told; that and its start are not timed. settings: of
    `ContinuousBatchingConfig`, over what suits the device. Without flash attention its attention is one product of all
    the batch's tokens with all its keys under a mask, so that on a CPU small batches are the fastest; small pages leave
    less of a prefix unshared.
    """
    from transformers import ContinuousBatchingConfig, GenerationConfig
    from transformers.generation.continuous_batching.utils import WorkloadHints

    defaults: dict[str, Any] = {}
    if loaded.device_kind != "cuda":
        defaults = {"page_size": 8, "num_blocks": 4096, "max_batch_tokens": 1024, "max_requests_per_batch": 8}
    chosen = {**defaults, **settings}

    @contextmanager
    def ready(workload: dict[str, Any]) -> Iterator[Run]:
        longest = max(map(len, workload["prompts"]))
        hints = WorkloadHints(longest, workload["output"], len(workload["prompts"]))
        with loaded.model.continuous_batching_context_manager(
            generation_config=GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=PAD),
            continuous_batching_config=ContinuousBatchingConfig(**chosen),
            workload_hints=hints,
        ) as manager:
            yield lambda prompts, output: _continuous(manager, prompts, output)

    return ready


def _continuous(manager: Any, prompts: Sequence[Prompt], output: int) -> list[list[int]]:
    order = manager.add_requests([list(prompt) for prompt in prompts], max_new_tokens=output)
    found: dict[str, list[int]] = {}
    while len(found) < len(order):
        result = manager.get_result(timeout=1)
        if result is None:
            if not manager.is_running():
                raise RunError("the loop of the continuous batching has ended before its requests")
        elif result.error is not None:
            raise RunError(f"continuous batching: {result.error}")
        elif result.is_finished():
            found[result.request_id] = list(result.generated_tokens)
    return [found[name] for name in order]


def llama_cpp_ready(gguf: str, device: str, threads: int) -> Ready:
    """llama.cpp through llama-cpp-python: one request after the other, sorted, so that each keeps in the cache what it
    shares with the one before (`Llama.generate` looks for the longest common prefix).

    `create_completion` is this token stream with the text decoded anew at every token, and it stops at end tokens.
    """
    import llama_cpp

    llama = llama_cpp.Llama(
        gguf,
        n_ctx=LLAMA_WINDOW,
        n_batch=LLAMA_WINDOW,
        n_threads=threads,
        n_threads_batch=threads,
        n_gpu_layers=-1 if device.startswith("cuda") else 0,
        logits_all=False,
        seed=0,
        verbose=False,
    )

    def run(prompts: Sequence[Prompt], output: int) -> list[list[int]]:
        outputs: list[list[int]] = [[] for _ in prompts]
        for i in sorted(range(len(prompts)), key=lambda i: prompts[i]):
            stream = llama.generate(list(prompts[i]), temp=0.0)
            outputs[i] = [int(token) for _, token in zip(range(output), stream, strict=False)]
            stream.close()
        return outputs

    @contextmanager
    def ready(workload: dict[str, Any]) -> Iterator[Run]:
        yield run

    return ready
