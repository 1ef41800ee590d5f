"""What every metric owes its callers, checked on each built-in one and on sums of them."""

from __future__ import annotations

import copy
import math
import pickle
import re
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import dspy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cuecard.errors import InputError
from cuecard.metrics import Measurement, Metric, metric

texts = st.text(max_size=12) | st.lists(st.sampled_from(["cat", "sat", "the", "é", "\n"]), max_size=6).map(" ".join)
numbers = st.integers(-9, 9) | st.decimals(-99, 99, places=2).map(str)
names = st.sampled_from(["Ann", "Bob", "Rome", "  ", "é", ""])
records = st.dictionaries(st.sampled_from("abc"), st.integers(0, 2) | names | st.lists(st.booleans(), max_size=2))
entities = st.lists(st.fixed_dictionaries({"label": st.sampled_from(["PER", "LOC"]), "text": names}), max_size=3)
LABELS = ["billing", "technical", "account"]


@dataclass(frozen=True)
class Case:
    """A metric, what its gold values may be, what besides them a model may give, and gold values of perfect answers."""

    spec: Any
    gold: st.SearchStrategy[Any] = texts
    prediction: st.SearchStrategy[Any] = texts
    perfect: tuple[Any, Any] = ("the cat sat on the mat", "a dog ran through the park")
    wrong: Any = "qqq"


ENTITIES = ([{"label": "PER", "text": "Ann"}], [{"label": "LOC", "text": "Rome"}])
CASES = {
    **{
        name: Case(name)
        for name in ("exact_match", "f1", "rouge_1", "rouge_2", "rouge_l", "rouge_lsum", "bleu", "chrf", "ter")
    },
    **{name: Case(name) for name in ("accuracy", "contains", "levenshtein")},
    "stemmed recall": Case({"metric": "rouge_l", "use_stemmer": True, "score": "recall"}),
    "chrf++": Case({"metric": "chrf", "word_order": 2}),
    "words": Case({"metric": "levenshtein", "unit": "words", "ignore_case": True}),
    "mean of means": Case([{"metric": "f1", "weight": 2}, "exact_match"]),
    "mean and corpus": Case([{"metric": "bleu", "weight": 2}, "f1", "chrf"]),
    "regex": Case({"metric": "regex", "pattern": "cat|dog"}),
    "patterns": Case("regex", texts.map(re.escape), texts, ("a.c", "[0-9]+x?")),
    "length": Case({"metric": "length", "min": 2, "max": 6}),
    "numeric": Case("numeric", numbers, numbers | texts, (3, "1,200.50")),
    "macro_f1": Case({"metric": "macro_f1", "labels": LABELS}, st.sampled_from(LABELS), texts, ("billing", "account")),
    "mcc": Case({"metric": "mcc", "labels": LABELS}, st.sampled_from(LABELS), texts, ("billing", "account")),
    "json_fields": Case("json_fields", records, records | texts, ({"a": 1, "b": [True]}, {"a": "x"})),
    "set_f1": Case("set_f1", st.lists(names, max_size=3), st.lists(names) | texts, (["Ann", "Bob"], ["Rome"])),
    "span_f1": Case("span_f1", entities, entities | texts, ENTITIES),
    "spans by example": Case({"metric": "span_f1", "average": "examples"}, entities, entities | texts, ENTITIES),
    "labels and texts": Case(
        [{"metric": "mcc", "labels": LABELS}, "exact_match"], st.sampled_from(LABELS), texts, ("billing", "account")
    ),
}


every_metric = pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))


def measure(ours: Metric, gold: Any, prediction: Any) -> Measurement:
    return ours.measure({"x": gold}, {"x": prediction})


def pairs(case: Case) -> st.SearchStrategy[list[tuple[Any, Any]]]:
    """Gold values and predictions, some of which are the gold values."""
    one = st.tuples(case.gold, case.prediction) | case.gold.map(lambda gold: (gold, gold))
    return st.lists(one, min_size=1, max_size=5)


@every_metric
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_scores_and_aggregates_stay_in_the_declared_range(case: Case, data: st.DataObject) -> None:
    ours, drawn = metric(case.spec), data.draw(pairs(case))
    measured = [measure(ours, *pair) for pair in drawn]
    for score in (*(m.score for m in measured), ours.aggregate(measured)):
        assert ours.low <= score <= ours.high
    for m in (*measured, ours.worst({"x": drawn[0][0]})):
        assert len(m.statistics) == ours.width


@every_metric
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_nothing_is_worse_than_an_output_that_could_not_be_read(case: Case, data: st.DataObject) -> None:
    ours = metric(case.spec)
    for gold, prediction in data.draw(pairs(case)):
        assert ours.worst({"x": gold}).score == pytest.approx(ours.low)
        assert ours.low <= measure(ours, gold, prediction).score


