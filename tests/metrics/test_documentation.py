"""What docs/metrics.md says is what the metrics do: its numbers, its examples, its table."""

from __future__ import annotations

import math
import re
from pathlib import Path

import dspy
import pytest
import yaml

import cuecard
from cuecard.compiler.judging import metric_of
from cuecard.metrics import metric, names

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
TABLES = [
    [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in block.splitlines()]
    for block in re.findall(r"(?:^\|.*\|$\n?)+", PAGE, re.MULTILINE)
]
ASKING = ("perplexity", "judge", "preference")
LISTED, FOOLED = ({row[0]: dict(zip(table[0][1:], row[1:], strict=True)) for row in table[2:]} for table in TABLES)


def score(name: str, case: str, **options: str) -> float:
    gold, prediction = FOOLED[case]["reference"], FOOLED[case]["output"]
    return metric({"metric": name, **options}).measure({"x": gold}, {"x": prediction}).score


def test_every_metric_is_listed() -> None:
    assert sorted(name for cell in LISTED for name in re.findall(r"`(\w+)`", cell)) == sorted({*names(), *ASKING})


@pytest.mark.parametrize("spec", re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL))
def test_the_examples_are_metrics(spec: str) -> None:
    assert metric_of(yaml.safe_load(spec)["metric"]).name


def test_every_metric_with_options_has_an_example() -> None:
    shown = {
        name
        for spec in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
        for name in re.findall(r"metric: (\w+)", spec)
    }
    assert set(names()) - shown == {"f1", "rouge_1", "rouge_2", "rouge_lsum", "weighted", "python"}


@pytest.mark.parametrize("cell", [cell for cell in LISTED if cell not in ("`weighted`", "`python`")])
def test_range_and_aggregation_are_what_the_metric_declares(cell: str) -> None:
    for name in re.findall(r"`(\w+)`", cell):
        options = {"length": {"max": 3}, "judge": {"rubric": "x"}, "preference": {"rubric": "x"}}.get(name, {})
        told = metric_of({"metric": name, **options}).describe()
        assert LISTED[cell]["range"] == f"{told.low:g}..{told.high:g}"
        assert LISTED[cell]["aggregation"].partition(",")[0] == told.aggregation


@pytest.mark.parametrize("case", FOOLED)
def test_the_numbers_are_computed_from_the_texts(case: str) -> None:
    for name in ("rouge_1", "rouge_2", "rouge_l", "bleu", "chrf", "ter"):
        assert f"{score(name, case):.2f}" == FOOLED[case][name], name


def test_what_is_said_of_clipping_and_brevity() -> None:
    assert score("rouge_1", "clipping", score="precision") == pytest.approx(2 / 7)
    assert score("rouge_1", "clipping", score="recall") == pytest.approx(2 / 6)
    assert score("bleu", "brevity") == pytest.approx(math.exp(1 - 12 / 5))
    assert f"{math.exp(1 - 12 / 5):.2f}" == "0.25"
    assert score("rouge_1", "brevity", score="precision") == 1
    assert f"{score('rouge_1', 'brevity', score='recall'):.2f}" == "0.42"
    longer = {"x": FOOLED["brevity"]["reference"] + " and so on" * 50}
    recall = metric({"metric": "rouge_1", "score": "recall"})
    assert recall.measure({"x": FOOLED["brevity"]["reference"]}, longer).score == 1


def test_the_contrary_scores_above_the_paraphrase() -> None:
    for name in ("rouge_1", "rouge_2", "rouge_l", "bleu", "chrf", "ter"):
        assert score(name, "negation") > score(name, "paraphrase") + 0.5


def test_the_perplexities_are_the_models(default_model: Path) -> None:
    told = re.findall(r'^- (\d+): "(.*)"$', PAGE, re.MULTILINE)
    assert len(told) == 4
    ours = metric_of("perplexity")
    with dspy.context(lm=cuecard.target(str(default_model), device="cpu").lm):
        for number, text in told:
            assert 1 / ours.measure({}, {"reply": text}).score == pytest.approx(float(number), rel=0.1)
