"""Other calibrations of candidates that ran on dev: chosen by what was seen, measured on rows that did not fit them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from fakes import FakeEvaluator

import cuecard
from cuecard.compiler.examples import Example
from cuecard.metrics import Measurement
from cuecard.optimizers.base import Candidate, Outcome, Trial
from cuecard.optimizers.recalibrate import FOLDS, METHODS, folds_of, recalibrated
from cuecard.programs.readout import Choice, calibrated
from cuecard.programs.state import Calibration, PredictorState, ReadOut

LABELS = ("yes", "no")
SIGNATURE = cuecard.signature("text -> answer: Literal['yes', 'no']")
PLAIN = Candidate({"p": PredictorState(readout=ReadOut(kind="choice"))})
BATCH = Calibration(method="batch", offsets={"answer": {"yes": 1.0, "no": -1.0}})
Totals = Callable[[int], tuple[float, float]]


def rows(answers: Sequence[str | None]) -> list[Example]:
    return [
        Example({"text": f"t{n}"}, {} if answer is None else {"answer": answer}, n) for n, answer in enumerate(answers)
    ]


def model(totals: Totals) -> FakeEvaluator:
    """Runs a program that chooses by `totals(row)` less its calibration, as the real one does."""

    def outcome(candidate: Candidate, row: Any) -> Outcome:
        scores = calibrated(candidate.states["p"].readout, "answer", LABELS, totals(row.id))
        label = max(scores, key=lambda each: scores[each])
        choice = Choice(1, "answer", LABELS, totals(row.id), label, 9)
        right = label == row.labels.get("answer")
        return Outcome(row, Measurement(float(right)), {"answer": label}, choices=(("p", choice),))

    def never(candidate: Candidate, row: Any) -> float:
        raise AssertionError

    return FakeEvaluator({"p": SIGNATURE}, never, outcome=outcome)


def ran(evaluator: FakeEvaluator, candidate: Candidate, examples: Sequence[Example]) -> tuple[Trial, list[Outcome]]:
    outcomes = evaluator.run(candidate, examples)
    scores = [outcome.measurement.score for outcome in outcomes if outcome.measurement is not None]
    return Trial(1, {}, candidate, "complete", len(scores), float(np.mean(scores)), None), outcomes


def with_calibration(calibration: Calibration) -> Candidate:
    return Candidate({"p": PredictorState(readout=ReadOut(kind="choice", calibration=calibration))})


def noise(row: int) -> float:
    return float(np.random.Generator(np.random.Philox(key=row)).normal())


def test_where_the_inputs_tell_nothing_a_fitted_bias_gives_the_most_frequent_label() -> None:
    examples = rows(["yes" if n % 10 < 7 else "no" for n in range(100)])
    evaluator = model(lambda row: (-3.0 + noise(row), -2.0))
    known = [ran(evaluator, PLAIN, examples)]
    assert known[0][0].score is not None and known[0][0].score < 0.5
    found = recalibrated(evaluator, known, METHODS)
    assert found is not None and found.methods == {"p": "bias"}
    outcomes = found.run(evaluator, examples)
    assert [outcome.row.id for outcome in outcomes] == list(range(100))
    score = np.mean([outcome.measurement.score for outcome in outcomes if outcome.measurement])
    assert 0.6 <= score <= 0.7


def test_each_row_is_measured_by_what_the_other_folds_have_shown() -> None:
    """The label's bias depends on the fold, so that offsets that had seen a row's own fold would be others."""
    examples = rows(["yes" if n % 3 else "no" for n in range(40)])
    evaluator = model(lambda row: (-1.0 - (row % FOLDS) / 10 - 4 * (row % 3 == 0), -9.0))
    known = [ran(evaluator, PLAIN, examples)]
    found = recalibrated(evaluator, known, ("batch",))
    assert found is not None and len(found.folds) > 1
    for candidate, places in found.folds:
        others = [row for row in range(40) if row % FOLDS != places[0] % FOLDS]
        assert {place % FOLDS for place in places} == {places[0] % FOLDS}
        gap = np.mean([-1.0 - (row % FOLDS) / 10 - 4 * (row % 3 == 0) + 9.0 for row in others])
        calibration = candidate.states["p"].readout.calibration
        assert calibration is not None
        assert calibration.offsets["answer"]["yes"] == pytest.approx(gap / 2, abs=1e-4)


def test_only_rows_that_are_answered_otherwise_are_run_and_no_more_than_there_is_room_for() -> None:
    examples = rows(["yes", "no"] * 20)
    evaluator = model(lambda row: (-1.0 - (row % 2) * 3, -6.0))
    known = [ran(evaluator, PLAIN, examples)]
    found = recalibrated(evaluator, known, METHODS)
    assert found is not None and found.calls == 20, "every no was a yes"
    before = evaluator.spent
    found.run(evaluator, examples)
    assert evaluator.spent - before == 20
    assert recalibrated(evaluator, known, METHODS, most_calls=20) is not None
    assert recalibrated(evaluator, known, METHODS, most_calls=19) is None


def test_a_calibration_that_hurts_is_taken_away() -> None:
    examples = rows(["yes", "no"] * 20)
    evaluator = model(lambda row: (-2.0, -2.5 + row % 2))
    worse = with_calibration(BATCH)
    found = recalibrated(evaluator, [ran(evaluator, worse, examples)], ("none",))
    assert found is not None and found.methods == {"p": "none"}
    assert found.candidate.states["p"].readout.calibration is None
    assert recalibrated(evaluator, [ran(evaluator, PLAIN, examples)], METHODS) is None, "nothing is better than all"


@pytest.mark.parametrize(("method", "kept"), [("none", {"other"}), ("batch", {"other", "answer"})])
def test_an_output_without_gold_labels_keeps_its_offsets(method: str, kept: set[str]) -> None:
    examples = rows(["yes", "no"] * 20)
    given = Calibration(method="contextual", offsets={"answer": {"yes": 9.0, "no": -9.0}, "other": {"x": 1.0}})
    evaluator = model(lambda row: (-2.0, -2.5 + row % 2))
    found = recalibrated(evaluator, [ran(evaluator, with_calibration(given), examples)], (method,))
    assert found is not None
    calibration = found.candidate.states["p"].readout.calibration
    assert calibration is not None
    assert set(calibration.offsets) == kept
    assert calibration.offsets["other"] == {"x": 1.0}


def test_another_candidate_wins_only_when_it_promises_more_than_the_chosen_one_has() -> None:
    examples = rows(["yes", "no"] * 20)
    good, bad = model(lambda row: (-1.0, -1.5 + row % 2)), model(lambda row: (-1.0, -9.0 + (row % 2) * (row % 4 == 1)))
    chosen = ran(good, PLAIN, examples)
    other = ran(bad, with_calibration(BATCH), examples)
    assert chosen[0].score == 1.0
    assert recalibrated(good, [chosen, other], METHODS) is None
    found = recalibrated(good, [other, chosen], METHODS)
    assert found is not None and found.candidate.states["p"].readout.calibration != BATCH


@pytest.mark.parametrize("allowed", [(), ("contextual",), ("matrix",)])
def test_nothing_is_tried_with_methods_that_are_not_allowed(allowed: tuple[str, ...]) -> None:
    examples = rows(["yes", "no"] * 20)
    evaluator = model(lambda row: (-1.0 - (row % 2) * 3, -6.0))
    assert recalibrated(evaluator, [ran(evaluator, PLAIN, examples)], allowed) is None


def test_what_has_no_gold_labels_or_chose_no_label_stays_as_it_is() -> None:
    evaluator = model(lambda row: (-1.0, -6.0))
    assert recalibrated(evaluator, [ran(evaluator, PLAIN, rows([None] * 20))], METHODS) is None
    examples = rows(["yes", "no"] * 10)
    trial, outcomes = ran(evaluator, PLAIN, examples)
    unread = [Outcome(o.row, Measurement(0.0), unread="?") if o.row.id == 3 else o for o in outcomes]
    assert recalibrated(evaluator, [(trial, unread)], METHODS) is None
    free = Candidate({"p": PredictorState(readout=ReadOut(kind="text"))})
    assert recalibrated(evaluator, [ran(evaluator, free, examples)], METHODS) is None


def test_every_row_is_in_one_fold() -> None:
    for count in (1, 2, FOLDS - 1, FOLDS, 3 * FOLDS + 4):
        places = np.concatenate([fold for fold, _ in folds_of(count)])
        assert sorted(places.tolist()) == list(range(count))
        assert all(not set(fold.tolist()) & set(others.tolist()) for fold, others in folds_of(count))
