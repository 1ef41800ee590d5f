"""Processes that share a study: what one has run, the others know; what a stranger writes there is not believed."""

from __future__ import annotations

import contextlib
import json
import math
import sqlite3
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from fakes import FakeEvaluator, Plain
from hypothesis import given, settings
from hypothesis import strategies as st

import cuecard
from cuecard.compiler.examples import Example
from cuecard.errors import CuecardError, InputError, RunError
from cuecard.metrics import Measurement
from cuecard.models.engine import Decoding
from cuecard.optimizers import storages
from cuecard.optimizers.base import Budget, Candidate, Sharing, Trial
from cuecard.optimizers.front import FrontRule
from cuecard.optimizers.joint import JOINING, STRATEGIES, check_joins, joint, uniform
from cuecard.optimizers.sampled import OptunaStrategy
from cuecard.optimizers.search import Search, SearchResult
from cuecard.optimizers.shared import JOINED, START, TRIAL, SharedStudy, check_study
from cuecard.optimizers.space import PredictorSpace, Space
from cuecard.optimizers.stopping import StopRules
from cuecard.optimizers.storages import address_of, open_storage
from cuecard.optimizers.told import Told, given_point, space_digest, told_of, trial_of
from cuecard.programs.state import Calibration, PredictorState

ROUTE = cuecard.signature("ticket -> queue: Literal['billing', 'technical']")
BASELINE = Candidate({"p": PredictorState(instructions="the user's own")})
ROWS = 32
OF = {"program": "p", "data": "d", "metric": "m", "target": "t", "search": "s", "seed": "0"}
KINDS = ("sqlite:///{}/study.db", "journal:{}/log", "{}/study.journal")


def dev(count: int = ROWS) -> list[Example]:
    return [Example({"ticket": f"t{n}"}, {"queue": "billing"}, n) for n in range(count)]


def space(**changes: Any) -> Space:
    """Candidate `i` is the one whose instruction is the text of number `i`; four formats make four starts."""
    given = {
        "name": "p",
        "signature": ROUTE,
        "instructions": tuple(str(number) for number in range(40)),
        "demo_counts": (0,),
        "demo_sets": (),
        "formats": ("chat", "completion", "json", "xml"),
        "readouts": ("text",),
        "decoding": Decoding(),
    }
    return Space((PredictorSpace(**{**given, **changes}),))


def scored(candidate: Candidate, row: Any) -> float:
    """The instruction's number decides: 39 is right nearly everywhere, the baseline nowhere."""
    text = candidate.states["p"].instructions or ""
    number = int(text) if text.isdigit() else -1
    return float((row.id * 7) % 40 < number)


class Killed(BaseException):
    """Stands for a kill: nobody catches it."""


class Process:
    """One process's search, in a folder of its own."""

    def __init__(
        self,
        url: str,
        folder: Path,
        *,
        calls: int = 300,
        score: Callable[[Candidate, Any], float | str] = scored,
        strategy: Any = joint,
        over: Space | None = None,
        of: dict[str, str] | None = None,
        kill: int | None = None,
        generation: Callable[[], None] = lambda: None,
        **options: Any,
    ) -> None:
        folder.mkdir(exist_ok=True)
        left = [kill]

        def counted(candidate: Candidate, row: Any) -> float | str:
            if left[0] is not None:
                left[0] -= 1
                if left[0] < 0:
                    raise Killed
            return score(candidate, row)

        over = over or space()
        self.evaluator = FakeEvaluator({"p": ROUTE}, counted)
        self.trials: list[Trial] = []
        search = Search(
            self.evaluator, over, dev(), (), Budget(metric_calls=calls), 0, self.trials.append, 4,
            planned=lambda number, alive: generation(), **options,
        )  # fmt: skip
        zero = search.baseline(BASELINE)
        parts: dict[str, Any] = {"record": folder / "study.jsonl", "local": None}
        with SharedStudy(address_of(url), "triage", of or OF, **parts, metric=Plain(), rows=ROWS) as self.shared:
            strategy = strategy(over, seed=0, baseline=zero.score, storage=self.shared)
            self.result: SearchResult = search.run(zero, strategy)

    @property
    def plain(self) -> list[tuple[Any, ...]]:
        return [
            (t.number, dict(t.params), t.status, t.score, t.estimate, t.best, t.place) for t in self.trials
        ] + [(self.result.trials, self.result.best.number, self.result.verdict, self.result.front)]  # fmt: skip

    @property
    def own(self) -> list[dict[str, Any]]:
        return [dict(trial.params) for trial in self.trials[1:] if trial.place is None]


