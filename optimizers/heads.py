"""Fitting linear heads: multinomial logistic regression on hidden states, or on the labels' log-likelihoods.

Features are standardised on the rows that are fitted, and weights are drawn to 0 by a ridge penalty. Layer, pooling
and strength of the penalty are chosen by stratified cross-validation on those rows, by the log-loss, which moves in
smaller steps than the accuracy; the sources that do best are tried on further draws of the folds, since one draw of few
rows often takes the wrong layer. There are fewer rows than a hidden state has numbers, so everything is solved in the
space that the rows span: the ridge solution is a combination of the rows, and with X = U S V' the problem is one of at
most n numbers a label (Hastie and Tibshirani 2004, Biostatistics 5:3, "Efficient quadratic regularization for
expression arrays"). Everything is deterministic.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..models.hidden import Features
from ..programs.heads import Head, Pooling
from ..seeds import derive_seed

STRENGTHS = (0.001, 0.01, 0.1, 1.0)  # C as in LIBLINEAR: the weight of a row's loss beside half the squared norm
FOLDS = 5
FINALISTS = 4  # sources that are tried on all draws of the folds
DRAWS = 3
MOST_ROWS = 512  # of the cross-validation; the head itself is fitted on all
LAYERS = 8
HIDDEN_POOLINGS: tuple[Pooling, ...] = ("mean", "last")
TOLERANCE = 1e-5
STEPS = 500

FloatArray = NDArray[np.float64]
Source = tuple[Pooling, int | None]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Fitted:
    """A head and how it was chosen. accuracy, loss: of the cross-validation, the loss in nats a row; strength: C."""

    head: Head
    accuracy: float
    loss: float
    strength: float


def layers_for(count: int, most: int = LAYERS) -> tuple[int, ...]:
    """Up to `most` layers of a model with `count`, evenly spread, the last one included."""
    most = min(most, count)
    return tuple(sorted({max(1, round(count * step / most)) for step in range(1, most + 1)}))


def fit_head(
    features: Sequence[Features], answers: Sequence[str], labels: Sequence[str], layers: Sequence[int], *, seed: int = 0
) -> Fitted:
    """The head for rows with these features (rows of `layers` each) and gold `answers`, all among `labels`."""
    gold = _places(answers, labels)
    sources: dict[Source, FloatArray] = {
        (pooling, layer): np.array([getattr(each, pooling)[row] for each in features], dtype=np.float64)
        for pooling, (row, layer) in product(HIDDEN_POOLINGS, enumerate(layers))
    }
    return _chosen(sources, gold, tuple(labels), seed)


def fit_matrix(totals: NDArray[np.float64], answers: Sequence[str], labels: Sequence[str], *, seed: int = 0) -> Fitted:
    """The calibration `matrix` for the labels' log-likelihoods `totals` [n, K] of rows with gold `answers`."""
    return _chosen({("scores", None): totals}, _places(answers, labels), tuple(labels), seed)


def _places(answers: Sequence[str], labels: Sequence[str]) -> IntArray:
    return np.array([list(labels).index(answer) for answer in answers], dtype=np.int64)


def _chosen(sources: Mapping[Source, FloatArray], gold: IntArray, labels: tuple[str, ...], seed: int) -> Fitted:
    """The head with the lowest held-out loss; of equal ones the first source, and the lowest strength."""
    if not len(gold):
        raise InputError("a head can't be fitted without labelled rows", expected="some rows to train on")
    some = _sample(gold, seed)
    held = {source: [_drawn(rows[some], gold[some], len(labels), seed, 0)] for source, rows in sources.items()}
    best = sorted(held, key=lambda source: min(loss for _, loss in held[source][0]))[:FINALISTS]  # stable
    if len(best) > 1:
        for source in best:
            held[source] += [_drawn(sources[source][some], gold[some], len(labels), seed, n) for n in range(1, DRAWS)]
    means = {source: np.mean(held[source], axis=0) for source in best}
    source, place = min(((source, place) for source in best for place in range(len(STRENGTHS))),
                        key=lambda choice: float(means[choice[0]][choice[1], 1]))  # fmt: skip
    accuracy, loss = means[source][place].tolist()
    pooling, layer = source
    head = _head(sources[source], gold, labels, STRENGTHS[place], layer, pooling)
    return Fitted(head, accuracy, loss, STRENGTHS[place])


