"""The token tree: every prefix once, in depth-first order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cuecard.models.tree import TokenTree, build, common_prefix

Sequences = list[tuple[int, ...]]

# Few different tokens and many sequences, so that prefixes are shared, repeated and each other's beginnings.
few = st.lists(st.integers(0, 2), min_size=1, max_size=9).map(tuple)
wide = st.lists(st.integers(0, 10**6), min_size=1, max_size=6).map(tuple)
sequences = st.lists(few, min_size=1, max_size=14) | st.lists(few | wide, min_size=1, max_size=6)
longest = st.integers(1, 6) | st.just(2048)
trees = settings(max_examples=150, deadline=None)


def spelled(tree: TokenTree, leaf: int) -> tuple[int, ...]:
    return tuple(tree.tokens[tree.indices(leaf)].tolist())


def prefixes(of: Sequences) -> set[tuple[int, ...]]:
    return {sequence[:end] for sequence in of for end in range(1, len(sequence) + 1)}


def prefix_at(tree: TokenTree, index: int) -> tuple[int, ...]:
    """The tokens up to and with the one at a flat index, read back along `before`."""
    found = []
    while index >= 0:
        found.append(int(tree.tokens[index]))
        index = int(tree.before[index])
    return tuple(found[::-1])


@trees
@given(sequences, longest)
@example([(1,), (1,), (1, 1)], 1)
def test_each_sequence_is_spelled_by_its_path(given: Sequences, longest: int) -> None:
    tree = build(given, longest)
    assert [spelled(tree, leaf) for leaf in tree.leaves] == given
    for leaf in tree.leaves:
        assert tree.positions[tree.indices(leaf)].tolist() == list(range(len(spelled(tree, leaf))))


@trees
@given(sequences, longest)
def test_each_prefix_is_there_once(given: Sequences, longest: int) -> None:
    tree = build(given, longest)
    found = [prefix_at(tree, index) for index in range(len(tree))]
    assert len(set(found)) == len(found)
    assert set(found) == prefixes(given)
    assert [len(prefix) - 1 for prefix in found] == tree.positions.tolist()


@trees
@given(sequences, longest)
def test_tokens_before_are_the_tokens_before_in_the_sequence(given: Sequences, longest: int) -> None:
    tree = build(given, longest)
    for leaf in tree.leaves:
        indices = tree.indices(leaf)
        assert tree.before[indices].tolist() == [-1, *indices[:-1].tolist()]
    assert (tree.before < np.arange(len(tree))).all(), "ancestors must stand first"


@trees
@given(sequences, longest)
def test_a_subtree_is_one_range(given: Sequences, longest: int) -> None:
    tree = build(given, longest)
    for index, segment in enumerate(tree.segments):
        below = [
            token
            for other, it in enumerate(tree.segments)
            if index in tree.path(other)
            for token in range(it.start, it.end)
        ]
        assert sorted(below) == list(range(segment.start, segment.stop))


@trees
@given(sequences, longest)
def test_segments_lie_side_by_side_and_below_their_parents(given: Sequences, longest: int) -> None:
    tree = build(given, longest)
    end = 0
    for index, segment in enumerate(tree.segments):
        assert segment.start == end
        assert 0 < segment.end - segment.start <= longest
        assert segment.position == tree.positions[segment.start]
        assert segment.parent < index
        if segment.parent >= 0:
            parent = tree.segments[segment.parent]
            assert parent.end <= segment.start < segment.stop <= parent.stop
            assert tree.before[segment.start] == parent.end - 1
        end = segment.end
    assert end == len(tree) == len(tree.tokens) == len(tree.positions) == len(tree.before)


@trees
@given(sequences)
def test_segments_have_no_branch_and_are_as_long_as_they_can_be(given: Sequences) -> None:
    tree = build(given)
    children = [[s.parent for s in tree.segments].count(index) for index in range(len(tree.segments))]
    for index, count in enumerate(children):
        assert count != 1 or index in tree.leaves, "a segment with one child and no end would be one with it"
        assert count > 0 or index in tree.leaves


@trees
@given(sequences, longest)
def test_equal_sequences_share_a_leaf(given: Sequences, longest: int) -> None:
    tree = build(given, longest)
    for i, a in enumerate(given):
        for j, b in enumerate(given):
            assert (tree.leaves[i] == tree.leaves[j]) == (a == b)


@trees
@given(sequences, longest, st.randoms(use_true_random=False))
def test_the_order_of_the_sequences_changes_the_leaves_alone(given: Sequences, longest: int, source: object) -> None:
    order = list(range(len(given)))
    source.shuffle(order)  # type: ignore[attr-defined]
    tree, other = build(given, longest), build([given[i] for i in order], longest)
    assert other.segments == tree.segments
    for name in ("tokens", "positions", "before"):
        assert np.array_equal(getattr(other, name), getattr(tree, name))
    assert other.leaves == tuple(tree.leaves[i] for i in order)


@trees
@given(sequences, longest)
def test_more_of_the_same_adds_nothing(given: Sequences, longest: int) -> None:
    tree = build(given, longest)
    again = build([*given, *given, *(sequence[: 1 + len(sequence) // 2] for sequence in given)], longest)
    assert len(again) == len(tree)
    assert again.leaves[: len(given)] == again.leaves[len(given) : 2 * len(given)]


@trees
@given(sequences, longest)
def test_the_order_is_that_of_the_sorted_prefixes(given: Sequences, longest: int) -> None:
    """Depth-first with the smaller token first: what is under one prefix stands together, right behind it."""
    tree = build(given, longest)
    found = [prefix_at(tree, index) for index in range(len(tree))]
    assert found == sorted(prefixes(given))


@trees
@given(sequences, longest, st.data())
def test_a_tail_is_the_end_of_a_path(given: Sequences, longest: int, data: st.DataObject) -> None:
    tree = build(given, longest)
    for leaf in tree.leaves:
        path = tree.indices(leaf).tolist()
        count = data.draw(st.integers(1, len(path)))
        assert tree.tail(leaf, count).tolist() == path[-count:]


counted = st.lists(few.flatmap(lambda tokens: st.tuples(st.just(tokens), st.integers(0, len(tokens)))), max_size=12)


@trees
@given(counted, longest)
@example([((0, 0), 2), ((0, 1), 0)], 2048)
@example([((0, 1), 0), ((0, 2), 2)], 2048)
@example([((1, 2), 1), ((1, 2, 0), 2), ((1, 2, 5), 1)], 2048)
def test_what_every_sequence_knows_is_known_and_nothing_else(
    given: list[tuple[tuple[int, ...], int]], longest: int
) -> None:
    """A token that one sequence wants computed is computed, wherever that sequence stands among those that share it."""
    tree = build([tokens for tokens, _ in given], longest, [known for _, known in given])
    found = {
        prefix_at(tree, index)
        for segment in tree.segments
        if segment.known
        for index in range(segment.start, segment.end)
    }
    wanted = {tokens[:end] for tokens, known in given for end in range(known + 1, len(tokens) + 1)}
    assert found == prefixes([tokens for tokens, _ in given]) - wanted


@trees
@given(counted.filter(bool), longest)
def test_what_is_known_changes_segments_alone(given: list[tuple[tuple[int, ...], int]], longest: int) -> None:
    paths = [tokens for tokens, _ in given]
    tree, plain = build(paths, longest, [known for _, known in given]), build(paths, longest)
    for name in ("tokens", "positions", "before"):
        assert np.array_equal(getattr(tree, name), getattr(plain, name))
    assert [spelled(tree, leaf) for leaf in tree.leaves] == paths
    assert not any(segment.known for segment in plain.segments)


@pytest.mark.parametrize(
    ("given", "tokens", "segments"),
    [
        ([(1, 2, 3)] * 5, 3, 1),
        ([(*range(600), 1000 + i, 7, 7) for i in range(32)], 600 + 32 * 3, 1 + 32),
        ([tuple(n >> bit & 1 for bit in range(6)) for n in range(64)], 2**7 - 2, 2**7 - 2),
        ([(0,) * end for end in range(1, 9)], 8, 8),
        (
            [(*range(100), 200 + c, *range(50), 300 + e, 5) for c in range(8) for e in range(32)],
            100 + 8 * 51 + 8 * 32 * 2,
            1 + 8 + 8 * 32,
        ),
    ],
    ids=["equal", "one prefix", "every bit", "a ladder", "candidates and examples"],
)
def test_known_counts(given: Sequences, tokens: int, segments: int) -> None:
    tree = build(given)
    assert (len(tree), len(tree.segments)) == (tokens, segments)


def test_a_beginning_ends_inside_the_tree() -> None:
    tree = build([(1, 2, 3), (1, 2), (1, 2, 4, 5), (9,)])
    assert tree.tokens.tolist() == [1, 2, 3, 4, 5, 9]
    assert [(s.start, s.end, s.stop, s.parent, s.position) for s in tree.segments] == [
        (0, 2, 5, -1, 0),
        (2, 3, 3, 0, 2),
        (3, 5, 5, 0, 2),
        (5, 6, 6, -1, 0),
    ]
    assert tree.leaves == (1, 0, 2, 3)


def test_a_long_segment_is_cut_into_a_chain() -> None:
    tree = build([tuple(range(7))], longest=3)
    assert [(s.start, s.end, s.stop, s.parent, s.position) for s in tree.segments] == [
        (0, 3, 7, -1, 0),
        (3, 6, 7, 0, 3),
        (6, 7, 7, 1, 6),
    ]
    assert tree.path(tree.leaves[0]) == [0, 1, 2]


def test_no_sequences_make_an_empty_tree() -> None:
    tree = build([])
    assert len(tree) == 0
    assert tree.segments == tree.leaves == ()


def test_arrays_and_lists_are_sequences_too() -> None:
    tree = build([[1, 2], np.array([1, 3]), (1, 2)])  # type: ignore[list-item]
    assert [spelled(tree, leaf) for leaf in tree.leaves] == [(1, 2), (1, 3), (1, 2)]


def test_a_deep_tree_needs_no_recursion() -> None:
    """Every sequence is the beginning of the next: as deep as there are sequences."""
    given = [tuple(range(end)) for end in range(1, 1500)]
    tree = build(given)
    assert len(tree) == 1499
    assert len(tree.path(tree.leaves[-1])) == 1499


@pytest.mark.parametrize(
    ("a", "b", "shared"), [((), (1,), 0), ((1, 2), (1, 2), 2), ((1, 2, 3), (1, 2), 2), ((1, 9), (1, 8, 9), 1), ((2,), (1,), 0)]
)  # fmt: skip
def test_common_prefix(a: tuple[int, ...], b: tuple[int, ...], shared: int) -> None:
    assert common_prefix(np.array(a, dtype=np.int64), np.array(b, dtype=np.int64)) == shared
    assert common_prefix(np.array(b, dtype=np.int64), np.array(a, dtype=np.int64)) == shared