@pytest.fixture(params=KINDS[:2])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(request.param).format(tmp_path)


@pytest.fixture
def sqlite(tmp_path: Path) -> str:
    return KINDS[0].format(tmp_path)


def study_at(url: str) -> optuna.Study:
    return optuna.load_study(study_name="triage", storage=open_storage(address_of(url)))


def told_in(url: str) -> list[tuple[str, int]]:
    state = (optuna.trial.TrialState.COMPLETE,)
    told = [trial.user_attrs[TRIAL] for trial in study_at(url).get_trials(states=state)]
    return [(each["run"], each["trial"]) for each in told]


# ---- sharing


def test_the_first_process_searches_as_one_that_is_alone(url: str, tmp_path: Path) -> None:
    first = Process(url, tmp_path / "a")
    evaluator = FakeEvaluator({"p": ROUTE}, scored)
    trials: list[Trial] = []
    search = Search(evaluator, space(), dev(), (), Budget(metric_calls=300), 0, trials.append, 4)
    zero = search.baseline(BASELINE)
    result = search.run(zero, joint(space(), seed=0, baseline=zero.score or 0.0))
    assert (first.trials, first.shared.place) == (trials, 1)
    assert (first.result.best, first.result.verdict) == (result.best, result.verdict)
    assert first.result.others == 0


def test_the_second_process_knows_what_the_first_has_run(url: str, tmp_path: Path) -> None:
    first = Process(url, tmp_path / "a")
    second = Process(url, tmp_path / "b")
    theirs = [trial for trial in second.trials if trial.place is not None]
    assert second.shared.place == 2
    assert second.result.others == len(theirs) == first.result.trials - 1 == second.shared.heard_trials
    assert [dict(t.params) for t in theirs] == first.own, "all of them, before its own first"
    assert [t.measurements for t in theirs if t.status == "complete"] == [
        t.measurements for t in first.trials[1:] if t.status == "complete"
    ]
    assert [trial.number for trial in second.trials] == list(range(len(second.trials)))
    known = [json.dumps(params, sort_keys=True) for params in first.own]
    assert not set(known) & {json.dumps(params, sort_keys=True) for params in second.own}, "nothing is run again"
    assert all(trial.place == 1 for trial in theirs)


def test_starts_are_dealt_out_once(url: str, tmp_path: Path) -> None:
    starts = space().starts()
    first = Process(url, tmp_path / "a", calls=ROWS + 1)
    second = Process(url, tmp_path / "b")
    asked = [[params for params in starts if params in process.own] for process in (first, second)]
    assert len(first.own) < len(starts), "one generation that the budget made narrow"
    assert [params for each in asked for params in each] == starts
    assert asked[0] == first.own


def test_the_best_of_another_process_is_the_one_to_beat(url: str, tmp_path: Path) -> None:
    first = Process(url, tmp_path / "a")
    second = Process(url, tmp_path / "b", calls=ROWS)
    assert len(second.trials) == first.result.trials, "its budget was spent with the baseline"
    best = second.result.best
    assert (best.place, best.candidate, best.measurements) == (
        1, first.result.best.candidate, first.result.best.measurements,
    )  # fmt: skip
    assert second.result.accepted
    assert second.result.verdict == first.result.verdict, "the same test, which counts the same candidates"
    assert second.result.front == first.result.front


