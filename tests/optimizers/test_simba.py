"""What `simba` makes of a batch of train: whom it runs, which rows it takes first, demos, rules, and what it costs.

What holds for every strategy is tested in `test_strategies.py`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from fakes import LABELS, FakeEngine, FakeEvaluator, Triage, WordLearner, compile_tickets, tickets
from hypothesis import given, settings
from hypothesis import strategies as st

import cuecard
from cuecard.compiler.examples import Example
from cuecard.errors import InputError
from cuecard.metrics import Measurement
from cuecard.models.engine import Decoding
from cuecard.optimizers.base import Budget, Candidate, Outcome, Step
from cuecard.optimizers.context import StrategyContext
from cuecard.optimizers.simba import Simba, SimbaOptions, simba
from cuecard.optimizers.space import PredictorSpace, Space
from cuecard.programs.predictor import adopt
from cuecard.programs.state import PredictorState, ReadOut
from cuecard.seeds import derive_seed

NOTE = cuecard.signature("ticket -> note", "Note it.")
QUEUE = cuecard.signature("ticket -> queue: Literal['billing', 'technical']")
ROUTE = cuecard.signature("ticket, note -> queue")
TRAIN = [Example({"ticket": f"ticket {n}"}, {"note": f"right {n}"}, n) for n in range(40)]
RULED = "Say which part is broken when the ticket names a part."

Score = Callable[[Candidate, Any], float]


def part(name: str = "p", signature: Any = NOTE, **changes: Any) -> PredictorSpace:
    given: dict[str, Any] = {
        "instructions": (signature.instructions,),
        "demo_counts": (0, 8),
        "demo_sets": (),
        "formats": ("chat",),
        "readouts": ("text",),
        "decoding": Decoding(),
    }
    return PredictorSpace(name, signature, **{**given, **changes})


ONE = Space((part(),))


class Model:
    """A language model that gives the same answer to every prompt, or what a function makes of it."""

    def __init__(self, answer: str | Callable[[str], str] = f"<instruction>{RULED}</instruction>") -> None:
        self.prompts: list[str] = []
        self._answer = answer

    def __call__(self, prompt: str, **settings: Any) -> Sequence[Any]:
        self.prompts.append(prompt)
        return [self._answer if isinstance(self._answer, str) else self._answer(prompt)]


def warm(candidate: Candidate) -> bool:
    """Whether a program's answers are drawn."""
    return any(state.decoding.temperature > 0 for state in candidate.states.values())


def drawn_well(candidate: Candidate, row: Any) -> float:
    """Rows whose number three divides go well when drawn, those with one left over always, the others never."""
    return float(row.id % 3 == 1 or (row.id % 3 == 0 and warm(candidate)))


def noted(score: Score, **unread: str) -> Callable[[Candidate, Any], Outcome]:
    """The outcome of a program of one step; `unread`: why an answer with the score 0 is one that can't be read."""

    def outcome(candidate: Candidate, row: Any) -> Outcome:
        value = score(candidate, row)
        if not value and unread:
            return Outcome(row, Measurement(0.0), None, unread=unread["unread"])
        made = {"note": f"note {value:.2f} of {row.id}"}
        return Outcome(row, Measurement(value), made, steps=(Step("p", row.inputs, made),))

    return outcome


def evaluator_of(score: Score = drawn_well, **options: Any) -> FakeEvaluator:
    return FakeEvaluator({"p": NOTE}, score, **{"outcome": noted(score), **options})


def strategy_of(
    evaluator: FakeEvaluator | None,
    lm: Model | None = None,
    space: Space = ONE,
    *,
    rows: Sequence[Any] = TRAIN,
    seed: int = 0,
    budget: Budget | None = None,
    baseline: Candidate | None = None,
    **options: Any,
) -> Simba:
    context = StrategyContext(baseline, evaluator, rows, lm, (), budget or Budget(), options)
    made = simba(space, seed=seed, baseline=0.5, context=context)
    assert isinstance(made, Simba)
    return made


def step(strategy: Simba, value: Callable[[int], float] = lambda place: 0.5) -> list[Mapping[str, PredictorState]]:
    """The programs of one step, which are told what they are worth."""
    proposals = []
    while (proposal := strategy.propose()) is not None:
        proposals.append(proposal)
    for place, proposal in enumerate(proposals):
        strategy.observe(proposal, value(place), best=False)
    return [strategy.space.states(proposal.params) for proposal in proposals]


