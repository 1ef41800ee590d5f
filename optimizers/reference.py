"""The reference for label outputs: TF-IDF and logistic regression on the same rows, without any language model.

It says when no language model is needed. Texts are vectors over words and pairs of words, (1 + log tf) times a
smoothed idf, at unit length (Salton and Buckley 1988, Information Processing and Management 24:5); a multinomial
logistic regression with a ridge penalty reads the label, the penalty's strength chosen by cross-validation.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from ..seeds import derive_seed
from .heads import FOLDS, fit_softmax, folds, held_out

STRENGTHS = (1.0, 10.0, 100.0, 1000.0)
_WORD = re.compile(r"\w+")


def text_of(inputs: Mapping[str, Any]) -> str:
    """A row's inputs as the one text that is read, in their order."""
    return "\n".join(str(value) for value in inputs.values() if value is not None)


class TfIdf:
    """Texts as rows of unit length; words that the fitted texts do not have are left out."""

    def __init__(self, texts: Sequence[str]) -> None:
        seen = Counter(term for text in texts for term in set(_terms(text)))
        self._places = {term: place for place, term in enumerate(sorted(seen))}
        self._weights = [math.log((1 + len(texts)) / (1 + seen[term])) + 1 for term in self._places]

    def rows(self, texts: Sequence[str]) -> Any:
        """A sparse array [texts, terms]."""
        starts, places, values = [0], list[int](), list[float]()
        for text in texts:
            counts = {
                self._places[term]: count for term, count in Counter(_terms(text)).items() if term in self._places
            }
            own = {place: (1 + math.log(count)) * self._weights[place] for place, count in sorted(counts.items())}
            norm = math.sqrt(sum(value**2 for value in own.values())) or 1.0
            places += own
            values += [value / norm for value in own.values()]
            starts.append(len(places))
        return sparse.csr_array((values, places, starts), shape=(len(texts), len(self._places)), dtype=np.float64)


def _terms(text: str) -> list[str]:
    words = _WORD.findall(text.casefold())
    return [*words, *(f"{a} {b}" for a, b in pairwise(words))]


@dataclass(frozen=True, eq=False)
class Reference:
    """A fitted reference. strength: C, as in LIBLINEAR; accuracy: of the cross-validation that chose it."""

    labels: tuple[str, ...]
    features: TfIdf
    weights: NDArray[np.float64]
    bias: NDArray[np.float64]
    strength: float
    accuracy: float

    def predict(self, texts: Sequence[str]) -> list[str]:
        """The label of each text; ties go to the first."""
        logits = np.asarray(self.features.rows(texts) @ self.weights.T) + self.bias
        return [self.labels[place] for place in logits.argmax(axis=1)]


def fit_reference(texts: Sequence[str], answers: Sequence[str], labels: Sequence[str], *, seed: int = 0) -> Reference:
    """The reference for rows with these texts (at least one) and gold `answers`, all among `labels`."""
    features = TfIdf(texts)
    rows = features.rows(texts)
    gold = np.array([list(labels).index(answer) for answer in answers], dtype=np.int64)
    parts = folds(gold, min(FOLDS, len(gold)), derive_seed(seed, "reference"))
    tried = held_out(rows, gold, len(labels), parts, STRENGTHS, standard=False)
    place = min(range(len(STRENGTHS)), key=lambda place: tried[place][1])
    weights, bias = fit_softmax(rows, gold, len(labels), STRENGTHS[place])
    return Reference(tuple(labels), features, weights, bias, STRENGTHS[place], tried[place][0])
