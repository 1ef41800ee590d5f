"""Packed matrices: the same products to the last bit, in a model and alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cuecard.models.architecture import prepare
from cuecard.models.packed import PackedLinear, _available, pack, unpack

from .helpers import random_model

pytestmark = pytest.mark.skipif(not _available(), reason="this processor or torch multiplies by plain matrices alone")


def linear(outputs: int, inputs: int, bias: bool = False) -> nn.Linear:
    torch.manual_seed(outputs * inputs)
    return nn.Linear(inputs, outputs, bias=bias).bfloat16().requires_grad_(False)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("size", [(96, 48), (33, 70), (1, 16), (300, 128)])
def test_a_packed_matrix_gives_the_same_product(size: tuple[int, int], bias: bool) -> None:
    plain = linear(*size, bias)
    packed = PackedLinear(plain, shared=False)
    with torch.inference_mode():
        for rows in (0, 1, 2, 17, 64, 300):
            states = torch.randn(1, rows, size[1]).bfloat16()
            assert torch.equal(packed(states), plain(states))
    assert torch.equal(packed.plain().weight, plain.weight)
    assert packed.weight.shape == plain.weight.shape and packed.weight.dtype == torch.bfloat16


def test_a_copy_of_a_packed_matrix_is_one() -> None:
    packed = PackedLinear(linear(24, 32, bias=True), shared=False)
    again, states = copy.deepcopy(packed), torch.randn(3, 32).bfloat16()
    assert again is not packed and again.weight is not packed.weight
    assert torch.equal(again(states), packed(states))


def model(kind: str) -> Any:
    """A random model of that kind, whose output layer is its embedding."""
    made = random_model(kind, dtype=torch.bfloat16).requires_grad_(False)
    made.get_output_embeddings().weight = made.get_input_embeddings().weight
    return made


def logits(made: Any) -> Tensor:
    with torch.inference_mode():
        return made(input_ids=torch.arange(1, 20)[None], use_cache=False).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mixtral", "gemma3", "phi3", "starcoder2", "gpt_neox"])
def test_a_model_computes_the_same_packed_and_unpacked(kind: str) -> None:
    made = model(kind)
    before, weights = logits(made), sum(weight.numel() for weight in made.parameters())
    table = made.get_input_embeddings().weight
    assert pack(made)
    assert not any(type(part) is nn.Linear for part in made.modules())
    prepare(copy.deepcopy(made), kind)
    assert made.get_input_embeddings().weight is table and table.layout == torch.strided
    assert sum(weight.numel() for weight in made.parameters()) == weights, "what others share is counted once"
    assert torch.equal(logits(made), before)
    assert torch.equal(logits(copy.deepcopy(made)), before)
    unpack(made)
    assert not any(isinstance(part, PackedLinear) for part in made.modules())
    assert torch.equal(logits(made), before)


def test_other_dtypes_stay_as_they_are() -> None:
    made = random_model("llama")
    assert not pack(made)
    assert any(type(part) is nn.Linear for part in made.modules())


def test_a_model_that_reads_its_matrices_itself_is_unpacked_again() -> None:
    made = model("llama")
    part = made.model.layers[0].mlp
    part.forward = lambda states: part.down_proj(torch.nn.functional.silu(states @ part.gate_proj.weight.t()))
    prepare(made, "tiny")
    assert not any(isinstance(each, PackedLinear) for each in made.modules())


def test_products_that_come_out_wrong_are_left_to_plain_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    made = model("llama")
    made.set_attn_implementation("eager")
    before = logits(made)
    monkeypatch.setattr(PackedLinear, "forward", lambda self, states: -self.plain()(states))
    prepare(made, "tiny")
    assert not any(isinstance(each, PackedLinear) for each in made.modules())
    made.set_attn_implementation("eager")
    assert torch.equal(logits(made), before)


def test_an_engine_packs_its_model() -> None:
    made = model("llama")
    prepare(made, "tiny")
    assert any(isinstance(each, PackedLinear) for each in made.modules())
