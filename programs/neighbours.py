"""Demos chosen at call time: the examples of a pool whose inputs are nearest to the call's.

Liu et al. 2022 (arXiv 2101.06804) found that demos near to the input help most. Near is lexical here: the cosine of
TF-IDF vectors over words and pairs of words (Salton and Buckley 1988: 1 + log tf, smoothed idf, unit length), which
needs no second model, is the same everywhere, and can be read off the compiled program, where the pool stands.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import dspy
import numpy as np
from scipy import sparse

_WORD = re.compile(r"\w+|[^\w\s]")

Demo = Mapping[str, Any]


class Neighbours:
    """An index over a pool of demos by the text of their inputs.

    >>> Neighbours(signature, pool).nearest({"ticket": "I was charged twice"}, 2)
    """

    def __init__(self, signature: type[dspy.Signature], pool: Sequence[Demo]) -> None:
        self._fields = tuple(signature.input_fields)
        self.pool = tuple(pool)
        counts = [_terms(self._text(demo)) for demo in self.pool]
        documents = Counter(term for terms in counts for term in terms)
        self._places = {term: place for place, term in enumerate(sorted(documents))}
        self._weights = np.array(
            [math.log((1 + len(self.pool)) / (1 + documents[term])) + 1 for term in self._places], dtype=np.float64
        )
        self._vectors = sparse.vstack([self._vector(terms) for terms in counts]) if counts else None

    def __deepcopy__(self, memo: object) -> Neighbours:
        return self  # it never changes, and programs are copied for every candidate

    def nearest(self, inputs: Mapping[str, Any], count: int) -> list[Demo]:
        """The `count` demos nearest to `inputs`, the nearest last, where the model looks first.

        A demo with exactly these inputs is left out: an example never answers itself. Of equally near ones the first
        in the pool are nearer.
        """
        if self._vectors is None:
            return []
        similar = np.asarray((self._vectors @ self._vector(_terms(self._text(inputs))).T).todense())[:, 0]
        order = np.argsort(-similar, kind="stable")
        found = [self.pool[place] for place in order if not same_inputs(self._fields, self.pool[place], inputs)]
        return found[:count][::-1]

    def _text(self, values: Mapping[str, Any]) -> str:
        return "\n".join(str(values[name]) for name in self._fields if values.get(name) is not None)

    def _vector(self, terms: Counter[str]) -> Any:
        """A row [1, terms] of unit length; words that the pool does not have are left out."""
        known = sorted(self._places[term] for term in terms if term in self._places)
        by_place = {self._places[term]: count for term, count in terms.items() if term in self._places}
        values = np.array([(1 + math.log(by_place[place])) * self._weights[place] for place in known])
        norm = float(np.sqrt((values**2).sum())) or 1.0
        return sparse.csr_matrix(
            (values / norm, (np.zeros(len(known), dtype=int), known)), shape=(1, len(self._places)), dtype=np.float64
        )


def same_inputs(fields: Sequence[str], demo: Demo, inputs: Mapping[str, Any]) -> bool:
    """Whether a demo has exactly these inputs, of the input fields."""
    return all(demo.get(name) == inputs.get(name) for name in fields)


def _terms(text: str) -> Counter[str]:
    words = _WORD.findall(text.casefold())
    return Counter([*words, *(f"{a} {b}" for a, b in pairwise(words))])
