"""The engines of the benchmark, each ready to answer a workload: ours, and what a user could use instead.

Every engine decodes greedily and gives exactly as many tokens as asked: end tokens are unknown to ours and to
transformers, and llama.cpp never takes one.
"""

from __future__ import annotations

import itertools
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
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

SLOTS = 8
COMPLETION = "/completion"
WINDOW_STEP = 256  # llama.cpp makes every slot's window a multiple of it
GREEDY = {"samplers": ["top_k"], "top_k": 1, "ignore_eos": True, "cache_prompt": True, "return_tokens": True}

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


def llama_cpp_ready(gguf: str, device: str, threads: int, settings: dict[str, Any]) -> Ready:
    """llama.cpp's server in this process (xllamacpp), decoding several sequences at once, each in a slot of its own.

    A slot keeps its last sequence and answers the next prompt from where the two part. So the sorted prompts are cut
    into one run a slot, and a slot has the whole of its run queued from the start; what all prompts share is computed
    in the first slot and handed to the others through a file. The server is started anew for each workload, with room
    for its longest request in every slot; that is not timed. settings: of `CommonParams`, over these.

    On a CPU flash attention is left off, which took a fifth longer. So is the server's second cache everywhere, since
    no request would find more there than in its own slot.
    """
    import httpx
    import xllamacpp

    @contextmanager
    def ready(workload: dict[str, Any]) -> Iterator[Run]:
        longest = max(map(len, workload["prompts"])) + workload["output"]
        on_device = not device.startswith("cpu")
        chosen = {
            "n_parallel": SLOTS,
            "n_gpu_layers": -1 if on_device else 0,
            "flash_attn_type": -1 if on_device else 0,
            "cache_ram_mib": 0,
            "cache_idle_slots": False,
            "fit_params": False,
            "verbosity": -1,
            **settings,
        }
        slots = chosen["n_parallel"]
        parameters = xllamacpp.CommonParams()
        parameters.model.path = gguf
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
        for name, value in {"n_ctx": slots * (longest // WINDOW_STEP + 1) * WINDOW_STEP, **chosen}.items():
            setattr(parameters, name, value)
        with tempfile.TemporaryDirectory(prefix="cuecard-slots-") as folder:
            parameters.slot_save_path = f"{folder}/"
            server: Any = xllamacpp.Server(parameters)
            with httpx.Client(base_url=server.listening_address, timeout=None) as client:
                yield lambda prompts, output: _in_slots(client, prompts, output, slots)

    return ready


def _in_slots(client: Any, prompts: Sequence[Prompt], output: int, slots: int) -> list[list[int]]:
    def ask(path: str, **fields: Any) -> Any:
        response = client.post(path, json=fields)
        if response.is_error:
            raise RunError(f"llama.cpp: {response.text}")
        return response.json()

    def answer(slot: int) -> list[list[int]]:
        found = ask(COMPLETION, **GREEDY, prompt=[prompts[i] for i in runs[slot]], n_predict=output, id_slot=slot)
        return [one["tokens"] for one in (found if isinstance(found, list) else [found])]

    order = sorted(range(len(prompts)), key=lambda i: prompts[i])
    size = -(-len(order) // slots)
    runs = [order[first : first + size] for first in range(0, len(order), size)]
    if len(runs) > 1 and (shared := _shared(prompts[order[0]], prompts[order[-1]])):
        ask(COMPLETION, **GREEDY, prompt=shared, n_predict=1, id_slot=0)
        ask("/slots/0?action=save", filename="shared")
        for slot in range(1, len(runs)):
            ask(f"/slots/{slot}?action=restore", filename="shared")
    outputs: list[list[int]] = [[] for _ in prompts]
    with ThreadPoolExecutor(len(runs)) as pool:
        for run, found in zip(runs, pool.map(answer, range(len(runs))), strict=True):
            for i, tokens in zip(run, found, strict=True):
                outputs[i] = tokens
    return outputs


def _shared(one: Prompt, other: Prompt) -> Prompt:
    return one[: sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))]


def llama_cpp_build() -> str:
    """What this build of llama.cpp uses of the processor."""
    import xllamacpp

    return " ".join(re.findall(r"(\w+) = 1", xllamacpp.get_system_info()))
