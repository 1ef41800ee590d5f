"""Every architecture against transformers' own `generate` and forward pass: two hundred prompts, whatever the batch.

The models are small, with random weights in float32, biases and norms among them. The reference comes first: prompts of
one length at a time go through `generate`, so that it needs no padding, and a prompt is taken only where every greedy
choice is clear: the best token's logit lies above the second's by `CLEAR` of the logits' standard deviation, some
hundred times what rounding does. Few prompts have a near tie (the weights are wide), and which those are the reference
alone says. Then each engine has to give the same tokens, in batches of one, of seven and of sixty-four; most prompts
share beginnings, some are each other's, and long ones share whole blocks that an engine carries to the next batch.
"""

from __future__ import annotations

import copy
import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers
from tiny_kinds import KINDS as TINY_KINDS

from cuecard.models.engine import (
    Decoding,
    Failure,
    GenerateRequest,
    Generation,
    ScoreRequest,
    Scores,
    SpanRequest,
    Spans,
)
from cuecard.models.engine_base import HeldEngine
from cuecard.models.local import LocalEngine
from cuecard.models.plain import engine_for
from cuecard.models.prefixes import BLOCK
from cuecard.models.tokenizer import HFTokenizer

from .helpers import config, random_tokens, tokenizer

NEW = 6
PROMPTS, SPARE = 200, 30
CLEAR = 1e-3
PAIRS, CONTINUATIONS = 200, 4
SIZES = (1, 7, 64)
SHORT = (1, 2, 3, 5, 8, 13, 21, 34, 48)
LONG = (*SHORT, BLOCK - 1, BLOCK, BLOCK + 1, BLOCK + 40, 2 * BLOCK + 5)
SLIDING = 40  # tokens: the short window of some models here, less than many prompts
ENDS = (0, 2, *range(10, 500, 40))  # so many that some texts end by themselves
SHARED = ("llama", "qwen2", "qwen3", "gemma3", "gemma3 sliding", "gpt2", "mixtral")
ALONE = ("bloom", "gemma2", "mamba")
TRANSLATING = ("t5", "flan-t5", "bart")
ENGINES = [(kind, True) for kind in SHARED] + [(kind, False) for kind in (*SHARED, *ALONE, *TRANSLATING)]

Prompt = tuple[int, ...]


def settings_of(kind: str) -> tuple[str, Any, Any]:
    """The class of transformers that makes the model, its configuration, and its tokenizer."""
    if kind == "gemma3":  # as it comes: layers that see a window, and one in some that sees all
        made = config("gemma3", sliding_window=LONG[-1] + NEW, layer_types=["sliding_attention", "full_attention"])
    elif kind == "gemma3 sliding":
        made = config("gemma3", sliding_window=SLIDING, layer_types=["sliding_attention", "full_attention"])
    elif kind in SHARED:
        made = config(kind)
    else:
        factory, maker, tokens = TINY_KINDS[kind]
        made = maker()
        if kind == "gemma2":
            made.sliding_window = SLIDING
        elif kind == "flan-t5":
            made.is_gated_act, made.dense_act_fn = True, "gelu_new"
        return factory, made, tokens()
    return "AutoModelForCausalLM", made, tokenizer()


@functools.cache
def model_of(kind: str) -> Any:
    """A model of random weights in float32, which no two parts have alike. Not to be changed."""
    factory, made, _ = settings_of(kind)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, factory).from_config(made, dtype=torch.float32)
        for name, weight in model.named_parameters():
            if "EncDecAttention" in name:  # else a random T5 hardly looks at its prompt,
                weight.data *= 2.0
            elif "encoder_attn.out_proj" in name:  # and a random BART at nothing else
                weight.data *= 0.2
            elif kind in SHARED and name.endswith("bias"):
                torch.nn.init.normal_(weight, std=0.3)
            elif kind in SHARED and "norm" in name:
                weight.data += 0.3 * torch.randn_like(weight)
        head = model.get_output_embeddings()  # one that is the embedding as well would say the last token for ever
        head.weight = torch.nn.Parameter(0.3 * torch.randn_like(head.weight))
    if kind in SHARED:
        model.generation_config.eos_token_id = list(ENDS)
    return model.eval().requires_grad_(False)


def ends_of(kind: str) -> tuple[int, ...]:
    return ENDS if kind in SHARED else (int(model_of(kind).config.eos_token_id),)


def engine_of(kind: str, sharing: bool) -> HeldEngine:
    """A fresh engine over the model: with its prefixes shared, or every prompt computed in full."""
    settings: dict[str, Any] = {
        "identity": f"random {kind}",
        "name": "random",
        "ends": ends_of(kind),
        "backend_tokenizer": settings_of(kind)[2],
    }
    model = model_of(kind)
    if sharing:  # the tree's attention is set on the model, and the reference must keep its own
        return LocalEngine(copy.deepcopy(model), HFTokenizer(settings["backend_tokenizer"], name="random"), **settings)
    return engine_for(model, HFTokenizer(settings["backend_tokenizer"], name="random"), **settings)


