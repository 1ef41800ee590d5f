"""The plain products of attention in 16 bits, against the definition in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cuecard.models.attention import causal, dense

shapes = st.tuples(st.sampled_from([(4, 4), (6, 2), (9, 3), (3, 1)]), st.sampled_from([8, 16, 64]), st.integers(0, 99))


def made(heads: int, shared: int, rows: int, keys: int, width: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    sizes = ((heads, rows), (shared, keys), (shared, keys))
    query, key, value = (torch.randn(*size, width, generator=source).bfloat16() for size in sizes)
    return query * 2, key, value


def defined(query: Tensor, key: Tensor, value: Tensor, scale: float, masked: bool) -> tuple[Tensor, Tensor]:
    group = query.shape[0] // key.shape[0]
    keys, values = (states.repeat_interleave(group, 0).double() for states in (key, value))
    scores = query.double() @ keys.transpose(1, 2) * scale
    if masked:
        rows = torch.arange(query.shape[1])
        scores = scores.masked_fill(rows[:, None] < rows[None, :], float("-inf"))
    return torch.softmax(scores, -1) @ values, torch.logsumexp(scores, -1)


def close(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    output, lse = found
    assert output.shape == expected[0].shape
    assert lse.shape == expected[1].shape
    assert float((output.double() - expected[0]).abs().max()) < 0.06
    assert float((output.double() - expected[0]).pow(2).mean().sqrt()) < 0.01
    assert float((lse.double() - expected[1]).abs().max()) < 0.1  # scores of up to 16 are rounded by 0.03 each


@given(shape=shapes, rows=st.integers(1, 300), keys=st.integers(1, 400))
@settings(deadline=None, max_examples=40)
def test_dense(shape: tuple[tuple[int, int], int, int], rows: int, keys: int) -> None:
    (heads, shared), width, seed = shape
    tensors = made(heads, shared, rows, keys, width, seed)
    close(dense(*tensors, width**-0.5), defined(*tensors, width**-0.5, masked=False))


@given(shape=shapes, rows=st.integers(1, 600))
@settings(deadline=None, max_examples=40)
def test_causal(shape: tuple[tuple[int, int], int, int], rows: int) -> None:
    (heads, shared), width, seed = shape
    tensors = made(heads, shared, rows, rows, width, seed)
    close(causal(*tensors, width**-0.5), defined(*tensors, width**-0.5, masked=True))


@pytest.mark.parametrize("rows", [5, 97, 300])
def test_in_32_bits_both_are_exact(rows: int) -> None:
    query, key, value = (states.float() for states in made(6, 2, rows, rows, 16, 1))
    for found, masked in ((dense(query, key, value, 0.25), False), (causal(query, key, value, 0.25), True)):
        output, lse = defined(query, key, value, 0.25, masked)
        assert torch.allclose(found[0].double(), output, atol=1e-5)
        assert torch.allclose(found[1].double(), lse, atol=1e-5)
