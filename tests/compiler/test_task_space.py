"""What a task's space offers."""

from __future__ import annotations

from typing import Any

import pytest
from fakes import WordLearner

import cuecard
from cuecard.compiler.task_space import nearest_counts, per_label, start_per_label
from cuecard.optimizers.demos import label_counts

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


LABELS = "ticket -> queue: Literal['billing', 'technical', 'account']"


REASONED = "ticket -> reason, queue: Literal['billing', 'technical']"
URGENT = "ticket -> queue: Literal['billing', 'technical'], urgent: bool"


def labelled(words: int, reason: str | None = None, urgent: bool | None = None, **each: int) -> list[dict[str, Any]]:
    """So many examples of each label, of so many words with it and the other outputs."""
    others = {name: value for name, value in (("reason", reason), ("urgent", urgent)) if value is not None}
    ticket = " ".join(["word"] * (words - 1 - len(others)))
    return [{"ticket": ticket, **others, "queue": label} for label, count in each.items() for _ in range(count)]


@pytest.mark.parametrize(
    ("signature", "pool", "span", "expected"),
    [
        (LABELS, labelled(10, billing=12, technical=3), (4, 32), (4, 8, 12)),
        (LABELS, labelled(10, billing=80, technical=3), (4, 32), (4, 8, 16, 32)),
        (LABELS, labelled(10, billing=2, technical=1), (4, 32), (2,)),
        (LABELS, labelled(100, billing=40, technical=40), (4, 32), (4, 8, 16, 20)),  # as many as a prompt has room for
        (LABELS, labelled(10, billing=12, technical=3), (0, 2), (1, 2)),  # as asked
        (LABELS, labelled(10, billing=12, technical=3), (0, 0), ()),
        (LABELS, labelled(600, billing=12, technical=12), (4, 32), ()),  # a call would cost 1,800 tokens
        (LABELS, labelled(10, billing=12), (4, 32), ()),  # one label is no choice
        (LABELS, [], (4, 32), ()),
        ("ticket -> queue", labelled(10, billing=12, technical=3), (4, 32), ()),
        (REASONED, labelled(9, reason="cold", billing=40, technical=40), (4, 32), (4, 8, 16, 32)),
        (REASONED, labelled(99, reason="cold", billing=40, technical=40), (4, 32), (4, 8, 10)),  # it follows all
        (URGENT, labelled(9, urgent=True, billing=9, technical=9), (4, 32), (4, 8, 16, 18)),
        (URGENT, labelled(9, urgent=True, billing=9), (4, 32), ()),  # nor are two labels of two outputs
        ("count: int -> queue: Literal['a', 'b']", [{"count": n, "queue": "ab"[n % 2]} for n in range(9)], (4, 8), ()),
    ],
)
def test_the_channel_is_offered_where_labels_have_demos_and_calls_are_short(
    signature: str, pool: list[dict[str, Any]], span: tuple[int, int], expected: tuple[int, ...]
) -> None:
    engine: Any = WordLearner().engine()
    assert per_label(span, cuecard.signature(signature), pool, engine) == expected


@pytest.mark.parametrize(("words", "expected"), [(10, 32), (60, 16), (200, 8), (900, 4)])
def test_the_first_points_show_about_as_much_as_others(words: int, expected: int) -> None:
    engine: Any = WordLearner().engine()
    pool = labelled(words, billing=40, technical=40, account=40)
    groups = label_counts(cuecard.signature(LABELS), pool)
    assert start_per_label((4, 8, 16, 32), groups, pool, engine) == expected