def test_confirmation_counts_the_candidates_of_both(sqlite: str, tmp_path: Path) -> None:
    def weak(candidate: Candidate, row: Any) -> float:
        number = scored(candidate, row)
        text = candidate.states["p"].instructions or ""
        return number if row.id % 5 == 0 and text.isdigit() else float(row.id % 2)

    alone = Process(KINDS[2].format(tmp_path), tmp_path / "x", score=weak, strategy=uniform)
    Process(sqlite, tmp_path / "a", score=weak, strategy=uniform, calls=600)
    second = Process(sqlite, tmp_path / "b", score=weak, strategy=uniform)
    complete = [trial for trial in second.trials[1:] if trial.status == "complete"]
    assert {trial.place for trial in complete} == {1, None}
    assert alone.result.verdict is not None and second.result.verdict is not None
    assert second.result.trials - second.result.others <= alone.result.trials < second.result.trials


def test_each_process_has_a_random_stream_of_its_own(sqlite: str, tmp_path: Path) -> None:
    flat = dict(score=lambda candidate, row: 0.0, strategy=uniform)
    first = Process(sqlite, tmp_path / "a", **flat)
    second = Process(sqlite, tmp_path / "b", **flat)
    third = Process(sqlite, tmp_path / "c", **flat)
    assert [process.shared.place for process in (first, second, third)] == [1, 2, 3]
    after = [process.own[len(space().starts()) if process is first else 0 :] for process in (first, second, third)]
    assert all(after) and not any(params in after[1] for params in after[0] + after[2])