def row_of(demo: Mapping[str, Any]) -> int:
    return int(demo["ticket"].split()[1])


# ---- the batch


def test_programs_run_the_same_rows_the_first_as_ever_and_the_others_with_seeds_of_their_own() -> None:
    evaluator = evaluator_of()
    step(strategy_of(evaluator))
    rows = [ids for _, ids in evaluator.runs]
    decodings = [candidate.states["p"].decoding for candidate, _ in evaluator.runs]
    assert len(rows) == 6 and len(rows[0]) == 32 and all(ids == rows[0] for ids in rows)
    assert [decoding.temperature for decoding in decodings] == [0.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert len({decoding.seed for decoding in decodings[1:]}) == 5


def test_bsize_and_num_candidates_are_its_size() -> None:
    evaluator = evaluator_of()
    found = step(strategy_of(evaluator, bsize=9, num_candidates=3))
    assert [len(ids) for _, ids in evaluator.runs] == [9, 9, 9]
    assert len(found) == 4


def test_batches_follow_each_other_through_train() -> None:
    evaluator = evaluator_of()
    strategy = strategy_of(evaluator, bsize=10, num_candidates=2)
    for _ in range(4):
        assert step(strategy)
    seen = [tuple(ids) for _, ids in evaluator.runs]
    assert sorted(row for ids in dict.fromkeys(seen) for row in ids) == list(range(40))


def test_what_generates_nothing_runs_once() -> None:
    evaluator = FakeEvaluator({"p": QUEUE}, lambda candidate, row: float(row.id % 2))
    step(strategy_of(evaluator, space=Space((part("p", QUEUE, readouts=("choice",)),)), max_steps=1))
    assert len(evaluator.runs) == 1


def test_a_program_that_votes_runs_without() -> None:
    own = Candidate({"p": PredictorState(readout=ReadOut(votes=5))})
    evaluator = evaluator_of()
    found = step(strategy_of(evaluator, baseline=own))
    assert [candidate.states["p"].readout.votes for candidate, _ in evaluator.runs] == [5, None, None, None, None, None]
    assert {states["p"].readout.votes for states in found} == {5}


def test_the_best_programs_and_the_first_run_the_next_batch() -> None:
    evaluator = evaluator_of()
    strategy = strategy_of(evaluator, temperature_for_sampling=0.01)
    found = step(strategy, value=lambda place: 0.9 if place == 3 else 0.2)
    evaluator.runs.clear()
    step(strategy)
    assert all(candidate.states["p"].demos == found[3]["p"].demos for candidate, _ in evaluator.runs)
    strategy = strategy_of(evaluator, temperature_for_sampling=100.0, num_candidates=3)
    step(strategy, value=lambda place: 0.9)
    evaluator.runs.clear()
    for _ in range(6):
        step(strategy, value=lambda place: 0.9)
    assert any(not candidate.states["p"].demos for candidate, _ in evaluator.runs), "the baseline stays"


def test_the_next_step_waits_for_what_is_out() -> None:
    evaluator = evaluator_of()
    strategy = strategy_of(evaluator)
    out = [strategy.propose() for _ in range(9)]
    proposals = [proposal for proposal in out if proposal is not None]
    assert len(proposals) == 7 and out[7:] == [None, None]
    for proposal in proposals[1:]:
        strategy.observe(proposal, 0.5, best=False)
    assert strategy.propose() is None and len(evaluator.runs) == 6
    strategy.observe(proposals[0], 0.5, best=False)
    assert strategy.propose() is not None and len(evaluator.runs) > 6


def test_the_seed_decides_and_the_worlds_random_state_plays_no_part() -> None:
    found = []
    for seed in (3, 3, 4):
        random.seed(len(found))
        before, evaluator = random.getstate(), evaluator_of()
        strategy = strategy_of(evaluator, Model(), seed=seed)
        programs = [step(strategy) for _ in range(3)]
        found.append(([ids for _, ids in evaluator.runs], programs))
        assert random.getstate() == before
    assert found[0] == found[1]
    assert found[0][0] != found[2][0] and found[0][1] != found[2][1]


def test_max_steps_ends_it() -> None:
    strategy = strategy_of(evaluator_of(), max_steps=2)
    assert [len(step(strategy)) > 0 for _ in range(4)] == [True, True, False, False]


# ---- demos


def test_rows_that_vary_most_give_the_demos() -> None:
    found = step(strategy_of(evaluator_of()))
    demos = [states["p"].demos for states in found]
    assert all(len(each) == 1 for each in demos)
    assert all(row_of(demo) % 3 == 0 and demo["note"] == f"note 1.00 of {row_of(demo)}" for (demo,) in demos)
    assert len({row_of(demo) for (demo,) in demos}) == 7
    assert {states["p"].instructions for states in found} == {"Note it."}


@pytest.mark.parametrize(("score", "candidates"), [(1.0, 7), (0.0, 0), (0.4, 0)])
def test_where_nothing_varies_only_what_is_perfect_is_shown(score: float, candidates: int) -> None:
    assert len(step(strategy_of(evaluator_of(lambda candidate, row: score)))) == candidates


def test_a_few_rows_that_are_right_are_enough() -> None:
    """Nine of ten runs are wrong, so the 90th percentile is the metric's worst."""
    found = step(strategy_of(evaluator_of(lambda candidate, row: float(row.id < 2)), bsize=40))
    assert sorted(row_of(states["p"].demos[0]) for states in found) == [0, 1]


def test_calls_that_failed_are_no_runs() -> None:
    def outcome(candidate: Candidate, row: Any) -> Outcome:
        return Outcome(row, error="no room") if row.id % 2 else noted(drawn_well)(candidate, row)

    found = step(strategy_of(evaluator_of(outcome=outcome)))
    assert found and all(row_of(states["p"].demos[0]) % 6 in (0, 4) for states in found)
    assert step(strategy_of(evaluator_of(outcome=lambda candidate, row: Outcome(row, error="dead")))) == []


def test_demos_of_programs_that_have_as_many_as_may_be_make_room() -> None:
    strategy = strategy_of(evaluator_of(), max_demos=2)
    counts = [{len(states["p"].demos) for states in step(strategy, value=lambda place: 0.9)} for _ in range(6)]
    assert counts[0] == {1}
    assert set.union(*counts) == {1, 2}


@pytest.mark.parametrize(("own", "most"), [(0, 0), (1, 1), (8, 4)])
def test_no_more_demos_than_the_search_allows(own: int, most: int) -> None:
    strategy = strategy_of(evaluator_of(), space=Space((part(demo_counts=tuple(sorted({0, own}))),)))
    rising = itertools.count()
    counts = [len(states["p"].demos) for _ in range(8) for states in step(strategy, value=lambda _: next(rising) / 9)]
    assert max(counts, default=0) == most


def test_the_programs_own_demos_are_kept_and_may_be_dropped() -> None:
    own = tuple({"ticket": f"ticket {100 + n}", "note": "mine"} for n in range(3))
    strategy = strategy_of(evaluator_of(), baseline=Candidate({"p": PredictorState(demos=own)}))
    zero = strategy.pool[0][0]
    assert strategy.space.states(zero)["p"].demos == own
    found = [states["p"].demos for _ in range(5) for states in step(strategy)]
    assert any(demos[:3] == own for demos in found)
    assert any(len(set(map(row_of, demos)) & {100, 101, 102}) < 3 for demos in found)


def test_more_demos_of_the_programs_own_than_may_be_added_stay() -> None:
    own = tuple({"ticket": f"ticket {100 + n}", "note": "mine"} for n in range(3))
    strategy = strategy_of(evaluator_of(), baseline=Candidate({"p": PredictorState(demos=own)}), max_demos=2)
    counts = {len(states["p"].demos) for _ in range(3) for states in step(strategy)}
    assert max(counts) == 3


def test_no_demo_is_shown_twice() -> None:
    strategy, rising = strategy_of(evaluator_of(), rows=TRAIN[:6]), itertools.count()
    found = [states["p"].demos for _ in range(6) for states in step(strategy, value=lambda _: next(rising) / 9)]
    assert max(map(len, found)) > 1
    assert all(len({row_of(demo) for demo in demos}) == len(demos) for demos in found)


def test_an_answer_that_could_not_be_read_is_no_demo() -> None:
    """Some metrics give it more than others give a wrong answer."""

    def outcome(candidate: Candidate, row: Any) -> Outcome:
        made = Outcome(
            row, Measurement(0.5), None, unread="note: nothing was found", steps=(Step("p", row.inputs, {}),)
        )
        return made if row.id % 2 else noted(lambda *_: 0.0)(candidate, row)

    assert step(strategy_of(evaluator_of(outcome=outcome), Model())) == []


def test_long_inputs_are_cut_in_demos() -> None:
    rows = [Example({"ticket": f"ticket {n} {'long ' * 99}"}, {}, n) for n in range(12)]
    found = step(strategy_of(evaluator_of(), rows=rows, demo_input_field_maxlen=40))
    assert found and all(len(states["p"].demos[0]["ticket"]) <= 44 for states in found)


# ---- rules


def test_a_rule_is_drawn_from_the_best_run_and_the_worst() -> None:
    lm = Model(lambda prompt: f"<instruction>{RULED} Rule {hashlib.sha256(prompt.encode()).hexdigest()}.</instruction>")
    found = step(strategy_of(evaluator_of(), lm, max_demos=0))
    assert len(found) == len(lm.prompts) == 7
    assert all(states["p"].demos == () for states in found)
    assert all(states["p"].instructions.startswith(f"Note it.\n{RULED}") for states in found)
    for prompt in lm.prompts:
        (row,) = {n for n in range(40) if f"Note given: note 1.00 of {n}\n" in prompt}
        assert row % 3 == 0
        assert f"Ticket: ticket {row}\nNote given: note 0.00 of {row}\nNote wanted: right {row}" in prompt
        assert "The instruction now: Note it." in prompt


@pytest.mark.parametrize("right", [True, False])
def test_a_few_rows_that_vary_are_asked_about_and_those_that_do_not_are_not(right: bool) -> None:
    """The percentiles are those of the other rows, all right or all wrong."""
    lm = Model()
    evaluator = evaluator_of(lambda candidate, row: float(warm(candidate) if row.id < 2 else right))
    step(strategy_of(evaluator, lm, max_demos=0, bsize=40))
    assert sorted(row for row in range(40) if any(f"Ticket: ticket {row}\n" in each for each in lm.prompts)) == [0, 1]


@pytest.mark.parametrize(("own", "kept"), [(4, {0, 1, 2, 3}), (3, {0, 1, 2, 3}), (0, {0})])
def test_some_demos_are_dropped_and_one_at_least_where_there_are_as_many_as_may_be(own: int, kept: set[int]) -> None:
    demos = tuple({"ticket": f"ticket {100 + n}", "note": "mine"} for n in range(own))
    lm = Model(lambda prompt: f"<instruction>{RULED} Rule {hashlib.sha256(prompt.encode()).hexdigest()}.</instruction>")
    own_space, baseline = Space((part(demo_counts=(0,)),)), Candidate({"p": PredictorState(demos=demos)})
    counts = {
        len(states["p"].demos)
        for seed in range(4)
        for states in step(strategy_of(evaluator_of(), lm, own_space, baseline=baseline, seed=seed))
    }
    assert counts <= kept
    assert own == 0 or (min(counts) < 3 and (3 in counts))


def test_where_no_run_was_better_one_is_shown() -> None:
    lm = Model()
    step(strategy_of(evaluator_of(lambda candidate, row: (row.id % 4) / 3), lm, max_demos=0))
    assert lm.prompts
    for prompt in lm.prompts:
        assert "A run that went badly (score 0.33):" in prompt or "A run that went badly (score 0.67):" in prompt
        assert "that went well" not in prompt


def test_an_answer_that_could_not_be_read_is_told() -> None:
    lm = Model()
    step(strategy_of(evaluator_of(outcome=noted(drawn_well, unread="note: the answer does not hold this field")), lm))
    assert lm.prompts
    assert all("The answer could not be read." in prompt for prompt in lm.prompts)
    assert all("Feedback: note: the answer does not hold this field" in prompt for prompt in lm.prompts)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("<instruction></instruction>", "empty"),
        ("<instruction>ok</instruction>", "too short"),
        ("I'm sorry, I can't help with that.", "a refusal"),
        ("<instruction>Note it.</instruction>", "a copy"),
        ("<instruction>Say 'right 3' or the like for all of them.</instruction>", "holds a gold answer"),
    ],
)
def test_what_is_no_rule_is_dropped_and_counted(answer: str, reason: str) -> None:
    lm = Model(answer)
    rows = TRAIN[:8]
    strategy = strategy_of(evaluator_of(), lm, max_demos=0, rows=rows)
    assert step(strategy) == []
    assert dict(strategy.dropped) == {reason: len(lm.prompts)}
    assert lm.prompts


