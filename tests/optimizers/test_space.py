"""The search space: every point of it is a program that can run, and no dimension is there in vain."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cuecard
from cuecard.models.engine import Decoding
from cuecard.optimizers.joint import joint
from cuecard.optimizers.space import (
    CALIBRATIONS,
    CHANNEL,
    FORMATS,
    PredictorSpace,
    Space,
    demo_counts,
    readouts_for,
)
from cuecard.programs.formats.registry import format_named
from cuecard.programs.state import PredictorState, ReadOut

LABELLED = cuecard.signature("ticket -> queue: Literal['billing', 'technical']")
MIXED = cuecard.signature("ticket -> reason: str, urgent: bool")
TEXT = cuecard.signature("ticket -> note")
SIGNATURES = {"labelled": LABELLED, "mixed": MIXED, "text": TEXT}
POOL = tuple({"ticket": f"t{n}", "queue": "billing"} for n in range(5))


class Drawn:
    """A `Suggest` that draws from a seeded generator, and keeps the names it was asked for."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.asked: list[str] = []

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        self.asked.append(name)
        assert len(choices) > 1, "a dimension with one value is no dimension"
        return self.random.choice(list(choices))

    def suggest_float(self, name: str, low: float, high: float) -> float:
        self.asked.append(name)
        return self.random.uniform(low, high)

    def suggest_int(self, name: str, low: int, high: int) -> int:
        self.asked.append(name)
        return self.random.randint(low, high)


def space(name: str = "p", signature: Any = LABELLED, **changes: Any) -> PredictorSpace:
    given: dict[str, Any] = {
        "instructions": ("one", "two"),
        "demo_counts": (0, 1, 4),
        "demo_sets": (POOL[:4], POOL[1:]),
        "formats": FORMATS,
        "readouts": readouts_for(signature),
        "decoding": Decoding(max_tokens=20),
        "ranges": {"temperature": (0.0, 1.0), "top_k": (0, 40), "max_tokens": (4, 32)},
    }
    return PredictorSpace(name, signature, **{**given, **changes})


def dimensions(params: dict[str, Any], name: str = "p") -> dict[str, Any]:
    return {key.removeprefix(f"{name}."): value for key, value in params.items()}


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), kind=st.sampled_from(sorted(SIGNATURES)))
def test_every_point_builds_valid_states(seed: int, kind: str) -> None:
    signature = SIGNATURES[kind]
    parts = space("a", signature), space("b.predict", LABELLED)
    whole = Space(parts)
    params = whole.suggest(Drawn(seed))
    states = whole.states(params)
    assert list(states) == ["a", "b.predict"]
    for part in parts:
        state = states[part.name]
        assert PredictorState.model_validate(state.model_dump()) == state
        mine = dimensions({k: v for k, v in params.items() if k.startswith(f"{part.name}.")}, part.name)
        assert state.instructions == part.instructions[mine["instruction"]]
        assert len(state.demos) == mine["demos"]
        assert format_named(state.format)
        assert state.readout.calibration is None, "it is fitted, not drawn"
        assert (whole.calibrations(params).get(part.name) or "none") in ("none", *CALIBRATIONS)
        if state.readout.kind == "choice":
            assert readouts_for(part.signature, ["choice"]) != ("text",)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_dimensions_are_absent_where_they_mean_nothing(seed: int) -> None:
    mine = dimensions(space().suggest(Drawn(seed)))
    assert ("demo_set" in mine) == (mine["demos"] > 0)
    written = not mine["readout"].startswith("choice")
    assert {"temperature", "top_k", "max_tokens"} <= mine.keys() if written else not mine.keys() & {"temperature"}


BOTH = tuple({"ticket": f"t{n}", "queue": ("billing", "technical")[n % 2]} for n in range(6))
LISTED: dict[str, Any] = {
    "readouts": ("text", "choice", CHANNEL),
    "label_sets": (BOTH, BOTH[::-1]),
    "per_label": (1, 2),
    "start_per_label": 1,
}


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_channel_has_demos_of_its_own(seed: int) -> None:
    part = space(**LISTED)
    params = part.suggest(Drawn(seed))
    mine, state = dimensions(params), part.state(params)
    assert (mine["readout"] == CHANNEL) == ("per_label" in mine) == ("label_set" in mine) == ("demos" not in mine)
    if mine["readout"] == CHANNEL:
        assert not mine.keys() & {"temperature", "nearest", "demo_set"}
        assert state.demos == part.label_sets[mine["label_set"]][: 2 * mine["per_label"]], "the labels take turns there"
        assert state.nearest is None and state.readout == ReadOut(kind="channel")
        assert part.calibration(params) is None


