"""What differs between two programs, runs or baselines, `before` and `after`: prompts, settings, scores, examples.

Texts are compared word by word (`difference.py`), scores by the paired test and the paired bootstrap interval on the
rows that both sides have. A difference is always after less before. With several metrics the p-values are Holm's, since
one of many differences is large by chance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from pydantic_core import to_jsonable_python

from ..errors import InputError
from ..metrics import Measurement, Metric, interval, paired_test, smallest_detectable_difference
from ..metrics.statistics import PairedResult, Score, holm, paired_deviation
from .difference import Part, pairs, word_parts
from .judging import metric_of
from .sides import Asked, Side

Change = tuple[str, str | None, str | None]
TAIL = 0.025


@dataclass(frozen=True)
class PredictorDiff:
    """How a predictor's parameters differ. `only` says which side has it, where one lacks it.

    `settings`: name, before, after, of those that differ; `demos`: aligned texts, None where they are not known.
    """

    name: str
    only: Literal["before", "after"] | None
    instructions: tuple[Part, ...]
    demos: tuple[tuple[str | None, str | None], ...] | None
    settings: tuple[Change, ...]

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        demos = all(before == after for before, after in self.demos or ())
        return not self.only and demos and not self.settings and all(kind == "same" for kind, _ in self.instructions)


@dataclass(frozen=True)
class Comparison:
    """One metric on the rows that both sides have. `detectable`: the smallest difference that these rows could show."""

    metric: str
    before: Score
    after: Score
    paired: PairedResult
    p_value: float
    detectable: float


@dataclass(frozen=True)
class Flip:
    """An example whose score changed; `inputs` and `answers` (before, after) where they are known."""

    key: str
    before: float
    after: float
    inputs: Mapping[str, Any] | None = None
    answers: tuple[Any, Any] | None = None


@dataclass(frozen=True)
class Difference:
    """All differences. `scores`: split, before, after, of the scores that both sides report; `notes` are for people."""

    before: Side
    after: Side
    predictors: tuple[PredictorDiff, ...]
    facts: tuple[Change, ...]
    scores: tuple[tuple[str, Mapping[str, float] | None, Mapping[str, float] | None], ...]
    comparisons: tuple[Comparison, ...] = ()
    better: tuple[Flip, ...] = ()
    worse: tuple[Flip, ...] = ()
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """All of it as JSON holds it."""
        sides = {name: {"name": side.name, "kind": side.kind} for name, side in self.sides}
        changes = {name: {"before": before, "after": after} for name, before, after in self.facts}
        scores = {split: {"before": before, "after": after} for split, before, after in self.scores}
        return {
            **sides,
            "predictors": {each.name: _predictor_dict(each) for each in self.predictors},
            "facts": changes,
            "scores": scores,
            "comparisons": [asdict(each) for each in self.comparisons],
            "better": [flip_dict(flip) for flip in self.better],
            "worse": [flip_dict(flip) for flip in self.worse],
            "notes": list(self.notes),
        }

    @property
    def sides(self) -> tuple[tuple[str, Side], ...]:
        """Both sides by name."""
        return ("before", self.before), ("after", self.after)


def compare(before: Side, after: Side, *, seed: int = 0) -> Difference:
    """The differences between two sides. Scores are compared where both have rows of one metric in common."""
    notes = list(dict.fromkeys([*before.notes, *after.notes]))
    predictors: tuple[PredictorDiff, ...] = ()
    if before.predictors and after.predictors:
        names = list(dict.fromkeys([*before.predictors, *after.predictors]))
        predictors = tuple(_predictor(name, before, after) for name in names)
    elif before.predictors or after.predictors:
        notes.append(f"{(after if before.predictors else before).name} holds no prompts to compare with")
    facts = tuple(_changes(before.facts, after.facts))
    splits = list(dict.fromkeys([*before.scores, *after.scores]))
    scores = tuple((split, before.scores.get(split), after.scores.get(split)) for split in splits)
    plain = Difference(before, after, predictors, facts, scores, notes=tuple(notes))
    return _with_rows(plain, seed)


def compare_rows(
    rows: Sequence[tuple[Metric, Mapping[str, Measurement], Mapping[str, Measurement]]], *, seed: int = 0
) -> tuple[Comparison, ...]:
    """Metrics with the rows of both sides, which have the same keys, compared; p-values two-sided, Holm's."""
    found = []
    for metric, before, after in rows:
        keys = sorted(before)
        ours, theirs = [after[key] for key in keys], [before[key] for key in keys]
        paired = paired_test(metric, ours, theirs, seed=seed)
        sd = paired_deviation(metric, ours, theirs)
        least = smallest_detectable_difference(len(keys), sd=sd, level=TAIL)
        was, now = interval(metric, theirs, seed), interval(metric, ours, seed)
        found.append(Comparison(metric.name, was, now, paired, paired.p_two_sided, least))
    corrected = holm({str(place): each.p_value for place, each in enumerate(found)})
    return tuple(
        Comparison(c.metric, c.before, c.after, c.paired, corrected[str(place)], c.detectable)
        for place, c in enumerate(found)
    )


