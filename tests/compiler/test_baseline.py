"""Baselines: their file, and the gate that tells a regression from noise."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuecard.compiler.baseline import (
    Baseline,
    could_go_unseen,
    gate,
    read_baseline,
    row_key,
    unique_keys,
    unseen_text,
    write_baseline,
)
from cuecard.compiler.judging import JudgeMetric
from cuecard.errors import InputError
from cuecard.metrics import Measurement, Metric, metric
from cuecard.metrics.source import source_digest

EXACT = metric("exact_match")


def rows(*scores: float) -> dict[str, Measurement]:
    return {f"{place:04}": Measurement(score) for place, score in enumerate(scores)}


def baseline(*scores: float) -> Baseline:
    return Baseline("exact_match", rows(*scores))


# ---- the file

finite = st.floats(allow_nan=False, allow_infinity=False)
made = st.integers(0, 3).flatmap(
    lambda width: st.builds(
        Baseline,
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
        st.dictionaries(
            st.text("0123456789abcdef-", min_size=1),
            st.builds(Measurement, finite, st.tuples(*[finite] * width)),
            min_size=1,
        ),
        st.text(st.characters(exclude_categories=["Cs"])),
        st.text("0123456789abcdef"),
        st.text("0123456789abcdef"),
    )
)


@given(made)
def test_a_baseline_survives_its_file(tmp_path_factory: pytest.TempPathFactory, given_: Baseline) -> None:
    path = tmp_path_factory.getbasetemp() / "b.json"
    write_baseline(path, given_)
    first = path.read_bytes()
    assert read_baseline(path) == given_
    write_baseline(path, read_baseline(path))
    assert path.read_bytes() == first
    assert json.loads(first)["format"] == "cuecard-baseline-1"


def test_a_row_is_a_line_and_lines_are_sorted(tmp_path: Path) -> None:
    write_baseline(
        tmp_path / "b.json", Baseline("bleu", {"b": Measurement(0.5, (1.0, 2.0)), "a": Measurement(1.0, (0, 3))})
    )
    assert (tmp_path / "b.json").read_text() == (
        '{\n  "format": "cuecard-baseline-1",\n  "metric": "bleu",\n  "program": "",\n  "target": "",\n'
        '  "rows": {\n    "a": [1.0, 0, 3],\n    "b": [0.5, 1.0, 2.0]\n  }\n}\n'
    )


def test_what_the_metric_was_is_a_line_of_its_own(tmp_path: Path) -> None:
    write_baseline(tmp_path / "b.json", Baseline("judge", {"a": Measurement(0.5)}, metric_digest="0f"))
    assert (tmp_path / "b.json").read_text().splitlines()[2:4] == ['  "metric": "judge",', '  "metric_digest": "0f",']
    assert read_baseline(tmp_path / "b.json").metric_digest == "0f"


HEAD = '"format": "cuecard-baseline-1", "metric": "exact_match"'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ("{\n  oops", "b.json:2: not valid JSON"),
        ("[]", "not a baseline"),
        ('{"format": "other"}', "found the format 'other'"),
        (f'{{{HEAD}, "row": {{}}}}', "there is no key 'row' (did you mean 'rows'?)"),
        (f'{{{HEAD}, "rows": {{}}}}', "rows: found {}"),
        (f"{{{HEAD}}}", "rows: found nothing"),
        (f'{{{HEAD}, "rows": {{"a": "1"}}}}', 'rows.a: found "1"'),
        (f'{{{HEAD}, "rows": {{"a": true}}}}', "rows.a: found true"),
        (f'{{{HEAD}, "rows": {{"a": NaN}}}}', "rows.a: found NaN"),
        (f'{{{HEAD}, "rows": {{"a": []}}}}', "rows.a: found []"),
        (f'{{{HEAD}, "rows": {{"a": 1, "a": 0}}}}', "the key 'a' stands twice"),
        (f'{{{HEAD}, "rows": {{"a": 1, "b": [1, 2]}}}}', "rows have 0 and 1 statistics"),
        ('{"format": "cuecard-baseline-1", "metric": "", "rows": {"a": 1}}', 'metric: found ""'),
        (f'{{{HEAD}, "target": 3, "rows": {{"a": 1}}}}', "target: found 3"),
        (f'{{{HEAD}, "metric_digest": 3, "rows": {{"a": 1}}}}', "metric_digest: found 3"),
    ],
)
def test_what_is_no_baseline_is_told(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "b.json").write_text(text)
    with pytest.raises(InputError) as caught:
        read_baseline(tmp_path / "b.json")
    assert message in str(caught.value)


def test_a_missing_baseline_is_told_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "triage.json").write_text("{}")
    with pytest.raises(InputError, match="no such file .did you mean"):
        read_baseline(tmp_path / "triag.json")


# ---- keys


def test_a_key_depends_on_the_values_alone() -> None:
    key = row_key({"a": 1, "b": "x"}, {"y": ["p", "q"]})
    assert key == row_key({"b": "x", "a": 1}, {"y": ["p", "q"]})
    assert len({key, row_key({"a": 1, "b": "x"}, {"y": ["p"]}), row_key({"a": "1", "b": "x"}, {"y": ["p", "q"]})}) == 3
    assert row_key({"a": 1}, {}) != row_key({}, {"a": 1})
    assert len(key) == 16
    assert row_key({"a": "\ud800"}, {})  # half a surrogate pair


def test_the_same_row_twice_has_two_keys() -> None:
    assert unique_keys(["a", "b", "a", "a"]) == ["a", "b", "a-2", "a-3"]


# ---- the gate


def test_the_same_scores_pass() -> None:
    found = gate(EXACT, rows(1, 0, 1, 1), baseline=baseline(1, 0, 1, 1))
    assert found.passed
    assert found.matched == 4
    assert found.comparison is not None
    assert found.comparison.difference == 0
    assert found.detectable > 0.5


def test_a_large_loss_fails_and_says_so() -> None:
    found = gate(EXACT, rows(*[1] * 10, *[0] * 30), baseline=baseline(*[1] * 40))
    assert not found.passed
    assert "exact_match is worse than the baseline: -0.750 [" in found.reason
    assert "0 better, 30 worse, 10 equal" in found.reason


@pytest.mark.parametrize(("lost", "passed"), [(4, True), (5, False)])
def test_four_lost_rows_may_be_chance_and_five_are_not(lost: int, passed: bool) -> None:
    now = rows(*[0] * lost, *[1] * (40 - lost))
    assert gate(EXACT, now, baseline=baseline(*[1] * 40)).passed is passed


def test_a_loss_of_no_more_than_the_tolerance_passes() -> None:
    before, now = [0.5] * 40, [0.4] * 40
    assert not gate(EXACT, rows(*now), baseline=baseline(*before)).passed
    assert gate(EXACT, rows(*now), baseline=baseline(*before), tolerance=0.1).passed
    assert not gate(EXACT, rows(*now), baseline=baseline(*before), tolerance=0.09).passed


def test_a_gain_passes() -> None:
    assert gate(EXACT, rows(*[1] * 40), baseline=baseline(*[0] * 40)).passed


def test_rows_of_one_side_are_said() -> None:
    now = rows(1, 0, 1) | {"new": Measurement(0.0)}
    then = Baseline("exact_match", rows(1, 0, 1) | {"old": Measurement(1.0), "older": Measurement(1.0)})
    found = gate(EXACT, now, baseline=then)
    assert found.matched == 3
    assert found.score.n == 4
    assert "not compared: 1 row not in the baseline and 2 rows of the baseline not in the data" in found.reason


@pytest.mark.parametrize(("at_least", "passed"), [(0.75, True), (0.76, False)])
def test_a_floor_holds_the_score_itself(at_least: float, passed: bool) -> None:
    found = gate(EXACT, rows(1, 1, 1, 0), at_least=at_least)
    assert found.passed is passed
    assert found.comparison is None
    assert f"{at_least:g}" in found.reason
    assert found.reason.endswith(f"; {unseen_text(EXACT, found.detectable)}")


def test_what_could_go_unseen_is_said_in_the_metrics_own_range() -> None:
    assert unseen_text(EXACT, 0.0912) == "a difference below 0.091 could go unseen"
    assert unseen_text(EXACT, 0.0912, "bleu") == "a difference of bleu below 0.091 could go unseen"
    assert unseen_text(EXACT, 1.2) == "any difference could go unseen"
    assert unseen_text(metric("mcc"), 1.2) == "a difference below 1.200 could go unseen"
    right = [Measurement(float(n < 70)) for n in range(120)]
    assert could_go_unseen(EXACT, right) == pytest.approx(2.8016 * math.sqrt(70 / 120 * 50 / 119 / 120), abs=1e-4)


def test_floor_and_baseline_must_both_hold() -> None:
    assert not gate(EXACT, rows(0, 0), at_least=0.5, baseline=baseline(0, 0)).passed


def test_a_corpus_metric_is_compared_by_its_statistics() -> None:
    bleu = metric("bleu")
    texts = [f"the {word} sat on the old mat" for word in ("cat", "dog", "fox", "owl") * 10]
    good = {f"{n}": bleu.measure({"a": text}, {"a": text}) for n, text in enumerate(texts)}
    bad = {f"{n}": bleu.measure({"a": text}, {"a": "the mat"}) for n, text in enumerate(texts)}
    assert gate(bleu, good, baseline=Baseline("bleu", good)).passed
    assert not gate(bleu, bad, baseline=Baseline("bleu", good)).passed
    with pytest.raises(InputError, match="hold 0 statistics of 'bleu'"):
        gate(bleu, good, baseline=Baseline("bleu", {key: Measurement(1.0) for key in good}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baseline": Baseline("bleu", rows(1))}, "the baseline holds scores of 'bleu'; expected 'exact_match'"),
        (
            {"baseline": Baseline("exact_match", {"x": Measurement(1.0)})},
            "none of the 2 examples stands in the baseline",
        ),
        ({"baseline": baseline(1, 1), "tolerance": -0.1}, "tolerance: found -0.1; expected 0 to 1"),
        ({}, "nothing to judge by"),
    ],
)
def test_what_can_not_be_judged_is_told(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as caught:
        gate(EXACT, rows(1, 0), **changes)  # type: ignore[arg-type]
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("was", "now"),
    [
        (JudgeMetric("How kind is it?"), JudgeMetric("How short is it?")),
        (metric("exact_match"), metric({"metric": "exact_match", "normalize": True})),
    ],
)
def test_scores_by_another_rubric_are_not_compared(was: Metric, now: Metric) -> None:
    then = Baseline(was.name, rows(1, 0), metric_digest=source_digest(was))
    assert gate(was, rows(1, 0), baseline=then).passed
    with pytest.raises(InputError) as caught:
        gate(now, rows(1, 0), baseline=then)
    assert str(caught.value) == (
        f"baseline: the baseline was written with another rubric or other options of '{now.name}'\n"
        "  Write the baseline again with --update-baseline."
    )
    assert gate(now, rows(1, 0), baseline=Baseline(was.name, rows(1, 0))).passed, "an old file does not say"


def test_the_order_of_rows_changes_nothing() -> None:
    now, then = rows(1, 0, 0, 1, 0), rows(1, 1, 0, 1, 1)
    turned = dict(reversed(now.items()))
    assert gate(EXACT, now, baseline=Baseline("exact_match", then), seed=5) == gate(
        EXACT, turned, baseline=Baseline("exact_match", dict(reversed(then.items()))), seed=5
    )


def test_programs_that_are_equally_good_rarely_fail_and_a_worse_one_often() -> None:
    rng = np.random.default_rng(7)
    alarms = found = 0
    for _ in range(60):
        then = rng.random(60) < 0.7
        redrawn = rng.random(60) < 0.5
        same = np.where(redrawn, rng.random(60) < 0.7, then)
        worse = np.where(redrawn, rng.random(60) < 0.1, then)
        alarms += not gate(EXACT, rows(*same.astype(float)), baseline=baseline(*then.astype(float))).passed
        found += not gate(EXACT, rows(*worse.astype(float)), baseline=baseline(*then.astype(float))).passed
    assert alarms <= 3
    assert found >= 54
