"""ROUGE (Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004), computed by the rouge-score library.

The library keeps the letters a-z and the digits only, so texts in other scripts score 0: use chrF for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

from .base import Measurement, TextMetric


@dataclass(frozen=True, kw_only=True)
class Rouge(TextMetric):
    """Overlap with the best reference, the one of highest F-measure.

    `use_stemmer` compares Porter stems of words longer than three letters; `score` says which number counts. The
    reference is chosen by F-measure in any case, as the library does.
    """

    kind: ClassVar[str]
    fields: tuple[str, ...] = ()
    use_stemmer: bool = False
    score: Literal["f1", "precision", "recall"] = "f1"

    @cached_property
    def _scorer(self) -> Any:
        from rouge_score.rouge_scorer import RougeScorer

        return RougeScorer([self.kind], use_stemmer=self.use_stemmer)

    def compare_text(self, gold: Sequence[str], prediction: str) -> Measurement:
        """See `TextMetric.compare_text`."""
        best = self._scorer.score_multi(gold, prediction)[self.kind]
        return Measurement(float({"f1": best.fmeasure, "precision": best.precision, "recall": best.recall}[self.score]))


class Rouge1(Rouge):
    """Overlap of words."""

    name = "rouge_1"
    kind = "rouge1"


class Rouge2(Rouge):
    """Overlap of pairs of neighbouring words."""

    name = "rouge_2"
    kind = "rouge2"


class RougeL(Rouge):
    """The longest common subsequence of words, line breaks ignored."""

    name = "rouge_l"
    kind = "rougeL"


class RougeLsum(Rouge):
    """The union of longest common subsequences over lines: each line is taken for one sentence."""

    name = "rouge_lsum"
    kind = "rougeLsum"
