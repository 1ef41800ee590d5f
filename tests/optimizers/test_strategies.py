"""What holds for every strategy: `Conformance`. A strategy's tests are a subclass that names it; one that draws from the
whole space has more to keep to (`WholeSpace`).

A package that adds a strategy inherits this class in its own tests:

    class TestMine(Conformance):
        name = "mine"
"""

from __future__ import annotations

import hashlib
import json
import random
import warnings
from collections.abc import Iterable, Iterator
from importlib.metadata import EntryPoint
from itertools import islice
from typing import Any, ClassVar

import optuna
import pytest
from fakes import FakeEvaluator, WordLearner, compile_tickets

import cuecard
from cuecard.compiler.examples import Example
from cuecard.errors import InputError
from cuecard.metrics import Measurement
from cuecard.models.engine import Decoding
from cuecard.optimizers.base import Budget, Candidate, Outcome, Proposal, Step, Strategy
from cuecard.optimizers.context import StrategyContext
from cuecard.optimizers.joint import STRATEGIES, strategy_named
from cuecard.optimizers.search import Search
from cuecard.optimizers.space import FORMATS, PredictorSpace, Space, readouts_for
from cuecard.programs.state import PredictorState, ReadOut

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
POOLED = Space((part(pool=POOL),))
NEAR = Space(
    (part("a", pool=POOL, nearest_counts=(0, 2, 4)), part("b.predict", TEXT, pool=POOL, nearest_counts=(0, 2)))
)
CONTEXT = ("evaluator", "rows", "budget", "trials", "options")
TICKETS: dict[str, Any] = {
    "budget": {"metric_calls": 36}, "search": {"instructions": 3, "demos": [0, 4], "formats": ["completion", "turns"]}
}  # fmt: skip
SINGLE = Space((part(instructions=("one",), formats=("chat",), readouts=("text",), demo_counts=(0,), ranges={}),))


def merit(params: dict[str, Any]) -> float:
    """A score with a clear best point: the last demo set, json, and a choice."""
    good = [str(value) in ("7", "json", "choice+bias") for value in params.values()]
    return sum(good) / len(good)


class FakeModel:
    """A language model that makes another instruction of every prompt, the same one of the same prompt."""

    def __init__(self) -> None:
        self.prompts: list[str] = []

    def __call__(self, prompt: str, **settings: Any) -> list[str]:
        self.prompts.append(prompt)
        mark = hashlib.sha256(prompt.encode()).hexdigest()[:8]
        return [f"<instruction>Read it with care and mind the rule {mark}.</instruction>"]