def test_processes_hear_each_other_while_they_search(url: str, tmp_path: Path) -> None:
    """Two at once, each of which begins a generation when the other one has."""
    gate = threading.Barrier(2)

    def together() -> None:
        with contextlib.suppress(threading.BrokenBarrierError):
            gate.wait(timeout=10)

    found: dict[str, Process] = {}

    def work(name: str) -> None:
        try:
            found[name] = Process(url, tmp_path / name, calls=300, generation=together)
        finally:
            gate.abort()

    threads = [threading.Thread(target=work, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    one, two = found["a"], found["b"]
    assert {one.shared.place, two.shared.place} == {1, 2}
    assert one.result.others and two.result.others, "both heard the other"
    records = [(tmp_path / name / "study.jsonl").read_text().splitlines() for name in ("a", "b")]
    starts = [json.loads(line).get("start") for record in records for line in record]
    dealt = sorted(start for start in starts if start is not None)
    assert dealt == list(range(len(space().starts()))), "each to one of the two"
    told = told_in(url)
    assert len(told) == len(set(told)) == len(one.own) + len(two.own)


def test_a_search_that_allows_short_prompts_alone_takes_no_long_ones(sqlite: str, tmp_path: Path) -> None:
    demos = tuple({"ticket": f"d{n}", "queue": "billing"} for n in range(4))
    over = space(demo_counts=(0, 4), demo_sets=(demos,))
    Process(sqlite, tmp_path / "a", over=over)
    second = Process(sqlite, tmp_path / "b", over=over, calls=ROWS, rule=FrontRule(at_most_tokens=5.0))
    assert all(not trial.candidate.states["p"].demos for trial in second.trials)


def test_rules_count_trials_of_all_and_a_budget_of_trials_its_own(sqlite: str, tmp_path: Path) -> None:
    first = Process(sqlite, tmp_path / "a")
    assert Process(sqlite, tmp_path / "b", rules=StopRules(score=0.2)).result.stopped_by == "score"
    later = Process(sqlite, tmp_path / "c", rules=StopRules(trials_without_gain=1))
    assert later.result.others >= first.result.trials - 1


# ---- kills


@pytest.mark.parametrize(("kill", "form"), [(40, KINDS[1]), (160, KINDS[0]), (299, KINDS[2])])
def test_a_killed_process_ends_as_one_that_was_left_alone(kill: int, form: str, tmp_path: Path) -> None:
    url = form.format(tmp_path)
    Process(url, tmp_path / "a", calls=200)
    size = len(study_at(url).trials)
    (tmp_path / "other").mkdir()
    twin = url.replace(str(tmp_path), str(tmp_path / "other"))
    Process(twin, tmp_path / "x", calls=200)
    whole = Process(twin, tmp_path / "y")
    with pytest.raises(Killed):
        Process(url, tmp_path / "b", kill=kill)
    again = Process(url, tmp_path / "b")
    assert again.plain == whole.plain
    assert len(told_in(url)) == len(set(told_in(url))) == len(told_in(twin)), "nothing is told twice"
    assert len(study_at(url).trials) > size


def test_what_was_heard_is_heard_again_though_the_study_has_grown(url: str, tmp_path: Path) -> None:
    Process(url, tmp_path / "a", calls=150)
    whole = Process(url, tmp_path / "b")
    record = (tmp_path / "b" / "study.jsonl").read_bytes()
    Process(url, tmp_path / "c", calls=600)
    before = len(told_in(url))
    again = Process(url, tmp_path / "b")
    assert again.plain == whole.plain
    assert (tmp_path / "b" / "study.jsonl").read_bytes() == record
    assert len(told_in(url)) == before


def test_a_kill_in_the_midst_keeps_what_was_decided_before_it(sqlite: str, tmp_path: Path) -> None:
    Process(sqlite, tmp_path / "a", calls=150)
    with pytest.raises(Killed):
        Process(sqlite, tmp_path / "b", kill=200)
    record = (tmp_path / "b" / "study.jsonl").read_bytes()
    Process(sqlite, tmp_path / "c", calls=200)
    once = Process(sqlite, tmp_path / "b")
    grown = (tmp_path / "b" / "study.jsonl").read_bytes()
    assert grown.startswith(record) and len(grown) > len(record)
    assert {trial.place for trial in once.trials} == {None, 1, 3}, "what came meanwhile is heard from there on"
    Process(sqlite, tmp_path / "d", calls=200)
    assert Process(sqlite, tmp_path / "b").plain == once.plain


def test_a_start_that_was_claimed_before_a_kill_is_still_ones_own(sqlite: str, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        Process(sqlite, tmp_path / "a", kill=ROWS)
    record = tmp_path / "a" / "study.jsonl"
    lines = record.read_bytes().splitlines(keepends=True)
    starts = [line for line in lines if line.startswith(b'{"start"')]
    assert len(starts) == len(space().starts())
    record.write_bytes(b"".join(lines[:-2]) + lines[-2][:5])  # two were claimed, and not written down whole
    again = Process(sqlite, tmp_path / "a")
    assert again.own[: len(starts)] == space().starts()


def test_a_process_that_never_comes_back_stands_in_nobodys_way(url: str, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        Process(url, tmp_path / "a", kill=ROWS)
    second = Process(url, tmp_path / "b")
    assert second.shared.place == 2 and second.result.others == 0
    assert len(second.own) > 4


@pytest.mark.parametrize("content", ["x\n", "[]\n", '{"start": 0}\n', '{"joined": {}}\n', '{"joined": 5}\n'])
def test_a_record_of_something_else_is_refused(content: str, sqlite: str, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "study.jsonl").write_text(content)
    with pytest.raises(InputError, match=r"study.jsonl"):
        Process(sqlite, tmp_path / "a")


def test_a_study_that_was_made_anew_is_not_the_one_that_was_joined(sqlite: str, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        Process(sqlite, tmp_path / "a", kill=60)
    (tmp_path / "study.db").unlink()
    with pytest.raises(InputError, match="is not the one that this run has joined"):
        Process(sqlite, tmp_path / "a")


# ---- what a study is of


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"seed": "1"}, "the seed differ"),
        ({"data": "x", "metric": "y"}, "the train or dev rows and the metric differ"),
        ({"program": "x", "target": "y", "search": "z"}, "the program, the model and what `search` asks for differ"),
    ],
)
def test_another_search_is_refused(changed: dict[str, str], told: str, url: str, tmp_path: Path) -> None:
    Process(url, tmp_path / "a", calls=ROWS)
    before = len(study_at(url).trials)
    for refused in (
        lambda: check_study(address_of(url), "triage", {**OF, **changed}),
        lambda: Process(url, tmp_path / "b", of={**OF, **changed}),
    ):
        with pytest.raises(InputError) as raised:
            refused()
        assert told in str(raised.value) and url in str(raised.value)
        assert "name another file or database" in str(raised.value)
    assert len(study_at(url).trials) == before
    check_study(address_of(url), "triage", OF)
    check_study(address_of(url), "another", {**OF, **changed})


@pytest.mark.parametrize(
    "changed",
    [
        {"instructions": ("0", "1")},
        {"formats": ("chat",)},
        {"ranges": {"temperature": (0.0, 0.5)}},
        {"demo_sets": (({"ticket": "a", "queue": "billing"},),)},
        {"pool": ({"ticket": "a", "queue": "billing"},)},
        {"decoding": Decoding(max_tokens=3)},
    ],
)
def test_another_space_is_refused(changed: dict[str, Any], sqlite: str, tmp_path: Path) -> None:
    Process(sqlite, tmp_path / "a", calls=ROWS)
    assert space_digest(space()) == space_digest(space())
    with pytest.raises(InputError, match="the search space that comes of it differ"):
        Process(sqlite, tmp_path / "b", over=space(**changed))


def test_strategies_over_the_same_space_share_a_study(sqlite: str, tmp_path: Path) -> None:
    Process(sqlite, tmp_path / "a", calls=150)
    assert Process(sqlite, tmp_path / "b", strategy=uniform).result.others


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_a_study_that_somebody_else_made_is_refused(direction: str, sqlite: str, tmp_path: Path) -> None:
    study = optuna.create_study(storage=sqlite, study_name="triage", direction=direction)
    study.add_trial(optuna.trial.create_trial(value=1.0))
    for refused in (
        lambda: check_study(address_of(sqlite), "triage", OF),
        lambda: Process(sqlite, tmp_path / "a"),
    ):
        with pytest.raises(InputError, match="was not made by a compile"):
            refused()


@pytest.mark.parametrize("name", sorted({*STRATEGIES, "dspy.MIPROv2"}))
def test_only_those_that_search_by_a_study_can_share_one(name: str) -> None:
    if name in JOINING:
        check_joins("sqlite:///x.db", name)
        return
    with pytest.raises(InputError, match=f"{name} can't share a study.*joint, random, bootstrap_random, mipro"):
        check_joins("sqlite:///x.db", name)


# ---- what a stranger writes


def complete(url: str) -> tuple[optuna.Study, dict[str, Any]]:
    """A study, and what was told in it of a trial that ran on all of dev."""
    study = study_at(url)
    attrs = [trial.user_attrs for trial in study.trials if trial.state == optuna.trial.TrialState.COMPLETE]
    return study, next(dict(each) for each in attrs if each[TRIAL]["status"] == "complete")


WHERE = f"{TRIAL[:-6]}_measurements_0"
PERFECT: list[Any] = [[1.0]] * ROWS
GARBAGE: list[dict[str, Any]] = [
    {TRIAL: None},
    {TRIAL: "x"},
    {TRIAL: []},
    {TRIAL: {}},
    {"run": "nobody"},
    {"trial": 0},
    {"status": "best"},
    {"status": "dropped", "value": 7.0},
    {"status": "dropped", "value": "1.0"},
    {"candidate": "0" * 12},
    {"examples": ROWS - 1},
    {"unread": -1},
    {"unread": ROWS + 1},
    {"more": 1},
    {"params": {}},
    {"params": {"p.instruction": 400, "p.demos": 0, "p.nearest": 0, "p.format": "chat", "p.readout": "text"}},
    {"params": {"p.instruction": "../../x", "p.format": "chat"}},
    {"calibrations": {"p": {"method": "batch", "offsets": {"queue": {"billing": 1.0}}}}},
    {"calibrations": {"q": {"method": "batch", "offsets": {}}}},
    {WHERE: PERFECT[1:]},
    {WHERE: [*PERFECT, [1.0]]},
    {WHERE: [[2.0]] * ROWS},
    {WHERE: [[1.0, 1.0]] * ROWS},
    {WHERE: [[]] * ROWS},
    {WHERE: [[math.nan]] * ROWS},
    {WHERE: [["1"]] * ROWS},
    {WHERE: "1" * ROWS},
    {WHERE: None},
]


def test_trials_that_can_not_be_are_left_out_and_counted(tmp_path: Path) -> None:
    url = KINDS[2].format(tmp_path)
    first = Process(url, tmp_path / "a", calls=200)
    study, told = complete(url)
    numbers: dict[int, dict[str, Any]] = {}
    for changes in GARBAGE:
        known = {TRIAL, WHERE}
        trial = {**told[TRIAL], **{key: value for key, value in changes.items() if key not in known}}
        attrs = {**told, TRIAL: trial, **{key: value for key, value in changes.items() if key in known}}
        study.add_trial(optuna.trial.create_trial(value=1.0, user_attrs=attrs))
        numbers[study.trials[-1].number] = changes
    second = Process(url, tmp_path / "b", calls=ROWS)
    heard = json.loads((tmp_path / "b" / "study.jsonl").read_text().splitlines()[1])["heard"]
    believed = [changes for number, changes in numbers.items() if number not in heard["left_out"]]
    assert believed == []
    assert (second.shared.left_out, second.result.others) == (len(GARBAGE), first.result.trials - 1)
    assert second.result.best.measurements == first.result.best.measurements
    assert Process(url, tmp_path / "b", calls=ROWS).shared.left_out == len(GARBAGE)


def test_entries_that_can_not_be_are_passed_over(sqlite: str, tmp_path: Path) -> None:
    Process(sqlite, tmp_path / "a", calls=ROWS)
    study = study_at(sqlite)
    for attrs in (
        {JOINED: 1},
        {JOINED: {"run": 5, "of": {}}},
        {START: {"run": "x", "start": -1}},
        {START: {"run": "x", "start": "0"}},
        {},
    ):
        study.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.FAIL, user_attrs=attrs))
    study.enqueue_trial({"p.instruction": 1})
    second = Process(sqlite, tmp_path / "b")
    assert second.shared.place == 2
    assert second.own[: len(space().starts())] == space().starts()


