"""The first points of a program of several predictors: near demos for all at once, then for one at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fakes import WordLearner, fake_target, spec_folder, tickets

import cuecard
from cuecard.compiler.dry_run import plan_compile
from cuecard.compiler.from_spec import spec_task
from cuecard.models.engine import Decoding
from cuecard.optimizers.base import Budget
from cuecard.optimizers.joint import joint
from cuecard.optimizers.space import FORMATS, PredictorSpace, Space
from cuecard.optimizers.starts import MOST_APART, JointSpace

TEXT = cuecard.signature("ticket -> summary")
LABEL = cuecard.signature("summary -> queue: Literal['billing', 'technical']")
POOL = tuple({"ticket": f"t{n}", "summary": f"s{n}", "queue": "billing"} for n in range(9))
COUNTS = (0, 1, 2, 4, 8)


def part(name: str, signature: Any = TEXT, counts: tuple[int, ...] = COUNTS, **changes: Any) -> PredictorSpace:
    readouts = ("text", "choice", "choice+batch") if signature is LABEL else ("text",)
    given: dict[str, Any] = {
        "instructions": ("one", "two"),
        "demo_counts": (0, 4),
        "demo_sets": (POOL[:4], POOL[4:]),
        "formats": FORMATS,
        "readouts": readouts,
        "decoding": Decoding(max_tokens=20),
        "pool": POOL,
        "nearest_counts": counts,
    }
    return PredictorSpace(name, signature, **{**given, **changes})


def near(point: dict[str, Any], *names: str) -> tuple[int, ...]:
    return tuple(point[f"{name}.nearest"] for name in names)


def test_each_predictor_has_near_demos_alone_once() -> None:
    parts = part("summary"), part("route", LABEL)
    together, starts = Space(parts).starts(), JointSpace(parts).starts()
    assert len(starts) == len(together) + 2
    assert [point for point in starts if point in together] == together, "the others are as ever, in their order"
    apart = [point for point in starts if point not in together]
    assert [near(point, "summary", "route") for point in apart] == [(0, 4), (4, 0)], "the labels' predictor first"
    first = len(FORMATS)
    assert near(starts[first], "summary", "route") == (4, 4) and starts[first + 1 : first + 3] == apart


def test_all_else_stays_as_in_the_first_start() -> None:
    starts = JointSpace((part("summary"), part("route", LABEL))).starts()
    plain, both, alone = starts[0], starts[len(FORMATS)], starts[len(FORMATS) + 1]
    assert {key: value for key, value in alone.items() if key.startswith("summary.")} == {
        key: value for key, value in plain.items() if key.startswith("summary.")
    }
    assert {key: value for key, value in alone.items() if key.startswith("route.")} == {
        key: value for key, value in both.items() if key.startswith("route.")
    }
    states = JointSpace((part("summary"), part("route", LABEL))).states(alone)
    assert states["summary"].nearest is None and len(states["summary"].demos) == 4
    assert states["route"].nearest is not None and not states["route"].demos


def test_names_that_begin_alike_are_kept_apart() -> None:
    starts = JointSpace((part("route"), part("route.predict"))).starts()
    apart = starts[len(FORMATS) + 1 : len(FORMATS) + 3]
    assert [near(point, "route", "route.predict") for point in apart] == [(4, 0), (0, 4)]


@pytest.mark.parametrize("count", [2, 3, 4, 6])
def test_there_are_few_of_them(count: int) -> None:
    parts = tuple(part(f"p{n}") for n in range(count))
    added = len(JointSpace(parts).starts()) - len(Space(parts).starts())
    assert added == min(count, MOST_APART)


@pytest.mark.parametrize(
    "parts",
    [
        (part("route", LABEL),),
        (part("route", LABEL, (0,)),),
        (part("summary", counts=(0,)), part("route", LABEL)),
        (part("summary", counts=(0, 1, 2)), part("route", LABEL)),
        (part("summary", counts=(0,)), part("route", LABEL, (0,))),
    ],
)
def test_with_one_predictor_that_may_have_them_nothing_changes(parts: tuple[PredictorSpace, ...]) -> None:
    assert JointSpace(parts).starts() == Space(parts).starts()


def test_the_search_takes_them_as_they_are() -> None:
    whole = JointSpace((part("summary"), part("route", LABEL)))
    strategy = joint(whole, seed=0, baseline=0.0)
    for start in whole.starts():
        proposal = strategy.propose()
        assert proposal is not None
        assert {key: start[key] for key in proposal.params} == proposal.params
        strategy.observe(proposal, 0.5, best=False)


def test_a_compile_of_two_steps_starts_with_them(tmp_path: Path) -> None:
    path = spec_folder(tmp_path)
    rows = [{**row, "summary": "in brief"} for row in tickets(24, 5)]
    (tmp_path / "train.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    _, task = spec_task(path, target=fake_target(WordLearner().engine()), budget=Budget(metric_calls=2000))
    points = [candidate.params for candidate in plan_compile(task).first]
    assert points[0]["route.readout"] == "channel" and points[0]["summary.nearest"] == 0
    found = [(point["summary.nearest"], point["route.nearest"]) for point in points[1:7]]
    assert found == [(0, 0), (0, 0), (4, 4), (0, 4), (4, 0), (4, 4)], "two formats, then near demos"
