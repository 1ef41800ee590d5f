"""Shared blocks computed several at once: only in company that changes no bit."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cuecard.models.architecture import has_experts
from cuecard.models.attention import KeyValues
from cuecard.models.blocks import Block, BlockPlan, Stacks, states
from cuecard.models.engine import Decoding, GenerateRequest
from cuecard.models.local import LocalEngine
from cuecard.models.prefixes import BLOCK

from .helpers import config, engine_over, random_model, random_tokens


def blocks(count: int) -> list[Block]:
    tokens = np.arange(BLOCK)
    return [Block(bytes([i]), tokens + i, torch.arange(i * BLOCK, (i + 1) * BLOCK)) for i in range(count)]


class Machine:
    """Stands for a model: a block's states are its first token, and what `noise` makes of a pass's number of blocks."""

    def __init__(self, noise: dict[int, float] | None = None, *, apart: bool = True) -> None:
        self.noise = noise or {}
        self.calls: list[list[int]] = []
        self.stacks = Stacks(self.compute, apart=apart)

    def compute(self, plans: Sequence[BlockPlan]) -> None:
        self.calls.append([len(plan.blocks) for plan in plans])
        for plan in plans:
            for block in plan.blocks:
                value = float(block.tokens[0]) + self.noise.get(len(plan.blocks), 0.0)
                found = torch.full((1, BLOCK, 1), value)
                plan.store.place(0, block.own, found, found)

    def run(self, count: int) -> Tensor:
        """The states that `count` blocks come to, [count]."""
        self.calls.clear()
        store = KeyValues(max(1, count) * BLOCK)
        self.stacks.run(blocks(count), store)
        return torch.stack([states(block, store)[0][0].unique() for block in blocks(count)])[:, 0]


@given(st.integers(1, 40), st.sampled_from([{}, {4: 0.5}, {2: 0.5}, {4: 0.5, 2: 1.0}]), st.booleans())
@settings(deadline=None)
def test_every_block_comes_out_as_it_does_alone(count: int, noise: dict[int, float], apart: bool) -> None:
    machine = Machine(noise, apart=apart)
    for _ in range(2):
        assert machine.run(count).tolist() == list(range(count))


@pytest.mark.parametrize(
    ("count", "calls"),
    [
        (1, [[1]]),
        (2, [[1, 1]]),
        (3, [[1, 1], [1]]),
        (5, [[2, 2], [1]]),
        (8, [[4, 4]]),
        (15, [[4, 4], [2, 2], [1, 1], [1]]),
        (17, [[4, 4, 4, 4], [1]]),
    ],
)
def test_the_passes_side_by_side_are_even_and_of_one_size(count: int, calls: list[list[int]]) -> None:
    machine = Machine()
    for size in (2, 4, 8):
        machine.run(size)  # every size is tried by now
    machine.run(count)
    assert machine.calls == calls


def test_a_size_is_tried_once_against_its_blocks_alone() -> None:
    machine = Machine()
    machine.run(8)
    assert machine.calls == [[4, 4], [1], [1], [1], [1]]
    machine.run(8)
    assert machine.calls == [[4, 4]]


def test_a_size_that_changes_a_bit_is_not_used_again() -> None:
    machine = Machine({4: 2.0**-10})
    machine.run(8)
    assert machine.calls == [[4, 4], *[[1]] * 4, *[[1]] * 8]
    machine.run(9)
    assert machine.calls == [[1]] * 9
    machine.run(4)
    assert machine.calls[0] == [2, 2]


def test_a_mixture_of_experts_has_each_block_in_a_pass_of_its_own() -> None:
    machine = Machine(apart=False)
    machine.run(9)
    assert machine.calls == [[1] * 8, [1], [1]]
    machine.run(8)
    assert machine.calls == [[1] * 8]


@pytest.mark.parametrize(
    ("kind", "routed"),
    [("llama", False), ("gpt2", False), ("gemma3", False), ("qwen3", False), ("mixtral", True), ("qwen2_moe", True),
     ("gpt_oss", True), ("deepseek_v3", True)],
)  # fmt: skip
def test_experts_are_known_by_the_configuration(kind: str, routed: bool) -> None:
    assert has_experts(config(kind)) == routed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2", "gemma3", "mixtral"])
def test_what_is_kept_of_many_prefixes_is_what_each_leaves_alone(kind: str, dtype: torch.dtype) -> None:
    source = random.Random(3)
    start = random_tokens(source, BLOCK)
    prefixes = [start + random_tokens(source, 2 * BLOCK) for _ in range(9)]
    batch = [prefix + random_tokens(source, 5) for prefix in prefixes for _ in range(2)]
    model = random_model(kind, dtype=dtype)
    together, alone = engine_over(model), engine_over(model)
    for _ in range(2):  # the second time, in company that is known
        together._prefixes.clear()
        together.generate([GenerateRequest(prompt, Decoding(max_tokens=1)) for prompt in batch])
    for prefix in prefixes:
        alone.generate([GenerateRequest((*prefix, 7), Decoding(max_tokens=1))])
    assert alone._prefixes.misses == 1 + 2 * len(prefixes)
    kept, expected = _kept(together), _kept(alone)
    assert kept.keys() == expected.keys()
    for key, layers in kept.items():
        for layer, pair in layers.items():
            for ours, theirs in zip(pair, expected[key][layer], strict=True):
                assert torch.equal(ours, theirs)


def test_prefixes_of_one_depth_are_few_passes() -> None:
    source = random.Random(4)
    engine = engine_over(random_model("llama"))

    def passes() -> int:
        batch = [random_tokens(source, 2 * BLOCK + 1) for _ in range(8)]
        before = engine.ledger.forward_passes
        engine.generate([GenerateRequest(prompt, Decoding(max_tokens=1)) for prompt in batch for _ in range(2)])
        return engine.ledger.forward_passes - before

    passes()
    if not engine._stacks._alike[4]:
        pytest.skip("this processor's products of four blocks differ from those of one")
    assert passes() == 2 * 2 + 1


def _kept(engine: LocalEngine) -> dict[bytes, dict[int, tuple[Tensor, Tensor]]]:
    return dict(engine._prefixes._blocks)