def test_a_call_that_fails_is_counted_and_the_instructions_of_the_space_are_tried() -> None:
    def broken(prompt: str) -> str:
        raise RuntimeError("quota exceeded")

    strategy = strategy_of(
        evaluator_of(), Model(broken), Space((part(instructions=("one", "two", "three")),)), max_demos=0
    )
    assert [states["p"].instructions for states in step(strategy)] == ["two", "three"]
    assert set(strategy.dropped) == {"call failed: quota exceeded"}


def test_the_same_rule_makes_one_candidate_and_is_not_added_twice() -> None:
    strategy = strategy_of(evaluator_of(), Model(), max_demos=0)
    assert [states["p"].instructions for states in step(strategy)] == [f"Note it.\n{RULED}"]
    assert step(strategy, value=lambda place: 0.9) == []
    assert strategy.dropped["a copy"] > 0


def test_without_a_model_there_are_demos_alone_and_without_either_nothing_runs() -> None:
    evaluator = evaluator_of()
    assert step(strategy_of(evaluator, max_demos=0)) == []
    assert evaluator.runs == []


def two_steps(note: Callable[[Candidate, Any], str], queue: Callable[[Candidate, Any], str | None]) -> Any:
    def outcome(candidate: Candidate, row: Any) -> Outcome:
        first = Step("note", row.inputs, {"note": note(candidate, row)})
        said = queue(candidate, row)
        if said is None:
            return Outcome(row, Measurement(0.0), None, unread="queue: nothing was found", steps=(first,))
        second = Step("route", {**row.inputs, **first.outputs}, {"queue": said})
        return Outcome(row, Measurement(float(said == "right")), {"queue": said}, steps=(first, second))

    columns = {"note": {"ticket": "ticket"}, "route": {"ticket": "ticket", "queue": "queue"}}
    signatures = {"note": NOTE, "route": ROUTE}
    return FakeEvaluator(signatures, lambda candidate, row: 0.0, outcome=outcome, columns=columns)


