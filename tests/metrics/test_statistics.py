"""Intervals and tests against scipy and sacrebleu, and their error rates on simulated data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
import sacrebleu
import scipy.stats

from cuecard.errors import InputError
from cuecard.metrics import (
    Measurement,
    Score,
    bootstrap,
    interval,
    losing,
    metric,
    paired_test,
    smallest_detectable_difference,
    wilson,
)

F1, EXACT, BLEU = metric("f1"), metric("exact_match"), metric("bleu")
GOLD = ["the cat sat on the mat", "a dog ran in the park", "we all like green tea", "it rains in the north", "he left"]
OURS = ["the cat sat on a mat", "a dog ran in the park", "we like green tea", "it rains up north", "he left"]
THEIRS = ["the cat is on a mat", "a dog in the park", "we all like green tea", "it snows in the north", "she left"]


def scores(values: Iterable[float]) -> list[Measurement]:
    return [Measurement(float(value)) for value in values]


def bleus(texts: Sequence[str]) -> list[Measurement]:
    return [BLEU.measure({"x": gold}, {"x": text}) for gold, text in zip(GOLD, texts, strict=True)]


def test_wilson_is_scipys() -> None:
    rng = np.random.default_rng(0)
    for _ in range(5000):
        n, confidence = int(rng.integers(1, 201)), float(rng.choice([0.8, 0.95, 0.99]))
        successes = int(rng.integers(n + 1))
        expected = scipy.stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
        assert wilson(successes, n, confidence) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize("n", [1, 3, 7, 10, 49, 1000])
def test_wilson_ends_at_0_and_1_without_rounding(n: int) -> None:
    assert wilson(0, n)[0] == 0
    assert wilson(n, n)[1] == 1


def test_bootstrap_of_a_mean_is_scipys_percentile_interval() -> None:
    values = np.random.default_rng(1).beta(2, 5, size=80)
    expected = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=20000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    assert bootstrap(scores(values), F1, resamples=20000) == pytest.approx(tuple(expected), abs=0.002)


def test_bootstrap_of_corpus_bleu_sums_statistics() -> None:
    measured = bleus(OURS)
    fast = bootstrap(measured, BLEU, resamples=400, seed=3)
    draws = np.random.default_rng(3).integers(5, size=(400, 5))
    slow = [
        sacrebleu.corpus_bleu([OURS[i] for i in draw], [[GOLD[i] for i in draw]]).score / 100 for draw in draws.tolist()
    ]
    assert fast == pytest.approx(tuple(np.quantile(slow, [0.025, 0.975])), abs=1e-12)
    assert bootstrap(measured, BLEU.aggregate, resamples=400, seed=3) == pytest.approx(fast, abs=1e-12)
    assert fast[0] < BLEU.aggregate(measured) < fast[1]


def test_interval_takes_wilson_for_right_or_wrong_and_the_bootstrap_elsewhere() -> None:
    right_or_wrong = [1, 0, 1, 1, 0, 1, 1, 1]
    assert interval(EXACT, scores(right_or_wrong)) == Score(0.75, *wilson(6, 8), 8)
    graded = scores([0.5, 0.25, 1, 0, 0.75])
    assert interval(F1, graded, seed=4) == Score(0.5, *bootstrap(graded, F1, seed=4), 5)
    # A corpus score is no proportion, even where every sentence scores 0 or 1.
    corpus = [BLEU.measure({"x": "a b c d"}, {"x": text}) for text in ("a b c d", "x", "a b c d")]
    assert interval(BLEU, corpus) == Score(BLEU.aggregate(corpus), *bootstrap(corpus, BLEU), 3)


def test_interval_of_one_example_and_of_none() -> None:
    assert interval(EXACT, scores([1])) == Score(1, *wilson(1, 1), 1)
    assert interval(F1, scores([0.4])) == Score(0.4, 0, 1, 1)
    assert interval(F1, scores([0.4])).as_dict() == {"value": 0.4, "low": 0.0, "high": 1.0, "n": 1}
    with pytest.raises(InputError, match=r"^metric 'f1' has nothing to aggregate; expected at least one measurement$"):
        interval(F1, [])


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(7)
    covered = 0
    for seed in range(200):
        low, high = bootstrap(scores(rng.beta(2, 2, size=40)), F1, resamples=300, seed=seed)
        covered += low <= 0.5 <= high
    assert 180 <= covered <= 198


def test_small_paired_tests_are_scipys_exact_permutation_tests() -> None:
    rng = np.random.default_rng(0)

    def difference(x: Any, y: Any, axis: int) -> Any:
        return np.mean(x - y, axis=axis)

    for _ in range(5000):
        # Eighths have no rounding, which scipy's comparison with the observed difference would trip over.
        gaps = rng.choice([-0.5, -0.25, 0.0, 0.0, 0.125, 0.375, 1.0], size=rng.integers(2, 10))
        ours, theirs = np.maximum(gaps, 0), np.maximum(-gaps, 0)
        result = paired_test(F1, scores(ours), scores(theirs), resamples=20)
        for alternative, p in (("greater", result.p_value), ("two-sided", result.p_two_sided)):
            expected = scipy.stats.permutation_test(
                (ours, theirs), difference, permutation_type="samples", vectorized=True, alternative=alternative
            )
            assert p == pytest.approx(expected.pvalue), (alternative, gaps)
        assert result.difference == pytest.approx(np.mean(gaps))
        assert (result.wins, result.losses) == (np.count_nonzero(gaps > 0), np.count_nonzero(gaps < 0))
        assert result.wins + result.losses + result.ties == result.n == len(gaps)


def test_sums_that_are_equal_but_for_rounding_count_as_equal() -> None:
    # The differences -0.5 (3 times), 0.1 (5 times) and 1.0 sum to 0, which floats miss: the test must be symmetric.
    ours, theirs = [0, 0, 0, 0.1, 0.1, 0.1, 0.1, 0.1, 1], [0.5, 0.5, 0.5, 0, 0, 0, 0, 0, 0]
    there, back = paired_test(F1, scores(ours), scores(theirs)), paired_test(F1, scores(theirs), scores(ours))
    tenths = (-5, -5, -5, 1, 1, 1, 1, 1, 10)
    at_least = [sum(s * t for s, t in zip(signs, tenths, strict=True)) >= 0 for signs in product([-1, 1], repeat=9)]
    assert there.p_value == back.p_value == sum(at_least) / 2**9
    assert there.p_two_sided == 1


def test_large_paired_tests_approach_the_sign_test() -> None:
    ours, theirs = [1] * 14 + [0] * 6 + [1] * 30, [0] * 14 + [1] * 6 + [1] * 30
    result = paired_test(EXACT, scores(ours), scores(theirs), resamples=20000)
    # For 0/1 scores the permutation test is McNemar's exact test: a sign test on the examples that differ.
    exact = scipy.stats.binomtest(14, 20, alternative="greater").pvalue
    assert result.p_value == pytest.approx(exact, abs=0.006)
    assert result.p_two_sided == pytest.approx(2 * exact, abs=0.009)
    assert (result.wins, result.losses, result.ties, result.n) == (14, 6, 30, 50)
    assert result.difference == pytest.approx(0.16)
    assert result.low < result.difference < result.high


def test_monte_carlo_never_gives_zero() -> None:
    result = paired_test(EXACT, scores([1] * 40), scores([0] * 40), resamples=99)
    assert (result.p_value, result.p_two_sided) == (0.01, 0.01)
    assert (result.difference, result.low, result.high) == (1, 1, 1)


def test_paired_test_of_corpus_bleu_swaps_outputs() -> None:
    result = paired_test(BLEU, bleus(OURS), bleus(THEIRS), resamples=300)

    def corpus(texts: Sequence[str]) -> float:
        return float(sacrebleu.corpus_bleu(list(texts), [GOLD]).score / 100)

    observed = corpus(OURS) - corpus(THEIRS)
    null = []
    for swaps in product([False, True], repeat=5):
        a = [theirs if swap else ours for swap, ours, theirs in zip(swaps, OURS, THEIRS, strict=True)]
        b = [ours if swap else theirs for swap, ours, theirs in zip(swaps, OURS, THEIRS, strict=True)]
        null.append(corpus(a) - corpus(b))
    assert result.difference == pytest.approx(observed)
    assert result.p_value == pytest.approx(np.mean(np.array(null) >= observed - 1e-12))
    assert result.p_two_sided == pytest.approx(np.mean(np.abs(null) >= observed - 1e-12))
    assert result.low < observed < result.high


def test_the_same_outputs_are_a_tie() -> None:
    result = paired_test(BLEU, bleus(OURS), bleus(OURS))
    assert result.as_dict() == {
        "difference": 0, "low": 0, "high": 0, "p_value": 1, "p_two_sided": 1, "n": 5, "wins": 0, "losses": 0, "ties": 5,
    }  # fmt: skip


def test_swapping_the_programs_mirrors_the_result() -> None:
    there, back = (paired_test(BLEU, bleus(a), bleus(b)) for a, b in ((OURS, THEIRS), (THEIRS, OURS)))
    assert (back.difference, back.low, back.high) == pytest.approx((-there.difference, -there.high, -there.low))
    assert back.p_two_sided == there.p_two_sided
    assert back.p_value > 0.5 > there.p_value


def test_a_seed_gives_one_result_and_another_seed_another() -> None:
    rng = np.random.default_rng(0)
    a, b = scores(rng.random(60)), scores(rng.random(60))
    assert paired_test(F1, a, b, seed=1) == paired_test(F1, a, b, seed=1)
    assert paired_test(F1, a, b, seed=1).p_value != paired_test(F1, a, b, seed=2).p_value
    assert interval(F1, a, seed=1) != interval(F1, a, seed=2)


def test_blocks_of_resamples_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    a, b = scores(rng.random(60)), scores(rng.random(60))
    whole = bootstrap(a, F1, resamples=500)
    monkeypatch.setattr("cuecard.metrics.statistics._CHUNK", 1000)
    assert bootstrap(a, F1, resamples=500) == whole
    assert paired_test(F1, a, b, resamples=500).n == 60


def test_one_example_decides_nothing() -> None:
    result = paired_test(F1, scores([0.9]), scores([0.1]))
    assert (result.p_value, result.p_two_sided, result.low, result.high) == (0.5, 1, -1, 1)


@pytest.mark.parametrize("graded", [False, True])
def test_false_alarms_are_as_rare_as_the_level_says(graded: bool) -> None:
    rng, level, runs = np.random.default_rng(11), 0.1, 300
    one_sided = two_sided = 0
    for seed in range(runs):
        hard = rng.random(40)  # Both programs find the same examples hard: their scores are dependent.
        a, b = (rng.random(40) * hard if graded else rng.random(40) < hard for _ in range(2))
        result = paired_test(F1, scores(a), scores(b), seed=seed, resamples=200)
        one_sided += result.p_value <= level
        two_sided += result.p_two_sided <= level
    # 0/1 scores are discrete, so the exact test stays below its level; three standard deviations above it are 0.052.
    assert 0.02 < one_sided / runs < level + 0.052
    assert 0.02 < two_sided / runs < level + 0.052


def test_a_real_difference_of_the_detectable_size_is_found_as_often_as_promised() -> None:
    n, sd = 50, 0.3
    effect = smallest_detectable_difference(n, sd=sd, power=0.8, level=0.05)
    assert effect == pytest.approx((1.6448536 + 0.8416212) * sd / np.sqrt(n))
    rng, found, runs = np.random.default_rng(5), 0, 300
    for seed in range(runs):
        gaps = rng.normal(effect, sd, size=n)
        found += paired_test(F1, scores(gaps), scores(np.zeros(n)), seed=seed, resamples=200).p_value <= 0.05
    assert 0.72 < found / runs < 0.87


def test_losing_is_scipys_one_sided_paired_t_test() -> None:
    rng, answers = np.random.default_rng(2), []
    for n in (8, 9, 20, 60):
        for _ in range(20):
            ours, theirs = rng.random(n), rng.random(n) + rng.uniform(-0.2, 0.3)
            expected = scipy.stats.ttest_rel(ours, theirs, alternative="less").pvalue < 0.1
            assert losing(ours, theirs) == expected
            answers.append(expected)
    assert 10 < sum(answers) < 70  # Both answers were tested.


def test_losing_never_drops_on_few_examples_and_decides_without_variance_by_the_sign() -> None:
    zeros, ones = np.zeros(8), np.ones(8)
    assert not losing(zeros[:7], ones[:7])
    assert losing(zeros, ones)
    assert not losing(ones, zeros)
    assert not losing(ones, ones)
    assert not losing(ones * 0.3, ones * (0.1 + 0.2))  # Equal but for rounding.


def test_losing_gets_stricter_with_its_level() -> None:
    ours, theirs = np.array([0, 0, 0, 1, 1, 1, 0, 1, 0, 0.0]), np.array([1, 0, 1, 1, 1, 1, 0, 1, 0, 0.0])
    assert losing(ours, theirs, level=0.1)
    assert not losing(ours, theirs, level=0.05)


def test_refusals() -> None:
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: wilson(0, 0), "an interval over 0 examples does not exist; expected at least one"),
        (lambda: wilson(3, 2), "3 successes among 2 examples are impossible; expected 0 to 2"),
        (lambda: wilson(1, 2, 95), "confidence is 95; expected a number between 0 and 1"),
        (lambda: bootstrap([], F1), "there are no measurements to resample; expected at least one"),
        (lambda: paired_test(F1, [], []), "a paired test has no measurements; expected at least one"),
        (
            lambda: paired_test(F1, scores([1]), scores([1, 0])),
            "a paired test of 1 and 2 measurements; expected the same examples for both",
        ),
        (
            lambda: losing(np.zeros(3), np.zeros(4)),
            "a paired test of 3 and 4 scores; expected the same examples for both",
        ),
        (lambda: losing(np.zeros(9), np.zeros(9), level=0), "level is 0; expected a number between 0 and 1"),
        (lambda: smallest_detectable_difference(0), "0 examples detect nothing; expected at least one"),
        (
            lambda: smallest_detectable_difference(9, sd=-1),
            "a standard deviation of -1 does not exist; expected 0 or more",
        ),
    ]
    for call, message in cases:
        with pytest.raises(InputError) as caught:
            call()
        assert str(caught.value) == message