def test_a_trial_without_anything_of_ours_is_left_out(sqlite: str, tmp_path: Path) -> None:
    Process(sqlite, tmp_path / "a", calls=ROWS)
    study_at(sqlite).add_trial(optuna.trial.create_trial(value=1.0))
    assert Process(sqlite, tmp_path / "b", calls=ROWS).shared.left_out == 1


def test_a_database_that_was_spoiled_is_told(sqlite: str, tmp_path: Path) -> None:
    Process(sqlite, tmp_path / "a", calls=200)
    with sqlite3.connect(tmp_path / "study.db") as database:
        database.execute("UPDATE trial_user_attributes SET value_json = 'x'")
    with pytest.raises(InputError, match="holds no study that can be read"):
        check_study(address_of(sqlite), "triage", OF)


@settings(max_examples=60, deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=5), lambda x: st.lists(x, max_size=3) | st.dictionaries(st.sampled_from([*Told.model_fields, "x"]), x, max_size=4), max_leaves=12))  # fmt: skip
def test_anything_is_a_trial_or_is_not(value: Any) -> None:
    from cuecard.optimizers.shared import _parsed

    found = _parsed(Told, value)
    if found is not None:
        with pytest.raises(ValueError):
            trial_of(found, space(), Plain(), ROWS, 1)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 39), st.sampled_from(["chat", "json"]), st.floats(0.0, 1.0), st.lists(st.floats(0.0, 1.0), min_size=ROWS, max_size=ROWS))  # fmt: skip
