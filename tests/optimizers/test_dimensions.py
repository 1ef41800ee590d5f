"""What is shown of a search space: the dimensions that are drawn from, and as many points as there are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

import cuecard
from cuecard.models.engine import Decoding
from cuecard.optimizers.context import StrategyContext
from cuecard.optimizers.dimensions import dimensions_of, size_of
from cuecard.optimizers.space import PredictorSpace, Space
from cuecard.optimizers.strategies import prompt_space

ROUTE = cuecard.signature("ticket -> queue: Literal['billing', 'technical']")
NOTE = cuecard.signature("ticket -> note: str")
POOL = tuple({"ticket": f"d{n}", "queue": "billing"} for n in range(4))


class Walk:
    """Draws every point of a space, one after the other."""

    def __init__(self) -> None:
        self.path: list[list[Any]] = []
        self.place = 0

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        if self.place == len(self.path):
            self.path.append([0, len(choices)])
        drawn = choices[self.path[self.place][0]]
        self.place += 1
        return drawn

    def suggest_int(self, name: str, low: int, high: int) -> int:
        return int(self.suggest_categorical(name, range(low, high + 1)))

    def suggest_float(self, name: str, low: float, high: float) -> float:
        return low

    def forward(self) -> bool:
        """Go to the next point, if there is one."""
        self.place = 0
        while self.path and self.path[-1][0] + 1 == self.path[-1][1]:
            self.path.pop()
        if self.path:
            self.path[-1][0] += 1
        return bool(self.path)


def points(part: PredictorSpace) -> Iterator[dict[str, Any]]:
    walk = Walk()
    more = True
    while more:
        yield part.suggest(walk)
        more = walk.forward()


def part(**changes: Any) -> PredictorSpace:
    given: dict[str, Any] = {
        "name": "p", "signature": ROUTE, "instructions": ("a", "b", "c"), "demo_counts": (0, 1, 2),
        "demo_sets": (POOL[:2], POOL[2:]), "formats": ("chat", {"name": "turns", "separator": "; "}),
        "readouts": ("text", "choice", "choice+batch"), "decoding": Decoding(), "pool": POOL,
    }  # fmt: skip
    return PredictorSpace(**{**given, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"demo_counts": (0,), "demo_sets": (), "pool": ()},
        {"demo_counts": (2,)},
        {"nearest_counts": (0, 1, 4)},
        {"ranges": {"top_k": (0, 3)}},
        {"ranges": {"top_k": (0, 3), "temperature": (0.5, 0.5)}},
        {"readouts": ("choice", "channel"), "label_sets": (POOL, POOL[::-1]), "per_label": (1, 2)},
        {"signature": NOTE, "readouts": ("text", "span"), "ranges": {"top_k": (1, 2)}, "sources": ("ticket",)},
    ],
    ids=str,
)
def test_there_are_as_many_points_as_are_told(changes: dict[str, Any]) -> None:
    drawn = [tuple(sorted(point.items())) for point in points(part(**changes))]
    assert len(set(drawn)) == len(drawn) == size_of(part(**changes))
    names = {name.removeprefix("p.") for point in drawn for name, _ in point} | {"calibration"}
    assert {dimension.name for dimension in dimensions_of(part(**changes))} - {"demo_set", "calibration"} <= names


def test_a_range_without_steps_has_no_end_of_points() -> None:
    warm = part(ranges={"temperature": (0.0, 1.0)})
    assert size_of(warm) is None
    found = {dimension.name: (dimension.values, dimension.size) for dimension in dimensions_of(warm)}
    assert found["temperature"] == ((0.0, 1.0), None)
    chosen = part(ranges={"temperature": (0.0, 1.0)}, readouts=("choice",))
    assert size_of(chosen) == 3 * 5 * 2, "nothing is generated, so there is nothing to draw"
    assert "temperature" not in {dimension.name for dimension in dimensions_of(chosen)}


def test_the_values_are_those_that_are_tried() -> None:
    found = {dimension.name: (dimension.values, dimension.size) for dimension in dimensions_of(part())}
    assert found == {
        "instruction": (("a", "b", "c"), 3),
        "demos": ((0, 1, 2), 3),
        "demo_set": ((), 2),
        "nearest": ((0,), 1),
        "format": (("chat", {"name": "turns", "separator": "; "}), 2),
        "readout": (("text", "choice"), 2),
        "calibration": (("none", "batch"), 2),
    }


def test_a_strategy_of_prompts_alone_has_fewer_dimensions() -> None:
    (prompts,) = prompt_space(Space((part(),)), StrategyContext()).predictors
    assert [dimension.name for dimension in dimensions_of(prompts)] == ["instruction", "demos", "demo_set", "nearest"]
    drawn = [tuple(sorted(point.items())) for point in points(prompts)]
    assert len(set(drawn)) == size_of(prompts) == 3 * 5
