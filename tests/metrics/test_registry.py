"""What a spec may say of a metric, and the exact words of every refusal."""

from __future__ import annotations

from importlib.metadata import EntryPoint, EntryPoints
from typing import Any

import pytest

import cuecard.metrics.registry as registry
from cuecard.errors import InputError
from cuecard.metrics import Measurement, Metric, Record, Weighted, metric, names

BUILT_IN = (
    "accuracy", "bleu", "calibration_error", "chrf", "contains", "exact_match", "f1", "json_fields", "length", "levenshtein",
    "macro_f1", "mcc", "numeric", "python", "regex", "rouge_1", "rouge_2", "rouge_l", "rouge_lsum", "set_f1", "similarity",
    "span_f1", "ter", "weighted",
)  # fmt: skip
ALL = (
    "accuracy, bleu, calibration_error, chrf, contains, exact_match, f1, json_fields, length, levenshtein, macro_f1, mcc, "
    "numeric, python, regex, rouge_1, rouge_2, rouge_l, rouge_lsum, set_f1, similarity, span_f1, ter, weighted"
)
NEEDED = {"length": {"max": 3}}
EXAMPLE = {"answer": "the cat sat", "queue": "billing"}
PREDICTION = {"answer": "the cat", "queue": "billing"}


def test_names() -> None:
    assert names() == BUILT_IN


@pytest.mark.parametrize("name", [name for name in BUILT_IN if name not in ("python", "weighted")])
def test_every_name_makes_the_metric_of_that_name(name: str) -> None:
    given = {"metric": name, **NEEDED.get(name, {})}
    assert metric(given).name == name
    assert metric({**given, "fields": ["answer", "queue"]}).fields == ("answer", "queue")


def test_a_metric_and_a_subclass_of_it_are_taken_as_they_are() -> None:
    ours = metric("f1")
    assert metric(ours) is ours
    assert metric({"metric": type(ours), "field": "answer"}).fields == ("answer",)


def test_a_list_is_a_weighted_sum_with_normalised_weights() -> None:
    ours = metric([{"metric": "f1", "field": "answer", "weight": 3}, {"metric": "exact_match", "field": "queue"}])
    assert ours.name == "0.75 f1 + 0.25 exact_match"
    assert ours.fields == ("answer", "queue")
    assert ours.measure(EXAMPLE, PREDICTION).score == pytest.approx(0.75 * 2 / 3 + 0.25)
    same = metric({"metric": "weighted", "metrics": [{"metric": "f1", "field": "answer", "weight": 3}, "exact_match"]})
    assert same.name == ours.name
    assert metric(["f1"]).name == "f1"