def drawn_prompts(kind: str) -> list[Prompt]:
    """Prompts of few lengths in mixed order: beginnings of some long texts, most with an end of their own."""
    source = random.Random(0)
    lengths = LONG if kind in SHARED else SHORT
    highest = int(model_of(kind).config.get_text_config().vocab_size)
    texts = [tuple(token % (highest - 3) + 3 for token in random_tokens(source, max(lengths))) for _ in range(3)]
    prompts = []
    for number in range(PROMPTS + SPARE):
        length = lengths[number % len(lengths)]
        common = source.choice((0, length // 2, length - 1, length - 1, length))
        own = (token % (highest - 3) + 3 for token in random_tokens(source, length - common))
        prompts.append((*texts[number % len(texts)][:common], *own))
    source.shuffle(prompts)
    return prompts


@dataclass(frozen=True)
class Reference:
    """Prompts, and how transformers goes on with each."""

    prompts: tuple[Prompt, ...]
    texts: tuple[Prompt, ...]


@functools.cache
def reference(kind: str) -> Reference:
    """The first `PROMPTS` prompts whose greedy choices are clear."""
    drawn = drawn_prompts(kind)
    found: dict[int, Prompt] = {}
    for length in sorted(set(map(len, drawn))):
        places = [place for place, prompt in enumerate(drawn) if len(prompt) == length]
        texts = generated(kind, [drawn[place] for place in places])
        found |= {place: text for place, text in zip(places, texts, strict=True) if text is not None}
    clear = sorted(found)[:PROMPTS]
    assert len(clear) == PROMPTS, f"only {len(clear)} prompts of {len(drawn)} have no near tie"
    return Reference(tuple(drawn[place] for place in clear), tuple(found[place] for place in clear))


@torch.inference_mode()
def generated(kind: str, prompts: Sequence[Prompt]) -> list[Prompt | None]:
    """transformers' greedy texts after prompts of one length, without what ends them; None after a near tie."""
    model, ends = model_of(kind), ends_of(kind)
    behind = ends if model.config.is_encoder_decoder else ()
    ids = torch.tensor([[*prompt, *behind] for prompt in prompts])
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        num_beams=1,
        max_new_tokens=NEW,
        pad_token_id=ends[0],
        output_logits=True,
        return_dict_in_generate=True,
    )
    logits = torch.stack(output.logits, dim=1).double()
    best = logits.topk(2, dim=-1).values
    clear = (best[..., 0] - best[..., 1] > CLEAR * logits.std(dim=-1)).tolist()
    texts: list[Prompt | None] = []
    for tokens, certain in zip(output.sequences[:, -logits.shape[1] :].tolist(), clear, strict=True):
        stop = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
        texts.append(tuple(tokens[:stop]) if all(certain[: stop + 1]) else None)
    return texts


def fits(engine: HeldEngine, tokens: int) -> bool:
    return tokens <= engine.context_window


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("kind", "sharing"), ENGINES)
def test_greedy_texts_are_transformers_own_token_for_token(kind: str, sharing: bool, size: int) -> None:
    expected, engine = reference(kind), engine_of(kind, sharing)
    results: list[Generation | Failure] = []
    for first in range(0, PROMPTS, size):
        batch = expected.prompts[first : first + size]
        results += engine.generate([GenerateRequest(prompt, Decoding(max_tokens=NEW)) for prompt in batch])
    wrong = []
    for prompt, text, result in zip(expected.prompts, expected.texts, results, strict=True):
        if not fits(engine, len(prompt) + NEW):
            assert isinstance(result, Failure), "an engine whose window is shorter must say so"
        elif not isinstance(result, Generation) or result.samples[0].tokens != text:
            wrong.append((prompt, text, result))
    assert not wrong, f"{len(wrong)} of {PROMPTS} texts differ, such as {wrong[0]}"
    computed = [prompt for prompt in expected.prompts if fits(engine, len(prompt) + NEW)]
    assert len(computed) == PROMPTS or (kind == "gemma3 sliding" and sharing)
    assert len(computed) > PROMPTS / 3
    check_sharing(engine, computed, sharing, size)


