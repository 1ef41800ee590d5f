"""Exact match and token F1, with the answer normalisation of the SQuAD evaluation scripts.

Rajpurkar et al., "SQuAD: 100,000+ Questions for Machine Comprehension of Text" (EMNLP 2016), section 6.1; where
prediction and reference hold no token at all, F1 follows the SQuAD 2.0 script: 1 if both are empty, else 0.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .base import FieldMetric, Measurement, TextMetric
from .values import plain

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """SQuAD's normalisation: lower case, no ASCII punctuation, no English article, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def token_f1(prediction: str, reference: str) -> float:
    """The harmonic mean of precision and recall over the multisets of normalised tokens, 0..1."""
    ours, gold = normalize_answer(prediction).split(), normalize_answer(reference).split()
    if not ours or not gold:
        return float(ours == gold)
    common = sum((Counter(ours) & Counter(gold)).values())
    return 2 * common / (len(ours) + len(gold))


@dataclass(frozen=True, kw_only=True)
class ExactMatch(FieldMetric):
    """1 where the prediction equals a reference, else 0.

    Text is compared case-sensitively after runs of white space are made one space and the ends stripped; other types
    by equality, where True is not 1 and a list's order counts. `normalize: true` compares text as SQuAD does: without
    case, punctuation and articles.
    """

    name = "exact_match"
    fields: tuple[str, ...] = ()
    normalize: bool = False

    def compare(self, gold: Sequence[Any], prediction: Any) -> Measurement:
        """See `FieldMetric.compare`."""
        ours = self._key(plain(prediction))
        return Measurement(float(any(ours == self._key(plain(reference)) for reference in gold)))

    def _key(self, value: Any) -> Any:
        if isinstance(value, str):
            return normalize_answer(value) if self.normalize else " ".join(value.split())
        if isinstance(value, bool):
            return (bool, value)  # Python holds True == 1; a label "true" is not the number 1.
        if isinstance(value, Mapping):
            return {key: self._key(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self._key(item) for item in value]
        if isinstance(value, set | frozenset):
            return {self._key(item) for item in value}
        return value


@dataclass(frozen=True, kw_only=True)
class F1(TextMetric):
    """SQuAD's token F1 against the best reference."""

    name = "f1"
    fields: tuple[str, ...] = ()

    def compare_text(self, gold: Sequence[str], prediction: str) -> Measurement:
        """See `TextMetric.compare_text`."""
        return Measurement(max(token_f1(prediction, reference) for reference in gold))
