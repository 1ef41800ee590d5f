"""What a task's space offers."""

from __future__ import annotations

from typing import Any

import pytest
from fakes import WordLearner

import cuecard
from cuecard.compiler.task_space import nearest_counts

ROUTE = cuecard.signature("ticket -> queue")


@pytest.mark.parametrize(
    ("words", "span", "expected"),
    [
        (3, (0, 8), (0, 4, 8)),
        (60, (0, 8), (0, 4)),
        (120, (0, 8), (0, 1, 2)),  # four are too long together
        (400, (0, 8), (0,)),
        (3, (0, 2), (0, 1, 2)),  # as asked
        (3, (2, 8), (2, 4, 8)),
        (3, (0, 0), (0,)),
    ],
)
def test_few_near_demos_are_offered_only_where_four_are_too_many(
    words: int, span: tuple[int, int], expected: tuple[int, ...]
) -> None:
    engine: Any = WordLearner().engine()
    pool = [{"ticket": " ".join(["word"] * (words - 1)), "queue": "billing"} for _ in range(24)]
    assert nearest_counts(span, ROUTE, pool, engine) == expected


def test_a_small_pool_has_no_near_demos() -> None:
    engine: Any = WordLearner().engine()
    assert nearest_counts((0, 8), ROUTE, [{"ticket": "a", "queue": "billing"}] * 8, engine) == (0,)