def test_several_outputs_with_labels_have_as_many_demos_each() -> None:
    signature = cuecard.signature("ticket -> queue: Literal['billing', 'technical'], urgent: bool")
    pool = tuple({**demo, "urgent": place == 5} for place, demo in enumerate(BOTH))
    part = space(signature=signature, **{**LISTED, "label_sets": (pool,)})
    params = {"p.instruction": 0, "p.readout": CHANNEL, "p.per_label": 1, "p.label_set": 0, "p.format": "chat"}
    state = part.state(params)
    assert state.demos == (*pool[:2], pool[5]), "a queue each, and an urgent one"
    assert state.readout == ReadOut(kind="channel", per_label=1)


def test_the_channel_is_tried_first_and_in_another_format_last() -> None:
    listed, fixed = space(**LISTED), space("q")
    whole = Space((listed, fixed))
    starts, plain = whole.starts(), Space((fixed,)).starts()
    assert len(starts) == len(plain) + 2
    assert [point["p.readout"] == CHANNEL for point in starts] == [True, *[False] * len(plain), True]
    assert [(point["p.per_label"], point["p.label_set"]) for point in (starts[0], starts[-1])] == [(1, 0), (1, 1)]
    assert starts[0]["p.format"] != starts[-1]["p.format"]
    assert {key: value for key, value in starts[0].items() if key.startswith("q.")} == plain[0]
    assert all(whole.states(point)["p"].demos for point in (starts[0], starts[-1]))
    others = [point for point in Space((listed,)).starts() if "p.demos" in point]
    assert others == Space((replace(listed, readouts=("text", "choice")),)).starts(), "as they are without it"


def test_a_choice_beside_text_still_generates() -> None:
    part = space(signature=MIXED, readouts=("choice+batch",))
    assert "p.temperature" in part.suggest(Drawn(0))
    assert "p.temperature" not in space(readouts=("choice+batch",)).suggest(Drawn(0))


@pytest.mark.parametrize("seed", range(20))
def test_settings_are_in_their_ranges_and_whole_where_they_are_counts(seed: int) -> None:
    part = space(signature=TEXT, readouts=("text",))
    decoding = part.state(part.suggest(Drawn(seed))).decoding
    assert 0.0 <= decoding.temperature <= 1.0
    assert 0 <= decoding.top_k <= 40
    assert 4 <= decoding.max_tokens <= 32
    assert isinstance(decoding.top_k, int)


def test_settings_that_are_not_searched_stay_the_users() -> None:
    part = space(ranges={}, decoding=Decoding(max_tokens=20, top_p=0.5, seed=4))
    assert part.state(part.suggest(Drawn(1))).decoding == Decoding(max_tokens=20, top_p=0.5, seed=4)


def test_one_value_is_no_dimension_but_stands_in_the_point() -> None:
    part = space(instructions=("only",), formats=("json",), readouts=("text",), demo_counts=(0,), ranges={})
    drawn = Drawn(0)
    assert dimensions(part.suggest(drawn)) == {
        "instruction": 0,
        "demos": 0,
        "nearest": 0,
        "format": "json",
        "readout": "text",
    }
    assert drawn.asked == []


def test_a_format_with_options_is_a_value_like_any_other() -> None:
    chosen = {"name": "turns", "labels": True}
    part = space(formats=(chosen, "json"))
    states = [part.state(part.suggest(Drawn(seed))).format for seed in range(12)]
    assert chosen in states
    assert "json" in states


def test_a_smaller_number_of_demos_shows_the_beginning_of_the_same_set() -> None:
    part = space()
    params = {"p.instruction": 0, "p.demo_set": 1, "p.format": "chat", "p.readout": "text"}
    four = part.state({**params, "p.demos": 4}).demos
    assert part.state({**params, "p.demos": 1}).demos == four[:1]


def test_names_that_begin_alike_are_kept_apart() -> None:
    whole = Space((space("route", LABELLED), space("route.predict", TEXT)))
    params = whole.suggest(Drawn(3))
    states = whole.states(params)
    assert states["route"].instructions == ("one", "two")[params["route.instruction"]]
    assert states["route.predict"].instructions == ("one", "two")[params["route.predict.instruction"]]


# ---- starts


def test_every_format_is_started_from_once() -> None:
    starts = Space((space(),)).starts()
    assert [start["p.format"] for start in starts] == list(FORMATS)
    assert {start["p.demos"] for start in starts} == {4}
    assert {start["p.readout"] for start in starts} == {"choice+batch"}


def test_starts_are_points_that_can_be_run() -> None:
    whole = Space((space("a"), space("b", TEXT, formats=("chat", "json"), readouts=("constrained",))))
    starts = whole.starts()
    assert len(starts) == len(FORMATS)
    assert [start["b.format"] for start in starts][:3] == ["chat", "json", "chat"]
    for start in starts:
        assert set(whole.states(start)) == {"a", "b"}


def test_starts_without_demos_name_no_set() -> None:
    (start,) = Space((space(demo_counts=(0,), demo_sets=(), formats=("json",)),)).starts()
    assert "p.demo_set" not in start
    assert Space((space(demo_counts=(0,), demo_sets=(), formats=("json",)),)).states(start)["p"].demos == ()


