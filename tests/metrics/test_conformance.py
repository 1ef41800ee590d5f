"""What every metric owes its callers, checked on each built-in one and on sums of them."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from typing import Any

import dspy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cuecard.errors import InputError
from cuecard.metrics import Measurement, Metric, metric

texts = st.text(max_size=12) | st.lists(st.sampled_from(["cat", "sat", "the", "é", "\n"]), max_size=6).map(" ".join)
pairs = st.lists(st.tuples(texts, texts), min_size=1, max_size=5)

SPECS: dict[str, Any] = {
    **{name: name for name in ("exact_match", "f1", "rouge_1", "rouge_2", "rouge_l", "rouge_lsum", "bleu", "chrf")},
    "stemmed recall": {"metric": "rouge_l", "use_stemmer": True, "part": "recall"},
    "chrf++": {"metric": "chrf", "word_order": 2},
    "mean of means": [{"metric": "f1", "weight": 2}, "exact_match"],
    "mean and corpus": [{"metric": "bleu", "weight": 2}, "f1", "chrf"],
}


every_metric = pytest.mark.parametrize("ours", [metric(spec) for spec in SPECS.values()], ids=list(SPECS))


def measure(ours: Metric, gold: str, prediction: str) -> Measurement:
    return ours.measure({"x": gold}, {"x": prediction})


@every_metric
@settings(max_examples=25, deadline=None)
@given(texts=pairs)
def test_scores_and_aggregates_stay_in_the_declared_range(ours: Metric, texts: list[tuple[str, str]]) -> None:
    measured = [measure(ours, *pair) for pair in texts]
    for score in (*(m.score for m in measured), ours.aggregate(measured)):
        assert ours.low <= score <= ours.high
    for m in (*measured, ours.worst({"x": texts[0][0]})):
        assert len(m.statistics) == ours.width


@every_metric
@settings(max_examples=25, deadline=None)
@given(texts=pairs)
def test_nothing_is_worse_than_an_output_that_could_not_be_read(ours: Metric, texts: list[tuple[str, str]]) -> None:
    for gold, prediction in texts:
        assert ours.worst({"x": gold}).score == ours.low <= measure(ours, gold, prediction).score


@every_metric
@settings(max_examples=25, deadline=None)
@given(texts=pairs, seed=st.integers(0, 9))
def test_the_order_of_examples_changes_nothing(ours: Metric, texts: list[tuple[str, str]], seed: int) -> None:
    measured = [measure(ours, *pair) for pair in texts]
    shuffled = [measured[i] for i in np.random.default_rng(seed).permutation(len(measured))]
    assert ours.aggregate(shuffled) == ours.aggregate(measured)


@every_metric
def test_a_perfect_output_scores_highest(ours: Metric) -> None:
    perfect = measure(ours, "the cat sat on the mat", "the cat sat on the mat")
    assert perfect.score == pytest.approx(ours.high)
    assert ours.aggregate([perfect, perfect]) == pytest.approx(ours.high)


@every_metric
def test_the_aggregate_of_a_mean_metric_is_the_mean(ours: Metric) -> None:
    measured = [measure(ours, "the cat sat", text) for text in ("the cat sat", "the cat", "a dog")]
    if not ours.width:
        assert ours.aggregate(measured) == pytest.approx(np.mean([m.score for m in measured]))


@every_metric
def test_nothing_to_aggregate_is_refused(ours: Metric) -> None:
    with pytest.raises(InputError, match=r"has nothing to aggregate; expected at least one measurement$"):
        ours.aggregate([])


@every_metric
def test_dspy_objects_and_mappings_measure_alike_and_inputs_are_not_compared(ours: Metric) -> None:
    example = dspy.Example(question="who sat?", x="the cat sat on it").with_inputs("question")
    prediction = dspy.Prediction(x="the cat sat", reasoning="it did")
    expected = measure(ours, "the cat sat on it", "the cat sat")
    assert ours.measure(example, prediction) == expected
    assert ours.worst(example) == ours.worst({"x": "the cat sat on it"})
    assert expected.score > ours.low or ours.name == "exact_match"


@every_metric
def test_copies_measure_alike(ours: Metric) -> None:
    expected = measure(ours, "the cat sat on it", "the cat sat")  # Whatever is built on first use is copied, too.
    assert measure(copy.deepcopy(ours), "the cat sat on it", "the cat sat") == expected
    assert measure(pickle.loads(pickle.dumps(ours)), "the cat sat on it", "the cat sat") == expected


def test_typed_outputs_are_compared_as_text_by_text_metrics() -> None:
    f1 = metric("f1")
    assert f1.measure({"x": ["red cat", "dog"]}, {"x": ["red", "dog"]}).score == pytest.approx(0.8)
    assert f1.measure({"x": {"b": 1, "a": "é"}}, {"x": {"a": "é", "b": 1}}).score == 1
    assert f1.measure({"x": {"red", "dog"}}, {"x": {"dog", "red"}}).score == 1


def test_an_example_whose_inputs_were_never_set_is_all_labels() -> None:
    assert metric("exact_match").measure(dspy.Example(x="a", y="b"), dspy.Prediction(x="a", y="c")).score == 0.5


def test_importing_metrics_and_naming_one_loads_nothing_heavy() -> None:
    code = (
        "import sys, cuecard.metrics as m; m.metric(['rouge_l', 'bleu', 'chrf', 'f1']); m.wilson(1, 2);"
        "print([n for n in ('scipy', 'sacrebleu', 'rouge_score', 'nltk', 'dspy', 'torch') if n in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "[]\n"
