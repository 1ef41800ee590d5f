"""The plain products of attention in 16 bits, against the definition in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cuecard.models.attention import causal, dense, grouped

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


@pytest.mark.parametrize("shift", [0.0, 50.0, 95.0, -95.0, 300.0])
def test_scores_too_large_or_too_small_for_their_exponentials_come_out_the_same(shift: float) -> None:
    """A direction that all keys have in common and a query's part along it move all of its scores."""
    query, key, value = made(4, 2, 70, 90, 16, 3)
    query[..., 0], key[..., 0] = abs(shift), 4.0 if shift > 0 else -4.0
    tensors = query, key, value
    found, expected = dense(*tensors, 0.25), defined(*tensors, 0.25, masked=False)
    assert bool(torch.isfinite(found[0]).all())
    rounding = max(1.0, abs(shift)) / 64  # bfloat16 has eight bits
    assert float((found[1].double() - expected[1]).abs().max()) < rounding + 0.1
    if abs(shift) < 60:
        assert float((found[0].double() - expected[0]).pow(2).mean().sqrt()) < 0.01 + rounding / 10


def test_rows_of_which_some_overflow_and_some_vanish() -> None:
    query, key, value = made(2, 2, 6, 40, 8, 5)
    query[:, ::2, 0], query[:, 1::2, 0] = 100.0, -100.0
    key[..., 0] = 1.0
    output, lse = dense(query, key, value, 1.0)
    expected = defined(query, key, value, 1.0, masked=False)
    assert bool(torch.isfinite(output).all() & torch.isfinite(lse).all())
    assert float((lse.double() - expected[1]).abs().max()) < 2.0
    assert float(lse[:, ::2].min()) > 80 and float(lse[:, 1::2].max()) < -60


@given(shape=shapes, rows=st.integers(1, 40), keys=st.integers(1, 60))
@settings(deadline=None, max_examples=25)
def test_a_mask_of_all_keys_leaves_out_what_it_hides(
    shape: tuple[tuple[int, int], int, int], rows: int, keys: int
) -> None:
    (heads, shared), width, seed = shape
    tensors = [states[None] for states in made(heads, shared, rows, keys + 7, width, seed)]
    mask = torch.zeros(1, 1, 1, keys + 7, dtype=torch.bfloat16)
    mask[..., keys:] = float("-inf")
    output, lse = grouped(*tensors, width**-0.5, mask)
    query, key, value = (states[0] for states in tensors)
    close((output[0], lse[0]), defined(query, key[:, :keys], value[:, :keys], width**-0.5, masked=False))