def test_a_weighted_sum_keeps_corpus_scores() -> None:
    ours, bleu, f1 = (
        metric([{"metric": "bleu", "weight": 1}, {"metric": "f1", "weight": 3}]),
        metric("bleu"),
        metric("f1"),
    )
    pairs = [("the cat sat on the mat", "the cat sat on a mat"), ("hello there you all", "hello there"), ("a b", "")]

    def aggregate(m: Metric) -> float:
        read = [m.measure({"x": gold}, {"x": prediction}) for gold, prediction in pairs]
        return m.aggregate([*read, m.worst({"x": "one that could not be read"})])

    assert ours.width == bleu.width + 2
    assert aggregate(ours) == pytest.approx(0.25 * aggregate(bleu) + 0.75 * aggregate(f1))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("rougel", f"s.yaml:7: metric: there is no metric 'rougel'; expected one of {ALL} (did you mean 'rouge_l'?)"),
        ("qqq", f"s.yaml:7: metric: there is no metric 'qqq'; expected one of {ALL}"),
        (
            {"metric": "rouge_l", "stemmer": True},
            "s.yaml:7: metric: metric 'rouge_l' has no option 'stemmer'; expected one of field, fields, score, "
            "use_stemmer (did you mean 'use_stemmer'?)",
        ),
        (
            {"metric": "rouge_l", "use_stemmer": "yes"},
            "s.yaml:7: metric: option 'use_stemmer' of metric 'rouge_l' is 'yes'; expected a valid boolean",
        ),
        (
            {"metric": "rouge_l", "score": "F"},
            "s.yaml:7: metric: option 'score' of metric 'rouge_l' is 'F'; expected 'f1', 'precision' or 'recall'",
        ),
        ("length", "s.yaml:7: metric: metric 'length' has no limit; expected `min`, `max` or both"),
        (
            {"metric": "length", "min": 5, "max": 2},
            "s.yaml:7: metric: metric 'length' wants 5 to 2 words; expected min <= max",
        ),
        (
            {"metric": "length", "max": "3"},
            "s.yaml:7: metric: option 'max' of metric 'length' is '3'; expected a valid integer",
        ),
        (
            {"metric": "regex", "pattern": "("},
            "s.yaml:7: metric: the pattern '(' of metric 'regex' is not a regular expression: missing ), unterminated "
            "subpattern at position 0\n  In YAML write it in single quotes, which leave backslashes as they are.",
        ),
        (
            {"metric": "contains", "text": ["a", ""]},
            "s.yaml:7: metric: metric 'contains' looks for an empty text; expected a text to look for",
        ),
        (
            {"metric": "macro_f1", "labels": ["a", "A"], "ignore_case": True},
            "s.yaml:7: metric: the labels ['a', 'A'] of metric 'macro_f1' cannot be told apart; expected at least two, "
            "each different from the others and not empty",
        ),
        (
            {"metric": "numeric", "relative": -0.1},
            "s.yaml:7: metric: option 'relative' of metric 'numeric' is -0.1; expected greater than or equal to 0",
        ),
        (
            {"metric": "chrf", "char_order": 0},
            "s.yaml:7: metric: option 'char_order' of metric 'chrf' is 0; expected greater than or equal to 1",
        ),
        (
            {"metric": "f1", "name": "mine"},
            "s.yaml:7: metric: metric 'f1' has no option 'name'; expected one of field, fields",
        ),
        (
            {"metrc": "f1"},
            "s.yaml:7: metric: found 'metrc' instead; expected {metric: NAME, ...}",
        ),
        ({}, "s.yaml:7: metric: the key 'metric' is missing; expected {metric: NAME, ...}"),
        (
            3,
            "s.yaml:7: metric: 3 is not a metric; expected a name, 'module:function', a mapping with the key 'metric', "
            "or a list",
        ),
        ([], "s.yaml:7: metric: the list of metrics is empty; expected at least one metric"),
        (
            ["f1", {"metric": "bleu", "weight": 0}],
            "s.yaml:7: metric[1]: the weight 0 cannot be used; expected a number above 0",
        ),
        (
            [{"metric": "f1", "weight": True}],
            "s.yaml:7: metric[0]: the weight True cannot be used; expected a number above 0",
        ),
        (
            ["f1", "blue"],
            f"s.yaml:7: metric[1]: there is no metric 'blue'; expected one of {ALL} (did you mean 'bleu'?)",
        ),
        (
            {"metric": "weighted", "metrics": ["f1", "x1y2"]},
            f"s.yaml:7: metric.metrics[1]: there is no metric 'x1y2'; expected one of {ALL}",
        ),
        ({"metric": "weighted"}, "s.yaml:7: metric: metric 'weighted' needs the option 'metrics'"),
        ("python", "s.yaml:7: metric: metric 'python' needs the option 'function'"),
        (
            {"metric": "f1", "field": ["answer"]},
            "s.yaml:7: metric: the field ['answer'] is not a name; expected one name; `fields` takes several",
        ),
        (
            {"metric": "f1", "fields": "answer"},
            "s.yaml:7: metric: the fields 'answer' are not a list of names; expected such as [answer, reason]",
        ),
        (
            {"metric": "f1", "fields": ["a", "a"]},
            "s.yaml:7: metric: the fields ['a', 'a'] name one twice; expected each field once",
        ),
        (
            {"metric": "f1", "field": "a", "fields": ["b"]},
            "s.yaml:7: metric: both 'field' and 'fields' are given; expected one of them",
        ),
        (
            {"metric": len, "field": "a"},
            "s.yaml:7: metric: metric 'len' has no option 'field'; expected one of high, low",
        ),
        (
            "scoring:score",
            "s.yaml:7: metric: 'scoring:score' is Python code, which is only run when you allow it\n"
            "  Pass `--allow-code` (in Python, `allow_code=True`) if you trust it.",
        ),
        (
            {"metric": "python", "function": "scoring:score"},
            "s.yaml:7: metric: 'scoring:score' is Python code, which is only run when you allow it\n"
            "  Pass `--allow-code` (in Python, `allow_code=True`) if you trust it.",
        ),
    ],
)
def test_refusals(spec: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        metric(spec, path="s.yaml", line=7)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("example", "prediction", "message"),
    [
        (
            {"anwser": "x"},
            {"answer": "x"},
            "metric 'f1' compares the field 'answer', which the example does not have; expected one of anwser "
            "(did you mean 'anwser'?)",
        ),
        (
            {"answer": "x"},
            {"reply": "x"},
            "metric 'f1' compares the field 'answer', which the prediction does not have; expected a program that "
            "gives it, or `field:` set to one of reply",
        ),
    ],
)
def test_missing_fields(example: Any, prediction: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        metric({"metric": "f1", "field": "answer"}).measure(example, prediction)
    assert str(caught.value) == message


def test_an_example_without_labels_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"^metric 'f1' has nothing to compare; expected an example with at least one label$"
    ):
        metric("f1").measure({}, {"answer": "x"})