PAIR = Space((part("note"), part("route", ROUTE)))
ROUTED = [Example({"ticket": f"ticket {n}"}, {"queue": "right"}, n) for n in range(12)]


def queue_of(candidate: Candidate, row: Any) -> str:
    return "right" if warm(candidate) and row.id % 2 else "wrong"


ABOUT = {"note": "- note: ticket -> note (the one", "route": "- route: ticket, note -> queue (the one"}


def test_only_steps_that_went_differently_are_asked_about() -> None:
    same = two_steps(lambda candidate, row: "same", queue_of)
    other = two_steps(lambda candidate, row: "warm" if warm(candidate) else "cold", queue_of)
    asked = []
    for evaluator in (same, other):
        lm = Model()
        step(strategy_of(evaluator, lm, PAIR, rows=ROUTED, max_demos=0))
        asked.append({name for name, line in ABOUT.items() if any(line in prompt for prompt in lm.prompts)})
    assert asked == [{"route"}, {"note", "route"}]


def test_of_steps_that_were_not_reached_the_first_is_asked_about() -> None:
    def outcome(candidate: Candidate, row: Any) -> Outcome:
        if queue_of(candidate, row) == "wrong":
            return Outcome(row, Measurement(0.0), None, unread="note: nothing was found")
        note = Step("note", row.inputs, {"note": "said"})
        route = Step("route", {**row.inputs, "note": "said"}, {"queue": "right"})
        return Outcome(row, Measurement(1.0), {"queue": "right"}, steps=(note, route))

    rows = [Example(row.inputs, {"note": f"gold {row.id}", **row.labels}, row.id) for row in ROUTED]
    lm = Model()
    evaluator = FakeEvaluator({"note": NOTE, "route": ROUTE}, lambda *_: 0.0, outcome=outcome)
    step(strategy_of(evaluator, lm, PAIR, rows=rows, max_demos=0))
    assert lm.prompts and all(ABOUT["note"] in prompt for prompt in lm.prompts)