@every_metric
@settings(max_examples=25, deadline=None)
@given(data=st.data(), seed=st.integers(0, 9))
def test_the_order_of_examples_changes_nothing(case: Case, data: st.DataObject, seed: int) -> None:
    ours = metric(case.spec)
    measured = [measure(ours, *pair) for pair in data.draw(pairs(case))]
    shuffled = [measured[i] for i in np.random.default_rng(seed).permutation(len(measured))]
    assert ours.aggregate(shuffled) == ours.aggregate(measured)


@every_metric
def test_perfect_outputs_score_highest(case: Case) -> None:
    ours = metric(case.spec)
    perfect = [measure(ours, gold, gold) for gold in case.perfect]
    assert [m.score for m in perfect] == pytest.approx([ours.high, ours.high])
    assert ours.aggregate(perfect) == pytest.approx(ours.high)
    assert measure(ours, case.perfect[0], case.wrong).score < ours.high


@every_metric
def test_the_standard_error_is_the_jackknifes(case: Case) -> None:
    ours = metric(case.spec)
    golds = [*case.perfect, *case.perfect, case.perfect[0]]
    measured = [measure(ours, gold, gold) for gold in golds[:3]] + [
        measure(ours, gold, case.wrong) for gold in golds[3:]
    ]
    left_out = [ours.aggregate([*measured[:i], *measured[i + 1 :]]) for i in range(len(measured))]
    expected = np.sqrt(len(measured) - 1) * np.std(left_out)
    assert ours.standard_error(measured) == pytest.approx(expected)
    if not ours.width:
        scores = [m.score for m in measured]
        assert ours.aggregate(measured) == pytest.approx(np.mean(scores))
        assert ours.standard_error(measured) == pytest.approx(np.std(scores, ddof=1) / np.sqrt(len(scores)))
    assert math.isnan(ours.standard_error(measured[:1]))


@every_metric
def test_what_a_metric_declares_is_what_it_does(case: Case) -> None:
    ours = metric(case.spec)
    told = ours.describe()
    assert (told.name, told.low, told.high, told.direction) == (ours.name, ours.low, ours.high, "higher is better")
    assert told.aggregation == ("corpus" if ours.width else "mean")
    assert ("Wilson" in told.interval) == (told.aggregation == "mean" and told.low == 0)
    assert told.error == "delete-one jackknife"


@every_metric
def test_nothing_to_aggregate_is_refused(case: Case) -> None:
    for ask in (metric(case.spec).aggregate, metric(case.spec).standard_error):
        with pytest.raises(InputError, match=r"has nothing to aggregate; expected at least one measurement$"):
            ask([])


@every_metric
def test_dspy_objects_and_mappings_measure_alike_and_inputs_are_not_compared(case: Case) -> None:
    ours, (gold, other) = metric(case.spec), case.perfect
    example = dspy.Example(question="who sat?", x=gold).with_inputs("question")
    for value in (gold, other, case.wrong):
        prediction = dspy.Prediction(x=value, reasoning="it did")
        assert ours.measure(example, prediction) == measure(ours, gold, value)
    assert ours.worst(example) == ours.worst({"x": gold})


@every_metric
def test_copies_measure_alike(case: Case) -> None:
    ours, (gold, other) = metric(case.spec), case.perfect
    expected = measure(ours, gold, other)  # Whatever is built on first use is copied, too.
    assert measure(copy.deepcopy(ours), gold, other) == expected
    assert measure(pickle.loads(pickle.dumps(ours)), gold, other) == expected


def test_typed_outputs_are_compared_as_text_by_text_metrics() -> None:
    f1 = metric("f1")
    assert f1.measure({"x": ["red cat", "dog"]}, {"x": ["red", "dog"]}).score == pytest.approx(0.8)
    assert f1.measure({"x": {"b": 1, "a": "é"}}, {"x": {"a": "é", "b": 1}}).score == 1
    assert f1.measure({"x": {"red", "dog"}}, {"x": {"dog", "red"}}).score == 1


def test_an_example_whose_inputs_were_never_set_is_all_labels() -> None:
    assert metric("exact_match").measure(dspy.Example(x="a", y="b"), dspy.Prediction(x="a", y="c")).score == 0.5


def test_importing_metrics_and_naming_one_loads_nothing_heavy() -> None:
    code = (
        "import sys, cuecard.metrics as m; m.metric(['rouge_l', 'bleu', 'ter', 'f1', 'set_f1', 'similarity']); m.wilson(1, 2);"
        "print([n for n in ('scipy', 'sacrebleu', 'rouge_score', 'nltk', 'dspy', 'torch', 'sentence_transformers') if n in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "[]\n"
