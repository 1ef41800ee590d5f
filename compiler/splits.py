"""Splits: one set of examples cut into several, and the proof that no row stands in two."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from ..errors import InputError
from ..programs.problems import Problems
from .examples import Example, Examples

SHOWN_ERRORS = 10
FRACTIONS = (0.5, 0.25, 0.25)


def split(examples: Examples, seed: int, fractions: Sequence[float] = FRACTIONS) -> tuple[Examples, ...]:
    """Cut one set into as many as there are `fractions`, which are shares of their sum; each in the order of the file.

    Rows are dealt by a hash of the seed and their inputs: the same rows give the same splits in whatever order they
    stand, and rows with equal inputs stay together. A split with a share gets at least one row. Raises `InputError`
    when the shares are no shares, or there are too few rows.
    """
    if any(share < 0 for share in fractions) or sum(fractions) <= 0:
        raise InputError(f"found the fractions {tuple(fractions)}", expected="numbers not below 0, one of them above")
    by_key: dict[str, list[Example]] = {}
    for example in examples:
        by_key.setdefault(example.key, []).append(example)
    wanted = sum(share > 0 for share in fractions)
    if len(by_key) < wanted:
        raise InputError(
            f"{len(by_key)} different rows cannot be split {wanted} ways",
            path=examples.path,
            expected=f"at least {wanted}",
        )
    dealt = sorted(by_key, key=lambda key: hashlib.sha256(f"{seed}\n{key}".encode()).digest())
    parts = []
    for size in _sizes(len(dealt), [share / sum(fractions) for share in fractions]):
        taken, dealt = dealt[:size], dealt[size:]
        items = sorted((example for key in taken for example in by_key[key]), key=lambda example: example.id)
        parts.append(Examples(tuple(items), examples.path, examples.unused))
    return tuple(parts)


def check_disjoint(**splits: Examples) -> None:
    """Raise `InputError` if rows with equal inputs stand in two of the splits; it names file and line of both."""
    problems = Problems(limit=SHOWN_ERRORS)
    seen: dict[str, tuple[str, Examples, Example]] = {}
    for name, examples in splits.items():
        for example in examples:
            other, others, first = seen.setdefault(example.key, (name, examples, example))
            if other != name:
                message = f"this row of {name} has the same inputs as {_place(others, first)} of {other}"
                where = None if example.line else f"row {example.id + 1}"
                hint = "A row may stand in one split only."
                problems.note(InputError(message, path=examples.path, line=example.line, field=where, hint=hint))
    problems.stop()


def _place(examples: Examples, example: Example) -> str:
    if examples.path is None or example.line is None:
        return ", ".join(part for part in (examples.path, f"row {example.id + 1}") if part)
    return f"{examples.path}:{example.line}"


def _sizes(count: int, fractions: Sequence[float]) -> list[int]:
    """`count` shared out by largest remainder, with at least one for every fraction above 0."""
    sizes = [int(count * share) for share in fractions]
    by_remainder = sorted(range(len(sizes)), key=lambda i: (sizes[i] - count * fractions[i], i))
    for place in by_remainder[: count - sum(sizes)]:
        sizes[place] += 1
    for place, share in enumerate(fractions):
        if share > 0 and sizes[place] == 0:
            sizes[sizes.index(max(sizes))] -= 1
            sizes[place] += 1
    return sizes
