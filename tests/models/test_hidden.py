"""Hidden states: equal to a plain forward pass, whatever else is in the batch, and no more computed than is asked for."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cuecard.errors import InputError
from cuecard.models import hidden
from cuecard.models.engine import Failure, Ledger
from cuecard.models.hidden import FeatureRequest, Features, decoder_layers, features_of, hidden_states, layers_of
from cuecard.models.limits import Limits

from .helpers import ScriptedEngine, engine_over, family, random_model, random_tokens

CLOSE = 1e-4


def model_of(kind: str = "llama", dtype: torch.dtype = torch.float32) -> Any:
    """A random model with the tree's attention."""
    return engine_over(random_model(kind, dtype=dtype)).model


def read(
    model: Any, prompts: Sequence[tuple[int, ...]], layers: tuple[int, ...] = (1, 2), **settings: Any
) -> list[Features]:
    """The features of prompts that can all be computed."""
    given: dict[str, Any] = {"limits": Limits(), "ledger": Ledger(), "refuse": lambda prompt: None, **settings}
    found = hidden_states(model, [FeatureRequest(prompt, layers) for prompt in prompts], **given)
    return [features for features in found if isinstance(features, Features)]


@torch.inference_mode()
def plain(kind: str, prompt: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """The first layer's states [T, d] as transformers gives them, under the model's own attention."""
    output = random_model(kind)(input_ids=torch.tensor([prompt]), use_cache=False, output_hidden_states=True)
    states: np.ndarray[Any, Any] = output.hidden_states[1][0].numpy()
    return states


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3", "gpt2", "mixtral", "opt", "gpt_neox", "phi3"])
def test_the_states_are_those_of_a_plain_pass(kind: str) -> None:
    prompts = family([0, 20, 40, 40, 150], seed=3)
    for prompt, features in zip(prompts, read(model_of(kind), prompts), strict=True):
        states = plain(kind, prompt)
        assert features.last.shape == features.mean.shape == (2, 32)
        assert features.last.dtype == features.mean.dtype == np.float32
        assert np.abs(features.last[0] - states[-1]).max() < CLOSE
        assert np.abs(features.mean[0] - states.mean(axis=0)).max() < CLOSE


def test_the_last_layer_is_read_before_the_final_norm() -> None:
    model, prompt = model_of(), family([30])[0]
    found = read(model, [prompt], (2,))[0]
    with torch.inference_mode():
        whole = random_model("llama")(input_ids=torch.tensor([prompt]), output_hidden_states=True)
        normed = model.model.norm(torch.from_numpy(found.last))
    assert (normed - whole.hidden_states[-1][0, -1]).abs().max() < CLOSE


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 90), min_size=1, max_size=10), st.integers(0, 99), st.sampled_from([16, 64, 2048]))
def test_chunks_groups_and_company_change_nothing(lengths: list[int], seed: int, size: int) -> None:
    model, prompts = model_of(), family(lengths, seed)
    alone = [read(model, [prompt])[0] for prompt in prompts]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hidden, "CHUNK", size)
        together = read(model, prompts, limits=Limits(tokens=200, rows=4))
    for one, other in zip(alone, together, strict=True):
        assert np.abs(one.last - other.last).max() < CLOSE
        assert np.abs(one.mean - other.mean).max() < CLOSE


def test_the_same_batch_gives_the_same_bits() -> None:
    model, prompts = model_of(dtype=torch.bfloat16), family([0, 25, 25, 200], seed=5)
    first, second = read(model, prompts), read(model, prompts)
    for one, other in zip(first, second, strict=True):
        assert one.last.tobytes() == other.last.tobytes()
        assert one.mean.tobytes() == other.mean.tobytes()