def test_weighted_refuses_what_cannot_be_summed() -> None:
    with pytest.raises(InputError, match=r"^a weighted sum has 1 metrics and 2 weights$"):
        Weighted([metric("f1")], [1, 2])
    with pytest.raises(InputError, match=r"^the weight inf cannot be used; expected a number above 0$"):
        Weighted([metric("f1")], [float("inf")])
    with pytest.raises(InputError, match=r"^a weighted sum has no metrics; expected at least one$"):
        Weighted([])


class Short(Metric):
    """A metric as another package would write it: 1 where the prediction has at most `most` characters."""

    name = "short"

    def __init__(self, *, most: int, fields: tuple[str, ...] = ()) -> None:
        self.most, self.fields = most, fields

    def measure(self, example: Record, prediction: Record) -> Measurement:
        return Measurement(float(len(prediction[self.fields[0]]) <= self.most))


def broken(*, x: int = 0) -> str:
    return "no metric"


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    points = EntryPoints(
        EntryPoint(name, f"{__name__}:{attribute}", registry.GROUP)
        for name, attribute in (("short", "Short"), ("broken", "broken"), ("gone", "nothing_here"), ("f1", "broken"))
    )
    monkeypatch.setattr(registry, "entry_points", lambda group: points.select(group=group))


@pytest.mark.usefixtures("plugins")
def test_other_packages_add_metrics_through_entry_points() -> None:
    assert set(names()) == {*BUILT_IN, "short", "broken", "gone"}
    ours = metric({"metric": "short", "most": 3, "field": "a"})
    assert ours.measure({"a": "x"}, {"a": "four"}).score == 0
    assert ours.measure({"a": "x"}, {"a": "two"}).score == 1
    assert metric("f1").name == "f1"  # A built-in name cannot be taken.


@pytest.mark.usefixtures("plugins")
@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("short", "metric: metric 'short' needs the option 'most'"),
        (
            {"metric": "short", "most": "3"},
            "metric: option 'most' of metric 'short' is '3'; expected a valid integer",
        ),
        (
            {"metric": "short", "mots": 3},
            "metric: metric 'short' has no option 'mots'; expected one of field, fields, most (did you mean 'most'?)",
        ),
        ("broken", "metric: metric 'broken' makes 'no metric'; expected a Metric"),
        (
            {"metric": "broken", "y": 1},
            "metric: metric 'broken' has no option 'y'; expected one of x",
        ),
    ],
)
def test_options_of_added_metrics_are_checked_like_ours(spec: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        metric(spec)
    assert str(caught.value) == message


@pytest.mark.usefixtures("plugins")
def test_an_added_metric_that_cannot_be_loaded_is_told_by_name() -> None:
    with pytest.raises(
        InputError, match=r"^metric: metric 'gone' of an installed package cannot be loaded: AttributeError"
    ):
        metric("gone")
