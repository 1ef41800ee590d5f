"""Perplexity as a metric: how natural a text is to a model, without knowing what it was asked for.

The perplexity of texts is exp of their mean negative log-likelihood per token (Jelinek et al. 1977, "Perplexity: a
measure of the difficulty of speech recognition tasks"). It has no upper end and lower is better, so it is told as 1
over it, the geometric mean of the tokens' probabilities. A text stands after the tokenizer's start token and nothing
else; where there is no such token, after a line break, so that a text's first token counts too.

Like a judge it asks a model, so it measures many answers at once (`evaluate.BatchMetric`); equal texts are read once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import dspy

from ...errors import InputError, RunError
from ...metrics import Measurement, Metric, Record
from ...metrics.values import answers, as_text, labels, references
from ...models.engine import ScoreRequest
from ...models.lm import bridge_of
from ...programs.schema_tests import PERPLEXITY
from ..evaluate import Answered, run_program
from ..examples import Example
from .models import ModelLike, Models, NoModel, check_model

if TYPE_CHECKING:
    import numpy as np

WITHOUT_START = "\n"

Of = Literal["answer", "reference"]
Named = str | dict[str, Any] | None


@dataclass(frozen=True)
class Likelihood:
    """What a model makes of a text: its log-likelihood in nats, and its number of tokens."""

    total: float
    tokens: int


class Perplexity(Metric):
    """1 over the perplexity of the answers under a model, 0..1.

    The statistics are the negative log-likelihood in nats, the tokens, the texts that have any, and the texts. A text
    without tokens has no perplexity: like an output that could not be read it adds nothing to the first two, and the
    score is multiplied by the share of the texts that have some, so that silence is not taken for fluency.
    """

    name = PERPLEXITY

    def __init__(
        self,
        *,
        fields: Sequence[str] = (),
        of: Of = "answer",
        model: ModelLike | None = None,
        models: Models | None = None,
    ) -> None:
        """`fields`: the outputs that are read, default those that the example labels, or the only one.

        of: the program's answer, or the gold value (of several references all); model: what reads them, default the
        program's own. Raises `InputError` for a `model` that is none.
        """
        check_model(model)
        self.fields, self.of, self.model = tuple(fields), of, model
        self.models = models or Models()
        self._known: dict[tuple[str, str], Likelihood] = {}

    @property
    def width(self) -> int:
        """See `Metric.width`."""
        return 4

    def measure(self, example: Record, prediction: Record) -> Measurement:
        """See `Metric.measure`: one answer, in a batch of its own."""
        found = self._measured([self._texts(example, prediction)])[0]
        if isinstance(found, str):
            raise RunError(found)
        return found

    def measure_all(self, cases: Sequence[Answered]) -> list[Measurement | str]:
        """See `evaluate.BatchMetric`. Runs on its own model, else on the LM of DSPy's context. Raises `NoModel`."""
        return self._measured([self._texts(case.gold, case.prediction) for case in cases])

    def worst(self, example: Record) -> Measurement:
        """See `Metric.worst`: a text without tokens. Of the gold values, which it says nothing of, no text at all."""
        if self.of == "reference":
            return Measurement(self.low, (0.0,) * self.width)
        count = len(self.fields) or max(1, len(list(example.keys())))
        return Measurement(self.low, (0.0, 0.0, 0.0, float(count)))

    def from_statistics(self, total: np.ndarray) -> float:
        """The geometric mean of the tokens' probabilities, times the share of the texts that have tokens."""
        return _score(*total.tolist())

    def _texts(self, example: Record, prediction: Record) -> list[str]:
        said = answers(example, prediction, self.fields, metric=self.name)
        if self.of == "answer":
            return [as_text(value) for value in said.values()]
        gold = labels(example, self.fields or tuple(said), metric=self.name)
        return [as_text(one) for field, value in gold.items() for one in references(value, said[field])]

    def _measured(self, cases: Sequence[Sequence[str]]) -> list[Measurement | str]:
        found = self._read(list(dict.fromkeys(text for texts in cases for text in texts)))
        return [_measurement([found[text] for text in texts]) for texts in cases]

    def _read(self, texts: Sequence[str]) -> dict[str, Likelihood | str]:
        """What the model makes of each text; a text, which says why, where that is not known."""
        lm = self._lm()
        bridge = bridge_of(lm)
        identity = "" if bridge is None else bridge.engine.identity
        new = [text for text in texts if text.strip() and (identity, text) not in self._known]
        outcomes = run_program(_Reader(), [Example({"text": text}, {}, n) for n, text in enumerate(new)], lm=lm)
        lost = {text: _lost(each.error) for text, each in zip(new, outcomes, strict=True) if each.error is not None}
        for text, outcome in zip(new, outcomes, strict=True):
            if outcome.prediction is not None:
                self._known[identity, text] = Likelihood(**outcome.prediction)
        silent = Likelihood(0.0, 0)
        return {text: lost.get(text) or self._known.get((identity, text), silent) for text in texts}

    def open_model(self) -> None:
        """See `evaluate.OwnModel`."""
        if self.model is not None:
            self._lm()

    def _lm(self) -> dspy.LM:
        """What it runs on. Raises `NoModel`."""
        lm = self.models.lm(self.model) if self.model is not None else dspy.settings.lm
        if bridge_of(lm) is None:
            raise NoModel(
                f"the metric {self.name!r} has no model to run on",
                hint="Name one (`model:`), or run it within dspy.context(lm=target.lm).",
            )
        assert isinstance(lm, dspy.LM), "it has a bridge"
        return lm