class Conformance:
    """The contract of `optimizers.base.Strategy`, and of a factory."""

    name: ClassVar[str]

    def make(
        self, space: Space = RICH, *, seed: int = 0, baseline: float = 0.1, storage: Any = None, **parts: Any
    ) -> Strategy:
        context = StrategyContext(lm=FakeModel(), **parts)
        return strategy_named(self.name)(space, seed=seed, baseline=baseline, storage=storage, context=context)

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
        strategy = self.make()
        points = self.points(strategy)
        seen = 0
        for params in islice(points, 40):
            space = getattr(strategy, "space", RICH)
            states = space.states(params)
            assert set(states) == {"a", "b.predict"}
            assert all(PredictorState.model_validate(state.model_dump()) == state for state in states.values())
            assert space.calibrations(params).keys() <= {"a"}
            seen += 1
        assert seen

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
            if proposal is None:
                break
            keys.append(proposal.key)
            strategy.observe(proposal, 0.5, best=False)
        assert keys
        assert len(set(keys)) == len(keys)

    def test_several_points_may_be_out(self) -> None:
        strategy = self.make()
        out = [proposal for proposal in (strategy.propose() for _ in range(6)) if proposal is not None]
        for proposal in reversed(out):
            strategy.observe(proposal, 0.5, best=False)
        assert out

    def test_without_context_there_is_nothing_to_fear(self) -> None:
        strategy = strategy_named(self.name)(RICH, seed=0, baseline=0.1, storage=None)
        assert self.drive(strategy, 5)

    def test_an_option_that_it_does_not_have_is_told(self) -> None:
        with pytest.raises(InputError, match="unknown option 'speed'"):
            self.make(options={"speed": 3})

    def test_a_budget_is_not_run_past(self) -> None:
        def score(candidate: Candidate, row: Any) -> float:
            return float((len(str(candidate.states["p"])) + row.id) % 2)

        dev, train = ([Example({"ticket": f"{part}{n}"}, {}, n) for n in range(16)] for part in ("d", "t"))
        for limit in (40, 100):
            evaluator = FakeEvaluator({"p": LABELLED}, score)
            budget = Budget(metric_calls=limit)
            space = Space((part("p", readouts=("choice",), ranges={}),))
            search = Search(evaluator, space, dev, [], budget, 0, lambda trial: None)
            zero = search.baseline(Candidate({"p": PredictorState()}))
            strategy = self.make(space, evaluator=evaluator, rows=train, budget=budget, trials=[zero])
            search.run(zero, strategy)
            assert evaluator.spent <= limit + len(dev), "at most the generation that was begun"

    def test_a_run_that_was_stopped_goes_on_to_the_same_program(self, tmp_path: Any) -> None:
        def stop(batch: Any) -> None:
            if len(broken.batches) == 2:
                raise KeyboardInterrupt

        def files(root: Any) -> list[str]:
            lines = (root / "triage-1" / "trials.jsonl").read_text().splitlines()
            return [json.dumps({**json.loads(line), "seconds": 0}) for line in lines]

        whole = compile_tickets(tmp_path / "whole", WordLearner().engine(), optimizer=self.name, **TICKETS)
        broken = WordLearner().engine(before=stop)
        with pytest.raises(KeyboardInterrupt):
            compile_tickets(tmp_path / "broken", broken, optimizer=self.name, **TICKETS)
        again = compile_tickets(tmp_path / "broken", WordLearner().engine(), optimizer=self.name, **TICKETS)
        assert again.compilation.folder.resumed
        assert files(tmp_path / "broken") == files(tmp_path / "whole")
        assert again.write(tmp_path / "a").read_bytes() == whole.write(tmp_path / "b").read_bytes()

    def test_the_same_seed_proposes_the_same_points(self) -> None:
        assert self.drive(self.make(seed=3), 30) == self.drive(self.make(seed=3), 30)

    def test_storage_changes_nothing(self, tmp_path: Any) -> None:
        stored = self.make(storage=f"sqlite:///{tmp_path / 'study.db'}")
        assert self.drive(stored, 8) == self.drive(self.make(), 8)

    def test_the_worlds_random_state_plays_no_part(self) -> None:
        random.seed(1)
        first = self.drive(self.make(), 15)
        random.seed(2)
        before = random.getstate()
        assert self.drive(self.make(), 15) == first
        assert random.getstate() == before

    def test_two_strategies_side_by_side_do_not_meet(self) -> None:
        one, other = self.points(self.make(seed=5)), self.points(self.make(seed=6))
        mixed = list(zip(islice(one, 15), islice(other, 15), strict=False))
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
            assert getattr(strategy, "space", SINGLE).states(proposal.params)["p"].format == "chat"
            strategy.observe(proposal, 0.5, best=best_first and index == 0)

    def test_nothing_is_said_on_the_screen(self, capfd: pytest.CaptureFixture[str]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            self.drive(self.make(), 25)
        assert capfd.readouterr() == ("", "")


class WholeSpace(Conformance):
    """What holds for a strategy that draws from all dimensions, without end."""

    def test_another_seed_proposes_others(self) -> None:
        assert self.drive(self.make(seed=3), 30) != self.drive(self.make(seed=4), 30)

    def test_a_small_space_is_met_in_full(self) -> None:
        points = {str(sorted(params.items())) for params in self.drive(self.make(SMALL), 150)}
        assert len(points) == 6

    def test_every_format_is_tried(self) -> None:
        assert {params["a.format"] for params in self.drive(self.make(), 40)} == set(FORMATS)

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


class TestJoint(WholeSpace):
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


class TestRandom(WholeSpace):
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


class PromptOnly(Conformance):
    """What holds for a strategy that leaves format and read-out as the program has them."""

    def test_format_and_readout_stay_as_the_program_has_them(self) -> None:
        own = PredictorState(format="json", readout=ReadOut(kind="constrained"), instructions="My own.")
        baseline = Candidate({"a": own, "b.predict": own})
        strategy = self.make(baseline=0.1, parts=baseline)
        seen = 0
        for params in islice(self.points(strategy), 20):
            for state in strategy.space.states(params).values():  # type: ignore[attr-defined]
                assert (state.format, state.readout) == ("json", own.readout)
            seen += 1
        assert seen

    def make(self, space: Space = RICH, *, parts: Candidate | None = None, **given: Any) -> Strategy:  # type: ignore[override]
        context = {key: given.pop(key) for key in list(given) if key in CONTEXT}
        made = StrategyContext(lm=FakeModel(), **{**context, **({"baseline": parts} if parts else {})})
        return strategy_named(self.name)(space, **{"seed": 0, "baseline": 0.1, "storage": None, **given}, context=made)


class TestLabeledFewShot(PromptOnly):
    name = "labeled_few_shot"

    def test_it_is_one_candidate_with_the_first_demos(self) -> None:
        strategy = self.make(POOLED, options={"k": 3})
        (params,) = self.drive(strategy, 9)
        assert strategy.space.states(params)["p"].demos == POOL[:3]  # type: ignore[attr-defined]

    def test_without_demos_there_is_none(self) -> None:
        assert self.drive(self.make(Space((part(demo_sets=(), demo_counts=(0,)),))), 9) == []


class TestBootstrapFewShot(PromptOnly):
    name = "bootstrap_few_shot"

    def test_it_is_one_candidate_with_as_many_demos_as_may_be(self) -> None:
        strategy = self.make(POOLED)
        (params,) = self.drive(strategy, 9)
        assert strategy.space.states(params)["p"].demos == POOL  # type: ignore[attr-defined]


class TestBootstrapRandom(PromptOnly):
    name = "bootstrap_random"

    def test_sets_and_sizes_differ_and_the_instruction_does_not(self) -> None:
        points = self.drive(self.make(), 30)
        assert {params["a.demos"] for params in points} == {2, 8}
        assert len({params["a.demo_set"] for params in points}) > 3
        assert {params["a.instruction"] for params in points} == {0}


class TestKnnFewShot(PromptOnly):
    name = "knn_few_shot"

    def make(self, space: Space = RICH, **given: Any) -> Strategy:  # type: ignore[override]
        return super().make(NEAR if space is RICH else space, **given)

    def test_every_number_of_near_demos_is_a_candidate(self) -> None:
        assert [params["a.nearest"] for params in self.drive(self.make(), 9)] == [4, 2]

    def test_k_is_the_only_number_then(self) -> None:
        strategy = self.make(POOLED, options={"k": 3})
        (params,) = self.drive(strategy, 9)
        near = strategy.space.states(params)["p"].nearest  # type: ignore[attr-defined]
        assert (near.count, near.pool) == (3, POOL)

    def test_without_context_there_is_nothing_to_fear(self) -> None:
        assert self.drive(strategy_named(self.name)(NEAR, seed=0, baseline=0.1, storage=None), 5)


class TestCopro(PromptOnly):
    name = "copro"

    def test_only_instructions_change(self) -> None:
        for params in self.drive(self.make(), 30):
            assert (params["a.demos"], params["a.nearest"]) == (0, 0)

    def test_it_asks_again_with_what_it_tried_and_how_that_fared(self) -> None:
        model = FakeModel()
        context = StrategyContext(lm=model)
        strategy = strategy_named("copro")(SMALL, seed=0, baseline=0.25, storage=None, context=context)
        self.drive(strategy, 12)
        assert any("mind the rule" in prompt for prompt in model.prompts[8:])
        assert not any("mind the rule" in prompt for prompt in model.prompts[:8])

    def test_depth_ends_it(self) -> None:
        assert len(self.drive(self.make(SMALL, options={"depth": 2, "breadth": 3}), 99)) <= 6


class TestMipro(PromptOnly):
    name = "mipro"

    def test_it_draws_the_models_instructions_too(self) -> None:
        strategy = self.make()
        shown = {strategy.space.states(p)["a"].instructions for p in self.drive(strategy, 40)}  # type: ignore[attr-defined]
        assert any("mind the rule" in str(text) for text in shown)
        assert "one" in shown


class TestGepa(PromptOnly):
    name = "gepa"

    def test_it_improves_what_is_best_by_what_went_wrong(self) -> None:
        def outcome(candidate: Candidate, row: Any) -> Outcome:
            step = Step("p", row.inputs, {"note": f"wrong {row.id}"})
            return Outcome(row, Measurement(0.0), {"note": f"wrong {row.id}"}, steps=(step,))

        evaluator = FakeEvaluator({"p": TEXT}, lambda candidate, row: 0.0, outcome=outcome)
        train = [Example({"ticket": f"t{n}"}, {"note": f"right {n}"}, n) for n in range(12)]
        model = FakeModel()
        context = StrategyContext(lm=model, evaluator=evaluator, rows=train)
        space = Space((part("p", TEXT, readouts=("text",)),))
        strategy = strategy_named("gepa")(space, seed=0, baseline=0.0, storage=None, context=context)
        points = self.drive(strategy, 3)
        assert "wrong" in model.prompts[0] and "right" in model.prompts[0]
        assert "mind the rule" in strategy.space.states(points[0])["p"].instructions  # type: ignore[attr-defined]
        assert {len(rows) for _, rows in evaluator.runs} == {8}


class TestSimba(PromptOnly):
    """What it makes of batches of train stands in `test_simba.py`."""

    name = "simba"

    def test_without_rows_it_tries_the_instructions_of_the_space(self) -> None:
        points = self.drive(self.make(), 30)
        assert [(params["a.instruction"], params["b.predict.instruction"]) for params in points] == [
            (1, 0), (0, 1), (2, 0), (0, 2)
        ]  # fmt: skip
        assert {params["a.demos"] for params in points} == {0}


def test_every_strategy_that_comes_with_cuecard_is_tested_here() -> None:
    def below(cls: type) -> set[type]:
        return {cls, *(each for sub in cls.__subclasses__() for each in below(sub))}

    assert {cls.__dict__["name"] for cls in below(Conformance) if "name" in cls.__dict__} == set(STRATEGIES)


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
    with pytest.raises(InputError, match="unknown optimizer 'jont'; expected one of joint, random, .*'joint'"):
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
    with pytest.raises(InputError, match="simba, mine, or dspy.NAME"):
        strategy_named("other")


def test_a_strategy_that_cannot_be_imported_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(self: EntryPoint) -> Any:
        raise ImportError("no module named 'package'")

    added(monkeypatch, load)
    with pytest.raises(InputError, match="the optimizer 'mine' cannot be imported from 'package:mine'"):
        strategy_named("mine")
