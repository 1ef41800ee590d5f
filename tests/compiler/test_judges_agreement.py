"""Agreement with people: Cohen's kappa against scikit-learn, Krippendorff's alpha against his worked examples."""

from __future__ import annotations

import math
import random
import warnings
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from cuecard.compiler.judging import accuracy, agreement, cohen_kappa, krippendorff_alpha
from cuecard.errors import InputError

labels = st.sampled_from([1, 2, 3, 4, 5])
pairs_of_labels = st.lists(st.tuples(labels, labels), min_size=1, max_size=30)

# Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), sections A, B and C: the data, and alpha as printed.
MEG, OWEN = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
BEN, GERRY = list("aabbdcccedda"), [*"babbbcccedd", "d"]
NONE = None
FOUR = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, NONE, NONE, NONE],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NONE, 3],
    [NONE, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NONE],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NONE],
]


@pytest.mark.parametrize(
    ("ratings", "level", "printed"),
    [
        ([MEG, OWEN], "nominal", 0.095),
        ([BEN, GERRY], "nominal", 0.692),
        (FOUR, "nominal", 0.743),
        (FOUR, "ordinal", 0.815),
        (FOUR, "interval", 0.849),
    ],
)
def test_krippendorffs_worked_examples(
    ratings: list[list[Any]], level: Literal["nominal", "ordinal", "interval"], printed: float
) -> None:
    assert round(krippendorff_alpha(ratings, level), 3) == printed


def test_kappa_is_scikit_learns() -> None:
    generator = np.random.default_rng(0)
    kinds: tuple[Literal["linear", "quadratic"] | None, ...] = (None, "linear", "quadratic")
    for case in range(5000):
        weights, known = kinds[case % 3], [1, 2, 3, 4, 5]
        most, agree = generator.integers(1, 6), generator.choice([0.0, 0.5, 0.9])
        ours = generator.integers(1, most + 1, size=generator.integers(1, 31))
        theirs = np.where(generator.random(len(ours)) < agree, ours, generator.integers(1, most + 1, size=len(ours)))
        found = cohen_kappa(ours.tolist(), theirs.tolist(), weights=weights, labels=known)
        if len({*ours.tolist(), *theirs.tolist()}) == 1:
            assert math.isnan(found)
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = cohen_kappa_score(ours, theirs, weights=weights, labels=known)
        assert found == pytest.approx(expected, abs=1e-12), (ours, theirs, weights)


@settings(max_examples=200, deadline=None)
@given(pairs_of_labels, st.integers(0, 9))
def test_alpha_does_not_depend_on_the_order_of_raters_or_units_nor_on_units_with_one_label(
    pairs: list[tuple[int, int]], seed: int
) -> None:
    for level in ("nominal", "ordinal", "interval"):
        ours, theirs = map(list, zip(*pairs, strict=True))
        expected = krippendorff_alpha([ours, theirs], level)
        random.Random(seed).shuffle(pairs)
        mixed = [list(rater) for rater in zip(*pairs, strict=True)]
        found = krippendorff_alpha([[*mixed[1], 5], [*mixed[0], None]], level)
        assert found == pytest.approx(expected, abs=1e-12, nan_ok=True)
        assert found <= 1.0 or math.isnan(found)


def test_full_agreement_chance_and_a_single_label() -> None:
    assert krippendorff_alpha([[1, 2, 3], [1, 2, 3]], "ordinal") == cohen_kappa([1, 2], [1, 2]) == 1.0
    assert math.isnan(krippendorff_alpha([[1, 1], [1, 1]]))
    assert cohen_kappa([1, 1, 2, 2], [1, 2, 1, 2]) == 0.0


def test_all_measures_at_once() -> None:
    found = agreement(["10", "2", "1", "2"], ["10", "1", "1", "2"], order=["1", "2", "10"])
    assert (found.n, found.accuracy) == (4, 0.75)
    assert found.weighted_kappa == pytest.approx(cohen_kappa([3, 2, 1, 2], [3, 1, 1, 2], weights="quadratic"))
    assert found.alpha == pytest.approx(krippendorff_alpha([[3, 2, 1, 2], [3, 1, 1, 2]], "ordinal"))
    assert agreement(["yes"], ["no"]).weighted_kappa is None


def test_what_cannot_be_compared() -> None:
    with pytest.raises(InputError, match="found 2 and 1 labels"):
        accuracy([1, 2], [1])
    with pytest.raises(InputError, match="two raters or more"):
        krippendorff_alpha([[1, 2]])
    with pytest.raises(InputError, match="found the label 3; expected one of 1, 2"):
        cohen_kappa([3], [1], labels=[1, 2])
    with pytest.raises(InputError, match="numbers, for the level 'interval'"):
        krippendorff_alpha([["a", "b"], ["a", "a"]], "interval")