def test_each_request_has_its_own_layers_in_its_own_order() -> None:
    model, prompts = model_of(), family([10, 10], seed=1)
    requests = [FeatureRequest(prompts[0], (2, 1)), FeatureRequest(prompts[1], (1,))]
    mixed = hidden_states(model, requests, limits=Limits(), ledger=Ledger(), refuse=lambda prompt: None)
    both = read(model, prompts)
    assert isinstance(mixed[0], Features) and isinstance(mixed[1], Features)
    assert np.array_equal(mixed[0].last, both[0].last[::-1])
    assert np.array_equal(mixed[1].mean, both[1].mean[:1])


def test_a_prompt_that_begins_another_has_its_own_end() -> None:
    model, long = model_of(), random_tokens(random.Random(2), 40)
    whole, start = read(model, [long, long[:15]])
    assert np.abs(whole.last - start.last).max() > 0.01
    assert np.abs(start.last[0] - plain("llama", long[:15])[-1]).max() < CLOSE


def test_nothing_is_computed_above_the_highest_layer_and_no_hook_stays() -> None:
    model = model_of()
    layers, ran = decoder_layers(model), list[int]()
    handle = layers[1].register_forward_hook(lambda *given: ran.append(1))
    before = len(layers[0]._forward_hooks)
    read(model, family([10]), (1,))
    assert ran == []
    read(model, family([10]), (2,))
    assert ran == [1]
    handle.remove()
    assert len(layers[0]._forward_hooks) == before


def test_no_hook_stays_after_a_pass_that_broke() -> None:
    model = model_of()

    def breaks(*given: Any) -> None:
        raise ValueError("a defect")

    handle = decoder_layers(model)[0].register_forward_pre_hook(breaks)
    with pytest.raises(ValueError, match="a defect"):
        read(model, family([10]))
    handle.remove()
    assert not any(layer._forward_hooks for layer in decoder_layers(model))


def test_what_cannot_be_computed_fails_alone() -> None:
    model, prompt = model_of(), family([10])[0]
    requests = [
        FeatureRequest((), (1,)),
        FeatureRequest(prompt, ()),
        FeatureRequest(prompt, (1,)),
        FeatureRequest(prompt, (3,)),
        FeatureRequest(prompt, (0,)),
        FeatureRequest((*prompt, 3), (1,)),
    ]

    def refuse(given: tuple[int, ...]) -> Failure | None:
        return Failure("too long") if len(given) > len(prompt) else None

    found = hidden_states(model, requests, limits=Limits(), ledger=Ledger(), refuse=refuse)
    told = [result.error if isinstance(result, Failure) else None for result in found]
    assert told == [
        "a prompt needs at least one token",
        "features need at least one layer",
        None,
        "the model has no layer 3; it has the layers 1 to 2",
        "the model has no layer 0; it has the layers 1 to 2",
        "too long",
    ]


def test_the_ledger_counts_what_was_shared() -> None:
    ledger, prompt = Ledger(), random_tokens(random.Random(4), 30)
    read(model_of(), [prompt, prompt, prompt[:20]], ledger=ledger)
    assert (ledger.calls, ledger.prompt_tokens, ledger.cached_tokens, ledger.forward_passes) == (3, 80, 50, 1)
    assert ledger.generated_tokens == 0


class Giving:
    """An engine that has hidden states."""

    layers = 2

    def features(self, requests: Sequence[FeatureRequest]) -> list[Features | Failure]:
        return [Failure(str(len(request.prompt))) for request in requests]


def test_an_engine_without_hidden_states_is_told() -> None:
    request = FeatureRequest((5, 6, 7), (1,))
    assert layers_of(ScriptedEngine()) == 0
    with pytest.raises(InputError, match="does not give hidden states"):
        features_of(ScriptedEngine(), [request])
    assert layers_of(Giving()) == 2
    assert features_of(Giving(), [request]) == [Failure("3")]


def test_a_batch_of_nothing_asks_nothing() -> None:
    ledger = Ledger()
    assert read(model_of(), [], ledger=ledger) == []
    assert ledger.forward_passes == 0