def check_sharing(engine: HeldEngine, prompts: Sequence[Prompt], sharing: bool, size: int) -> None:
    """With sharing beginnings were computed once for a batch or carried over; without, equal prompts at most."""
    ledger, asked = engine.ledger, sum(map(len, prompts))
    assert ledger.prompt_tokens == asked
    if sharing:
        assert ledger.cached_tokens > {1: -1, 7: asked // 100, 64: asked // 10}[size]
        if (
            size == 1 and max(map(len, prompts)) > BLOCK
        ):  # larger batches carry over what several of their own begin with
            assert ledger.reused_tokens > 0
    else:
        again = asked - sum(map(len, set(prompts)))
        assert ledger.cached_tokens <= again
        assert ledger.reused_tokens == 0


@pytest.mark.parametrize("kind", [*SHARED, *ALONE, *TRANSLATING])
def test_the_reference_tries_what_it_should(kind: str) -> None:
    """Outputs that vary, of different lengths and some of them ended by the model; prompts that share their starts."""
    expected = reference(kind)
    assert len(set(expected.texts)) > 20
    assert len({len(prompt) for prompt in expected.prompts}) >= len(SHORT)
    starts = [prompt[:3] for prompt in expected.prompts if len(prompt) > 3]
    assert len(set(starts)) < len(starts) / 2
    if kind in SHARED:
        assert {len(text) for text in expected.texts} > {1, NEW}, "some texts must end before the limit"


# Log-likelihoods


@functools.cache
def scored(kind: str) -> tuple[tuple[ScoreRequest, tuple[tuple[float, ...], ...]], ...]:
    """Requests with `PAIRS` pairs of a prompt and a continuation, and the log-probabilities of a plain forward pass."""
    source = random.Random(1)
    highest = int(model_of(kind).config.get_text_config().vocab_size)
    found = []
    for prompt in reference(kind).prompts[: PAIRS // CONTINUATIONS]:
        long = tuple(token % (highest - 3) + 3 for token in random_tokens(source, 6))
        other = tuple(token % (highest - 3) + 3 for token in random_tokens(source, 3))
        request = ScoreRequest(prompt, (long, (*long[:4], 7), other, other[:1]))
        found.append((request, tuple(forward_logprobs(kind, prompt, each) for each in request.continuations)))
    return tuple(found)


@torch.inference_mode()
def forward_logprobs(kind: str, prompt: Prompt, continuation: Prompt) -> tuple[float, ...]:
    """The log-probability of each of the continuation's tokens in one pass without padding, tree or cache."""
    model = model_of(kind)
    if model.config.is_encoder_decoder:
        read = torch.tensor([[*prompt, *ends_of(kind)]])
        written = torch.tensor([[int(model.config.decoder_start_token_id), *continuation]])
        logits, first = model(input_ids=read, decoder_input_ids=written, use_cache=False).logits[0], 0
    else:
        logits = model(input_ids=torch.tensor([[*prompt, *continuation]]), use_cache=False).logits[0]
        first = len(prompt) - 1
    logprobs = torch.log_softmax(logits.double(), dim=-1)
    return tuple(float(logprobs[first + place, token]) for place, token in enumerate(continuation))


@pytest.mark.parametrize(("kind", "sharing"), ENGINES)
def test_log_likelihoods_are_transformers_own(kind: str, sharing: bool) -> None:
    engine, cases = engine_of(kind, sharing), scored(kind)
    compared = 0
    for size in (7, 64):
        for first in range(0, len(cases), size):
            batch = cases[first : first + size]
            for (request, expected), result in zip(batch, engine.score([case for case, _ in batch]), strict=True):
                if not fits(engine, len(request.prompt) + max(map(len, request.continuations))):
                    assert isinstance(result, Failure)
                    continue
                assert isinstance(result, Scores), result
                assert result.totals == pytest.approx([sum(logprobs) for logprobs in expected], abs=1e-4, rel=0)
                compared += len(expected)
    assert compared == 2 * PAIRS or (kind == "gemma3 sliding" and sharing and compared > PAIRS / 2)


@pytest.mark.parametrize("following", [3, 9, 500], ids=["before", "between", "behind"])
def test_a_prompt_beside_one_that_goes_on_has_its_own_log_likelihoods(following: int) -> None:
    """What comes next in the longer prompt sorts before, between or behind what is scored after the shorter one."""
    engine, (prompt, *_) = engine_of("llama", True), (p for p in reference("llama").prompts if len(p) == SHORT[-1])
    longer = (*prompt, following, 11, 12)
    runs, end = ((5, 6, 7, 8, 9), (101, 102, 103), (400, 401)), (44,)
    cuts = tuple(tuple(range(1, len(run) + 1)) for run in runs)
    asked = [SpanRequest(each, runs, cuts, end, width=8) for each in (prompt, longer)]
    for request, result in zip(asked, engine.spans(asked), strict=True):
        assert isinstance(result, Spans)
        expected = [
            sum(forward_logprobs("llama", request.prompt, (*runs[found.run][: found.length], *end)))
            for found in result.scores
        ]
        assert [found.total for found in result.scores] == pytest.approx(expected, abs=1e-4, rel=0)
    requests = [ScoreRequest(each, tuple((*run, *end) for run in runs)) for each in (prompt, longer)]
    for request, result in zip(requests, engine.score(requests), strict=True):
        assert isinstance(result, Scores)
        expected = [sum(forward_logprobs("llama", request.prompt, each)) for each in request.continuations]
        assert result.totals == pytest.approx(expected, abs=1e-4, rel=0)