def test_nothing_is_asked_about_a_step_whose_inputs_are_not_known() -> None:
    lm = Model()
    unread = two_steps(lambda candidate, row: "same", lambda c, row: None if queue_of(c, row) == "wrong" else "right")
    assert step(strategy_of(unread, lm, PAIR, rows=ROUTED, max_demos=0)) == []
    assert lm.prompts == []


def test_a_step_is_told_how_the_program_ended_where_the_data_has_nothing_for_it() -> None:
    lm = Model()
    step(
        strategy_of(
            two_steps(lambda c, row: "warm" if warm(c) else "cold", queue_of), lm, PAIR, rows=ROUTED, max_demos=0
        )
    )
    (prompt, *_) = [each for each in lm.prompts if ABOUT["note"] in each]
    assert "Note given: cold" in prompt and "Note given: warm" in prompt
    assert "the program gave queue: wrong; wanted was queue: right" in prompt
    (prompt, *_) = [each for each in lm.prompts if ABOUT["route"] in each]
    assert "Note: warm\nQueue given: right" in prompt, "its inputs were others in the better run"


def test_every_predictor_gets_its_own_call_as_a_demo() -> None:
    found = step(
        strategy_of(two_steps(lambda c, row: "warm" if warm(c) else "cold", queue_of), None, PAIR, rows=ROUTED)
    )
    for states in found:
        (first,), (second,) = states["note"].demos, states["route"].demos
        assert first == {"ticket": first["ticket"], "note": "warm"}
        assert second == {"ticket": first["ticket"], "note": "warm", "queue": "right"}
        assert row_of(first) % 2 == 1