def flips(before: Mapping[str, Measurement], after: Mapping[str, Measurement]) -> tuple[list[Flip], list[Flip]]:
    """The rows whose score rose, and those whose score fell, the largest changes first."""
    found = [Flip(key, before[key].score, after[key].score) for key in sorted(before.keys() & after.keys())]
    found.sort(key=lambda flip: -abs(flip.after - flip.before))
    return [flip for flip in found if flip.after > flip.before], [flip for flip in found if flip.after < flip.before]


def _with_rows(plain: Difference, seed: int) -> Difference:
    before, after, notes = plain.before, plain.after, list(plain.notes)
    shared = sorted(before.rows.keys() & after.rows.keys())
    metric = None
    if before.rows and after.rows:
        if before.metric != after.metric:
            notes.append(f"the scores are of different metrics, {before.metric} and {after.metric}")
        elif before.metric_digest and after.metric_digest and before.metric_digest != after.metric_digest:
            notes.append(f"the scores by {before.metric} come from another rubric, or other options")
        elif not shared:
            notes.append("no example stands in both: there is nothing to pair")
        else:
            metric = metric_for(before.metric, [before.rows[key] for key in shared])
            if metric is None:
                notes.append(f"how {before.metric} adds up is not known here: use cuecard ab")
    elif plain.scores:
        notes.append("the scores have no rows to pair: cuecard ab runs both on the same examples")
    if metric is None:
        return replace(plain, notes=tuple(notes))
    ours, theirs = ({key: side.rows[key] for key in shared} for side in (before, after))
    left_out = len(before.rows) + len(after.rows) - 2 * len(shared)
    if left_out:
        notes.append(f"{left_out} rows stand on one side only, and are not compared")
    inputs = {**before.inputs, **after.inputs}
    better, worse = ([replace(f, inputs=inputs.get(f.key)) for f in part] for part in flips(ours, theirs))
    compared = compare_rows([(metric, ours, theirs)], seed=seed)
    return replace(plain, comparisons=compared, better=tuple(better), worse=tuple(worse), notes=tuple(notes))


def metric_for(name: str, rows: Sequence[Measurement]) -> Metric | None:
    """The metric that adds up these rows: the mean, for rows without statistics; None where it can't be known."""
    width = len(rows[0].statistics)
    try:
        known = metric_of(name)
        return known if known.width == width else None
    except InputError:  # a function's, a weighted sum's, or one over labels that only the program knows
        if width:
            return None
    scores = [row.score for row in rows]
    return _Mean(name, min(0.0, *scores), max(1.0, *scores))


class _Mean(Metric):
    """The mean of scores that are there already."""

    def __init__(self, name: str, low: float, high: float) -> None:
        self.name, self.low, self.high = name, low, high

    def measure(self, example: Any, prediction: Any) -> Measurement:
        raise NotImplementedError("its scores are there already")


def _predictor(name: str, before: Side, after: Side) -> PredictorDiff:
    was, now = before.predictors.get(name), after.predictors.get(name)
    if was is None or now is None:
        found: Asked = was or now or Asked("", (), {})
        kind: Literal["before", "after"] = "after" if was is None else "before"
        settings = tuple((k, v, None) if kind == "before" else (k, None, v) for k, v in found.settings.items())
        demos = tuple((d, None) if kind == "before" else (None, d) for d in found.demos or ())
        return PredictorDiff(name, kind, ((kind, found.instructions),), demos, settings)
    aligned = None if was.demos is None or now.demos is None else tuple(pairs(was.demos, now.demos))
    instructions = tuple(word_parts(was.instructions, now.instructions))
    return PredictorDiff(name, None, instructions, aligned, tuple(_changes(was.settings, now.settings)))


def _changes(before: Mapping[str, str], after: Mapping[str, str]) -> list[Change]:
    names = dict.fromkeys([*before, *after])
    return [(n, before.get(n), after.get(n)) for n in names if before.get(n) != after.get(n)]


def _predictor_dict(found: PredictorDiff) -> dict[str, Any]:
    return {
        "same": found.same,
        "only": found.only,
        "instructions": [list(part) for part in found.instructions],
        "demos": None if found.demos is None else [list(pair) for pair in found.demos],
        "settings": {name: {"before": before, "after": after} for name, before, after in found.settings},
    }


def flip_dict(flip: Flip) -> dict[str, Any]:
    """A flip as JSON holds it."""
    plain: dict[str, Any] = {"row": flip.key, "before": flip.before, "after": flip.after}
    if flip.inputs is not None:
        plain["inputs"] = _jsonable(dict(flip.inputs))
    if flip.answers is not None:
        plain["answers"] = {"before": _jsonable(flip.answers[0]), "after": _jsonable(flip.answers[1])}
    return plain


def _jsonable(value: Any) -> Any:
    return to_jsonable_python(value, bytes_mode="base64", fallback=str)
