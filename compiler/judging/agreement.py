"""How far raters agree: accuracy, Cohen's kappa, Krippendorff's alpha.

Cohen's kappa is the agreement above chance of two raters (Cohen 1960), with weights by how far apart two labels are
(Cohen 1968); it equals `sklearn.metrics.cohen_kappa_score`. Krippendorff's alpha takes any number of raters, missing
values and a level of measurement: K. Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011),
https://repository.upenn.edu/asc_papers/43, whose worked examples the tests repeat. Both are 1 for full agreement and 0
for as much as chance gives, and not a number where all labels are the same: chance explains everything then.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ...errors import InputError

Weights = Literal["linear", "quadratic"]
Level = Literal["nominal", "ordinal", "interval"]


def accuracy(ours: Sequence[Hashable], theirs: Sequence[Hashable]) -> float:
    """The share of labels that are the same."""
    _check(ours, theirs)
    return sum(a == b for a, b in zip(ours, theirs, strict=True)) / len(ours)


def cohen_kappa(
    ours: Sequence[Hashable],
    theirs: Sequence[Hashable],
    *,
    weights: Weights | None = None,
    labels: Sequence[Hashable] | None = None,
) -> float:
    """Cohen's kappa of two raters.

    weights: None counts every disagreement the same; `linear` and `quadratic` by how many places two labels are apart;
    labels: all labels in their order, default those that occur, sorted. Raises `InputError`.
    """
    _check(ours, theirs)
    order = list(labels) if labels is not None else _sorted({*ours, *theirs})
    place = {label: number for number, label in enumerate(order)}
    unknown = next((label for label in (*ours, *theirs) if label not in place), None)
    if unknown is not None:
        raise InputError(f"found the label {unknown!r}", expected=f"one of {', '.join(map(str, order))}")
    power = {None: 0, "linear": 1, "quadratic": 2}[weights]
    pairs = Counter((place[a], place[b]) for a, b in zip(ours, theirs, strict=True))
    rows, columns = Counter(place[a] for a in ours), Counter(place[b] for b in theirs)

    def apart(a: int, b: int) -> float:
        return float(abs(a - b) ** power) if a != b else 0.0

    observed = math.fsum(count * apart(*pair) for pair, count in pairs.items())
    chance = math.fsum(n * m * apart(a, b) for a, n in rows.items() for b, m in columns.items()) / len(ours)
    return 1.0 - observed / chance if chance else math.nan


def krippendorff_alpha(ratings: Sequence[Sequence[Any]], level: Level = "nominal") -> float:
    """Krippendorff's alpha: one sequence of labels per rater, one place per unit, None where there is no label.

    level: `nominal` labels are the same or not; `ordinal` ones have an order; `interval` ones are numbers whose
    differences count. Raises `InputError`.
    """
    if len(ratings) < 2 or len({len(rater) for rater in ratings}) != 1:
        raise InputError("found no ratings to compare", expected="two raters or more, with a place for every unit each")
    units = [[value for value in unit if value is not None] for unit in zip(*ratings, strict=True)]
    units = [unit for unit in units if len(unit) > 1]  # one label alone can be paired with none
    values = _sorted({value for unit in units for value in unit})
    if level == "interval" and not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        raise InputError(f"found {values[0]!r}", expected="numbers, for the level 'interval'")
    counts = Counter(value for unit in units for value in unit)
    total = sum(counts.values())
    distance = _distance(level, values, counts)
    seen, chance = [], []
    for unit in units:
        inside = Counter(unit)
        seen += [n * inside[b] * distance(a, b) / (len(unit) - 1) for a, n in inside.items() for b in inside if a != b]
    for a in values:
        chance += [counts[a] * counts[b] * distance(a, b) for b in values if a != b]
    expected = math.fsum(chance)
    return 1.0 - (total - 1) * math.fsum(seen) / expected if expected else math.nan


def _distance(level: Level, values: Sequence[Any], counts: Counter[Any]) -> Callable[[Any, Any], float]:
    """The squared difference of two labels, by the level of measurement."""
    if level == "nominal":
        return lambda a, b: 1.0
    if level == "interval":
        return lambda a, b: float(a - b) ** 2
    rank, below = {}, 0.0
    for value in values:  # the middle of the places that a value's labels take, all labels in one line
        rank[value] = below + counts[value] / 2
        below += counts[value]
    return lambda a, b: (rank[a] - rank[b]) ** 2


@dataclass(frozen=True)
class Agreement:
    """How far a judge agrees with people. `weighted_kappa` has quadratic weights, `alpha` is ordinal.

    For labels without an order, `weighted_kappa` is None and `alpha` nominal.
    """

    n: int
    accuracy: float
    kappa: float
    weighted_kappa: float | None
    alpha: float


def agreement(ours: Sequence[Any], theirs: Sequence[Any], *, order: Sequence[Any] | None = None) -> Agreement:
    """All measures of agreement. `order`: the labels from worst to best, where they have one. Raises `InputError`."""
    weighted = None if order is None else cohen_kappa(ours, theirs, weights="quadratic", labels=order)
    if order is None:
        alpha = krippendorff_alpha([ours, theirs])
    else:
        place = {label: number for number, label in enumerate(order)}
        alpha = krippendorff_alpha([[place[x] for x in ours], [place[x] for x in theirs]], "ordinal")
    return Agreement(len(ours), accuracy(ours, theirs), cohen_kappa(ours, theirs), weighted, alpha)


def _check(ours: Sequence[Any], theirs: Sequence[Any]) -> None:
    if len(ours) != len(theirs) or not ours:
        raise InputError(f"found {len(ours)} and {len(theirs)} labels", expected="as many of both, at least one")


def _sorted(values: set[Any]) -> list[Any]:
    try:
        return sorted(values)
    except TypeError:  # labels of several types have no order, but need one that is always the same
        return sorted(values, key=lambda value: (type(value).__name__, str(value)))
