"""The plain products of attention in 16 bits, against the definition in float64."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cuecard.models.attention import Merge, Part, causal, dense, grouped, wholes

shapes = st.tuples(st.sampled_from([(4, 4), (6, 2), (9, 3), (3, 1)]), st.sampled_from([8, 16, 64]), st.integers(0, 99))


def made(heads: int, shared: int, rows: int, keys: int, width: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    sizes = ((heads, rows), (shared, keys), (shared, keys))
    query, key, value = (torch.randn(*size, width, generator=source).bfloat16() for size in sizes)
    return query * 2, key, value


def defined(query: Tensor, key: Tensor, value: Tensor, scale: float, masked: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The output, the logsumexp, and how far rounding scores, weights and values to eight bits may move the output."""
    group = query.shape[0] // key.shape[0]
    keys, values = (states.repeat_interleave(group, 0).double() for states in (key, value))
    scores = query.double() @ keys.transpose(1, 2) * scale
    if masked:
        rows = torch.arange(query.shape[1])
        scores = scores.masked_fill(rows[:, None] < rows[None, :], float("-inf"))
    weights = torch.softmax(scores, -1)
    output = weights @ values
    moved = weights * (1 + scores.abs().nan_to_num(posinf=0.0))
    bound = 2**-7 * (moved @ values.abs() + output.abs() * (1 + moved.sum(-1, keepdim=True)))
    return output, torch.logsumexp(scores, -1), bound


def close(found: Part, expected: tuple[Tensor, Tensor, Tensor]) -> None:
    output, lse = found.output, found.lse
    assert output.shape == expected[0].shape
    assert lse.shape == expected[1].shape
    assert bool(((output.double() - expected[0]).abs() <= expected[2] + 1e-4).all())
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
        output, lse, _ = defined(query, key, value, 0.25, masked)
        assert torch.allclose(found.output.double(), output, atol=1e-5)
        assert torch.allclose(found.lse.double(), lse, atol=1e-5)


@pytest.mark.parametrize("shift", [0.0, 50.0, 95.0, -95.0, 300.0])
def test_scores_too_large_or_too_small_for_their_exponentials_come_out_the_same(shift: float) -> None:
    """A direction that all keys have in common and a query's part along it move all of its scores."""
    query, key, value = made(4, 2, 70, 90, 16, 3)
    query[..., 0], key[..., 0] = abs(shift), 4.0 if shift > 0 else -4.0
    tensors = query, key, value
    found, expected = dense(*tensors, 0.25), defined(*tensors, 0.25, masked=False)
    assert bool(torch.isfinite(found.output).all())
    rounding = max(1.0, abs(shift)) / 64  # bfloat16 has eight bits
    assert float((found.lse.double() - expected[1]).abs().max()) < rounding + 0.1
    if abs(shift) < 60:
        assert float((found.output.double() - expected[0]).pow(2).mean().sqrt()) < 0.01 + rounding / 10


def test_rows_of_which_some_overflow_and_some_vanish() -> None:
    query, key, value = made(2, 2, 6, 40, 8, 5)
    query[:, ::2, 0], query[:, 1::2, 0] = 100.0, -100.0
    key[..., 0] = 1.0
    found = dense(query, key, value, 1.0)
    output, lse = found.output, found.lse
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
    found = grouped(*tensors, width**-0.5, mask)
    query, key, value = (states[0] for states in tensors)
    close(
        found.each(lambda states: states[0]), defined(query, key[:, :keys], value[:, :keys], width**-0.5, masked=False)
    )


@given(shape=shapes, cuts=st.lists(st.integers(1, 60), min_size=1, max_size=4), strange=st.integers(0, 4))
@settings(deadline=None, max_examples=40)
def test_parts_with_a_peak_and_without_merge_to_the_whole(
    shape: tuple[tuple[int, int], int, int], cuts: list[int], strange: int
) -> None:
    """The scores of one part may be so large that its exponentials need a peak: those of half of the rows, too."""
    (heads, shared), width, seed = shape
    bounds = [0, *(sum(cuts[: end + 1]) for end in range(len(cuts)))]
    query, key, value = made(heads, shared, 20, bounds[-1], width, seed)
    query[..., 0] = torch.arange(20).remainder(2) * 30.0
    key[..., 0] = 0.0
    if strange < len(cuts):
        key[:, bounds[strange] : bounds[strange + 1], 0] = 12.0
    merge, scale = Merge(query), width**-0.5
    parts = [
        dense(query, key[:, low:high], value[:, low:high], scale) for low, high in zip(bounds, bounds[1:], strict=False)
    ]
    merge.put(torch.arange(20), parts[0])
    for part in parts[1:]:
        merge.add(0, 8, part.each(lambda states: states[:, :8]))
        merge.add(8, 20, part.each(lambda states: states[:, 8:]))
    expected = defined(query, key, value, scale, masked=False)
    whole = Part(merge.mixed.clone(), merge.total.clone(), merge.peak)
    rounding = 2.0 if strange < len(cuts) else 0.1
    assert float((whole.lse.double() - expected[1]).abs().max()) < rounding
    result = merge.result(torch.bfloat16)
    assert result.transpose(0, 1).is_contiguous() and bool(torch.isfinite(result).all())
    if strange >= len(cuts):
        assert float((result.double() - expected[0]).abs().max()) < 0.08


def test_only_what_needs_a_peak_has_one() -> None:
    query, key, value = made(4, 2, 40, 50, 16, 1)
    assert (
        dense(query, key, value, 0.25).peak is None and causal(query, key[:, :40], value[:, :40], 0.25).peak is not None
    )
    assert dense(query * 100, key, value, 0.25).peak is not None
    assert dense(query.half(), key.half(), value.half(), 0.25).peak is not None


@given(st.lists(st.tuples(st.integers(1, 4), st.booleans(), st.sampled_from([(0, 3), (0, 9), (3, 9)])), max_size=8))
def test_ranges_under_the_same_rows_are_joined_where_they_touch(parts: list[tuple[int, bool, tuple[int, int]]]) -> None:
    ranges, at = [], 0
    for length, gap, rows in parts:
        at += gap
        ranges.append((at, at + length, *rows))
        at += length

    def pairs(ranges: list[tuple[int, int, int, int]]) -> list[tuple[int, int]]:
        return [(k, row) for low, high, first, last in ranges for k in range(low, high) for row in range(first, last)]

    joined = wholes(ranges)
    assert sorted(pairs(joined)) == sorted(pairs(ranges))
    assert all(a[1] != b[0] or a[2:] != b[2:] for a, b in pairwise(joined))
