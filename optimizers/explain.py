"""What a compiled program owes to what: variants of the winner with one thing taken back, and what each is worth.

Two kinds of variant. An ablation sets one dimension of one predictor (instruction, demos, nearest demos, format,
read-out, calibration, a decoding setting) back to the baseline's value and leaves all others as they are; a demo left
out shortens a predictor's demos by one. What the thing adds is the winner's score less the variant's, on the same
examples, by the paired test of `metrics/statistics.py`. The p-values of all variants are corrected together (Holm): of
twenty variants that make no difference one looks as if it did.

Ablation between two configurations of an algorithm is from Fawcett and Hoos, "Analysing differences between algorithm
configurations through ablation" (Journal of Heuristics 22, 2016). They walk from one to the other, each step the best
of all that are left; here every step is taken from the winner, which costs a run for each dimension and no more. So
what the dimensions add does not sum up to the winner's lead: two that do the same work each seem to add nothing.

For a demo there is a second measure, what it adds to the log-likelihood of the gold answers (`likelihood.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic_core import to_jsonable_python

from ..metrics.base import Metric
from ..metrics.statistics import (
    PairedResult,
    Score,
    holm,
    interval,
    paired_deviation,
    paired_test,
    smallest_detectable_difference,
)
from ..models.engine import Decoding
from ..programs.formats.registry import format_choice, format_named
from ..programs.state import PredictorState, ReadOut
from .base import Candidate, Outcome
from .likelihood import Likelihood

TAIL = 0.025
DEMO = "demo"


@dataclass(frozen=True)
class Variant:
    """The winner with one thing taken back. dimension: `instruction`, `demos`, `nearest`, `format`, `readout`,
    `calibration`, `decoding.SETTING`, or `demo` for one demo left out, the predictor's `demo`-th from 1.

    before, after: the dimension's value in the baseline and in the winner, a demo only in the winner; along: what else
    had to go back with it.
    """

    predictor: str
    dimension: str
    candidate: Candidate
    before: Any = None
    after: Any = None
    demo: int | None = None
    along: str | None = None


@dataclass(frozen=True)
class Comparison:
    """The winner beside another on the `adds.n` examples that both have a score for.

    adds: the winner's score less the other's; detectable: the smallest difference that these examples could show, with
    a power of 80 %.
    """

    without: Score
    adds: PairedResult
    detectable: float


@dataclass(frozen=True)
class Effect:
    """What one thing adds to the winner, see `Variant` for the first fields.

    compared: None where the variant has no score on any example, which `reason` explains; p_value: two-sided, corrected
    for all effects of the explanation; failed: examples without a score in the variant or the winner.
    """

    predictor: str
    dimension: str
    before: Any
    after: Any
    demo: int | None
    along: str | None
    compared: Comparison | None
    p_value: float | None
    failed: int
    reason: str | None = None
    likelihood: Likelihood | None = None

    def as_dict(self) -> dict[str, Any]:
        """All of it as JSON holds it."""
        plain: dict[str, Any] = to_jsonable_python(asdict(self), bytes_mode="base64", fallback=str)
        return plain


def ablations(winner: Candidate, baseline: Candidate) -> list[Variant]:
    """The winner with each dimension in turn at the baseline's value, where it is another. Both have the same
    predictors.
    """
    return [
        Variant(
            name,
            dimension,
            Candidate({**winner.states, name: state.model_copy(update=back)}),
            before,
            after,
            along=along,
        )
        for name, state in winner.states.items()
        for dimension, back, before, after, along in _taken_back(state, baseline.states[name])
    ]


def demos_left_out(winner: Candidate) -> list[Variant]:
    """The winner without each of its fixed demos in turn; not where the read-out is `channel`, which has dozens of
    them, and none that could be told from noise.
    """
    return [
        Variant(
            name,
            DEMO,
            Candidate({**winner.states, name: state.model_copy(update={"demos": _without(state.demos, place)})}),
            after=state.demos[place],
            demo=place + 1,
        )
        for name, state in winner.states.items()
        for place in range(0 if state.readout.kind == "channel" else len(state.demos))
    ]


def compare(
    metric: Metric, winner: Sequence[Outcome], other: Sequence[Outcome], *, seed: int = 0, tests: int = 1
) -> Comparison | None:
    """The winner beside another program on the same rows; None where there is no row that both have a score for.

    tests: how many comparisons the level is shared among, for the smallest difference that can be seen.
    """
    pairs = [(a.measurement, b.measurement) for a, b in zip(winner, other, strict=True)]
    ours = [a for a, b in pairs if a is not None and b is not None]
    theirs = [b for a, b in pairs if a is not None and b is not None]
    if not ours:
        return None
    sd = paired_deviation(metric, ours, theirs)
    least = smallest_detectable_difference(len(ours), sd=sd, level=TAIL / tests)
    return Comparison(interval(metric, theirs, seed), paired_test(metric, ours, theirs, seed=seed), least)


def effects(
    metric: Metric, winner: Sequence[Outcome], variants: Sequence[tuple[Variant, Sequence[Outcome]]], *, seed: int = 0
) -> list[Effect]:
    """What each variant's missing thing adds, in the order of the variants, which ran on the winner's rows."""
    found = [compare(metric, winner, outcomes, seed=seed, tests=len(variants)) for _, outcomes in variants]
    raw = {str(place): each.adds.p_two_sided for place, each in enumerate(found) if each is not None}
    corrected = holm(raw)
    return [
        Effect(
            variant.predictor,
            variant.dimension,
            variant.before,
            variant.after,
            variant.demo,
            variant.along,
            each,
            corrected.get(str(place)),
            len(outcomes) - (each.adds.n if each is not None else 0),
            None if each is not None else next((o.error for o in (*outcomes, *winner) if o.error), None),
        )
        for place, ((variant, outcomes), each) in enumerate(zip(variants, found, strict=True))
    ]


Taken = tuple[str, dict[str, Any], Any, Any, str | None]


def _taken_back(now: PredictorState, before: PredictorState) -> Iterator[Taken]:
    """The dimensions that differ: name, what to set back, the value before and now, and what goes along."""
    for dimension, field in (("instruction", "instructions"), ("demos", "demos"), ("nearest", "nearest")):
        was, value = getattr(before, field), getattr(now, field)
        if was != value:
            yield dimension, {field: was}, _told(field, was), _told(field, value), None
    formats = [format_choice(format_named(state.format)) for state in (before, now)]
    if formats[0] != formats[1]:
        yield "format", {"format": before.format}, formats[0], formats[1], None
    yield from _readouts(now.readout, before.readout)
    for setting in Decoding.model_fields:
        was, value = getattr(before.decoding, setting), getattr(now.decoding, setting)
        if was != value:
            back = {"decoding": now.decoding.model_copy(update={setting: was})}
            yield f"decoding.{setting}", back, was, value, None


def _readouts(now: ReadOut, before: ReadOut) -> Iterator[Taken]:
    """The read-out, and the calibration of a choice, which means nothing for another read-out."""
    tuned = now.chooses and (now.calibration is not None or bool(now.heads))
    if _way(now) != _way(before):
        along = "calibration" if tuned else None
        yield "readout", {"readout": before}, before.kind, now.kind, along
    if not now.chooses:
        return
    earlier = before if before.kind == now.kind else ReadOut(kind=now.kind)
    if (now.calibration, _hashes(now)) != (earlier.calibration, _hashes(earlier)):
        back = now.model_copy(update={"calibration": earlier.calibration, "heads": earlier.heads})
        yield "calibration", {"readout": back}, _method(earlier), _method(now), None


def _way(readout: ReadOut) -> tuple[Any, ...]:
    """Everything of a read-out but the calibration of a choice."""
    return readout.kind, readout.sources, readout.span, () if readout.chooses else _hashes(readout)


def _hashes(readout: ReadOut) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((field, head.sha256) for field, head in readout.heads.items()))


def _method(readout: ReadOut) -> str:
    return "matrix" if readout.heads else readout.calibration.method if readout.calibration else "none"


def _told(field: str, value: Any) -> Any:
    """A value as a report shows it: of demos how many there are."""
    if field == "demos":
        return len(value)
    return (0 if value is None else value.count) if field == "nearest" else value


def _without(demos: tuple[dict[str, Any], ...], place: int) -> tuple[dict[str, Any], ...]:
    return demos[:place] + demos[place + 1 :]
