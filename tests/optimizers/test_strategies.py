"""What holds for every strategy: `Conformance`. A strategy's tests are a subclass that names it.

A package that adds a strategy inherits this class in its own tests:

    class TestMine(Conformance):
        name = "mine"
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterable, Iterator
from importlib.metadata import EntryPoint
from itertools import islice
from typing import Any, ClassVar

import optuna
import pytest
from fakes import FakeEvaluator

import cuecard
from cuecard.compiler.examples import Example
from cuecard.errors import InputError
from cuecard.models.engine import Decoding
from cuecard.optimizers.base import Budget, Candidate, Proposal, Strategy
from cuecard.optimizers.joint import STRATEGIES, strategy_named
from cuecard.optimizers.search import Search
from cuecard.optimizers.space import FORMATS, PredictorSpace, Space, readouts_for
from cuecard.programs.state import PredictorState

LABELLED = cuecard.signature("ticket -> queue: Literal['billing', 'technical']")
TEXT = cuecard.signature("ticket -> note")
POOL = tuple({"ticket": f"t{n}", "queue": "billing"} for n in range(8))


def part(name: str = "p", signature: Any = LABELLED, **changes: Any) -> PredictorSpace:
    given: dict[str, Any] = {
        "instructions": ("one", "two", "three"),
        "demo_counts": (0, 2, 8),
        "demo_sets": tuple(POOL[n:] + POOL[:n] for n in range(8)),
        "formats": FORMATS,
        "readouts": readouts_for(signature),
        "decoding": Decoding(),
        "ranges": {"temperature": (0.0, 1.0), "top_k": (0, 40)},
    }
    return PredictorSpace(name, signature, **{**given, **changes})


RICH = Space((part("a"), part("b.predict", TEXT)))
SMALL = Space((part(formats=("chat", "json"), readouts=("text",), demo_counts=(0,), ranges={}),))
SINGLE = Space((part(instructions=("one",), formats=("chat",), readouts=("text",), demo_counts=(0,), ranges={}),))


def merit(params: dict[str, Any]) -> float:
    """A score with a clear best point: the last demo set, json, and a choice."""
    good = [str(value) in ("7", "json", "choice+bias") for value in params.values()]
    return sum(good) / len(good)


class Conformance:
    """The contract of `optimizers.base.Strategy`."""

    name: ClassVar[str]

    def make(self, space: Space = RICH, *, seed: int = 0, baseline: float = 0.1, storage: Any = None) -> Strategy:
        return strategy_named(self.name)(space, seed=seed, baseline=baseline, storage=storage)

    def drive(self, strategy: Strategy, proposals: int) -> list[dict[str, Any]]:
        """Propose and observe, the best so far told as such; fewer where the strategy has nothing left."""
        return list(islice(self.points(strategy), proposals))

    def points(self, strategy: Strategy) -> Iterator[dict[str, Any]]:
        best = 0.1
        while (proposal := strategy.propose()) is not None:
            value = merit(dict(proposal.params))
            strategy.observe(proposal, value, value > best)
            best = max(best, value)
            yield dict(proposal.params)

    def test_every_proposal_is_a_point_of_the_space(self) -> None:
        for params in self.drive(self.make(), 40):
            states = RICH.states(params)
            assert set(states) == {"a", "b.predict"}
            assert all(PredictorState.model_validate(state.model_dump()) == state for state in states.values())
            assert RICH.calibrations(params).keys() <= {"a"}

    def test_a_proposal_names_only_dimensions_of_the_space(self) -> None:
        for params in self.drive(self.make(), 40):
            for space in RICH.predictors:
                mine = {key for key in params if key.rpartition(".")[0] == space.name}
                assert (f"{space.name}.demo_set" in mine) == (params[f"{space.name}.demos"] > 0)
            assert all(key.rpartition(".")[0] in ("a", "b.predict") for key in params)

    def test_keys_tell_proposals_apart(self) -> None:
        strategy, keys = self.make(), []
        for _ in range(12):
            proposal = strategy.propose()
            assert proposal is not None
            keys.append(proposal.key)
            strategy.observe(proposal, 0.5, best=False)
        assert len(set(keys)) == 12

    def test_the_same_seed_proposes_the_same_points(self) -> None:
        assert self.drive(self.make(seed=3), 30) == self.drive(self.make(seed=3), 30)

    def test_another_seed_proposes_others(self) -> None:
        assert self.drive(self.make(seed=3), 30) != self.drive(self.make(seed=4), 30)

    def test_storage_changes_nothing(self, tmp_path: Any) -> None:
        stored = self.make(storage=f"sqlite:///{tmp_path / 'study.db'}")
        assert self.drive(stored, 20) == self.drive(self.make(), 20)

    def test_the_worlds_random_state_plays_no_part(self) -> None:
        random.seed(1)
        first = self.drive(self.make(), 15)
        random.seed(2)
        before = random.getstate()
        assert self.drive(self.make(), 15) == first
        assert random.getstate() == before

    def test_two_strategies_side_by_side_do_not_meet(self) -> None:
        one, other = self.points(self.make(seed=5)), self.points(self.make(seed=6))
        mixed = [(next(one), next(other)) for _ in range(15)]
        assert [first for first, _ in mixed] == self.drive(self.make(seed=5), 15)

    @pytest.mark.parametrize("value", [-1.0, 0.0, 1.0, 1e9])
    def test_any_finite_score_can_be_observed(self, value: float) -> None:
        strategy = self.make(baseline=value)
        for _ in range(15):
            proposal = strategy.propose()
            if proposal is None:
                break
            strategy.observe(proposal, value, best=False)

    def test_what_fails_throughout_does_no_harm(self) -> None:
        strategy = self.make(SMALL)
        for _ in range(30):
            proposal = strategy.propose()
            if proposal is None:
                break
            strategy.observe(proposal, 0.0, best=False)

    @pytest.mark.parametrize("best_first", [True, False])
    def test_a_space_of_one_point_is_one_point_every_time(self, best_first: bool) -> None:
        strategy = self.make(SINGLE)
        for index in range(40):
            proposal = strategy.propose()
            if proposal is None:
                break
            assert SINGLE.states(proposal.params)["p"].format == "chat"
            strategy.observe(proposal, 0.5, best=best_first and index == 0)

    def test_a_small_space_is_met_in_full(self) -> None:
        points = {str(sorted(params.items())) for params in self.drive(self.make(SMALL), 150)}
        assert len(points) == 6

    def test_every_format_is_tried(self) -> None:
        assert {params["a.format"] for params in self.drive(self.make(), 40)} == set(FORMATS)

    def test_nothing_is_said_on_the_screen(self, capfd: pytest.CaptureFixture[str]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            self.drive(self.make(), 25)
        assert capfd.readouterr() == ("", "")

    def test_a_search_with_it_finds_a_clear_winner(self) -> None:
        def score(candidate: Candidate, row: Any) -> float:
            state = candidate.states["p"]
            return float(state.format == "json" and state.instructions == "two")

        dev = [Example({"ticket": f"t{n}"}, {}, n) for n in range(40)]
        evaluator = FakeEvaluator({"p": LABELLED}, score)
        search = Search(evaluator, SMALL, dev, [], Budget(trials=60), 0, lambda trial: None)
        result = search.run(search.baseline(Candidate({"p": PredictorState()})), self.make(SMALL, baseline=0.0))
        assert result.accepted
        assert result.chosen.candidate.states["p"].format == "json"


class TestJoint(Conformance):
    name = "joint"

    def test_it_does_better_than_chance(self) -> None:
        """On a space of some thousands of points, sixty proposals told what they are worth end above uniform ones."""

        def mean(name: str, seed: int) -> float:
            strategy = strategy_named(name)(RICH, seed=seed, baseline=0.0)
            points = self.drive(strategy, 60)
            return sum(merit(params) for params in points[30:]) / 30

        ours, chance = ([mean(name, seed) for seed in range(3)] for name in ("joint", "random"))
        assert sum(ours) > sum(chance) * 1.3

    def test_what_is_good_is_varied_in_one_or_two_dimensions(self) -> None:
        strategy = self.make()
        points = self.drive(strategy, 40)
        best = max(points, key=merit)
        later = points[points.index(best) + 1 :]
        changes = [sum(best.get(key) != params.get(key) for key in {*best, *params}) for params in later]
        assert sum(count <= 4 for count in changes) >= len(later) // 4


class TestRandom(Conformance):
    name = "random"

    def test_it_does_not_listen(self) -> None:
        told = [self.make(), self.make()]
        points: list[list[Any]] = [[], []]
        for _ in range(20):
            for strategy, seen, value in zip(told, points, (0.0, 0.9), strict=True):
                proposal = strategy.propose()
                assert proposal is not None
                seen.append(proposal.params)
                strategy.observe(proposal, value, best=value > 0.5 and not seen[:-1])
        assert points[0] == points[1]


def test_every_strategy_that_comes_with_cuecard_is_tested_here() -> None:
    tested = {cls.name for cls in (TestJoint, TestRandom)}
    assert tested == set(STRATEGIES)


def test_the_baseline_is_the_studys_trial_0(tmp_path: Any) -> None:
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    strategy_named("joint")(SMALL, seed=0, baseline=0.375, storage=storage)
    (zero,) = optuna.load_study(study_name="cuecard", storage=storage).trials
    assert (zero.number, zero.value, zero.params) == (0, 0.375, {})


# ---- by name


def added(monkeypatch: pytest.MonkeyPatch, load: Any) -> None:
    point = EntryPoint("mine", "package:mine", "cuecard.optimizers")
    monkeypatch.setattr(EntryPoint, "load", load)

    def entry_points(*, group: str) -> Iterable[EntryPoint]:
        return [point] if group == "cuecard.optimizers" else []

    monkeypatch.setattr("importlib.metadata.entry_points", entry_points)


def test_an_unknown_name_is_told_with_the_nearest() -> None:
    with pytest.raises(InputError, match="unknown optimizer 'jont'; expected one of joint, random.*'joint'"):
        strategy_named("jont")


def test_a_package_adds_a_strategy_by_its_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    def mine(space: Space, *, seed: int, baseline: float, storage: Any = None) -> Strategy:
        class Mine:
            def propose(self) -> Proposal | None:
                return None

            def observe(self, proposal: Proposal, value: float, best: bool) -> None:
                raise AssertionError

        return Mine()

    added(monkeypatch, lambda self: mine)
    assert strategy_named("mine") is mine
    with pytest.raises(InputError, match="one of joint, random, mine"):
        strategy_named("other")


def test_a_strategy_that_cannot_be_imported_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(self: EntryPoint) -> Any:
        raise ImportError("no module named 'package'")

    added(monkeypatch, load)
    with pytest.raises(InputError, match="the optimizer 'mine' cannot be imported from 'package:mine'"):
        strategy_named("mine")