# ---- what it costs


@pytest.mark.parametrize(
    ("budget", "batch"),
    [
        (Budget(), (6, 32)),
        (Budget(metric_calls=10_000), (6, 32)),
        (Budget(metric_calls=800), (6, 16)),
        (Budget(metric_calls=96), (3, 4)),
        (Budget(metric_calls=63), None),
        (Budget(model_calls=800), (6, 16)),
        (Budget(tokens=800 * 25), (6, 16)),
        (Budget(metric_calls=5000, tokens=96 * 25), (3, 4)),
        (Budget(seconds=1.0), (6, 32)),
    ],
)
def test_a_batch_takes_its_share_of_what_is_left(budget: Budget, batch: tuple[int, int] | None) -> None:
    evaluator = evaluator_of(generated=25)
    if budget.model_calls or budget.tokens:
        evaluator.run(Candidate({"p": PredictorState()}), TRAIN[:10])
        limits = {name: getattr(budget, name) for name in ("model_calls", "tokens") if getattr(budget, name)}
        more = {"model_calls": 10, "tokens": 250}
        budget = Budget(
            metric_calls=budget.metric_calls, **{name: limit + more[name] for name, limit in limits.items()}
        )
        evaluator.runs.clear()
    found = step(strategy_of(evaluator, budget=budget))
    sizes = (len(evaluator.runs), len(evaluator.runs[0][1])) if evaluator.runs else None
    assert sizes == batch
    assert bool(found) == (batch is not None)