def perplexity_on(models: Models) -> Callable[..., Perplexity]:
    """What makes the metric from its options in a spec. `models`: where it finds one that the spec names."""

    def made(*, fields: tuple[str, ...] = (), of: Of = "answer", model: Named = None) -> Perplexity:
        try:
            return Perplexity(fields=fields, of=of, model=model, models=models)
        except InputError as error:  # where the metric stands is told with it, where no field is
            parts: dict[str, Any] = {"expected": error.expected, "nearest": error.nearest, "hint": error.hint}
            raise InputError(f"{error.field}: {error.message}", **parts) from None

    return made


class _Reader(dspy.Module):
    """Reads a text by itself."""

    def forward(self, text: str) -> dspy.Prediction:
        """The fields of `Likelihood`. Raises `RequestFailed` when the model cannot read it."""
        bridge = bridge_of(dspy.settings.lm)
        assert bridge is not None, "it runs on a target"
        tokenizer = bridge.engine.tokenizer
        ids = tokenizer.encode(text)
        if not ids:
            return dspy.Prediction(total=0.0, tokens=0)
        request = ScoreRequest(tokenizer.start() or tokenizer.encode(WITHOUT_START), (ids,))
        return dspy.Prediction(total=math.fsum(bridge.gatherer.score(request).logprobs[0]), tokens=len(ids))


def _measurement(parts: Sequence[Likelihood | str]) -> Measurement | str:
    """What the texts of one case make; the first reason why one of them is not known."""
    there = [part for part in parts if isinstance(part, Likelihood)]
    if len(there) < len(parts):
        return next(part for part in parts if isinstance(part, str))
    if not all(math.isfinite(part.total) for part in there):
        return _lost("the model finds a token of the text impossible")
    tokens = sum(part.tokens for part in there)
    said = sum(part.tokens > 0 for part in there)
    row = (-math.fsum(part.total for part in there), float(tokens), float(said), float(len(there)))
    return Measurement(_score(*row), row)


def _score(negative: float, tokens: float, said: float, texts: float) -> float:
    return said / texts * min(1.0, math.exp(-negative / tokens)) if tokens > 0.5 else 0.0


def _lost(reason: str) -> str:
    return f"the perplexity is not known: {reason}"
