"""The front of score and prompt length, and the rule that picks from it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cuecard.optimizers.front import FrontRule, Point, front

POINTS = st.lists(
    st.tuples(st.integers(0, 8), st.integers(1, 8)).map(lambda pair: (pair[0] / 8, float(pair[1]))), max_size=12
).map(lambda pairs: [Point(number, *pair) for number, pair in enumerate(pairs)])


def beats(one: Point, other: Point) -> bool:
    better = one.score > other.score or one.tokens < other.tokens
    return one.score >= other.score and one.tokens <= other.tokens and better


@given(POINTS)
def test_the_front_is_what_no_other_beats(points: list[Point]) -> None:
    found = front(points)
    assert not any(beats(one, other) for one in points for other in found)
    for point in points:
        same = any((point.score, point.tokens) == (other.score, other.tokens) for other in found)
        assert same != any(beats(other, point) for other in points)


@given(POINTS)
def test_the_front_rises_with_its_tokens(points: list[Point]) -> None:
    found = front(points)
    assert list(found) == sorted(found, key=lambda point: point.tokens)
    assert all(a.score < b.score and a.tokens < b.tokens for a, b in zip(found, found[1:], strict=False))


@given(POINTS, st.integers(0, 9))
def test_at_least_takes_the_shortest_that_is_good_enough(points: list[Point], eighths: int) -> None:
    rule = FrontRule(at_least=eighths / 8)
    found = rule.pick(points)
    good = [point for point in points if point.score >= eighths / 8]
    if good:
        assert found in good and found.tokens == min(point.tokens for point in good)
    elif points:
        assert found is not None and found.score == max(point.score for point in points)
    else:
        assert found is None


@given(POINTS, st.integers(0, 9))
def test_at_most_tokens_takes_the_best_that_is_short_enough(points: list[Point], most: int) -> None:
    found = FrontRule(at_most_tokens=float(most)).pick(points)
    short = [point for point in points if point.tokens <= most]
    assert (found is None) == (not short)
    if found is not None:
        assert found in short and found.score == max(point.score for point in short)


def test_without_a_rule_the_best_score_wins_and_ties_go_to_the_shorter() -> None:
    points = [Point(1, 0.5, 100.0), Point(2, 0.75, 300.0), Point(3, 0.75, 200.0), Point(4, 0.75, 200.0)]
    assert FrontRule().pick(points) == points[2]