@given(left=st.integers(0, 700), wanted=st.integers(1, 8), rows=st.integers(0, 40), bsize=st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_no_batch_is_larger_than_its_share(left: int, wanted: int, rows: int, bsize: int) -> None:
    evaluator, budget = evaluator_of(), Budget(metric_calls=left)
    strategy = strategy_of(evaluator, rows=TRAIN[:rows], budget=budget, num_candidates=wanted, bsize=bsize)
    strategy.propose()
    assert all(len(ids) <= min(bsize, rows) for _, ids in evaluator.runs)
    assert evaluator.spent * (wanted + 2) <= 3 * left, "three batches may come to nothing"


# ---- options


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            {"bsise": 3},
            "unknown option 'bsise'; expected one of bsize, num_candidates, max_steps, max_demos, .*'bsize'",
        ),
        ({"bsize": 0}, "bsize is 0; expected a whole number of at least 1"),
        ({"max_steps": 2.0}, r"max_steps is 2\.0; expected a whole number of at least 1"),
        ({"max_demos": -1}, "max_demos is -1; expected a whole number of at least 0"),
        ({"num_candidates": True}, "num_candidates is True; expected a whole number"),
        ({"temperature_for_sampling": 0}, "temperature_for_sampling is 0; expected a number above 0"),
        ({"temperature_for_candidates": "hot"}, "temperature_for_candidates is 'hot'; expected a number above 0"),
        ({"temperature_for_candidates": float("inf")}, "temperature_for_candidates is inf; expected a number above 0"),
    ],
)
def test_a_wrong_option_is_told(options: Mapping[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        SimbaOptions.of(StrategyContext(options=options))


def test_options_are_dspys() -> None:
    import inspect

    from dspy.teleprompt import SIMBA

    theirs = {name: given.default for name, given in inspect.signature(SIMBA).parameters.items()}
    ours = SimbaOptions()
    names = [name for name in theirs if hasattr(ours, name)]
    assert len(names) == 7
    assert {name: getattr(ours, name) for name in names if name != "max_steps"} == {
        name: theirs[name] for name in names if name != "max_steps"
    }


# ---- a whole compile


class Killed(BaseException):
    """The process is gone."""


def moody(kill_at: int | None = None) -> FakeEngine:
    """An engine that answers at random where it draws, with the first label where it does not, and writes rules."""

    def answer(prompt: str, decoding: Decoding, sample: int) -> str:
        drawn = random.Random(derive_seed(decoding.seed, prompt, sample))
        if "write one rule for a step" in prompt:
            return (
                f"Choose {drawn.choice(LABELS)} where the ticket says something of that kind, number {drawn.random()}."
            )
        found = drawn.choice(LABELS) if decoding.temperature else LABELS[sum(map(ord, prompt)) % 3]
        return f"[[ ## queue ## ]]\n{found}\n\n[[ ## completed ## ]]"

    def before(batch: Any) -> None:
        if kill_at is not None and len(engine.batches) == kill_at:
            raise Killed

    engine = FakeEngine(answer, before=before)
    return engine


def compiled(folder: Path, engine: FakeEngine) -> tuple[bytes, list[dict[str, Any]]]:
    search = {"instructions": 2, "demos": [0, 4], "formats": ["completion"], "readouts": ["text"]}
    made = compile_tickets(folder, engine, optimizer="simba", search=search, budget={"metric_calls": 500})
    lines = (folder / "triage-1" / "trials.jsonl").read_text().splitlines()
    return made.write(folder / "out").read_bytes(), [{**json.loads(line), "seconds": 0} for line in lines]


def test_a_compile_that_is_killed_goes_on_to_the_same_program(tmp_path: Path) -> None:
    whole = moody()
    expected = compiled(tmp_path / "whole", whole)
    asked = [prompt for prompt in whole.prompts() if "write one rule for a step" in prompt]
    assert asked
    assert any(trial["params"].get("route.demo_set") is not None for trial in expected[1])
    assert any(trial["params"].get("route.instruction", 0) > 1 for trial in expected[1])
    for share in (0.2, 0.5, 0.8, 0.98):
        folder = tmp_path / str(share)
        with pytest.raises(Killed):
            compiled(folder, moody(int(share * len(whole.batches))))
        assert compiled(folder, moody()) == expected


def test_demos_of_runs_that_went_well_by_chance_teach_the_rest(tmp_path: Path) -> None:
    learner = WordLearner(bias={"billing": 2.0})

    def answer(prompt: str, decoding: Decoding, sample: int) -> str:
        drawn = random.Random(derive_seed(decoding.seed, prompt)).choice(LABELS)
        return f" {drawn}\n\n" if decoding.temperature else learner.answer(prompt, decoding, sample)

    splits = {name: tickets(30, seed) for seed, name in enumerate(("trainset", "devset", "testset"), start=1)}
    program = adopt(Triage(), PredictorState(format="completion"))
    budget, options = {"metric_calls": 1200}, {"name": "simba", "max_demos": 4}
    made = compile_tickets(tmp_path, FakeEngine(answer), program=program, optimizer=options, budget=budget, **splits)
    assert made.compilation.result.accepted
    run = json.loads((tmp_path / "triage-1" / "run.json").read_text())
    assert run["baseline"]["dev"]["value"] < 0.4
    assert run["compiled"]["dev"]["value"] > 0.7
    assert run["spent"]["metric_calls"] <= 1200 + 30
