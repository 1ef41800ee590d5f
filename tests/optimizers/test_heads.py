"""Fitting heads: the regression is scikit-learn's, the choice of its source is stable, the reference is TF-IDF."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from cuecard.errors import InputError
from cuecard.models.hidden import Features
from cuecard.optimizers.heads import (
    MOST_ROWS,
    STRENGTHS,
    fit_head,
    fit_matrix,
    fit_softmax,
    folds,
    held_out,
    layers_for,
)
from cuecard.optimizers.reference import TfIdf, fit_reference, text_of

LABELS = ("a", "b", "c")


def clouds(count: int, width: int, seed: int = 0, apart: float = 1.0, labels: int = 3) -> tuple[Any, Any]:
    """Rows [count, width] around a centre per label, and which label each is."""
    drawn = np.random.default_rng(seed)
    centres = drawn.normal(size=(labels, width)) * apart
    gold = np.arange(count) % labels
    return centres[gold] + drawn.normal(size=(count, width)), gold


@pytest.mark.parametrize(("count", "width"), [(60, 7), (40, 90), (30, 30)])
@pytest.mark.parametrize("strength", [0.001, 0.1, 1.0])
def test_the_regression_is_that_of_scikit_learn(count: int, width: int, strength: float) -> None:
    rows, gold = clouds(count, width, seed=count, apart=0.5)
    weights, bias = fit_softmax(rows, gold, 3, strength)
    theirs = LogisticRegression(C=strength, tol=1e-10, max_iter=10_000).fit(rows, gold)
    assert weights.shape == (3, width)
    assert np.abs(weights - theirs.coef_).max() < 2e-3 * max(1.0, float(np.abs(theirs.coef_).max()))
    assert np.abs(bias - (theirs.intercept_ - theirs.intercept_.mean())).max() < 5e-3
    ours = np.argmax(rows @ weights.T + bias, axis=1)
    assert (ours == theirs.predict(rows)).mean() > 0.98


def test_features_that_never_change_and_rows_that_are_equal_do_no_harm() -> None:
    rows, gold = clouds(30, 6)
    rows[:, 2] = 1e4
    rows[10:] = rows[:1]
    fitted = fit_matrix(rows[:, :3], [LABELS[place] for place in gold], LABELS)
    assert np.isfinite(fitted.head.weights).all()
    with_constant = fit_head(features(rows[:, None]), [LABELS[place] for place in gold], LABELS, (1,))
    assert np.isfinite(with_constant.head.logits(rows)).all()
    assert with_constant.head.scale[2] == 1.0


def features(by_layer: Any, last: Any = None) -> list[Features]:
    """The features of rows [n, layers, d]; where `last` is not given, the last token says nothing."""
    noise = np.random.default_rng(9).normal(size=by_layer.shape) if last is None else last
    narrow = [np.asarray(each, dtype=np.float32) for each in (noise, by_layer)]
    return [Features(*pair) for pair in zip(*narrow, strict=True)]


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_the_layer_and_pooling_that_tell_the_labels_apart_are_chosen(pooling: str) -> None:
    rows, gold = clouds(90, 12, apart=1.5)
    noise = np.random.default_rng(1).normal(size=(2, 90, 3, 12))
    noise[0, :, 1] = rows
    told, other = (noise[0], noise[1]) if pooling == "mean" else (noise[1], noise[0])
    fitted = fit_head(features(told, other), [LABELS[place] for place in gold], LABELS, (4, 8, 12))
    assert (fitted.head.layer, fitted.head.pooling) == (8, pooling)
    assert fitted.accuracy > 0.85
    assert fitted.loss < 0.6
    assert fitted.strength in STRENGTHS
    assert np.mean([fitted.head.predict(row) == LABELS[place] for row, place in zip(rows, gold, strict=True)]) > 0.9


def test_the_same_rows_give_the_same_bytes() -> None:
    rows, gold = clouds(40, 20)
    answers = [LABELS[place] for place in gold]
    one, other = (fit_head(features(rows[:, None]), answers, LABELS, (5,), seed=3) for _ in range(2))
    assert one.head.content == other.head.content
    assert (one.accuracy, one.loss) == (other.accuracy, other.loss)


def test_where_nothing_can_be_told_the_penalty_is_strong() -> None:
    noise = np.random.default_rng(2).normal(size=(60, 1, 50))
    fitted = fit_head(features(noise), [LABELS[row % 3] for row in range(60)], LABELS, (1,))
    assert fitted.strength == STRENGTHS[0]
    assert fitted.accuracy < 0.6


def test_a_label_without_rows_is_never_said() -> None:
    rows, gold = clouds(40, 5, apart=2.0, labels=2)
    fitted = fit_head(features(rows[:, None]), [LABELS[place] for place in gold], LABELS, (1,))
    assert {fitted.head.predict(row) for row in rows} == {"a", "b"}


def test_the_matrix_undoes_a_bias_and_a_mix_up() -> None:
    drawn = np.random.default_rng(5)
    gold = np.arange(120) % 3
    clean = np.eye(3)[gold] * 3 + drawn.normal(size=(120, 3)) * 0.5
    seen = clean[:, [1, 2, 0]] * [1, 4, 2] + [10, -30, 0]  # every label's likelihood stands in another's place
    fitted = fit_matrix(seen, [LABELS[place] for place in gold], LABELS)
    assert (fitted.head.layer, fitted.head.pooling) == (None, "scores")
    assert np.mean(seen.argmax(axis=1) == gold) < 0.5
    assert np.mean(fitted.head.logits(seen).argmax(axis=1) == gold) > 0.97


def test_a_head_needs_rows() -> None:
    with pytest.raises(InputError, match="without labelled rows"):
        fit_head([], [], LABELS, ())


def test_one_row_is_enough_to_have_a_head() -> None:
    fitted = fit_head(features(np.ones((1, 1, 4))), ["b"], LABELS, (1,))
    assert fitted.head.predict(np.ones(4)) == "b"
    assert fitted.accuracy == 0.0


@given(st.lists(st.integers(0, 4), min_size=1, max_size=80), st.integers(1, 6), st.integers(0, 3))
def test_folds_are_even_and_so_are_the_labels_in_them(labels: list[int], count: int, seed: int) -> None:
    gold = np.array(labels)
    parts = folds(gold, count, seed)
    sizes = [int((parts == part).sum()) for part in range(count)]
    assert max(sizes) - min(sizes) <= 1
    for label in set(labels):
        held = [int(((parts == part) & (gold == label)).sum()) for part in range(count)]
        assert max(held) - min(held) <= 1
    assert np.array_equal(parts, folds(gold, count, seed))


def test_nothing_is_held_out_of_its_own_fit() -> None:
    rows, gold = np.random.default_rng(0).normal(size=(60, 200)), np.arange(60) % 2
    ((accuracy, loss),) = held_out(rows, gold, 2, folds(gold, 5, 0), [1.0])
    assert accuracy < 0.75  # noise: the rows that were fitted are told apart without a mistake
    assert loss > 0.5


def test_many_rows_are_chosen_from_a_sample_and_fitted_whole() -> None:
    rows, gold = clouds(3 * MOST_ROWS, 4, apart=1.0)
    fitted = fit_matrix(rows[:, :3], [LABELS[place] for place in gold], LABELS)
    assert np.allclose(fitted.head.mean, rows[:, :3].mean(axis=0), atol=1e-5)
    assert fitted.accuracy > 0.5


@pytest.mark.parametrize(
    ("count", "most", "layers"), [(30, 8, (4, 8, 11, 15, 19, 22, 26, 30)), (2, 8, (1, 2)), (1, 8, (1,))]
)
def test_layers_are_spread_over_the_model(count: int, most: int, layers: tuple[int, ...]) -> None:
    assert layers_for(count, most) == layers


@given(st.integers(1, 200), st.integers(1, 20))
def test_layers_exist_and_the_last_is_among_them(count: int, most: int) -> None:
    layers = layers_for(count, most)
    assert len(layers) == min(count, most) == len(set(layers))
    assert layers[-1] == count and layers[0] >= 1


# ---- the reference

texts = st.lists(st.text("ab c.\n", max_size=12), min_size=1, max_size=8)


@settings(deadline=None)
@given(texts, texts)
def test_tf_idf_is_that_of_scikit_learn(known: list[str], asked: list[str]) -> None:
    theirs = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+")
    try:
        theirs.fit(known)
    except ValueError:  # it refuses texts without a word
        return
    assert np.allclose(TfIdf(known).rows(asked).toarray(), theirs.transform(asked).toarray())


WORDS = {"billing": "charged invoice refund money", "technical": "crash error screen update"}


def tickets(count: int) -> tuple[list[str], list[str]]:
    drawn = np.random.default_rng(count)
    answers = [list(WORDS)[row % 2] for row in range(count)]
    return [" ".join(["hello", *drawn.permutation(WORDS[answer].split())[:2]]) for answer in answers], answers


def test_the_reference_learns_which_words_mean_what() -> None:
    reference = fit_reference(*tickets(40), tuple(WORDS))
    assert reference.accuracy > 0.9
    assert reference.predict(["a refund of my money", "the screen shows an error"]) == ["billing", "technical"]


def test_the_same_reference_twice() -> None:
    one, other = (fit_reference(*tickets(21), tuple(WORDS), seed=4) for _ in range(2))
    assert one.weights.tobytes() == other.weights.tobytes()
    assert one.strength == other.strength


def test_a_text_without_known_words_gets_what_is_most_common() -> None:
    questions, answers = tickets(40)
    reference = fit_reference([*questions, *questions[:20:2]], [*answers, *answers[:20:2]], tuple(WORDS))
    assert reference.predict(["", "xyzzy"]) == ["billing", "billing"]


def test_a_rows_inputs_are_one_text() -> None:
    assert text_of({"ticket": "it broke", "count": 2, "note": None}) == "it broke\n2"