def test_what_is_told_is_what_was_run(number: int, form: str, temperature: float, scores: list[float]) -> None:
    over = space(readouts=("choice+batch",))
    params = {"p.instruction": number, "p.demos": 0, "p.nearest": 0, "p.format": form, "p.readout": "choice+batch"}
    assert given_point(over, params).drawn == {"p.instruction": number, "p.format": form}
    state = over.states(params)["p"]
    calibration = Calibration(method="batch", offsets={"queue": {"billing": temperature, "technical": -temperature}})
    readout = state.readout.model_copy(update={"calibration": calibration})
    candidate = Candidate({"p": state.model_copy(update={"readout": readout})})
    measured = tuple(map(Measurement, scores))
    score = Plain().aggregate(measured)
    trial = Trial(3, params, candidate, "complete", ROWS, score, score, 2, None, False, measured)
    told = Told.model_validate_json(told_of(trial, over, "r").model_dump_json())
    again = trial_of(told, over, Plain(), ROWS, 5)
    assert again == Trial(0, params, candidate, "complete", ROWS, score, score, 2, None, False, measured, 5)


# ---- addresses


@pytest.mark.parametrize(
    ("text", "shown", "path"),
    [
        ("sqlite:///a/s.db", "sqlite:///a/s.db", "a/s.db"),
        ("journal:a/log", "journal:a/log", "a/log"),
        ("journal:///tmp/log", "journal:///tmp/log", "/tmp/log"),
        ("a/s.journal", "a/s.journal", "a/s.journal"),
        ("postgresql://u:p@h:5432/d", "postgresql://u:***@h:5432/d", None),
        ("postgresql+psycopg://u@h/d?password=p&sslmode=require", "postgresql+psycopg://u@h/d?sslmode=require", None),
    ],
)
def test_addresses(text: str, shown: str, path: str | None) -> None:
    found = address_of(text)
    assert (found.text, found.shown) == (text, shown)
    assert found.path == (None if path is None else Path(path))