@pytest.mark.parametrize("counts", [(0, 1, 4), (0,), (4,)])
def test_optuna_takes_the_starts_as_they_are(counts: tuple[int, ...]) -> None:
    """Every value of a start is one that the space would suggest, so that the study runs exactly these points."""
    whole = Space((space(demo_counts=counts, ranges={}),))
    strategy = joint(whole, seed=0, baseline=0.0)
    for start in whole.starts():
        proposal = strategy.propose()
        assert proposal is not None
        drawn = {key: value for key, value in proposal.params.items() if key in start}
        assert drawn == {key: value for key, value in start.items() if key in proposal.params}
        assert set(start) - set(proposal.params) <= ({"p.demo_set"} if counts == (0,) else set())
        strategy.observe(proposal, 0.5, best=False)


def test_optuna_can_store_every_dimension(tmp_path: Any) -> None:
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    whole = Space((space(formats=({"name": "turns", "labels": True}, "json")),))
    strategy = joint(whole, seed=0, baseline=0.25, storage=storage)
    params = []
    for _ in range(4):
        proposal = strategy.propose()
        assert proposal is not None
        params.append(dict(proposal.params))
        strategy.observe(proposal, 0.5, best=False)
    stored = optuna.load_study(study_name="cuecard", storage=storage).trials
    assert stored[0].value == 0.25
    assert [{**p, **t.params} for p, t in zip(params, stored[1:], strict=True)] == params


# ---- read-outs and counts


@pytest.mark.parametrize(
    ("text", "wanted", "methods", "expected"),
    [
        ("a -> b: bool", None, None, ("text", "constrained", "choice", *(f"choice+{m}" for m in CALIBRATIONS))),
        ("a -> b", None, None, ("text",)),
        ("a -> b: int", None, None, ("text", "constrained")),
        ("a -> b: str, c: bool", ["choice"], ["none"], ("choice",)),
        ("a -> b", ["choice", "constrained"], None, ("text",)),
        ("a: int -> b: bool", ["choice"], None, ("choice", "choice+batch")),
        ("a -> b: bool", ["choice", "text"], ["bias"], ("choice+bias", "text")),
        ("a -> b: bool", ["choice"], [], ("text",)),
    ],
)
def test_the_read_outs_that_a_signature_allows(
    text: str, wanted: list[str] | None, methods: list[str] | None, expected: tuple[str, ...]
) -> None:
    assert readouts_for(cuecard.signature(text), wanted, methods) == expected


def test_the_channel_is_there_where_its_demos_are() -> None:
    signature = cuecard.signature("a -> b: bool")
    every = ("text", "constrained", "choice", *(f"choice+{m}" for m in CALIBRATIONS), CHANNEL)
    assert readouts_for(signature, channel=True) == every
    assert readouts_for(signature, ["channel", "text"], channel=True) == (CHANNEL, "text")
    assert readouts_for(signature, ["channel"]) == ("text",)
    assert readouts_for(signature, ["channel"], channel=True, scores=False) == ("text",)


@pytest.mark.parametrize(
    ("low", "high", "available", "expected"),
    [
        (0, 8, 100, (0, 1, 2, 4, 8)),
        (0, 8, 5, (0, 1, 2, 4, 5)),
        (0, 8, 0, (0,)),
        (3, 12, 100, (3, 4, 8, 12)),
        (2, 2, 9, (2,)),
        (4, 8, 2, (2,)),
        (0, 1, 9, (0, 1)),
    ],
)
def test_demo_counts(low: int, high: int, available: int, expected: tuple[int, ...]) -> None:
    assert demo_counts(low, high, available) == expected


@pytest.mark.parametrize("counts", [(4,), (4, 8), (12, 16), (0, 1, 2, 4, 8), (0, 2)])
def test_starts_stay_within_the_near_demos_that_may_be_shown(counts: tuple[int, ...]) -> None:
    made = Space((space(nearest_counts=counts, pool=POOL),))
    starts = made.starts()
    assert {point["p.nearest"] for point in starts} <= set(counts)
    assert len(starts) == len(FORMATS) + (3 if counts[-1] >= 4 else 0)


def test_fields_that_may_be_null_are_started_copied_and_written_by_turns() -> None:
    nullable, always = (
        space(signature=cuecard.signature(f"text -> who: {kind}"), sources=("text",), readouts=readouts)
        for kind, readouts in (("str | None", ("text", "span+batch", "constrained")), ("str", ("text", "span")))
    )
    assert [point["p.readout"] for point in Space((nullable,)).starts()][:4] == ["span+batch", "text"] * 2
    assert {point["p.readout"] for point in Space((always,)).starts()} == {"span"}


def test_labels_are_never_started_as_text_where_they_can_be_chosen() -> None:
    only = space(nearest_counts=(0, 4, 8), pool=POOL, readouts=("text", "choice+batch"))
    assert {point["p.readout"] for point in Space((only,)).starts()} == {"choice+batch"}
