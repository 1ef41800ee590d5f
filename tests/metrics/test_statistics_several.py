"""Several metrics, repeats, and the smallest difference that the data at hand could show."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuecard.errors import InputError
from cuecard.metrics import Measurement, interval, metric, paired_test, smallest_detectable_difference
from cuecard.metrics.repeats import clustered_error, clustered_interval, pool_repeats
from cuecard.metrics.statistics import holm, paired_deviation, score_deviation

EXACT = metric("exact_match")
BLEU = metric("bleu")
scores = st.lists(st.floats(0, 1), min_size=2, max_size=30)


def measurements(values: object) -> list[Measurement]:
    return [Measurement(float(value)) for value in values]  # type: ignore[attr-defined]


# ---- Holm


def test_holm_on_the_textbook_example() -> None:
    # Holm 1979's procedure on four tests: 4 x .01, 3 x .02 raised to no less, 2 x .03, 1 x .04 raised to .06.
    found = holm({"a": 0.04, "b": 0.01, "c": 0.03, "d": 0.02})
    assert list(found) == ["a", "b", "c", "d"]
    assert found == pytest.approx({"b": 0.04, "d": 0.06, "c": 0.06, "a": 0.06})


@given(st.dictionaries(st.text(max_size=3), st.floats(0, 1), max_size=8))
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values: dict[str, float]) -> None:
    found = holm(p_values)
    level, rejected = 0.05, set()
    for place, (name, value) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        if value * (len(p_values) - place) > level:
            break
        rejected.add(name)
    assert {name for name, value in found.items() if value <= level} == rejected
    assert all(p_values[name] <= found[name] <= 1 for name in p_values)


def test_holm_refuses_what_is_no_probability() -> None:
    with pytest.raises(InputError, match="'a' is 1.5"):
        holm({"a": 1.5})


# ---- repeats


@given(scores)
def test_without_repeats_the_clustered_error_is_the_ordinary_one(values: list[float]) -> None:
    ordinary = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    assert clustered_error(values, range(len(values))) == pytest.approx(ordinary, abs=1e-12)


@given(scores, st.integers(2, 5))
def test_equal_repeats_add_nothing_to_what_is_known(values: list[float], repeats: int) -> None:
    again = [value for value in values for _ in range(repeats)]
    clusters = [place for place in range(len(values)) for _ in range(repeats)]
    assert clustered_error(again, clusters) == pytest.approx(clustered_error(values, range(len(values))), abs=1e-12)


def test_the_clustered_error_is_the_sandwich_formula() -> None:
    values, clusters = [0.1, 0.4, 0.9, 0.8, 0.3], ["a", "a", "b", "b", "c"]
    residuals = np.array(values) - np.mean(values)
    meat = (residuals[:2].sum()) ** 2 + residuals[2:4].sum() ** 2 + residuals[4] ** 2
    assert clustered_error(values, clusters) == pytest.approx(math.sqrt(3 / 2 * meat) / 5)


def test_the_clustered_interval_is_wider_than_one_that_takes_repeats_for_examples() -> None:
    values = [float(place % 2) for place in range(20) for _ in range(10)]
    clusters = [place for place in range(20) for _ in range(10)]
    naive = interval(EXACT, measurements(values))
    found = clustered_interval(EXACT, measurements(values), clusters)
    assert found.n == 20
    assert found.value == naive.value == 0.5
    assert found.high - found.low > 2 * (naive.high - naive.low)


def test_clusters_of_different_sizes_weigh_by_their_rows() -> None:
    found = clustered_interval(EXACT, measurements([1, 1, 1, 0]), ["a", "a", "a", "b"], seed=3)
    assert found.value == 0.75
    assert (found.low, found.high) == (0.0, 1.0)
    assert clustered_interval(EXACT, measurements([1, 0]), ["a", "a"]).low == 0.0


def test_pooled_repeats_keep_the_aggregate_of_means_and_of_corpora() -> None:
    chrf = metric("chrf")
    answers = (("the cat sat", "a cat"), ("the dog sat down", "the cat sat down"))
    rows = [[chrf.measure({"a": "the cat sat down"}, {"a": text}) for text in texts] for texts in answers]
    pooled = pool_repeats(rows)
    assert len(pooled) == 2
    assert chrf.aggregate(pooled) == pytest.approx(chrf.aggregate([one for each in rows for one in each]))
    assert pool_repeats([measurements([0, 1]), measurements([1, 1])]) == measurements([0.5, 1])


@pytest.mark.parametrize("repeats", [[], [[Measurement(1.0)], []], [[]]])
def test_repeats_that_are_not_equally_many_are_refused(repeats: list[list[Measurement]]) -> None:
    if not repeats:
        assert pool_repeats(repeats) == []
        return
    with pytest.raises(InputError, match="each equally often"):
        pool_repeats(repeats)


# ---- the smallest detectable difference


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=6, max_size=30))
def test_of_a_mean_the_deviation_is_that_of_the_differences(pairs: list[tuple[float, float]]) -> None:
    pairs = [*pairs, *[(0.0, 0.5)] * 5]
    ours, theirs = (measurements(side) for side in zip(*pairs, strict=True))
    expected = float(np.std([a - b for a, b in pairs], ddof=1))
    assert paired_deviation(EXACT, ours, theirs) == pytest.approx(expected, abs=1e-9)


def test_of_a_corpus_metric_the_deviation_agrees_with_the_bootstrap() -> None:
    texts = ["the cat sat on the mat", "a dog ran away today", "we like green tea a lot", "it rains in the north"] * 15
    ours = [
        BLEU.measure({"a": text}, {"a": text.replace("the", "a") if n % 3 else text}) for n, text in enumerate(texts)
    ]
    theirs = [BLEU.measure({"a": text}, {"a": text.replace("a", "the", n % 4)}) for n, text in enumerate(texts)]
    paired = paired_test(BLEU, ours, theirs)
    by_bootstrap = (paired.high - paired.low) / (2 * 1.96) * math.sqrt(len(texts))
    assert paired_deviation(BLEU, ours, theirs) == pytest.approx(by_bootstrap, rel=0.15)


def test_equal_scores_do_not_promise_that_anything_could_be_seen() -> None:
    same = measurements([1.0] * 20)
    found = smallest_detectable_difference(20, sd=paired_deviation(EXACT, same, same))
    assert found > 5 / 20  # five lost rows is the least that a test at 5 % can see
    assert smallest_detectable_difference(20, sd=score_deviation(EXACT, same)) > 5 / 20


def test_a_deviation_needs_the_same_examples() -> None:
    with pytest.raises(InputError, match="2 and 1 measurements"):
        paired_deviation(EXACT, measurements([1, 0]), measurements([1]))
