"""Metrics over labels know them from the program's own types."""

from __future__ import annotations

import dspy
import pytest
from fakes import FakeEngine, fake_target, says

import cuecard
from cuecard.compiler.label_metrics import knowing_labels
from cuecard.errors import InputError
from cuecard.metrics import metric

ROUTE = "ticket -> queue: Literal['billing', 'technical']"


class Two(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = dspy.Predict("ticket -> topic")
        self.second = dspy.Predict(cuecard.signature(ROUTE))


@pytest.mark.parametrize("program", [dspy.Predict(cuecard.signature(ROUTE)), Two()])
def test_labels_come_from_the_types(program: dspy.Module) -> None:
    unknowing = metric({"metric": "macro_f1", "field": "queue"})
    with pytest.raises(InputError, match="labels"):
        _ = unknowing.width
    known = knowing_labels(unknowing, program)
    right = known.measure({"queue": "billing"}, {"queue": "billing"})
    wrong = known.measure({"queue": "technical"}, {"queue": "billing"})
    assert known.aggregate([right, right]) == 1.0
    assert known.aggregate([right, wrong]) == pytest.approx((2 / 3 + 0) / 2)


def test_a_program_is_scored_by_macro_f1() -> None:
    rows = [dspy.Example(ticket=str(i), queue=q).with_inputs("ticket") for i, q in enumerate(["billing", "technical"])]
    program = dspy.Predict(cuecard.signature(ROUTE))
    target = fake_target(FakeEngine(says("[[ ## queue ## ]]\nbilling\n\n[[ ## completed ## ]]")))
    assert cuecard.evaluate(program, rows, "macro_f1", target=target).score.value == pytest.approx(1 / 3)