@pytest.mark.parametrize(
    "text", ["", "study.db", "sqlite://", "sqlite:///:memory:", "journal:", "postgresql://u:secret@h:x/d"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(InputError, match="expected") as raised:
        address_of(text)
    assert raised.value.field == "study" and "secret" not in str(raised.value)


def refused(text: str) -> CuecardError:
    with pytest.raises(CuecardError) as raised:
        open_storage(address_of(text))
    assert raised.value.hint or raised.value.expected
    return raised.value


@pytest.mark.parametrize("form", KINDS)
def test_a_folder_that_is_not_there(form: str, tmp_path: Path) -> None:
    error = refused(form.format(tmp_path / "no"))
    assert isinstance(error, InputError) and "there is no folder" in str(error)


@pytest.mark.parametrize("form", ["sqlite:///{}", "journal:{}"])
def test_a_folder_in_place_of_a_file(form: str, tmp_path: Path) -> None:
    assert "is a folder" in str(refused(form.format(tmp_path)))


@pytest.mark.parametrize("content", ["hello\n" * 200, "hello", "[]\n", '{"op_code": 99}\n', "5\n"])
@pytest.mark.parametrize("form", KINDS[::2])
def test_a_file_that_holds_something_else(content: str, form: str, tmp_path: Path) -> None:
    text = form.format(tmp_path)
    path = address_of(text).path
    assert path is not None
    path.write_text(content * (1 if path.suffix == ".journal" else 100))
    error = refused(text)
    assert isinstance(error, InputError) and "holds no study that can be read" in str(error)


def test_a_file_that_can_not_be_made() -> None:
    for text in ("sqlite:////proc/x.db", "/proc/x.journal"):
        assert isinstance(refused(text), RunError)


def test_a_driver_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    error = refused("postgresql+psycopg2://u:secret@h/d")
    assert isinstance(error, InputError)
    assert "no driver for postgresql+psycopg2://u:***@h/d is installed" in str(error)
    assert "pip install psycopg2-binary" in str(error) and "secret" not in str(error)


def test_a_kind_of_database_that_nobody_knows() -> None:
    assert "no database is known by nosuch://h/d" in str(refused("nosuch://h/d"))


def test_a_database_that_somebody_holds(sqlite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Process(sqlite, tmp_path / "a", calls=ROWS)
    monkeypatch.setattr(storages, "PATIENCE", 0.05)
    monkeypatch.setattr("optuna.storages._rdb.storage.time.sleep", lambda seconds: None)
    with sqlite3.connect(tmp_path / "study.db") as database:
        database.execute("BEGIN EXCLUSIVE")
        with pytest.raises(RunError, match="locked") as raised:
            Process(sqlite, tmp_path / "b", calls=ROWS)
    assert "Another process has held it for long" in str(raised.value)
    assert Process(sqlite, tmp_path / "b", calls=ROWS).shared.place == 2


@pytest.mark.parametrize("form", KINDS)
def test_many_can_open_an_empty_storage_at_once(form: str, tmp_path: Path) -> None:
    failed: list[BaseException] = []
    gate = threading.Barrier(4)

    def work() -> None:
        gate.wait()
        try:
            open_storage(address_of(form.format(tmp_path)))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


# ---- what a sampler learns


def test_the_sampler_learns_from_others_and_varies_their_best(sqlite: str, tmp_path: Path) -> None:
    over = space(ranges={"temperature": (0.0, 1.0), "top_k": (1.0, 50.0)})
    first = Process(sqlite, tmp_path / "a", over=over, calls=600)
    best = dict(first.result.best.params)
    parts: dict[str, Any] = {"record": tmp_path / "study.jsonl", "local": None, "metric": Plain(), "rows": ROWS}
    with SharedStudy(address_of(sqlite), "triage", OF, **parts) as shared:
        strategy = joint(over, seed=0, baseline=0.0, storage=shared)
        assert isinstance(strategy, Sharing) and isinstance(strategy, OptunaStrategy)
        heard = strategy.others()
        for proposal, trial in heard:
            strategy.observe(proposal, trial.estimate or 0.0, dict(trial.params) == best)
        assert strategy.others() == []
        learned = {tuple(sorted(trial.params.items())): trial.value for trial in strategy.study.trials[1:]}
        assert len(heard) == len(first.own) >= len(learned) > 10
        assert all(learned[tuple(sorted(t.params.items()))] == t.value for t in study_at(sqlite).trials if t.params)
        points = [dict(proposal.params) for _ in range(6) if (proposal := strategy.propose()) is not None]
    changed = [sum(point.get(name) != value for name, value in best.items()) for point in points]
    assert sum(count <= 2 for count in changed) >= 4, "two of three vary the best one"


@pytest.mark.parametrize(
    "changes",
    [
        {"p.temperature": 1.5},
        {"p.temperature": True},
        {"p.temperature": "0.5"},
        {"p.top_k": 0},
        {"p.top_k": 2.5},
        {"x": 1},
    ],
)
def test_a_point_outside_the_space_is_none(changes: dict[str, Any]) -> None:
    over = space(ranges={"temperature": (0.0, 1.0), "top_k": (1.0, 50.0)})
    point = {"p.instruction": 1, "p.demos": 0, "p.nearest": 0, "p.format": "chat", "p.readout": "text"}
    point |= {"p.temperature": 0.5, "p.top_k": 3}
    assert given_point(over, point).drawn["p.top_k"] == 3
    with pytest.raises(ValueError):
        given_point(over, {**point, **changes})