def _sample(gold: IntArray, seed: int) -> IntArray:
    """Which rows the cross-validation sees: about `MOST_ROWS` of them, labels in proportion."""
    return np.flatnonzero(folds(gold, -(-len(gold) // MOST_ROWS), derive_seed(seed, "sample")) == 0)


def _drawn(rows: FloatArray, gold: IntArray, count: int, seed: int, draw: int) -> list[tuple[float, float]]:
    parts = folds(gold, min(FOLDS, len(gold)), derive_seed(seed, "draw", draw))
    return held_out(rows, gold, count, parts, STRENGTHS)


def folds(gold: IntArray, count: int, seed: int) -> IntArray:
    """For each row the fold in which it is held out: every label's rows are dealt out evenly, in a random order."""
    drawn = random.Random(derive_seed(seed, "folds"))
    place = list(range(len(gold)))
    drawn.shuffle(place)
    place.sort(key=lambda row: gold[row])
    dealt = np.zeros(len(gold), dtype=np.int64)
    dealt[place] = np.arange(len(gold)) % count
    return dealt


def held_out(
    rows: Any, gold: IntArray, count: int, parts: IntArray, strengths: Sequence[float], *, standard: bool = True
) -> list[tuple[float, float]]:
    """For each strength (accuracy, nats a row) of the rows [n, d], each predicted by a fit without its part.

    rows: an array, or a sparse one that is taken as it is (`standard=False`).
    """
    found = np.zeros((len(strengths), 2))
    for part in np.unique(parts):
        out, kept = np.flatnonzero(parts == part), np.flatnonzero(parts != part)
        if not len(kept):  # a single row: there is nothing to learn from
            found[:, 1] += len(out) * np.log(count)
            continue
        train, test = rows[kept], rows[out]
        if standard:
            mean, scale = _standard(train)
            train, test = (train - mean) / scale, (test - mean) / scale
        problem = _Problem(train, gold[kept], count)
        for place, strength in enumerate(strengths):
            weights, bias = problem.solve(strength)
            logs = _log_softmax(np.asarray(test @ weights.T) + bias)
            found[place, 0] += (logs.argmax(axis=1) == gold[out]).sum()
            found[place, 1] -= logs[np.arange(len(out)), gold[out]].sum()
    return [(float(right), float(loss)) for right, loss in found / len(gold)]


def _head(
    rows: FloatArray, gold: IntArray, labels: tuple[str, ...], strength: float, layer: int | None, pooling: Pooling
) -> Head:
    mean, scale = _standard(rows)
    weights, bias = fit_softmax((rows - mean) / scale, gold, len(labels), strength)
    return Head(labels, _narrow(weights), _narrow(bias), _narrow(mean), _narrow(scale), layer, pooling)


def _narrow(array: FloatArray) -> NDArray[np.float32]:
    return np.ascontiguousarray(array, dtype=np.float32)


def _standard(rows: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Mean and standard deviation of every feature; one that never changes keeps its scale."""
    mean, scale = rows.mean(axis=0), rows.std(axis=0)
    return mean, np.where(scale > 1e-6 * (1.0 + np.abs(mean)), scale, 1.0)


def _log_softmax(logits: FloatArray) -> FloatArray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def fit_softmax(rows: Any, gold: IntArray, count: int, strength: float) -> tuple[FloatArray, FloatArray]:
    """Weights [count, d] and biases [count] that minimise `strength` times the summed cross-entropy of
    softmax(rows [n, d] @ weights' + bias) plus half the squared weights. The biases, which are free, sum to 0. rows: an
    array or a sparse one.
    """
    return _Problem(rows, gold, count).solve(strength)


class _Problem:
    """One regression at several strengths: the rows are reduced once, and every solution starts from the last one.

    `_reduced` [n, r] are the rows in an orthonormal basis of the space they span; `_back` [r, n] or [r, d] takes a
    solution there to one over the rows, or to one over the features.
    """

    def __init__(self, rows: Any, gold: IntArray, count: int) -> None:
        self._wide = rows.shape[0] <= rows.shape[1]
        products = rows @ rows.T if self._wide else rows.T @ rows
        squares, vectors = np.linalg.eigh(products if isinstance(products, np.ndarray) else products.toarray())
        kept = squares > 1e-12 * max(1.0, float(squares.max(initial=0.0)))
        vectors, sizes = vectors[:, kept], np.sqrt(squares[kept])
        self._rows = rows
        self._reduced = vectors * sizes if self._wide else np.asarray(rows @ vectors)
        self._back = vectors.T / sizes[:, None] if self._wide else vectors.T
        self._gold = gold
        self._last = np.zeros((count, self._reduced.shape[1] + 1))

    def solve(self, strength: float) -> tuple[FloatArray, FloatArray]:
        """Weights [count, d] and biases [count], see `fit_softmax`. L-BFGS on the mean loss."""
        from scipy.optimize import minimize

        places, total = np.arange(len(self._gold)), len(self._gold)
        ridge = 1.0 / (strength * total)
        # Steps are taken where the curvature is about the same in all directions: 1/4 bounds that of a softmax.
        step = 1.0 / np.sqrt(0.25 * (self._reduced**2).mean(axis=0) + ridge)
        rows, weighed = self._reduced * step, ridge * step**2

        def loss(packed: FloatArray) -> tuple[float, FloatArray]:
            both = packed.reshape(self._last.shape)
            weights, bias = both[:, :-1], both[:, -1]
            logs = _log_softmax(rows @ weights.T + bias)
            error = np.exp(logs)
            error[places, self._gold] -= 1.0
            error /= total
            slope = np.concatenate([error.T @ rows + weighed * weights, error.sum(axis=0)[:, None]], axis=1)
            value = -float(logs[places, self._gold].mean()) + 0.5 * float((weighed * weights**2).sum())
            return value, slope.ravel()

        settings = {"maxiter": STEPS, "gtol": TOLERANCE, "ftol": 1e-10}
        scales = np.append(step, 1.0)
        found = minimize(loss, (self._last / scales).ravel(), jac=True, method="L-BFGS-B", options=settings).x
        self._last = found.reshape(self._last.shape) * scales
        weights, bias = self._last[:, :-1] @ self._back, self._last[:, -1]
        return np.asarray(weights @ self._rows if self._wide else weights), np.asarray(bias - bias.mean())
