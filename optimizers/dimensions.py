"""What a search space holds, to be shown before it is searched: each predictor's dimensions, and how many points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .space import CHANNEL, WHOLE, PredictorSpace
from .strategies import PromptPart


@dataclass(frozen=True)
class Dimension:
    """values: what is tried, none where they are too many to show; size: how many there are, None for a range of
    numbers, whose ends `values` holds.
    """

    name: str
    values: tuple[Any, ...]
    size: int | None


def dimensions_of(part: PredictorSpace) -> list[Dimension]:
    """A predictor's dimensions, as `PredictorSpace.suggest` draws them; those of a read-out's kind are told apart."""
    found = [
        _listed("instruction", part.instructions),
        _listed("demos", part.demo_counts),
        Dimension("demo_set", (), len(part.demo_sets)),
        _listed("nearest", part.nearest_counts),
    ]
    if isinstance(part, PromptPart):
        return found
    kinds = tuple(dict.fromkeys(readout.partition("+")[0] for readout in part.readouts))
    if CHANNEL in kinds:
        found += [_listed("per_label", part.per_label), Dimension("label_set", (), len(part.label_sets))]
    methods = tuple(r.partition("+")[2] or "none" for r in part.readouts if r.partition("+")[0] == "choice")
    found += [_listed("format", part.formats), _listed("readout", kinds)]
    if methods:
        found.append(_listed("calibration", methods))
    if any(part.generates(readout) for readout in part.readouts):
        found += [Dimension(name, tuple(span), _range_size(name, span)) for name, span in part.ranges.items()]
    return found


def size_of(part: PredictorSpace) -> int | None:
    """How many points a predictor has; None where a decoding setting is drawn from a range without steps."""
    shown = sum(len(part.demo_sets) if count else 1 for count in part.demo_counts)
    size = shown * len(part.nearest_counts)
    if isinstance(part, PromptPart):
        return len(part.instructions) * size
    settings: int | None = 1
    for name, span in part.ranges.items():
        steps = _range_size(name, span)
        settings = None if settings is None or steps is None else settings * steps
    read = 0
    for readout in part.readouts:
        drawn = settings if part.generates(readout) else 1
        if drawn is None:
            return None
        read += len(part.per_label) * len(part.label_sets) if readout == CHANNEL else size * drawn
    return len(part.instructions) * len(part.formats) * read


def _listed(name: str, values: Sequence[Any]) -> Dimension:
    return Dimension(name, tuple(values), len(values))


def _range_size(name: str, span: tuple[float, float]) -> int | None:
    if name in WHOLE:
        return int(span[1]) - int(span[0]) + 1
    return 1 if span[0] == span[1] else None
