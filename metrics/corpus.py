"""BLEU, chrF and TER through sacrebleu, divided by 100 to stand on 0..1.

Their aggregate is the corpus score, computed from summed statistics, not the mean of sentence scores: `aggregate`
equals `sacrebleu.corpus_bleu` and `sacrebleu.corpus_chrf` with the same options, and 1 less `sacrebleu.corpus_ter`.
Several references of one example are all given to sacrebleu, and examples may have different numbers of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from .base import Measurement, TextMetric

if TYPE_CHECKING:
    import numpy as np

_ORDER = 4


@dataclass(frozen=True, kw_only=True)
class Bleu(TextMetric):
    """BLEU (Papineni et al., ACL 2002) up to 4-grams with exponential smoothing (Chen and Cherry, WMT 2014, method 3).

    An example's score is sentence BLEU with effective order: n-gram orders longer than the output are left out. The
    statistics are the output's length, the closest reference's, then the matched and the total n-grams of each order.
    `tokenize` is sacrebleu's tokenizer: 13a for most languages, zh for Chinese, char for others without spaces.
    """

    name = "bleu"
    fields: tuple[str, ...] = ()
    lowercase: bool = False
    tokenize: Literal["13a", "intl", "zh", "char", "none"] = "13a"

    @property
    def width(self) -> int:
        """See `Metric.width`."""
        return 2 + 2 * _ORDER

    @cached_property
    def _sacrebleu(self) -> Any:
        from sacrebleu.metrics.bleu import BLEU

        return BLEU(lowercase=self.lowercase, tokenize=self.tokenize, force=True, effective_order=True)

    def compare_text(self, gold: Sequence[str], prediction: str) -> Measurement:
        """See `TextMetric.compare_text`."""
        result = self._sacrebleu.sentence_score(prediction, list(gold))
        statistics = (result.sys_len, result.ref_len, *result.counts, *result.totals)
        return Measurement(_unit(result.score), tuple(map(float, statistics)))

    def from_statistics(self, total: np.ndarray) -> float:
        """Corpus BLEU of the summed statistics."""
        from sacrebleu.metrics.bleu import BLEU

        sys_len, ref_len, *counts = (round(number) for number in total.tolist())
        matched, possible = counts[:_ORDER], counts[_ORDER:]
        return _unit(BLEU.compute_bleu(matched, possible, sys_len, ref_len, smooth_method="exp").score)


@dataclass(frozen=True, kw_only=True)
class Chrf(TextMetric):
    """chrF (Popović, WMT 2015): F-beta over character n-grams; `word_order: 2` makes it chrF++ (Popović, WMT 2017).

    An example's score is sentence chrF. The statistics are the output's, the reference's and the common n-grams of each
    order, for the reference of highest score.
    """

    name = "chrf"
    fields: tuple[str, ...] = ()
    char_order: Annotated[int, Field(ge=1, le=20)] = 6
    word_order: Annotated[int, Field(ge=0, le=10)] = 0
    beta: Annotated[int, Field(ge=1)] = 2
    lowercase: bool = False
    whitespace: bool = False

    @property
    def width(self) -> int:
        """See `Metric.width`."""
        return 3 * (self.char_order + self.word_order)

    @cached_property
    def _sacrebleu(self) -> Any:
        from sacrebleu.metrics.chrf import CHRF

        return CHRF(self.char_order, self.word_order, self.beta, self.lowercase, self.whitespace)

    def compare_text(self, gold: Sequence[str], prediction: str) -> Measurement:
        """See `TextMetric.compare_text`."""
        # sacrebleu hands out chrF's statistics only through this method, which its own significance tests use as well.
        [statistics] = self._sacrebleu._extract_corpus_statistics([prediction], [[reference] for reference in gold])
        return Measurement(self._score(statistics), tuple(map(float, statistics)))

    def from_statistics(self, total: np.ndarray) -> float:
        """Corpus chrF of the summed statistics."""
        return self._score(total.tolist())

    def _score(self, statistics: Sequence[float]) -> float:
        return _unit(self._sacrebleu._compute_score_from_stats(statistics).score)


@dataclass(frozen=True, kw_only=True)
class Ter(TextMetric):
    """1 less the translation edit rate (Snover et al., AMTA 2006), and 0 where more edits than words are needed.

    Edits are words inserted, deleted or replaced, and runs of words moved. The statistics are the edits to the
    reference that needs fewest, and the mean length of the references. Text is compared without case unless
    `case_sensitive`; `normalized` splits punctuation off, `no_punct` drops it, `asian_support` makes either hold for
    Chinese and Japanese.
    """

    name = "ter"
    fields: tuple[str, ...] = ()
    normalized: bool = False
    no_punct: bool = False
    asian_support: bool = False
    case_sensitive: bool = False

    @property
    def width(self) -> int:
        """See `Metric.width`."""
        return 2

    @cached_property
    def _sacrebleu(self) -> Any:
        from sacrebleu.metrics.ter import TER

        return TER(self.normalized, self.no_punct, self.asian_support, self.case_sensitive)

    def compare_text(self, gold: Sequence[str], prediction: str) -> Measurement:
        """See `TextMetric.compare_text`."""
        [statistics] = self._sacrebleu._extract_corpus_statistics([prediction], [[reference] for reference in gold])
        return Measurement(self._score(statistics), tuple(map(float, statistics)))

    def from_statistics(self, total: np.ndarray) -> float:
        """What corpus TER of the summed statistics leaves of 1."""
        return self._score(total.tolist())

    def _score(self, statistics: Sequence[float]) -> float:
        return 1 - _unit(self._sacrebleu._compute_score_from_stats(statistics).score)


def _unit(score: float) -> float:
    # Rounding can lift a perfect sacrebleu score a hair above 100; TER may be far above it.
    return min(float(score) / 100, 1.0)
