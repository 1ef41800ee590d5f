"""The points that a search of several predictors tries first: those of any space, and near demos one predictor at a
time.

Demos near to the input (`nearest`) show labels what to say, and show a step that writes a text mostly what others wrote
about something else: given to all predictors at once they may help one by less than they hurt another, and the search
learns that near demos are bad. So after the first start in which all predictors have them follows one for each in which
it alone has them, and the others the fixed demos of the first start of all.
"""

from __future__ import annotations

from typing import Any

from ..programs.channel import labelled_outputs
from .space import NEAREST_ALONE, PredictorSpace, Space

MOST_APART = 3  # such starts: what is beyond them is left to the sampler


class JointSpace(Space):
    """A space whose starts tell its predictors apart. With one predictor, or near demos for one alone, a `Space`."""

    def starts(self) -> list[dict[str, Any]]:
        """See `Space.starts` and the module. Predictors that choose among labels come first."""
        together = super().starts()
        near = [part for part in self.predictors if part.nearest_counts[-1] >= NEAREST_ALONE]
        if len(near) < 2:
            return together
        kinds = self.kinds_of_start()
        first = next(place for place, kind in enumerate(kinds) if kind.nearest)
        fixed = next(place for place, kind in enumerate(kinds) if not (kind.nearest or kind.channel))
        chosen = sorted(near, key=lambda part: not _has_labels(part))[:MOST_APART]  # stable
        apart = [_with_part(together[fixed], together[first], part) for part in chosen]
        return [*together[: first + 1], *apart, *together[first + 1 :]]


def _with_part(point: dict[str, Any], other: dict[str, Any], part: PredictorSpace) -> dict[str, Any]:
    """`point` with the values that `other` has for one predictor."""
    kept = {name: value for name, value in point.items() if name.rpartition(".")[0] != part.name}
    return {**kept, **{name: value for name, value in other.items() if name.rpartition(".")[0] == part.name}}


def _has_labels(part: PredictorSpace) -> bool:
    return bool(labelled_outputs(part.signature))
